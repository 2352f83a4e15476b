//! Silence is judged by the gateway that carried a worker's last sign of life.
//!
//! Two gateways, `here` and `there`, have ticked for an hour when a test begins. Time passes by moving all timestamps back; who
//! ticks meanwhile is said.

use lastword::store::{Beat, Replica};
use lastword::turn::keys::{GatewayId, SessionId, TurnId};
use lastword::turn::reason::Reason;
use uuid::Uuid;

use crate::support::Db;
use crate::support::actors::{LEASE, Worker, failure, new_start};

/// Seconds after its last tick for which a gateway lives.
const EXPIRY: u32 = 10;

struct Place {
    db: Db,
    here: Replica,
    there: Replica,
}

impl Place {
    async fn new(db: Db) -> Place {
        let place = Place { db, here: Replica::new("http://here".into()), there: Replica::new("http://there".into()) };
        place.tick(&place.here, &[]).await;
        place.tick(&place.there, &[]).await;
        place.db.settled().await;
        place
    }

    /// A worker connected to a gateway, with a turn in hand.
    async fn worker(&self, gateway: &Replica) -> (Worker, TurnId) {
        let worker = Worker::live(&self.db.store).await;
        let turn = self.db.in_hand(&worker).await;
        self.connect(&worker, gateway).await;
        (worker, turn)
    }

    async fn connect(&self, worker: &Worker, gateway: &Replica) {
        let connected = self.db.store.connect_worker(
            &worker.credential,
            worker.incarnation,
            gateway.id,
            Uuid::new_v4(),
            10_000,
            false,
        );
        connected.await.expect("connects");
    }

    /// One tick of a gateway.
    async fn tick(&self, gateway: &Replica, beats: &[Beat]) {
        let answers = self.db.store.heartbeat_of_gateway(gateway, EXPIRY, |_| beats.to_vec()).await.expect("ticks");
        assert_eq!(answers.len(), beats.len());
    }

    /// So many seconds pass, in which these gateways tick without a gap. The others do not.
    async fn pass(&self, seconds: u32, ticking: &[&Replica]) {
        let back = format!("- interval '{seconds} seconds'");
        let ids: Vec<String> = ticking.iter().map(|gateway| format!("'{}'", gateway.id.0)).collect();
        let seen = if ids.is_empty() { format!("seen {back}") } else { "clock_timestamp()".into() };
        for statement in [
            format!("UPDATE gate SET since = since {back}, seen = {seen}"),
            format!(
                "UPDATE gateway SET since = since {back}, seen = seen {back}, seen_before = seen_before {back},
                        expires_at = expires_at {back}, returned_at = returned_at {back}"
            ),
            format!("UPDATE lease SET started_at = started_at {back}, expires_at = expires_at {back}"),
        ] {
            self.db.sql(statement).await;
        }
        if !ids.is_empty() {
            self.db
                .sql(format!(
                    "UPDATE gateway SET seen = clock_timestamp(), seen_before = clock_timestamp(),
                            expires_at = clock_timestamp() + interval '{EXPIRY} seconds' WHERE id IN ({})",
                    ids.join(", ")
                ))
                .await;
        }
    }

    /// How a turn ended, behind a sweep.
    async fn swept(&self, turn: TurnId) -> Option<String> {
        self.db.store.sweep().await.expect("sweeps");
        self.db.outcome(turn).await
    }
}

/// A gateway alone is cut off for a lease and some. Its workers, who know no other, are spared, and beat again when it is back.
async fn a_gateway_that_alone_is_cut_off_gets_nobody_failed(db: Db) {
    let place = Place::new(db).await;
    let (pinned, turn) = place.worker(&place.here).await;
    let (dead, its_turn) = place.worker(&place.there).await;
    place.pass(LEASE + 2, &[&place.there]).await;
    assert_eq!(place.swept(turn).await, None, "its gateway could not have written its beat");
    assert_eq!(place.swept(its_turn).await.as_deref(), Some("LeaseLapsed"), "this one's could: {}", dead.incarnation);
    place.tick(&place.here, &[]).await;
    place.pass(1, &[&place.here, &place.there]).await;
    assert_eq!(place.swept(turn).await, None, "it has ticked again, though not for a lease");
    place.tick(&place.here, &[pinned.beat(true)]).await;
    place.pass(LEASE - 2, &[&place.here, &place.there]).await;
    assert_eq!(place.swept(turn).await, None);
    assert_eq!(crate::support::actors::finish(&place.db.store, pinned.reply(&[turn], "here")).await, Ok(true));
}

