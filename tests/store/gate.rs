//! Nobody punishes an outage. Verdicts of silence wait until gateways have been able to write for a whole lease.

use lastword::turn::keys::{StartId, TurnId};
use lastword::turn::reason::Reason;

use crate::steps::tick;
use crate::support::Db;
use crate::support::actors::{LEASE, Worker, failure, new_start};

/// The silent of every kind: a worker with a turn, a start that nobody connects to, a turn beyond its hard deadline.
struct Silent {
    worker: Worker,
    turn: TurnId,
    start: StartId,
    overdue: TurnId,
}

impl Silent {
    async fn all(db: &Db) -> Silent {
        let worker = Worker::live(&db.store).await;
        let turn = db.in_hand(&worker).await;
        let (mut start, _) = new_start();
        start.worker_group = "other".into();
        assert!(db.store.start_worker(&start, false).await.expect("starts"));
        let overdue = db.armed("overdue").await.turn_id;
        db.overdue(overdue).await;
        db.sql("UPDATE lease SET expires_at = clock_timestamp() - interval '9 minutes'").await;
        Silent { worker, turn, start: start.start_id, overdue }
    }

    /// How many of them are ended: 0 or 3.
    async fn ended(&self, db: &Db) -> usize {
        let dead = format!("lease WHERE phase = 'dead' AND incarnation = '{}'", self.start);
        let ended = [
            db.outcome(self.turn).await.is_some() && db.lease(self.worker.incarnation).await.as_deref() == Some("dead"),
            db.count(&dead).await == 1,
            db.outcome(self.overdue).await.is_some(),
        ];
        ended.into_iter().filter(|e| *e).count()
    }
}

/// The database was away for ten minutes.
async fn gap(db: &Db) {
    db.settled().await;
    db.sql("UPDATE gate SET seen = seen - interval '10 minutes'").await;
}

/// Time passes, and gateways tick all along.
async fn ticking(db: &Db, seconds: u32) {
    db.sql(format!("UPDATE gate SET since = since - interval '{seconds} seconds', seen = clock_timestamp()")).await;
    tick(&db.store, &[]).await;
}

/// What fell silent in an outage lives until gateways have ticked for a lease, and ends then.
async fn silence_is_judged_a_lease_after_a_gap(db: Db) {
    gap(&db).await;
    let silent = Silent::all(&db).await;
    db.store.sweep().await.expect("sweeps");
    assert_eq!(silent.ended(&db).await, 0, "the outage is still on");
    tick(&db.store, &[]).await;
    db.store.sweep().await.expect("sweeps");
    assert_eq!(silent.ended(&db).await, 0, "the outage has just ended");
    ticking(&db, LEASE - 5).await;
    db.store.sweep().await.expect("sweeps");
    assert_eq!(silent.ended(&db).await, 0, "a lease has not passed");
    ticking(&db, 6).await;
    db.store.sweep().await.expect("sweeps");
    assert_eq!(silent.ended(&db).await, 3);
    assert_eq!(db.outcome(silent.turn).await.as_deref(), Some("LeaseLapsed"));
    assert_eq!(db.outcome(silent.overdue).await.as_deref(), Some("DeadlineExceeded"));
    let reason = db.text(format!("SELECT death_reason FROM lease WHERE incarnation = '{}'", silent.start)).await;
    assert_eq!(reason.as_deref(), Some("StartFailed"));
}

/// A worker that beats again within the lease lives on; the reply that waited beats the deadline.
async fn a_worker_that_beats_again_survives_an_outage(db: Db) {
    gap(&db).await;
    let silent = Silent::all(&db).await;
    let answers = tick(&db.store, &[silent.worker.beat(true)]).await;
    assert_eq!(answers[&silent.worker.incarnation].held, [silent.turn]);
    db.overdue(silent.turn).await;
    db.store.sweep().await.expect("sweeps");
    let word = silent.worker.reply(&[silent.turn], "waited");
    assert_eq!(crate::support::actors::finish(&db.store, word).await, Ok(true));
    ticking(&db, LEASE + 1).await;
    db.store.sweep().await.expect("sweeps");
    assert_eq!(db.outcome(silent.turn).await.as_deref(), Some("reply"));
    assert_eq!(db.lease(silent.worker.incarnation).await.as_deref(), Some("live"));
}

/// A database that blinks for ever holds nothing back for ever: the ticking between the gaps adds up to five leases.
async fn a_database_that_blinks_for_ever_holds_no_verdict_for_ever(db: Db) {
    gap(&db).await;
    tick(&db.store, &[]).await;
    let silent = Silent::all(&db).await;
    let (steady, away) = (50, 10);
    let mut ticked = 0;
    while ticked < 5 * LEASE {
        db.store.sweep().await.expect("sweeps");
        assert_eq!(silent.ended(&db).await, 0, "{ticked} s of ticking");
        // 50 s of ticks, then 10 s without.
        db.sql(format!(
            "UPDATE gate SET since = since - interval '{} seconds', seen = clock_timestamp() - interval '{away} seconds'",
            steady + away
        ))
        .await;
        tick(&db.store, &[]).await;
        ticked += steady;
    }
    db.store.sweep().await.expect("sweeps");
    assert_eq!(silent.ended(&db).await, 3, "{ticked} s of ticking");
}

/// Time in which no gateway ticks counts for nothing, however long it is.
async fn without_ticks_nobody_is_failed(db: Db) {
    db.settled().await;
    let silent = Silent::all(&db).await;
    db.sql("UPDATE gate SET seen = clock_timestamp() - interval '5 seconds'").await;
    for _ in 0..3 {
        assert_eq!(db.store.sweep().await.expect("sweeps"), Default::default());
    }
    assert_eq!(silent.ended(&db).await, 0);
    // Proof needs no gate.
    db.store.fail_worker(silent.worker.incarnation, &failure(Reason::NodeLost)).await.expect("answers");
    assert_eq!(db.outcome(silent.turn).await.as_deref(), Some("NodeLost"));
}

