//! How workers end: killed, beyond their memory, idle, or of no use any more; and what becomes of their turns.

use std::time::{Duration, Instant};

use lastword::fleet::{FleetConfig, WorkerRuntime, fail_former_boots};
use lastword::local::postgres::{Shutdown, Version};
use lastword::store::NewStart;
use lastword::turn::keys::StartId;
use lastword::turn::phase::LeasePhase;
use lastword::turn::reason::Reason;
use lastword::turn::terminal::Failure;
use rustix::process::Signal;
use serde_json::json;
use uuid::Uuid;

use super::{CONFESS, ORGANIZATION, Scene};
use crate::support::actors::new_start;
use crate::support::db::run_with_own_server;
use crate::support::process::{is_alive, signal};
use crate::support::wait::eventually;
use crate::support::{Db, skipped};

crate::newest! {
    a_killed_worker_fails_its_turn_within_moments_and_with_the_cause,
    what_a_worker_has_detached_ends_with_it,
    a_worker_beyond_its_memory_limit_is_named_as_such,
    a_removed_agent_loses_its_workers_and_its_turns,
    an_idle_worker_is_drained_and_killed_if_it_must_be,
    a_worker_whose_lease_is_dead_is_killed,
    the_workers_of_a_former_boot_are_failed_at_once,
}

async fn a_killed_worker_fails_its_turn_within_moments_and_with_the_cause(db: Db) {
    let scene = Scene::new(&db.store).await;
    let (turn, pid) = scene.in_hand("a").await;
    let begun = Instant::now();
    signal(pid, Signal::KILL);
    let failure = scene.failure(turn).await;
    println!("from kill -9 to the terminal: {:?}", begun.elapsed());
    assert_eq!((failure.reason, failure.detail.as_deref()), (Reason::WorkerExited, Some("signal 9 (SIGKILL)")));
    scene.end().await;
}

async fn what_a_worker_has_detached_ends_with_it(db: Db) {
    for how in ["exits", "is killed", "is stopped by Lastword"] {
        let scene = Scene::new(&db.store).await;
        let end = if how == "exits" { "exit 1" } else { "exec sleep 300" };
        let detach = "setsid env -i sleep 301 < /dev/null > /dev/null 2>&1 & echo $! > left";
        let script =
            format!("{detach}; echo $LASTWORD_CREDENTIAL > credential; echo $$ > pid; {end}").replace('$', "$$");
        scene.agent("a", &["sh", "-c", &script], json!({"timing": {"drainSeconds": 0}})).await;
        scene.arm("a", "c").await;
        let pid: u32 = scene.line("pid").await.parse().expect("a pid");
        let left: u32 = scene.line("left").await.parse().expect("a pid");
        match how {
            "is killed" => signal(pid, Signal::KILL),
            "is stopped by Lastword" => drop(scene.store.remove_agent(ORGANIZATION, "a").await.expect("removed")),
            _ => {}
        }
        eventually(&format!("nothing is left of a worker that {how}"), async || (!is_alive(left)).then_some(())).await;
        eventually("the worker is gone", async || (!is_alive(pid)).then_some(())).await;
        scene.store.remove_agent(ORGANIZATION, "a").await.expect("removed");
        scene.nobody_left().await;
        scene.end().await;
    }
}

#[test]
fn a_death_during_an_outage_is_told_after_it() {
    run_with_own_server(Version::V18, &[], async |mut server, db| {
        let scene = Scene::with(&db.store, FleetConfig::default()).await;
        let (turn, pid) = scene.in_hand("a").await;
        server.halt(Shutdown::Immediate).await;
        signal(pid, Signal::KILL);
        eventually("it was reaped", async || scene.runtime.running().await.is_empty()).await;
        // The first attempt to report it is made at once, and has no database.
        assert!(scene.store.ping().await.is_err());
        server.resume().await.expect("Postgres is back");
        let failure = eventually("the turn ends", async || scene.store.turn_record(turn).await.ok()??.failure).await;
        assert_eq!((failure.reason, failure.detail.as_deref()), (Reason::WorkerExited, Some("signal 9 (SIGKILL)")));
        scene.end().await;
    });
}

