//! A rolling upgrade of controller and gateways under load: no turn fails, no worker is replaced. And one to TLS on the
//! worker port, and back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kube::ResourceExt;
use serde_json::json;

use crate::scene::agents::{echo, exec, with};
use crate::scene::cluster::{Cluster, SYSTEM};
use crate::scene::place::Place;
use crate::scene::times::tell;
use crate::scene::{BOUND, command, follow, try_command, until};
use crate::support::count;

/// Chats a second that are begun; what two cores can do besides a whole cluster may be less, and is printed.
const RATE: usize = 50;
/// A bound on what runs at a time, should they come slower than they are begun.
const OPEN: usize = 300;

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_under_load_fails_no_turn() {
    let Some(cluster) = Cluster::connect_local("the chart's release").await else { return };
    let place = Place::new(cluster, "upgrade").await;
    let limits =
        json!({"limits": {"minWorkers": 2, "maxWorkers": 2, "turnsPerWorker": 20}, "timing": {"leaseSeconds": 20}});
    place.agent("echo", with(echo(), limits)).await;
    let workers = until("both workers", async || {
        let mut pods: Vec<(String, Option<String>)> =
            place.living_pods().await.into_iter().map(|p| (p.name_any(), p.metadata.uid)).collect();
        pods.sort();
        if pods.len() == 2 { Ok(pods) } else { Err(format!("{pods:?}")) }
    })
    .await;
    place.chat("echo", "before").await.replied(&place, "before").await;

    let over = AtomicBool::new(false);
    let begun = Instant::now();
    let upgrade = async {
        let changed = upgrade().await;
        over.store(true, Ordering::Relaxed);
        changed.map(|()| begun.elapsed())
    };
    let (outcomes, upgraded) = tokio::join!(load(&place, &over), upgrade);
    let elapsed = upgraded.expect("the upgrade");

    let failed: Vec<&Result<follow::Ended, String>> =
        outcomes.iter().filter(|o| !o.as_ref().is_ok_and(|e| e.outcome == "Succeeded" && e.endings == 1)).collect();
    let breaks: usize = outcomes.iter().flatten().map(|e| e.breaks).sum();
    let rate = outcomes.len() as f64 / elapsed.as_secs_f64();
    tell(
        "upgrade",
        &format!(
            "{} chats, {rate:.1}/s, {} failed, {breaks} streams resumed, upgraded in {:.0} s",
            outcomes.len(),
            failed.len(),
            elapsed.as_secs_f64()
        ),
    );
    assert!(failed.is_empty(), "{} of {}: {:#?}", failed.len(), outcomes.len(), &failed[..failed.len().min(5)]);
    let mut after: Vec<(String, Option<String>)> =
        place.living_pods().await.into_iter().map(|p| (p.name_any(), p.metadata.uid)).collect();
    after.sort();
    assert_eq!(after, workers, "no worker was replaced");
    place.done().await;
}

/// Begins chats at the rate until it is over; how each ended.
async fn load(place: &Place, over: &AtomicBool) -> Vec<Result<follow::Ended, String>> {
    let mut tick = tokio::time::interval(Duration::from_secs(1) / count("LASTWORD_RATE").unwrap_or(RATE) as u32);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let (mut open, mut ended) = (FuturesUnordered::new(), Vec::new());
    while !over.load(Ordering::Relaxed) {
        tokio::select! {
            _ = tick.tick(), if open.len() < OPEN => open.push(follow::ask(&place.api, "echo", "hello", BOUND)),
            Some(one) = open.next() => ended.push(one),
        }
    }
    ended.extend(open.collect::<Vec<_>>().await);
    ended
}

/// Other pods of the same release: every replica of both roles is replaced.
async fn upgrade() -> Result<(), String> {
    let mark = uuid::Uuid::new_v4().to_string();
    let (controller, gateway) =
        (format!("controller.podAnnotations.e2e={mark}"), format!("gateway.podAnnotations.e2e={mark}"));
    change(&["--set-string", &controller, "--set-string", &gateway]).await
}

/// The same release with other values, once all its replicas have them.
async fn change(values: &[&str]) -> Result<(), String> {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/lastword");
    let fixed = ["--namespace", SYSTEM, "--reuse-values", "--wait", "--timeout=180s"];
    let helm = [&["upgrade", "lastword", chart], &fixed[..], values].concat();
    try_command("helm", &helm).await?;
    for pod in ["deploy/lastword-gateway", "deploy/lastword-controller"] {
        command("kubectl", &["-n", SYSTEM, "rollout", "status", pod, "--timeout=60s"]).await;
    }
    Ok(())
}

/// A worker made while the port speaks TLS shows its token, takes its turn and replies over it; one of another replica is
/// followed over it.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_to_tls_and_back_serves_on() {
    let Some(cluster) = Cluster::connect_local("the chart's release").await else { return };
    let file = |name: &str| format!("{}/tests/tls/{name}", env!("CARGO_MANIFEST_DIR"));
    let (certificate, key, authority) = (file("first.crt"), file("first.key"), file("first-ca.crt"));
    let files = [
        format!("--from-file=tls.crt={certificate}"),
        format!("--from-file=tls.key={key}"),
        format!("--from-file=ca.crt={authority}"),
    ];
    let secret = ["-n", SYSTEM, "create", "secret", "generic", "workers-tls"];
    command("kubectl", &[&secret[..], &files.each_ref().map(String::as_str)].concat()).await;
    let on = ["--set", "gateway.workerTls.enabled=true", "--set-string", "gateway.workerTls.secretName=workers-tls"];
    change(&on).await.expect("to TLS");

    let place = Place::new(cluster, "tls").await;
    let limits = json!({"limits": {"maxWorkers": 1, "turnsPerWorker": 4}});
    place.agent("cat", with(exec(&["cat"]), limits)).await;
    place.chat("cat", "first").await.replied(&place, "first\n").await;
    let pods = place.living_pods().await;
    let text = serde_json::to_string(&pods[0].spec).expect("JSON");
    assert!(text.contains("https://lastword-workers"), "{text}");
    // Connections spread over the replicas: some of these streams are another's than the worker's.
    for n in 0..6 {
        place.chat("cat", &format!("{n}")).await.replied(&place, &format!("{n}\n")).await;
    }
    // With the authority of the release's own, which workers that know the former one do not trust.
    change(&["--set-string", "gateway.workerTls.secretName="]).await.expect("to the chart's own certificate");
    place.agent("own", with(exec(&["cat"]), json!({"limits": {"maxWorkers": 1, "turnsPerWorker": 4}}))).await;
    place.chat("own", "own").await.replied(&place, "own\n").await;
    place.done().await;

    change(&["--set", "gateway.workerTls.enabled=false"]).await.expect("and back");
    command("kubectl", &["-n", SYSTEM, "delete", "secret", "workers-tls"]).await;
}