/// A worker that was heard and dies while its gateway comes back from a cut is ended when that gateway has ticked for a lease.
async fn silence_counts_a_lease_after_its_gateway_is_back(db: Db) {
    let place = Place::new(db).await;
    let (_, turn) = place.worker(&place.here).await;
    place.pass(LEASE + 5, &[&place.there]).await;
    place.tick(&place.here, &[]).await;
    place.pass(LEASE - 3, &[&place.here, &place.there]).await;
    assert_eq!(place.swept(turn).await, None);
    place.pass(3, &[&place.here, &place.there]).await;
    assert_eq!(place.swept(turn).await.as_deref(), Some("LeaseLapsed"));
}

/// A worker that dies with its gateway is ended a lease after the gateway's row ran out.
async fn a_worker_that_dies_with_its_gateway_is_ended_ten_seconds_later(db: Db) {
    let place = Place::new(db).await;
    let (_, turn) = place.worker(&place.here).await;
    place.tick(&place.here, &[]).await;
    place.pass(LEASE + EXPIRY - 2, &[&place.there]).await;
    assert_eq!(place.swept(turn).await, None);
    place.pass(3, &[&place.there]).await;
    assert_eq!(place.swept(turn).await.as_deref(), Some("LeaseLapsed"));
}

/// The moment is given by the worker's own gateway, and a lease by its own length.
async fn leases_of_different_lengths_have_moments_of_their_own(db: Db) {
    let place = Place::new(db).await;
    let mut turns = Vec::new();
    for lease in [10, 30, 100] {
        let worker = Worker::with(&place.db.store, |start| start.lease_seconds = lease).await;
        let turn = place.db.in_hand(&worker).await;
        place.connect(&worker, &place.here).await;
        turns.push((lease, turn));
    }
    place.tick(&place.here, &[]).await;
    let mut passed = 0;
    for (lease, turn) in turns {
        let until = lease + EXPIRY - 2;
        place.pass(until - passed, &[&place.there]).await;
        assert_eq!(place.swept(turn).await, None, "a lease of {lease} s");
        place.pass(3, &[&place.there]).await;
        assert_eq!(place.swept(turn).await.as_deref(), Some("LeaseLapsed"), "a lease of {lease} s");
        passed = until + 3;
    }
}

/// One tick behind the end of a lease is not enough: the beat that could not be written may come after it.
async fn two_ticks_behind_the_end_of_a_lease_end_it(db: Db) {
    let place = Place::new(db).await;
    let (_, turn) = place.worker(&place.here).await;
    let (_, other) = place.worker(&place.here).await;
    place.db.sql("UPDATE lease SET expires_at = clock_timestamp()").await;
    place.tick(&place.there, &[]).await;
    place.tick(&place.there, &[]).await;
    assert_eq!(place.swept(turn).await, None, "another gateway's ticks say nothing");
    place.tick(&place.here, &[]).await;
    assert_eq!(place.swept(turn).await, None);
    place.tick(&place.here, &[]).await;
    assert_eq!(place.swept(turn).await.as_deref(), Some("LeaseLapsed"));
    assert_eq!(place.db.outcome(other).await.as_deref(), Some("LeaseLapsed"));
}

/// A gateway that comes and goes, and never ticks for a lease, keeps the dead for five leases and no longer.
async fn a_gateway_that_comes_and_goes_keeps_the_dead_for_five_leases(db: Db) {
    let place = Place::new(db).await;
    let (_, turn) = place.worker(&place.here).await;
    let rounds = 6 * LEASE / 20;
    for round in 1..=rounds {
        place.pass(20, &[&place.there]).await;
        place.tick(&place.here, &[]).await;
        place.tick(&place.here, &[]).await;
        let (passed, ended) = (20 * round, place.swept(turn).await);
        if passed < 6 * LEASE {
            assert_eq!(ended, None, "{passed} s after its last sign of life");
        } else {
            assert_eq!(ended.as_deref(), Some("LeaseLapsed"));
        }
    }
}

