//! A deliberate stop is not a failure, and a begun turn is never run twice.

use lastword::turn::reason::Reason;

use crate::steps::tick;
use crate::support::Db;
use crate::support::actors::{Worker, failure, finish};

/// Who was told to stop claims nothing more, finishes what it holds, and is told how long it has.
async fn a_draining_worker_claims_nothing(db: Db) {
    let worker = Worker::live(&db.store).await;
    let held = db.in_hand(&worker).await;
    let waiting = db.armed("waiting").await.turn_id;
    assert!(db.store.drain_worker(worker.incarnation, Reason::Deleted).await.expect("answers"));
    assert!(!db.store.drain_worker(worker.incarnation, Reason::Evicted).await.expect("answers"), "told once");
    assert!(worker.claim(&db.store, 10).await.is_empty());
    assert_eq!(tick(&db.store, &[worker.beat(true)]).await[&worker.incarnation].held, [held]);
    assert_eq!(finish(&db.store, worker.reply(&[held], "done")).await, Ok(true));
    let gone = db.store.worker_gone(worker.incarnation, &[]).await.expect("answers");
    assert!(gone.died_now && !gone.failed_start && gone.ended.is_empty());
    assert_eq!(db.phase(waiting).await.as_deref(), Some("waiting"));
    assert_eq!(Worker::live(&db.store).await.claim_ids(&db.store, 10).await, [waiting]);
}

/// A reconnect does not undo the stop, of the same incarnation or of another from the same container.
async fn a_stop_outlives_the_stream_and_the_process(db: Db) {
    let worker = Worker::live(&db.store).await;
    db.store.drain_worker(worker.incarnation, Reason::Deleted).await.expect("answers");
    db.armed("waiting").await;
    let again = db
        .store
        .connect_worker(&worker.credential, worker.incarnation, worker.gateway, worker.stream, 1, false)
        .await
        .expect("may connect");
    assert!(again.draining.is_some());
    assert!(worker.claim(&db.store, 1).await.is_empty());

    let second = Worker::connect(&db.store, worker.credential.clone()).await;
    assert_eq!(db.lease(second.incarnation).await.as_deref(), Some("draining"));
    assert!(second.claim(&db.store, 1).await.is_empty());
}

/// What never began is handed back and another worker gets it; what has output is not, and fails with its worker.
async fn only_what_never_began_is_handed_back(db: Db) {
    let worker = Worker::live(&db.store).await;
    let (fresh, begun, unnamed) = (db.in_hand(&worker).await, db.in_hand(&worker).await, db.in_hand(&worker).await);
    let others = Worker::live(&db.store).await;
    let foreign = db.in_hand(&others).await;
    assert_eq!(worker.append(&db.store, begun, 0, "so").await, Ok(2));

    let named = [fresh, begun, foreign];
    assert_eq!(db.store.worker_draining(worker.incarnation, &named).await.expect("answers"), 1);
    assert_eq!(db.store.worker_draining(worker.incarnation, &named).await.expect("answers"), 0, "again: nothing");
    assert_eq!(db.phase(fresh).await.as_deref(), Some("waiting"));
    for kept in [begun, unnamed, foreign] {
        assert_eq!(db.phase(kept).await.as_deref(), Some("claimed"));
    }
    assert!(worker.claim(&db.store, 10).await.is_empty(), "not to the one that handed it back");
    assert_eq!(others.claim_ids(&db.store, 10).await, [fresh]);

    let mut gone = db.store.worker_gone(worker.incarnation, &[]).await.expect("answers").ended;
    gone.sort();
    assert_eq!(gone, [begun, unnamed]);
    assert_eq!(db.outcome(begun).await.as_deref(), Some("WorkerExited"));
    assert_eq!(finish(&db.store, others.reply(&[fresh], "mine now")).await, Ok(true));
    assert_eq!(finish(&db.store, worker.reply(&[begun], "late")).await, Ok(false));
}

/// The last goodbye hands back as well, and is one goodbye.
async fn the_last_goodbye_hands_back(db: Db) {
    let worker = Worker::live(&db.store).await;
    let (fresh, begun) = (db.in_hand(&worker).await, db.in_hand(&worker).await);
    assert_eq!(worker.append(&db.store, begun, 0, "so").await, Ok(2));
    let gone = db.store.worker_gone(worker.incarnation, &[fresh, begun]).await.expect("answers");
    assert_eq!(gone.ended, [begun]);
    let again = db.store.worker_gone(worker.incarnation, &[fresh, begun]).await.expect("answers");
    assert!(!again.died_now && again.ended.is_empty());
    assert_eq!(db.phase(fresh).await.as_deref(), Some("waiting"));
}

