//! Controllers are killed during 200 running turns. Nothing is lost, nothing is doubled.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, ResourceExt};
use rand::RngExt;
use rustix::process::Signal;
use serde_json::json;

use crate::scene::agents::{shell, with};
use crate::scene::cluster::{Cluster, LEASE, SYSTEM};
use crate::scene::place::Place;
use crate::scene::times::{median, tell};
use crate::scene::turns::reason;
use crate::scene::{BOUND, follow, processes, until};
use crate::support::wait::{pause, try_eventually};

/// Turns that run at any time meanwhile.
const RUNNING: usize = 200;
/// Moments at which the leader is killed.
const KILLS: usize = 10;
/// Turns that are submitted at least.
const TURNS: usize = 400;

/// Sleeps as long as the message says, then replies with it; `fail` first makes it fail.
const PROGRAM: &str = "read n m; sleep $n; [ $m = fail ] && exit 1; echo $m";

#[derive(Debug)]
struct Turn {
    wanted: &'static str,
    outcome: Result<String, String>,
}

#[tokio::test(flavor = "multi_thread")]
async fn controllers_killed_during_200_running_turns_lose_nothing() {
    let Some(cluster) = Cluster::connect_local("a controller's process").await else { return };
    let place = Place::new(cluster, "controllers").await;
    let many =
        json!({"limits": {"minWorkers": 2, "maxWorkers": 4, "turnsPerWorker": 60}, "timing": {"leaseSeconds": 20}});
    place.agent("many", with(shell(PROGRAM), many)).await;
    let own = json!({"scope": "Conversation", "limits": {"maxWorkers": 4, "turnsPerWorker": 1}, "timing": {"idleSeconds": 0}});
    place.agent("own", with(shell(PROGRAM), own)).await;
    place.chat("many", "0 warm").await.replied(&place, "warm\n").await;

    let over = AtomicBool::new(false);
    let running = AtomicUsize::new(0);
    let numbers = futures::stream::iter((0..).take_while(|n| *n < TURNS || !over.load(Ordering::Relaxed)));
    let turns = numbers.map(|n| one(&place, n, &running)).buffer_unordered(RUNNING).collect::<Vec<Turn>>();
    let kills = async {
        until("the turns to run", async || {
            let now = running.load(Ordering::Relaxed);
            if now >= RUNNING * 3 / 4 { Ok(()) } else { Err(format!("{now}")) }
        })
        .await;
        let takeovers = kill_leaders(&place.cluster).await;
        kill_both_in_turn(&place.cluster).await;
        over.store(true, Ordering::Relaxed);
        takeovers
    };
    let (turns, takeovers) = tokio::join!(turns, kills);

    let wrong: Vec<&Turn> = turns.iter().filter(|t| t.outcome.as_deref() != Ok(t.wanted)).collect();
    assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), turns.len());
    let p50 = median(&takeovers).expect("there were kills");
    let worst = takeovers.iter().max().expect("there were kills");
    let told = format!(
        "{} turns, the leader killed {KILLS} times, both in turn: takeover p50 {:.1} s, at most {:.1} s",
        turns.len(),
        p50.as_secs_f64(),
        worst.as_secs_f64()
    );
    tell("takeover", &told);
    place.cluster.settled().await;
    place.done().await;
}

/// A turn of one of several kinds, from its submission to its one end.
async fn one(place: &Place, n: usize, running: &AtomicUsize) -> Turn {
    running.fetch_add(1, Ordering::Relaxed);
    let seconds = rand::rng().random_range(4..12);
    // A pod a turn is slow: few of those.
    let (agent, word, wanted) = match n % 100 {
        0 => ("own", "fine", "Succeeded"),
        n if n % 20 < 4 => ("many", "fail", "AgentError"),
        _ => ("many", "fine", "Succeeded"),
    };
    let message = format!("{seconds} {word}");
    let outcome = if n % 10 == 5 { object(place, agent, &message).await } else { chat(place, agent, &message).await };
    running.fetch_sub(1, Ordering::Relaxed);
    Turn { wanted, outcome }
}

async fn chat(place: &Place, agent: &str, message: &str) -> Result<String, String> {
    let ended = follow::ask(&place.api, agent, message, BOUND).await?;
    match ended.endings {
        1 => Ok(ended.outcome),
        _ => Err(format!("{ended:?}")),
    }
}

async fn object(place: &Place, agent: &str, message: &str) -> Result<String, String> {
    let object = place.object(agent, message).await;
    try_eventually(BOUND, async || {
        let turn = match object.get(place).await {
            Ok(turn) => turn,
            Err(error) => return Ok(Err(error)),
        };
        let reason = reason(&turn);
        if reason.is_empty() {
            return Err(format!("{:?}", turn.status));
        }
        let ends: Vec<String> = place.news.turn(&object.name).into_iter().filter(|s| s.contains('/')).collect();
        // The news may come a moment later than what was read; more than one would be wrong at any time.
        Ok(if ends.len() <= 1 { Ok(reason) } else { Err(format!("{ends:?}")) })
    })
    .await
    .flatten()
}

/// Kills the leader at ten moments; how long each time nobody held the Lease.
async fn kill_leaders(cluster: &Cluster) -> Vec<Duration> {
    let mut takeovers = Vec::new();
    for _ in 0..KILLS {
        let leader = until("a leader", async || cluster.leader().await.ok_or("none".to_owned())).await;
        // Another moment of its work each time.
        tokio::time::sleep(Duration::from_millis(rand::rng().random_range(0..1500))).await;
        let pod = cluster.system_pods().get(&leader).await.expect("the leader's identity is its pod's name");
        let first = until("the controller's process", async || {
            processes::find_first(&pod, "controller").ok_or_else(|| "none".to_owned())
        })
        .await;
        let (killed, wall) = (Instant::now(), Timestamp::now());
        first.signal(Signal::KILL);
        takeovers.push(renewed_after(cluster, wall, killed).await);
        running_controllers(cluster, 2).await;
    }
    takeovers
}

async fn renewed_after(cluster: &Cluster, wall: Timestamp, killed: Instant) -> Duration {
    let leases: Api<Lease> = Api::namespaced(cluster.kube.clone(), SYSTEM);
    until("somebody to hold the Lease again", async || {
        let spec = leases.get(LEASE).await.map_err(|e| e.to_string())?.spec.unwrap_or_default();
        match &spec.renew_time {
            Some(at) if at.0 > wall => Ok(()),
            _ => Err(format!("{spec:?}")),
        }
    })
    .await;
    killed.elapsed()
}

/// One after the other, so that for a moment there may be none at all.
async fn kill_both_in_turn(cluster: &Cluster) {
    for pod in cluster.pods_of("controller").await {
        processes::first_of(&pod, "controller").signal(Signal::KILL);
        pause().await;
    }
    running_controllers(cluster, 2).await;
}

/// Waits until so many controllers run again, as the API server tells it.
async fn running_controllers(cluster: &Cluster, wanted: usize) {
    until("the controllers to run again", async || {
        let pods = cluster.pods_of("controller").await;
        let ready = |pod: &&k8s_openapi::api::core::v1::Pod| {
            let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.clone()).unwrap_or_default();
            let running = statuses.iter().all(|s| s.state.as_ref().is_some_and(|s| s.running.is_some()));
            running && processes::find_first(pod, "controller").is_some()
        };
        let running = pods.iter().filter(ready).count();
        if running == wanted {
            Ok(())
        } else {
            Err(format!("{running} of {:?}", pods.iter().map(|p| p.name_any()).collect::<Vec<_>>()))
        }
    })
    .await;
}
