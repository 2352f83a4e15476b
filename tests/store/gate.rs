//! Nobody punishes an outage. Verdicts of silence wait until gateways have been able to write for a whole lease.

use lastword::heartbeat::Heartbeats;
use lastword::store::Replica;
use lastword::turn::keys::{StartId, TurnId};
use lastword::turn::reason::Reason;
use sqlx::Connection;
use tokio_util::sync::CancellationToken;

use crate::steps::tick;
use crate::support::Db;
use crate::support::actors::{LEASE, Worker, failure, new_start};
use crate::support::wait::eventually;

/// The silent of every kind: a worker with a turn, a start that nobody connects to.
struct Silent {
    worker: Worker,
    turn: TurnId,
    start: StartId,
}

impl Silent {
    async fn all(db: &Db) -> Silent {
        let worker = Worker::live(&db.store).await;
        let turn = db.in_hand(&worker).await;
        let (mut start, _) = new_start();
        start.agent = "other".into();
        assert!(db.store.start_worker(&start, false).await.expect("starts"));
        db.sql("UPDATE lease SET expires_at = clock_timestamp() - interval '9 minutes'").await;
        Silent { worker, turn, start: start.start_id }
    }

    /// How many of them are ended: 0 or 2.
    async fn ended(&self, db: &Db) -> usize {
        let dead = format!("lease WHERE phase = 'dead' AND incarnation = '{}'", self.start);
        let ended = [
            db.outcome(self.turn).await.is_some() && db.lease(self.worker.incarnation).await.as_deref() == Some("dead"),
            db.count(&dead).await == 1,
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

/// So many milliseconds pass without a tick; then one comes.
async fn tick_after(db: &Db, milliseconds: u32) {
    let passes = format!("- interval '{milliseconds} milliseconds'");
    db.sql(format!("UPDATE gate SET since = since {passes}, seen = seen {passes}")).await;
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
    assert_eq!(silent.ended(&db).await, 2);
    assert_eq!(db.outcome(silent.turn).await.as_deref(), Some("LeaseLapsed"));
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

/// A database that blinks for ever, or in which every tick takes so long that it comes after a gap, holds nothing back for
/// ever: what was ticked adds up to five leases, over all gaps, and no later.
async fn a_database_that_is_never_steady_holds_no_verdict_for_ever(db: Db) {
    // What passes between the ticks of one round, in milliseconds, and what of it counts.
    let slow = (vec![4_000], 3_500);
    let blinking = (vec![3_000, 3_000, 3_000, 60_000], 12_500);
    let each_late = (vec![3_600, 1_000], 4_500);
    for (pauses, counted) in [slow, blinking, each_late] {
        gap(&db).await;
        tick(&db.store, &[]).await;
        let silent = Silent::all(&db).await;
        let overdue = db.armed("overdue").await.turn_id;
        db.overdue(overdue).await;
        let rounds = 5 * LEASE * 1_000 / counted;
        for round in 0..rounds {
            db.store.sweep().await.expect("sweeps");
            // What the test itself takes is counted too, so the sum may come a little early.
            if round < rounds * 3 / 4 {
                assert_eq!(silent.ended(&db).await, 0, "{pauses:?}, round {round} of {rounds}");
            }
            // Five times the 15 s for which words are waited for.
            if round * counted < 75_000 * 3 / 4 {
                assert_eq!(db.outcome(overdue).await, None, "{pauses:?}, round {round} of {rounds}");
            } else if round * counted > 75_000 + counted {
                assert_eq!(db.outcome(overdue).await.as_deref(), Some("DeadlineExceeded"), "{pauses:?}");
            }
            for &pause in &pauses {
                tick_after(&db, pause).await;
            }
        }
        for &pause in &pauses {
            tick_after(&db, pause).await;
        }
        db.store.sweep().await.expect("sweeps");
        assert_eq!(silent.ended(&db).await, 2, "{pauses:?}");
        assert_eq!(db.outcome(overdue).await.as_deref(), Some("DeadlineExceeded"));
        db.erase("overdue").await.expect("erases");
    }
}

/// While a tick is under way nobody is judged by it whose lease ran out after its beats were gathered: however slow the
/// database is, the beat that waits meanwhile is written by the next tick.
async fn a_beat_that_waits_for_a_slow_tick_is_no_silence(db: Db) {
    db.settled().await;
    let worker = Worker::live(&db.store).await;
    let turn = db.in_hand(&worker).await;
    // The tick of another gateway stands still behind its gathering, as if the database took its time.
    db.sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN PERFORM pg_advisory_xact_lock(4); RETURN NEW; END $$",
    )
    .await;
    db.sql("CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON gateway FOR EACH ROW EXECUTE FUNCTION slow()").await;
    let slow = db.locking("SELECT pg_advisory_xact_lock(4)").await;
    let (gathered, mut has_gathered) = tokio::sync::mpsc::unbounded_channel();
    let store = db.store.clone();
    let gateway = Replica::new("http://gateway".into());
    let under_way = tokio::spawn(async move {
        let gather = |_| {
            let _ = gathered.send(());
            Vec::new()
        };
        store.heartbeat_of_gateway(&gateway, 60, gather).await
    });
    has_gathered.recv().await.expect("gathers");
    // Now the lease runs out, and the worker beats. Its beat waits.
    db.sql("UPDATE lease SET expires_at = clock_timestamp()").await;
    db.store.sweep().await.expect("sweeps");
    assert_eq!(db.outcome(turn).await, None, "the tick is under way");
    slow.close().await.expect("unlocks");
    under_way.await.expect("no panic").expect("ticks");
    db.store.sweep().await.expect("sweeps");
    assert_eq!(db.outcome(turn).await, None, "the tick could not know of the beat");
    // The next tick writes it, or finds that there is none.
    let answers = tick(&db.store, &[worker.beat(true)]).await;
    assert_eq!(answers[&worker.incarnation].held, [turn]);
    db.store.sweep().await.expect("sweeps");
    assert_eq!(db.outcome(turn).await, None);
    db.settled().await;
    db.sql("UPDATE lease SET expires_at = clock_timestamp()").await;
    tick(&db.store, &[]).await;
    tick(&db.store, &[]).await;
    db.store.sweep().await.expect("sweeps");
    assert_eq!(db.outcome(turn).await.as_deref(), Some("LeaseLapsed"));
}

/// A tick that fails has written no beat. Its workers were not silent: the next tick writes what they said.
async fn a_beat_that_was_not_written_is_written_by_the_next_tick(db: Db) {
    let worker = Worker::live(&db.store).await;
    db.sql("CREATE FUNCTION away() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'away'; END $$").await;
    db.sql("CREATE TRIGGER away BEFORE UPDATE ON lease FOR EACH ROW EXECUTE FUNCTION away()").await;
    let shutdown = CancellationToken::new();
    let _ends = shutdown.clone().drop_guard();
    let heartbeats = Heartbeats::start(db.store.clone(), Replica::new("http://gateway".into()), shutdown);
    heartbeats.beat(worker.incarnation, true).await.expect_err("is not written");
    let before = db.text("SELECT expires_at::text FROM lease").await;
    db.sql("DROP TRIGGER away ON lease").await;
    let renewed = async || db.text("SELECT expires_at::text FROM lease").await != before;
    eventually("the lease is renewed", renewed).await;
}

/// A deadline is no verdict of silence: it waits for words that could not be said during a gap, and not for a lease.
async fn a_deadline_waits_for_words_and_not_for_a_lease(db: Db) {
    let worker = Worker::with(&db.store, |start| start.lease_seconds = 600).await;
    let draining = Worker::live(&db.store).await;
    let (overdue, undrained) = (db.in_hand(&worker).await, db.in_hand(&draining).await);
    db.store.drain_worker(draining.incarnation, Reason::Deleted).await.expect("answers");
    let over = async || {
        db.store.sweep().await.expect("sweeps");
        vec![db.outcome(overdue).await, db.outcome(undrained).await]
    };
    db.sql(format!(
        "UPDATE marker SET armed_at = clock_timestamp() - interval '2 minutes',
                deadline_at = clock_timestamp() - interval '1 minute' WHERE turn_id = '{overdue}'"
    ))
    .await;
    db.sql("UPDATE lease SET drain_until = clock_timestamp() - interval '1 minute' WHERE phase = 'draining'").await;
    let nothing: Vec<Option<String>> = vec![None, None];
    gap(&db).await;
    assert_eq!(over().await, nothing, "nobody ticks");
    tick(&db.store, &[]).await;
    assert_eq!(over().await, nothing, "the gap has just ended");
    ticking(&db, 10).await;
    assert_eq!(over().await, nothing, "words may still come");
    ticking(&db, 6).await;
    assert_eq!(over().await, [Some("DeadlineExceeded".into()), Some("Deleted".into())]);
}

/// Counted are the leases of those who live: when the worker with the longest one is gone, what passed between the gaps had
/// settled for the others, and nobody is judged right after the next gap.
async fn a_longer_lease_that_is_gone_leaves_no_count_behind(db: Db) {
    let longest = Worker::with(&db.store, |start| start.lease_seconds = 600).await;
    gap(&db).await;
    tick(&db.store, &[]).await;
    for _ in 0..150 {
        tick_after(&db, 3_000).await;
    }
    db.store.fail_worker(longest.incarnation, &failure(Reason::WorkerExited)).await.expect("answers");
    let silent = Silent::all(&db).await;
    tick_after(&db, 60_000).await;
    db.store.sweep().await.expect("sweeps");
    assert_eq!(silent.ended(&db).await, 0);
}

/// Where gaps come too often for a long lease, those who have a short one are judged as if the long one were not there: what was
/// ticked before the last time that was long enough for them does not count.
async fn leases_of_different_lengths_are_counted_apart(db: Db) {
    let short = Worker::with(&db.store, |start| start.lease_seconds = 20).await;
    let long = Worker::with(&db.store, |start| start.lease_seconds = 600).await;
    let (of_short, of_long) = (db.in_hand(&short).await, db.in_hand(&long).await);
    db.settled().await;
    tick_after(&db, 60_000).await;
    // A gap every 42 s, until what was ticked is five of the long leases.
    for _ in 0..3 {
        for _ in 0..14 {
            tick_after(&db, 3_000).await;
        }
        tick_after(&db, 60_000).await;
    }
    db.sql("UPDATE gate SET ticked_seconds = ticked_seconds + 2900").await;
    db.sql("UPDATE gap SET ticked_seconds = ticked_seconds + 2900 WHERE steady_seconds < 600").await;
    db.sql("UPDATE lease SET expires_at = clock_timestamp() - interval '1 minute'").await;
    tick_after(&db, 100).await;
    db.store.sweep().await.expect("sweeps");
    assert_eq!(db.outcome(of_long).await.as_deref(), Some("LeaseLapsed"), "five of its lengths were ticked");
    assert_eq!(db.outcome(of_short).await, None, "a gap has just ended");
    for _ in 0..5 {
        tick_after(&db, 3_000).await;
        db.store.sweep().await.expect("sweeps");
        assert_eq!(db.outcome(of_short).await, None, "20 s have not passed");
    }
    tick_after(&db, 3_000).await;
    tick_after(&db, 3_000).await;
    db.store.sweep().await.expect("sweeps");
    assert_eq!(db.outcome(of_short).await.as_deref(), Some("LeaseLapsed"));
    assert!(db.count("gap").await <= 2, "a gap makes shorter times before it irrelevant");
}

/// Time in which no gateway ticks counts for nothing, however long it is.
async fn without_ticks_nobody_is_failed(db: Db) {
    db.sql("UPDATE gate SET since = clock_timestamp() - interval '1 hour', seen = clock_timestamp() - interval '10 minutes'")
        .await;
    let silent = Silent::all(&db).await;
    let overdue = db.armed("overdue").await.turn_id;
    db.sql(format!(
        "UPDATE marker SET armed_at = clock_timestamp() - interval '20 minutes',
                deadline_at = clock_timestamp() - interval '9 minutes' WHERE turn_id = '{overdue}'"
    ))
    .await;
    for _ in 0..3 {
        assert_eq!(db.store.sweep().await.expect("sweeps"), Default::default());
    }
    assert_eq!((silent.ended(&db).await, db.outcome(overdue).await), (0, None));
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
    a_database_that_is_never_steady_holds_no_verdict_for_ever,
    a_beat_that_waits_for_a_slow_tick_is_no_silence,
    a_beat_that_was_not_written_is_written_by_the_next_tick,
    a_deadline_waits_for_words_and_not_for_a_lease,
    a_longer_lease_that_is_gone_leaves_no_count_behind,
    leases_of_different_lengths_are_counted_apart,
    without_ticks_nobody_is_failed,
    a_short_lease_waits_for_a_tick,
    a_settled_gate_forgets_former_gaps,
    a_clock_that_steps_back_keeps_nobody_alive,
    a_start_does_not_outlive_a_step_back,
    a_restart_resets_the_gate,
    a_beat_says_where_the_worker_stands,
);
