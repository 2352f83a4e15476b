//! Who ends a turn first ends it, and nobody else does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures::StreamExt;
use lastword::store::Store;
use lastword::turn::keys::{Incarnation, TurnId};
use lastword::turn::reason::Reason;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

use crate::support::actors::{Worker, arm, armed, failure, finish};
use crate::support::{Db, seed};

/// Turns that are raced for on each Postgres: ten thousand together.
const KEYS: usize = 5_000;
/// Racers at once: two a turn.
const RACERS: usize = 32;
/// Rounds of a claim against its worker's death.
const ROUNDS: usize = 300;

/// Arms turns in conversations of their own and lets one worker claim all of them.
pub async fn many_in_hand(store: &Store, worker: &Worker, count: usize) -> Vec<TurnId> {
    let arming = futures::stream::iter(0..count).map(|_| armed(store, arm(&Uuid::new_v4().to_string())));
    let arming = arming.buffer_unordered(512).collect::<Vec<_>>().await;
    assert_eq!(arming.len(), count);
    let mut held = Vec::with_capacity(count);
    while held.len() < count {
        let claimed = worker.claim_ids(store, 1000).await;
        assert!(!claimed.is_empty(), "{} of {count} could be claimed", held.len());
        held.extend(claimed);
    }
    held
}

/// A reply and a failure at the same instant, in both orders, from two replicas: one terminal each, and the loser is
/// told so.
async fn a_reply_and_a_failure_at_the_same_instant_leave_one_terminal(db: Db) {
    let mut random = StdRng::seed_from_u64(seed());
    let stores = [db.store.clone(), db.another_store()];
    let worker = Worker::live(&db.store).await;
    let begun = Instant::now();
    let held = many_in_hand(&db.store, &worker, KEYS).await;
    println!("{KEYS} turns armed and claimed in {:?}", begun.elapsed());

    let begun = Instant::now();
    let replies = Arc::new(AtomicUsize::new(0));
    let races = held.iter().map(|&turn| {
        let (reply_first, one): (bool, usize) = (random.random(), random.random_range(0..2));
        // The reply waits for its batch, the failure for nothing: some round trips later, it comes at any point of the
        // reply's way.
        let head_start = random.random_range(0..30);
        let (replier, failer) = (stores[one].clone(), stores[1 - one].clone());
        let (worker, replies) = (worker.clone(), replies.clone());
        tokio::spawn(async move {
            let reply = async { finish(&replier, worker.reply(&[turn], "hello")).await.expect("mine") };
            let fail = async {
                for _ in 0..if reply_first { head_start } else { 0 } {
                    failer.ping().await.expect("answers");
                }
                failer.fail_turn(turn, &failure(Reason::Cancelled)).await.expect("answers").is_some()
            };
            let (won, failed) = if reply_first {
                tokio::join!(reply, fail)
            } else {
                let (f, r) = tokio::join!(fail, reply);
                (r, f)
            };
            assert_ne!(won, failed, "turn {turn}: reply {won}, failure {failed}");
            replies.fetch_add(usize::from(won), Ordering::Relaxed);
        })
    });
    let mut racing = futures::stream::iter(races).buffer_unordered(RACERS / 2);
    while let Some(raced) = racing.next().await {
        raced.expect("one of two won");
    }
    let took = begun.elapsed();
    let replies = replies.load(Ordering::Relaxed);
    println!("{KEYS} races in {took:?}: {replies} replies; {:.0} races/s", KEYS as f64 / took.as_secs_f64());

    assert!(replies > KEYS / 100 && replies < KEYS - KEYS / 100, "{replies} replies of {KEYS}: that was no race");
    assert_eq!(db.count("marker").await, 0);
    assert_eq!(db.count("terminal").await, KEYS as i64);
    assert_eq!(db.count("delivery").await, KEYS as i64);
    assert_eq!(db.count("terminal WHERE outcome = 'reply'").await, replies as i64);
    assert_eq!(db.count("superseded").await, (KEYS - replies) as i64);
    let wrongly = "superseded s JOIN terminal t USING (turn_id) WHERE t.outcome = 'reply'";
    assert_eq!(db.count(wrongly).await, 0, "a reply that won is kept as superseded");
}