/// A lease names who carried its last sign of life; the stream's gateway stands apart.
async fn a_beat_by_way_of_another_gateway_moves_the_judge_and_not_the_stream(db: Db) {
    let place = Place::new(db).await;
    let (worker, turn) = place.worker(&place.here).await;
    place.tick(&place.there, &[worker.beat(true)]).await;
    let names = |gateway: &Replica, column: &str| format!("lease WHERE {column} = '{}'", gateway.id.0);
    assert_eq!(place.db.count(&names(&place.there, "heard_by")).await, 1);
    assert_eq!(place.db.count(&names(&place.here, "gateway")).await, 1);
    place.pass(LEASE + 2, &[&place.here]).await;
    assert_eq!(place.swept(turn).await, None);
    place.connect(&worker, &place.here).await;
    assert_eq!(place.db.count(&names(&place.here, "heard_by")).await, 1);
    place.pass(LEASE + 2, &[&place.here]).await;
    assert_eq!(place.swept(turn).await.as_deref(), Some("LeaseLapsed"));
}

/// A gateway that stops in order writes what it heard, and is not waited for.
async fn a_gateway_that_stops_in_order_is_not_waited_for(db: Db) {
    let place = Place::new(db).await;
    let (worker, turn) = place.worker(&place.here).await;
    let conversation = place.db.armed("shown").await.conversation_id;
    for gateway in [&place.here, &place.there] {
        let session = SessionId(Uuid::new_v4());
        place.db.store.register_session(session, gateway.id, "acme", conversation, true).await.expect("registers");
    }
    place.pass(LEASE - 10, &[&place.here, &place.there]).await;
    place.db.store.stop_gateway(place.here.id, &[worker.beat(true)]).await.expect("stops");
    assert_eq!((place.db.count("gateway").await, place.db.count("session").await), (1, 1));
    place.pass(LEASE - 2, &[&place.there]).await;
    assert_eq!(place.swept(turn).await, None, "its last beat counts");
    place.pass(3, &[&place.there]).await;
    assert_eq!(place.swept(turn).await.as_deref(), Some("LeaseLapsed"));
}

/// The row of a gateway that is lost stays while a worker that is not dead was heard by it.
async fn a_lost_gateway_is_remembered_while_a_lease_names_it(db: Db) {
    let place = Place::new(db).await;
    let (worker, _) = place.worker(&place.here).await;
    place.pass(EXPIRY + 90, &[]).await;
    place.db.store.forget_lost_gateways().await.expect("forgets");
    assert_eq!(place.db.count("gateway").await, 1, "nobody was heard by the other");
    assert_eq!(place.db.count(&format!("gateway WHERE id = '{}'", place.here.id.0)).await, 1);
    place.db.store.fail_worker(worker.incarnation, &failure(Reason::WorkerExited)).await.expect("answers");
    place.db.store.forget_lost_gateways().await.expect("forgets");
    assert_eq!(place.db.count("gateway").await, 0);
}

/// After the clock stepped back no gateway's row lies in the future, where it would be taken for one that ticked.
async fn a_clock_that_steps_back_takes_gateways_along(db: Db) {
    let place = Place::new(db).await;
    let (_, turn) = place.worker(&place.here).await;
    // As an hour-long step back leaves the rows behind.
    for statement in [
        "UPDATE gate SET seen = seen + interval '1 hour', since = since + interval '1 hour'",
        "UPDATE lease SET expires_at = expires_at + interval '1 hour'",
        "UPDATE gateway SET seen = seen + interval '1 hour', seen_before = seen_before + interval '1 hour',
                expires_at = expires_at + interval '1 hour', since = since + interval '1 hour'",
    ] {
        place.db.sql(statement).await;
    }
    place.tick(&place.there, &[]).await;
    let ahead = "SELECT max(ceil(extract(epoch FROM expires_at - clock_timestamp()))) FROM gateway";
    assert!(place.db.number(ahead).await <= i64::from(EXPIRY));
    assert_eq!(place.db.count("gateway WHERE seen > clock_timestamp() OR seen_before > clock_timestamp()").await, 0);
    place.pass(LEASE + 2, &[&place.there]).await;
    assert_eq!(place.swept(turn).await, None, "the other one has not ticked since");
    place.pass(EXPIRY, &[&place.there]).await;
    assert_eq!(place.swept(turn).await.as_deref(), Some("LeaseLapsed"));
}