/// Needs a writable cgroup with the memory controller; without one there is no limit to exceed.
async fn a_worker_beyond_its_memory_limit_is_named_as_such(db: Db) {
    let Some(_) = lastword::child::cgroup::Cgroups::detect("probe") else {
        skipped("no cgroup with the memory controller is writable here");
        return;
    };
    let scene = Scene::new(&db.store).await;
    // The shell waits for the agent's leave, so that it is in its cgroup; tail keeps all of an endless line in memory.
    let command = ["sh", "-c", "sleep 0.2; exec tail /dev/zero"];
    let limited = json!({"spec": {"containers": [{"name": "agent", "command": command,
        "resources": {"limits": {"memory": "32Mi"}}}]}});
    scene.agent("a", &command, json!({"template": limited})).await;
    let failure = scene.failure(scene.arm("a", "c").await).await;
    assert_eq!(failure.reason, Reason::OutOfMemory, "{:?}", failure.detail);
    scene.end().await;
}

async fn a_removed_agent_loses_its_workers_and_its_turns(db: Db) {
    let scene = Scene::new(&db.store).await;
    scene.agent("a", CONFESS, json!({})).await;
    scene.arm("a", "c").await;
    scene.connect(&scene.line("credential").await).await;
    let waiting = scene.arm("a", "c").await;
    scene.store.remove_agent(ORGANIZATION, "a").await.expect("removed");
    assert_eq!(scene.failure(waiting).await.reason, Reason::AgentNotFound);
    scene.nobody_left().await;
    scene.end().await;
}

async fn an_idle_worker_is_drained_and_killed_if_it_must_be(db: Db) {
    let scene =
        Scene::with(&db.store, FleetConfig { poll: Duration::from_millis(100), ..FleetConfig::default() }).await;
    // It takes no notice of SIGTERM.
    let stubborn = ["sh", "-c", "trap '' TERM; echo $LASTWORD_CREDENTIAL > credential; while :; do sleep 1; done"];
    scene.agent("a", &stubborn, json!({"timing": {"idleSeconds": 0, "drainSeconds": 1}})).await;
    let turn = scene.arm("a", "c").await;
    let credential = scene.line("credential").await;
    let incarnation = scene.connect(&credential).await;
    scene.store.fail_turn(turn, &Failure::new(Reason::Cancelled)).await.expect("cancelled");
    let lease = scene.worker(|w| w.phase == LeasePhase::Draining).await;
    assert_eq!(lease.incarnation, incarnation);
    scene.nobody_left().await;
    scene.end().await;
}

async fn a_worker_whose_lease_is_dead_is_killed(db: Db) {
    let config =
        FleetConfig { poll: Duration::from_millis(100), stray: Duration::from_millis(200), ..FleetConfig::default() };
    let scene = Scene::with(&db.store, config).await;
    scene.agent("a", CONFESS, json!({})).await;
    scene.arm("a", "c").await;
    let incarnation = scene.connect(&scene.line("credential").await).await;
    let silent = Failure::new(Reason::LeaseLapsed);
    scene.store.fail_worker(incarnation, &silent).await.expect("failed");
    scene.nobody_left().await;
    scene.end().await;
}

async fn the_workers_of_a_former_boot_are_failed_at_once(db: Db) {
    let store = &db.store;
    let (now, before) = (Uuid::now_v7(), Uuid::now_v7());
    let mut starts = Vec::new();
    for (node, boot) in [("here", before), ("here", now), ("there", before)] {
        let (start, _) = new_start();
        let start = NewStart { runtime_ref: format!("{node}/{boot}/{}", start.start_id), ..start };
        assert!(store.start_worker(&start, false).await.expect("started"));
        starts.push(start.start_id);
    }
    assert_eq!(fail_former_boots(store, "here", now).await.expect("failed"), 1);
    let left: Vec<StartId> = store.living_workers().await.expect("workers").iter().map(|w| w.start_id).collect();
    assert_eq!(left, starts[1..]);
    assert_eq!(fail_former_boots(store, "here", now).await.expect("failed"), 0);
}