/// The dead hand nothing back.
async fn the_dead_hand_nothing_back(db: Db) {
    let worker = Worker::live(&db.store).await;
    let turn = db.in_hand(&worker).await;
    db.store.fail_worker(worker.incarnation, &failure(Reason::WorkerExited)).await.expect("answers");
    assert_eq!(db.store.worker_draining(worker.incarnation, &[turn]).await.expect("answers"), 0);
    assert_eq!(db.outcome(turn).await.as_deref(), Some("WorkerExited"));
    assert_eq!(db.lease(worker.incarnation).await.as_deref(), Some("dead"));
}

/// A stop with nothing in hand ends no turn, though the worker never claimed one: it is no failed start.
async fn a_stop_with_empty_hands_ends_no_turn(db: Db) {
    for by_proof in [false, true] {
        let worker = Worker::live(&db.store).await;
        db.store.drain_worker(worker.incarnation, Reason::Deleted).await.expect("answers");
        let waiting = db.armed("waiting").await.turn_id;
        let gone = if by_proof {
            db.store.fail_worker(worker.incarnation, &failure(Reason::WorkerExited)).await
        } else {
            db.store.worker_gone(worker.incarnation, &[]).await
        };
        let gone = gone.expect("answers");
        assert!(gone.died_now && !gone.failed_start && gone.ended.is_empty(), "{gone:?}");
        assert_eq!(db.phase(waiting).await.as_deref(), Some("waiting"));
    }
}

/// What a stopped worker leaves behind carries the reason of the stop and the detail of its death.
async fn the_reason_of_the_stop_wins(db: Db) {
    let worker = Worker::live(&db.store).await;
    let turn = db.in_hand(&worker).await;
    db.store.drain_worker(worker.incarnation, Reason::Preempted).await.expect("answers");
    db.store.fail_worker(worker.incarnation, &failure(Reason::WorkerExited)).await.expect("answers");
    let record = db.store.turn_record(turn).await.expect("answers").expect("exists").failure.expect("failed");
    assert_eq!(record.reason, Reason::Preempted);
    assert_eq!(record.message, Reason::Preempted.client_message());
    assert_eq!(record.detail.as_deref(), Some("by the test"));
}

/// A goodbye first, the recorded reason after it: the reason is learnt all the same.
async fn a_reason_that_comes_after_the_goodbye_counts(db: Db) {
    let worker = Worker::live(&db.store).await;
    let turn = db.in_hand(&worker).await;
    db.store.worker_draining(worker.incarnation, &[]).await.expect("answers");
    assert!(db.store.drain_worker(worker.incarnation, Reason::Evicted).await.expect("answers"));
    db.store.worker_gone(worker.incarnation, &[]).await.expect("answers");
    assert_eq!(db.outcome(turn).await.as_deref(), Some("Evicted"));
}

/// What is left after `drainSeconds` fails then, under the gate, and not before.
async fn what_is_left_after_the_drain_fails(db: Db) {
    let worker = Worker::live(&db.store).await;
    let turn = db.in_hand(&worker).await;
    db.store.drain_worker(worker.incarnation, Reason::NodeShutdown).await.expect("answers");
    db.settled().await;
    assert_eq!(db.store.sweep().await.expect("sweeps").turns, 0);
    db.sql("UPDATE lease SET drain_until = clock_timestamp() - interval '1 second'").await;
    assert_eq!(db.store.sweep().await.expect("sweeps").turns, 1);
    assert_eq!(db.outcome(turn).await.as_deref(), Some("NodeShutdown"));
    assert_eq!(db.lease(worker.incarnation).await.as_deref(), Some("dead"));
}

crate::both!(
    a_draining_worker_claims_nothing,
    a_stop_outlives_the_stream_and_the_process,
    only_what_never_began_is_handed_back,
    the_last_goodbye_hands_back,
    the_dead_hand_nothing_back,
    a_stop_with_empty_hands_ends_no_turn,
    the_reason_of_the_stop_wins,
    a_reason_that_comes_after_the_goodbye_counts,
    what_is_left_after_the_drain_fails,
);
