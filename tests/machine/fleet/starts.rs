//! What brings a worker, and what becomes of turns for which none comes.

use std::path::Path;
use std::time::Instant;

use lastword::fleet::WorkerRuntime;
use lastword::turn::phase::LeasePhase;
use lastword::turn::reason::Reason;
use serde_json::json;

use super::{CONFESS, Scene};
use crate::support::Db;
use crate::support::wait::eventually;

crate::newest! {
    a_turn_brings_a_worker_within_moments_and_the_end_of_the_fleet_takes_it_along,
    a_missing_program_ends_the_turns_that_wait,
    a_worker_that_exits_before_it_connects_is_a_failed_start,
    a_changed_agent_gets_new_workers,
    the_newest_turns_beyond_the_queue_are_shed,
}

async fn a_turn_brings_a_worker_within_moments_and_the_end_of_the_fleet_takes_it_along(db: Db) {
    let scene = Scene::new(&db.store).await;
    scene.agent("a", CONFESS, json!({})).await;
    let begun = Instant::now();
    scene.arm("a", "c").await;
    let lease = scene.worker(|w| w.phase == LeasePhase::Starting).await;
    println!("from arm to lease: {:?}", begun.elapsed());
    let pid: i32 = scene.line("pid").await.parse().expect("a pid");
    println!("from arm to a running process: {:?}", begun.elapsed());
    assert!(lease.runtime_ref.starts_with("test/") && lease.runtime_ref.ends_with(&lease.start_id.to_string()));
    scene.arm("a", "c").await;
    scene.wake.notify_one();
    assert_eq!(scene.runtime.running().await, [lease.start_id], "one worker a conversation");
    let store = scene.store.clone();
    scene.end().await;
    assert!(store.living_workers().await.expect("workers").is_empty(), "its death was reported");
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

async fn a_missing_program_ends_the_turns_that_wait(db: Db) {
    let scene = Scene::new(&db.store).await;
    scene.agent("a", &["/no/such/program"], json!({})).await;
    let (one, two) = (scene.arm("a", "c").await, scene.arm("a", "c").await);
    for turn in [one, two] {
        let failure = scene.failure(turn).await;
        assert_eq!(failure.reason, Reason::StartFailed);
        let detail = failure.detail.expect("a detail");
        assert!(detail.contains("cannot start /no/such/program: No such file"), "{detail}");
    }
    scene.end().await;
}

async fn a_worker_that_exits_before_it_connects_is_a_failed_start(db: Db) {
    for attempts in [1, 2] {
        let scene = Scene::new(&db.store).await;
        let command = ["sh", "-c", "echo x >> starts; echo no config >&2; exit 7"];
        scene.agent("a", &command, json!({"timing": {"startAttempts": attempts}})).await;
        let failure = scene.failure(scene.arm("a", "c").await).await;
        assert_eq!(failure.reason, Reason::StartFailed);
        assert_eq!(failure.detail.as_deref(), Some("exit code 7; stderr ends:\nno config"));
        let starts = std::fs::read_to_string(scene.directory.path().join("starts")).expect("it ran");
        assert_eq!(starts.lines().count(), attempts);
        scene.end().await;
    }
}

async fn a_changed_agent_gets_new_workers(db: Db) {
    let scene = Scene::new(&db.store).await;
    scene.agent("a", CONFESS, json!({})).await;
    let turn = scene.arm("a", "c").await;
    let old = scene.worker(|w| w.config == 1).await;
    let other = ["sh", "-c", "exec sleep 299"];
    scene.agent("a", &other, json!({"timing": {"startSeconds": 99}})).await;
    let new = scene.worker(|w| w.config == 2).await;
    assert_ne!(new.start_id, old.start_id);
    eventually("the old one is gone", async || !scene.runtime.running().await.contains(&old.start_id)).await;
    let record = scene.store.turn_record(turn).await.expect("a record").expect("the turn");
    assert!(record.open, "a deliberate stop fails no turn that waits: {:?}", record.failure);
    scene.end().await;
}

async fn the_newest_turns_beyond_the_queue_are_shed(db: Db) {
    let scene = Scene::new(&db.store).await;
    scene.agent("a", CONFESS, json!({"limits": {"maxQueuedTurns": 2, "maxWorkers": 1}})).await;
    let mut turns = Vec::new();
    for conversation in ["c", "d", "e"] {
        turns.push(scene.arm("a", conversation).await);
    }
    assert_eq!(scene.failure(turns[2]).await.reason, Reason::QuotaExceeded);
    for kept in &turns[..2] {
        assert!(scene.store.turn_record(*kept).await.expect("a record").expect("the turn").open);
    }
    scene.end().await;
}
