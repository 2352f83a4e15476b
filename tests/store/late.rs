//! Words that come too late, and words that come twice.

use lastword::store::FinishError;
use lastword::turn::keys::Incarnation;
use lastword::turn::reason::Reason;
use lastword::wire::Credential;
use sqlx::Connection;
use uuid::Uuid;

use crate::support::Db;
use crate::support::actors::{Worker, failure, finish};
use crate::support::wait::eventually;

/// The late reply of a failed worker changes nothing and is kept once.
async fn a_late_reply_is_kept_once(db: Db) {
    let worker = Worker::live(&db.store).await;
    let turn = db.in_hand(&worker).await;
    let died = db.store.fail_worker(worker.incarnation, &failure(Reason::OutOfMemory)).await.expect("answers");
    assert!(died.died_now && !died.failed_start);
    assert_eq!(died.ended, [turn]);

    let late = worker.reply(&[turn], "the answer");
    for _ in 0..2 {
        assert_eq!(finish(&db.store, late.clone()).await, Ok(false));
    }
    assert_eq!(finish(&db.store, worker.reply(&[turn], "another answer")).await, Ok(false));
    assert_eq!(db.count("superseded").await, 1);
    assert_eq!(db.outcome(turn).await.as_deref(), Some("OutOfMemory"));
    assert_eq!(db.count("terminal").await, 1);
    assert_eq!(db.count("output").await, 0);
    let record = db.store.turn_record(turn).await.expect("answers").expect("exists");
    assert_eq!(record.superseded.as_deref(), Some("reply: the answer"));
    assert!(record.reply.is_none() && !record.open);
    assert_eq!(record.failure.map(|f| f.reason), Some(Reason::OutOfMemory));
}

/// The winner's repeat, after a lost acknowledgement, is accepted and recorded nowhere; also 32 at once.
async fn the_winners_repeat_is_accepted(db: Db) {
    let worker = Worker::live(&db.store).await;
    let turn = db.in_hand(&worker).await;
    let word = worker.reply(&[turn], "once");
    let repeats = (0..32).map(|_| finish(&db.store, word.clone()));
    assert!(futures::future::join_all(repeats).await.into_iter().all(|answer| answer == Ok(true)));
    assert_eq!(finish(&db.another_store(), word).await, Ok(true));
    assert_eq!((db.count("terminal").await, db.count("delivery").await, db.count("superseded").await), (1, 1, 0));
    let record = db.store.turn_record(turn).await.expect("answers").expect("exists");
    assert_eq!(record.reply.expect("a reply").text.as_deref(), Some("once"));

    // The same worker's other reply is another word.
    assert_eq!(finish(&db.store, worker.reply(&[turn], "twice")).await, Ok(false));
    assert_eq!(db.count("superseded").await, 1);
}

/// A worker's word on a turn in another's hand, in nobody's, or unknown, changes nothing, and is kept once per turn.
async fn a_foreign_word_changes_nothing(db: Db) {
    let (mine, other) = (Worker::live(&db.store).await, Worker::live(&db.store).await);
    let turn = db.in_hand(&mine).await;
    let waiting = db.armed("waiting").await.turn_id;
    let unknown = lastword::turn::keys::TurnId::new();
    for foreign in [turn, waiting, unknown] {
        assert_eq!(finish(&db.store, other.reply(&[foreign], "hello")).await, Err(FinishError::Foreign));
        assert_eq!(finish(&db.store, other.error(&[foreign])).await, Err(FinishError::Foreign));
    }
    assert_eq!((db.count("terminal").await, db.count("marker").await, db.count("output").await), (0, 2, 0));
    let kept = "superseded WHERE outcome = 'reply' AND text = 'hello'";
    assert_eq!((db.count("superseded").await, db.count(kept).await), (2, 2), "the first word on each that exists");
}

/// The late notice of an old death touches nothing that a successor claimed.
async fn an_old_death_spares_the_successor(db: Db) {
    let old = Worker::live(&db.store).await;
    let first = db.in_hand(&old).await;
    db.store.fail_worker(old.incarnation, &failure(Reason::WorkerExited)).await.expect("answers");
    let new = Worker::live(&db.store).await;
    let second = db.in_hand(&new).await;
    let waiting = db.armed("waiting").await.turn_id;

    let again = db.store.fail_worker(old.incarnation, &failure(Reason::NodeLost)).await.expect("answers");
    assert!(!again.died_now && !again.failed_start && again.ended.is_empty());
    let stranger = db.store.fail_worker(Incarnation::new(), &failure(Reason::NodeLost)).await.expect("answers");
    assert!(!stranger.died_now && stranger.ended.is_empty());
    assert_eq!(db.outcome(first).await.as_deref(), Some("WorkerExited"));
    assert_eq!(db.phase(second).await.as_deref(), Some("claimed"));
    assert_eq!(db.phase(waiting).await.as_deref(), Some("waiting"));
    assert_eq!(finish(&db.store, new.reply(&[second], "fine")).await, Ok(true));
}