/// A short lease runs out before a gap is one: it is judged only when a gateway has ticked since.
async fn a_short_lease_waits_for_a_tick(db: Db) {
    db.settled().await;
    let worker = Worker::with(&db.store, |start| start.lease_seconds = 2).await;
    let turn = db.in_hand(&worker).await;
    db.sql("UPDATE gate SET seen = clock_timestamp() - interval '2 seconds'").await;
    db.silent(worker.incarnation, 1).await;
    db.store.sweep().await.expect("sweeps");
    assert_eq!(db.outcome(turn).await, None, "no gateway could have written its beat");
    tick(&db.store, &[]).await;
    db.store.sweep().await.expect("sweeps");
    assert_eq!(db.outcome(turn).await.as_deref(), Some("LeaseLapsed"));
}

/// Gaps of the past do not add to the count of a later outage once the gate had settled.
async fn a_settled_gate_forgets_former_gaps(db: Db) {
    db.sql("UPDATE gate SET ticked_seconds = 290").await;
    gap(&db).await;
    tick(&db.store, &[]).await;
    let silent = Silent::all(&db).await;
    ticking(&db, 20).await;
    db.store.sweep().await.expect("sweeps");
    assert_eq!(silent.ended(&db).await, 0);
}

/// After the clock stepped back no expiry lies more than a lease ahead, and the gate settles anew.
async fn a_clock_that_steps_back_keeps_nobody_alive(db: Db) {
    let worker = Worker::live(&db.store).await;
    let turn = db.in_hand(&worker).await;
    // As an hour-long step back leaves the rows behind.
    db.sql("UPDATE gate SET seen = seen + interval '1 hour', since = clock_timestamp() + interval '30 minutes'").await;
    db.sql("UPDATE lease SET expires_at = expires_at + interval '1 hour'").await;
    tick(&db.store, &[]).await;
    let ahead = db.number("SELECT ceil(extract(epoch FROM expires_at - clock_timestamp())) FROM lease").await;
    assert!(ahead <= i64::from(LEASE), "{ahead} s ahead");
    let state = db.store.gate_state().await.expect("answers");
    assert!(state.steady_for < 5.0 && state.seen_ago < 5.0, "{state:?}");
    db.silent(worker.incarnation, 1).await;
    db.store.sweep().await.expect("sweeps");
    assert_eq!(db.outcome(turn).await, None);
    ticking(&db, LEASE + 1).await;
    db.store.sweep().await.expect("sweeps");
    assert_eq!(db.outcome(turn).await.as_deref(), Some("LeaseLapsed"));
}

/// The deadline of a start lies at most its own time ahead after such a step, too.
async fn a_start_does_not_outlive_a_step_back(db: Db) {
    let (start, _) = new_start();
    assert!(db.store.start_worker(&start, false).await.expect("starts"));
    db.sql("UPDATE gate SET seen = seen + interval '1 hour'").await;
    db.sql("UPDATE lease SET started_at = started_at + interval '1 hour', expires_at = expires_at + interval '1 hour'")
        .await;
    tick(&db.store, &[]).await;
    let ahead = db.number("SELECT ceil(extract(epoch FROM expires_at - clock_timestamp())) FROM lease").await;
    assert!(ahead <= i64::from(LEASE), "{ahead} s ahead");
}

/// A restarted or failed-over server resets the gate, though its clock shows no gap; ticks without a gap do not.
async fn a_restart_resets_the_gate(db: Db) {
    db.settled().await;
    tick(&db.store, &[]).await;
    assert!(db.store.gate_state().await.expect("answers").steady_for > 3000.0);
    db.sql("UPDATE gate SET server_started = server_started - interval '1 day'").await;
    tick(&db.store, &[]).await;
    assert!(db.store.gate_state().await.expect("answers").steady_for < 5.0);
    db.settled().await;
    tick(&db.store, &[]).await;
    assert!(db.store.gate_state().await.expect("answers").steady_for > 3000.0, "the server is known now");
}

/// A beat under a dead lease is not answered: the worker stops. A draining one hears how long it has.
async fn a_beat_says_where_the_worker_stands(db: Db) {
    let (live, draining, dead) =
        (Worker::live(&db.store).await, Worker::live(&db.store).await, Worker::live(&db.store).await);
    db.store.drain_worker(draining.incarnation, Reason::Deleted).await.expect("answers");
    db.store.fail_worker(dead.incarnation, &failure(Reason::WorkerExited)).await.expect("answers");
    let beats = [&dead, &live, &draining].map(|w| w.beat(false));
    let answers = tick(&db.store, &beats).await;
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[&live.incarnation].drain, None);
    assert!(answers[&draining.incarnation].drain.is_some_and(|s| (25..=30).contains(&s)));
    assert_eq!(db.lease(dead.incarnation).await.as_deref(), Some("dead"), "no resurrection");
}

crate::both!(
    silence_is_judged_a_lease_after_a_gap,
    a_worker_that_beats_again_survives_an_outage,
    a_database_that_blinks_for_ever_holds_no_verdict_for_ever,
    without_ticks_nobody_is_failed,
    a_short_lease_waits_for_a_tick,
    a_settled_gate_forgets_former_gaps,
    a_clock_that_steps_back_keeps_nobody_alive,
    a_start_does_not_outlive_a_step_back,
    a_restart_resets_the_gate,
    a_beat_says_where_the_worker_stands,
);