/// A claim against the death of its worker: no marker is left that names a dead lease.
async fn a_claim_that_races_its_workers_death_names_no_dead_lease(db: Db) {
    let mut random = StdRng::seed_from_u64(seed());
    let other = db.another_store();
    // Somebody else is live, so that what waits stays waiting.
    let _witness = Worker::live(&db.store).await;
    let (mut claims_won, mut deaths_won) = (0, 0);
    for round in 0..ROUNDS {
        let worker = Worker::live(&db.store).await;
        for _ in 0..2 {
            db.armed(&Uuid::new_v4().to_string()).await;
        }
        let (claim_late, death_late) = (random.random_range(0..4), random.random_range(0..12));
        let pause = async |steps: u32| {
            for _ in 0..steps {
                tokio::task::yield_now().await;
            }
        };
        let claim = async {
            pause(claim_late).await;
            worker.claim(&db.store, 2).await.len()
        };
        let death = async {
            // Round trips of its own let the claim's transaction come to any point of its way.
            for _ in 0..death_late {
                other.ping().await.expect("answers");
            }
            other.fail_worker(worker.incarnation, &failure(Reason::WorkerExited)).await.expect("answers")
        };
        let (claimed, died) = tokio::join!(claim, death);
        assert!(died.died_now);
        assert_eq!(died.ended.len(), claimed, "round {round}: what was claimed ends with its worker");
        let left = orphans(&db, worker.incarnation).await;
        assert_eq!(left, 0, "round {round}: a marker names a dead lease");
        *if claimed > 0 { &mut claims_won } else { &mut deaths_won } += 1;
    }
    println!("{ROUNDS} rounds: the claim was first in {claims_won}, the death in {deaths_won}");
    assert!(claims_won > 0 && deaths_won > 0, "that was no race");
}

async fn orphans(db: &Db, incarnation: Incarnation) -> i64 {
    db.count(&format!("marker WHERE incarnation = '{incarnation}'")).await
}

/// A heartbeat against the sweep: whose beat was acknowledged lives, who was declared dead is told so.
async fn a_heartbeat_that_races_the_sweep_is_told_who_won(db: Db) {
    let mut random = StdRng::seed_from_u64(seed());
    let other = db.another_store();
    let (mut spared, mut died) = (0, 0);
    for round in 0..150 {
        let worker = Worker::live(&db.store).await;
        let turn = db.in_hand(&worker).await;
        db.settled().await;
        db.silent(worker.incarnation, 5).await;
        let late = random.random_range(0..6);
        let beat = async {
            for _ in 0..late {
                other.ping().await.expect("answers");
            }
            crate::steps::tick(&other, &[worker.beat(true)]).await
        };
        let (answers, _) = tokio::join!(beat, db.store.sweep());
        let lives = answers.contains_key(&worker.incarnation);
        let phase = db.lease(worker.incarnation).await;
        assert_eq!(phase.as_deref(), Some(if lives { "live" } else { "dead" }), "round {round}");
        assert_eq!(db.outcome(turn).await.is_none(), lives, "round {round}");
        *if lives { &mut spared } else { &mut died } += 1;
        db.store.fail_worker(worker.incarnation, &failure(Reason::Deleted)).await.expect("answers");
    }
    println!("the beat was first in {spared} rounds, the sweep in {died}");
    assert!(spared > 0 && died > 0, "that was no race");
}

crate::both!(
    a_reply_and_a_failure_at_the_same_instant_leave_one_terminal,
    a_claim_that_races_its_workers_death_names_no_dead_lease,
    a_heartbeat_that_races_the_sweep_is_told_who_won,
);