/// A start whose time is over, and that has seconds more.
async fn starting(place: &Place) -> (String, TurnId) {
    let turn = place.db.armed(&Uuid::new_v4().to_string()).await.turn_id;
    let (start, _) = new_start();
    assert!(place.db.store.start_worker(&start, false).await.expect("starts"));
    (format!("lease WHERE incarnation = '{}' AND phase = 'dead'", start.start_id), turn)
}

/// Where a gateway was lost while a start waited for its worker, which may have come to that one, the verdict waits for the
/// start's time once more. Then it is made, though the gateway is as lost as before.
async fn a_start_waits_once_more_where_a_gateway_was_lost(db: Db) {
    let place = Place::new(db).await;
    let (dead, turn) = starting(&place).await;
    place.pass(61, &[&place.there]).await;
    assert_eq!((place.swept(turn).await, place.db.count(&dead).await), (None, 0));
    place.pass(58, &[&place.there]).await;
    assert_eq!((place.swept(turn).await, place.db.count(&dead).await), (None, 0));
    place.pass(3, &[&place.there]).await;
    assert_eq!(place.swept(turn).await.as_deref(), Some("StartFailed"));
    assert_eq!(place.db.count(&dead).await, 1);
}

/// The same where the gateway is back by then; and not where it was lost and back before the start began.
async fn a_start_waits_once_more_where_a_gateway_was_away(db: Db) {
    let place = Place::new(db).await;
    let (dead, turn) = starting(&place).await;
    place.pass(58, &[&place.there]).await;
    place.tick(&place.here, &[]).await;
    place.pass(3, &[&place.here, &place.there]).await;
    assert_eq!((place.swept(turn).await, place.db.count(&dead).await), (None, 0));
    place.pass(61, &[&place.here, &place.there]).await;
    assert_eq!(place.swept(turn).await.as_deref(), Some("StartFailed"));
    let (_, later) = starting(&place).await;
    place.pass(61, &[&place.here, &place.there]).await;
    assert_eq!(place.swept(later).await.as_deref(), Some("StartFailed"), "all gateways lived meanwhile");
}

/// A worker that no row of a gateway is known of is judged by the gate, as one that a gateway heard which stopped since.
async fn a_lease_that_names_a_gateway_without_a_row_is_judged_by_the_gate(db: Db) {
    let place = Place::new(db).await;
    let (worker, turn) = place.worker(&place.here).await;
    let unknown = Replica { id: GatewayId(Uuid::new_v4()), ..Replica::new("http://nowhere".into()) };
    place.connect(&worker, &unknown).await;
    place.pass(LEASE - 1, &[&place.there]).await;
    assert_eq!(place.swept(turn).await, None);
    place.pass(2, &[&place.there]).await;
    assert_eq!(place.swept(turn).await.as_deref(), Some("LeaseLapsed"));
}

crate::both!(
    a_gateway_that_alone_is_cut_off_gets_nobody_failed,
    silence_counts_a_lease_after_its_gateway_is_back,
    a_worker_that_dies_with_its_gateway_is_ended_ten_seconds_later,
    leases_of_different_lengths_have_moments_of_their_own,
    two_ticks_behind_the_end_of_a_lease_end_it,
    a_gateway_that_comes_and_goes_keeps_the_dead_for_five_leases,
    a_beat_by_way_of_another_gateway_moves_the_judge_and_not_the_stream,
    a_gateway_that_stops_in_order_is_not_waited_for,
    a_lost_gateway_is_remembered_while_a_lease_names_it,
    a_clock_that_steps_back_takes_gateways_along,
    a_start_waits_once_more_where_a_gateway_was_lost,
    a_start_waits_once_more_where_a_gateway_was_away,
    a_lease_that_names_a_gateway_without_a_row_is_judged_by_the_gate,
);