/// A second incarnation under one credential ends the first at once, with all that it held.
async fn a_second_incarnation_ends_the_first(db: Db) {
    let first = Worker::live(&db.store).await;
    let turn = db.in_hand(&first).await;
    let waiting = db.armed("waiting").await.turn_id;

    let second = Worker::connect(&db.store, first.credential.clone()).await;
    assert_eq!(db.lease(first.incarnation).await.as_deref(), Some("dead"));
    assert_eq!(db.outcome(turn).await.as_deref(), Some("WorkerExited"));
    assert_eq!(db.phase(waiting).await.as_deref(), Some("waiting"), "what it did not hold waits on");
    assert!(first.claim(&db.store, 1).await.is_empty());
    assert_eq!(second.claim_ids(&db.store, 1).await, [waiting]);

    // The first neither comes back nor ends what the second holds.
    let back =
        db.store.connect_worker(&first.credential, first.incarnation, first.gateway, first.stream, 1, false).await;
    assert!(back.is_err());
    let late = db.store.fail_worker(first.incarnation, &failure(Reason::WorkerExited)).await.expect("answers");
    assert!(late.ended.is_empty());
    assert_eq!(finish(&db.store, first.reply(&[waiting], "mine")).await, Err(FinishError::Foreign));
    assert_eq!(finish(&db.store, second.reply(&[waiting], "mine")).await, Ok(true));
}

/// A replaced incarnation is never seen dead with a turn that is open: both are one transaction, whatever happens in it.
async fn a_replaced_incarnation_is_buried_with_its_turns(db: Db) {
    let first = Worker::live(&db.store).await;
    let turn = db.in_hand(&first).await;
    // Somebody else has the marker, so the turn cannot end yet.
    let other = db.locking("SELECT FROM marker FOR UPDATE").await;
    let (store, credential) = (db.store.clone(), first.credential.clone());
    let connecting = tokio::spawn(async move { Worker::connect(&store, credential).await });
    let waits = "pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    eventually("it comes to the turn", async || db.count(waits).await == 1).await;
    assert_eq!(db.lease(first.incarnation).await.as_deref(), Some("live"), "not without its turn");
    other.close().await.expect("unlocks");
    connecting.await.expect("connects");
    assert_eq!(db.lease(first.incarnation).await.as_deref(), Some("dead"));
    assert_eq!(db.outcome(turn).await.as_deref(), Some("WorkerExited"));
}

/// A stream that closed casts suspicion only if the lease still names that stream; a wrong secret opens none.
async fn a_closed_stream_casts_suspicion_only_if_it_is_the_leases(db: Db) {
    let worker = Worker::live(&db.store).await;
    assert!(!db.store.suspect_worker(worker.incarnation, Uuid::new_v4()).await.expect("answers"));
    assert!(db.store.suspect_worker(worker.incarnation, worker.stream).await.expect("answers"));
    assert!(!db.store.suspect_worker(worker.incarnation, worker.stream).await.expect("answers"), "once a stream");
    assert!(db.store.living_workers().await.expect("answers")[0].suspected);
    let again =
        db.store.connect_worker(&worker.credential, worker.incarnation, worker.gateway, Uuid::new_v4(), 1, false).await;
    assert!(again.is_ok(), "the same incarnation opens another stream");
    assert!(!db.store.living_workers().await.expect("answers")[0].suspected);

    let forged = Credential::new(worker.credential.start);
    let answer = db.store.authenticate_worker(&forged, worker.incarnation).await;
    assert!(answer.is_err());
    let answer = db.store.connect_worker(&forged, Incarnation::new(), worker.gateway, Uuid::new_v4(), 1, false).await;
    assert!(answer.is_err());
    assert_eq!(db.lease(worker.incarnation).await.as_deref(), Some("live"));
}

crate::both!(
    a_late_reply_is_kept_once,
    the_winners_repeat_is_accepted,
    a_foreign_word_changes_nothing,
    an_old_death_spares_the_successor,
    a_second_incarnation_ends_the_first,
    a_replaced_incarnation_is_buried_with_its_turns,
    a_closed_stream_casts_suspicion_only_if_it_is_the_leases,
);
