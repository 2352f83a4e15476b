//! Starts that fail: which turns they end, and which they do not.

use lastword::store::{ClaimOrder, NewStart};
use lastword::turn::keys::{Incarnation, StartId, WorkerGroup};
use lastword::turn::phase::LeasePhase;
use lastword::turn::reason::Reason;

use crate::steps::tick;
use crate::support::Db;
use crate::support::actors::{Worker, arm, armed, failure, finish, new_start};

/// Writes the row of a start that will not come to life.
async fn start(db: &Db, change: impl FnOnce(&mut NewStart)) -> Incarnation {
    let (mut start, _) = new_start();
    change(&mut start);
    assert!(db.store.start_worker(&start, false).await.expect("starts"));
    Incarnation(start.start_id.0)
}

async fn fail(db: &Db, start: Incarnation) -> Vec<lastword::turn::keys::TurnId> {
    let failed = db.store.fail_worker(start, &failure(Reason::ImagePull)).await.expect("answers");
    assert!(failed.died_now && failed.failed_start);
    failed.ended
}

/// `startAttempts` 1: the first failed start ends what waits for its worker group, and nothing else.
async fn the_only_attempt_that_fails_ends_what_waited(db: Db) {
    let mut turns = vec![db.armed("a").await.turn_id, db.armed("a").await.turn_id, db.armed("b").await.turn_id];
    let mut elsewhere = arm("c");
    elsewhere.agent = "other".into();
    let elsewhere = armed(&db.store, elsewhere).await.turn_id;
    let mut stranger = arm("a");
    stranger.organization = "umbrella".into();
    let stranger = armed(&db.store, stranger).await.turn_id;
    let start = start(&db, |_| {}).await;
    turns.push(db.armed("d").await.turn_id);

    let mut ended = fail(&db, start).await;
    ended.sort();
    turns.sort();
    assert_eq!(ended, turns);
    assert_eq!(db.outcome(turns[0]).await.as_deref(), Some("ImagePull"));
    for spared in [elsewhere, stranger] {
        assert_eq!(db.phase(spared).await.as_deref(), Some("waiting"));
    }
    let later = db.armed("a").await.turn_id;
    let again = db.store.fail_worker(start, &failure(Reason::ImagePull)).await.expect("answers");
    assert!(!again.died_now && again.ended.is_empty(), "one start fails once");
    assert_eq!(db.phase(later).await.as_deref(), Some("waiting"));
}

/// `startAttempts` 2: the second failed start ends what waited through both; what was armed between them waits on.
async fn the_second_failed_start_ends_what_waited_through_both(db: Db) {
    let early = db.armed("a").await.turn_id;
    let two = |start: &mut NewStart| start.start_attempts = 2;
    let first = start(&db, two).await;
    assert!(fail(&db, first).await.is_empty());
    let between = db.armed("b").await.turn_id;
    let second = start(&db, two).await;
    assert_eq!(fail(&db, second).await, [early]);
    let third = start(&db, two).await;
    assert_eq!(fail(&db, third).await, [between]);
}

/// A worker that is live, or another start, keeps a failed start from ending anything.
async fn another_worker_keeps_turns_waiting_through_a_failed_start(db: Db) {
    for live in [true, false] {
        let turn = db.armed("a").await.turn_id;
        let failing = start(&db, |_| {}).await;
        let other = if live { Worker::live(&db.store).await.incarnation } else { start(&db, |_| {}).await };
        assert!(fail(&db, failing).await.is_empty(), "live: {live}");
        assert_eq!(db.phase(turn).await.as_deref(), Some("waiting"));
        assert_eq!(fail(&db, other).await, [turn], "the last one takes it along; live: {live}");
    }
}

/// A worker of another worker group, or one that drains, is no help: it will not claim.
async fn a_worker_that_will_not_claim_keeps_nothing_waiting(db: Db) {
    let turn = db.armed("a").await.turn_id;
    let draining = Worker::live(&db.store).await;
    db.store.drain_worker(draining.incarnation, Reason::Deleted).await.expect("answers");
    Worker::with(&db.store, |start| start.agent = "other".into()).await;
    let conversation = armed(&db.store, arm("b")).await.conversation_id;
    db.erase("b").await.expect("erases");
    Worker::with(&db.store, |start| start.worker_group = WorkerGroup::OfConversation(conversation)).await;
    let failing = start(&db, |_| {}).await;
    assert_eq!(fail(&db, failing).await, [turn]);
}

/// A worker that claimed and then dies is no failed start: what waits behind it waits on.
async fn a_death_after_a_claim_is_no_failed_start(db: Db) {
    let worker = Worker::live(&db.store).await;
    let held = db.in_hand(&worker).await;
    assert_eq!(finish(&db.store, worker.reply(&[held], "done")).await, Ok(true));
    let waiting = db.armed("a").await.turn_id;
    let died = db.store.fail_worker(worker.incarnation, &failure(Reason::OutOfMemory)).await.expect("answers");
    assert!(died.died_now && !died.failed_start && died.ended.is_empty());
    assert_eq!(db.phase(waiting).await.as_deref(), Some("waiting"));
}

/// A connected worker that dies before its first claim is a failed start.
async fn a_death_before_the_first_claim_is_a_failed_start(db: Db) {
    let worker = Worker::live(&db.store).await;
    let waiting = db.armed("a").await.turn_id;
    assert_eq!(fail(&db, worker.incarnation).await, [waiting]);
}

/// Starts that somebody else stops before they take a message are no failed ones; five of them end what waited through
/// all, with the reason of the last. Stops of our own never do.
async fn interrupted_starts_are_counted(db: Db) {
    let first = db.armed("a").await.turn_id;
    let other = db.another_store();
    let mut later = None;
    for round in 1..=5 {
        let ours = start(&db, |_| {}).await;
        db.store.drain_worker(ours, Reason::Deleted).await.expect("drains");
        let died = db.store.fail_worker(ours, &failure(Reason::WorkerExited)).await.expect("answers");
        assert!(died.died_now && died.ended.is_empty());

        let evicted = start(&db, |start| start.runtime = "kubernetes").await;
        assert!(db.store.record_stop_of_start(StartId(evicted.0), Reason::Evicted, None).await.expect("answers"));
        let futile = other.futile_starts().await.expect("reads");
        assert_eq!(futile.iter().map(|f| (f.failed, f.interrupted)).collect::<Vec<_>>(), [(0, round)], "it drains");
        let died = db.store.fail_worker(evicted, &failure(Reason::WorkerExited)).await.expect("answers");
        assert!(died.died_now && !died.failed_start);
        assert_eq!(died.ended, if round == 5 { vec![first] } else { vec![] }, "round {round}");
        if round == 1 {
            later = Some(db.armed("b").await.turn_id);
        }
    }
    assert_eq!(db.outcome(first).await.as_deref(), Some("Evicted"));
    assert_eq!(db.phase(later.expect("armed")).await.as_deref(), Some("waiting"), "it waited through four");
    let guessed = start(&db, |_| {}).await;
    db.store.note_stop_of_worker(guessed, Reason::NodeShutdown).await.expect("answers");
    assert_eq!(db.store.fail_worker(guessed, &failure(Reason::WorkerExited)).await.expect("answers").ended.len(), 1);
    let futile = other.futile_starts().await.expect("reads");
    assert_eq!((futile.len(), futile[0].interrupted, futile[0].ago < 60.0), (1, 6, true));
    db.sql("UPDATE lease SET died_at = died_at - interval '6 minutes' WHERE phase = 'dead'").await;
    assert!(other.futile_starts().await.expect("reads").is_empty(), "long ago");
}

/// Whoever learnt of a failed start, every replica reads it; a start that claimed is none.
async fn failed_starts_are_read_by_all(db: Db) {
    let worker = Worker::live(&db.store).await;
    db.in_hand(&worker).await;
    db.store.fail_worker(worker.incarnation, &failure(Reason::OutOfMemory)).await.expect("answers");
    assert!(db.another_store().futile_starts().await.expect("reads").is_empty());
    for _ in 0..2 {
        let start = start(&db, |_| {}).await;
        fail(&db, start).await;
    }
    let futile = db.another_store().futile_starts().await.expect("reads");
    let read: Vec<_> = futile.iter().map(|f| (f.agent.as_str(), f.config, f.failed, f.interrupted)).collect();
    assert_eq!(read, [("bot", 1, 2, 0)]);
}

/// Guarded turns are nobody's to claim yet: a failed start leaves them alone.
async fn a_guarded_turn_does_not_wait_for_a_start(db: Db) {
    let mut guarded = arm("a");
    guarded.guard = Some((lastword::turn::keys::GatewayId::new(), 30));
    let turn = armed(&db.store, guarded).await.turn_id;
    let failing = start(&db, |_| {}).await;
    assert!(fail(&db, failing).await.is_empty());
    assert_eq!(db.phase(turn).await.as_deref(), Some("guarding"));
}

/// A start is one row: `only_first` refuses a second, and the fleet sees what there is.
async fn a_start_is_one_row_that_the_fleet_sees(db: Db) {
    db.store.put_agent("acme", "bot", &serde_json::json!({})).await.expect("puts");
    db.armed("a").await;
    db.armed("a").await;
    db.armed("b").await;
    let demand = db.store.demand_of_worker_groups(ClaimOrder::ByRank).await.expect("answers");
    assert_eq!((demand.len(), demand[0].claimable), (1, 2), "the first of each conversation");
    assert!(db.store.living_workers().await.expect("answers").is_empty());

    let (first, credential) = new_start();
    assert!(db.store.start_worker(&first, true).await.expect("starts"));
    assert!(!db.store.start_worker(&new_start().0, true).await.expect("answers"));
    let workers = db.store.living_workers().await.expect("answers");
    assert_eq!((workers.len(), workers[0].phase, workers[0].held), (1, LeasePhase::Starting, 0));
    let worker = Worker::connect(&db.store, credential).await;
    assert_eq!(db.store.incarnation_of_start(first.start_id).await.expect("answers"), Some(worker.incarnation));
    worker.claim(&db.store, 1).await;
    let workers = db.store.living_workers().await.expect("answers");
    assert_eq!((workers[0].phase, workers[0].held, workers[0].idle_seconds), (LeasePhase::Live, 1, None));
    assert_eq!(db.store.demand_of_worker_groups(ClaimOrder::ByRank).await.expect("answers")[0].claimable, 1);
    assert!(!db.store.start_worker(&new_start().0, true).await.expect("answers"));
}

/// Two starts that fail at the same instant: whoever is last ends what waits.
async fn the_last_of_two_starts_that_fail_together_ends_what_waits(db: Db) {
    let other = db.another_store();
    for round in 0..100 {
        let turn = db.armed("a").await.turn_id;
        let (one, two) = (start(&db, |_| {}).await, start(&db, |_| {}).await);
        let failure = failure(Reason::StartFailed);
        let (a, b) = tokio::join!(db.store.fail_worker(one, &failure), other.fail_worker(two, &failure));
        let ended = a.expect("answers").ended.len() + b.expect("answers").ended.len();
        assert_eq!(ended, 1, "round {round}: no worker is there or coming, and the turn {turn} waits");
    }
}

/// A finish is a sign of life: the worker that has nothing else to do is idle from then on, also if it was idle before; one that
/// holds another turn is not.
async fn a_worker_is_idle_from_its_finish_on(db: Db) {
    let worker = Worker::live(&db.store).await;
    let idle = async || db.store.living_workers().await.expect("reads")[0].idle_seconds;
    let (first, second) = (db.in_hand(&worker).await, db.in_hand(&worker).await);
    tick(&db.store, &[worker.beat(true)]).await;
    assert_eq!(finish(&db.store, worker.reply(&[first], "done")).await, Ok(true));
    tick(&db.store, &[worker.finished()]).await;
    assert_eq!(idle().await, None, "it holds another");
    assert_eq!(finish(&db.store, worker.reply(&[second], "done")).await, Ok(true));
    db.sql("UPDATE lease SET idle_since = clock_timestamp() - interval '60 seconds', expires_at = clock_timestamp()")
        .await;
    tick(&db.store, &[worker.finished()]).await;
    let seconds = idle().await.expect("idle");
    assert!(seconds < 59.0, "since its finish: {seconds}");
    assert_eq!(db.count("lease WHERE expires_at > clock_timestamp() + interval '1 second'").await, 1, "it lives");
}

crate::both!(
    the_only_attempt_that_fails_ends_what_waited,
    the_second_failed_start_ends_what_waited_through_both,
    another_worker_keeps_turns_waiting_through_a_failed_start,
    a_worker_that_will_not_claim_keeps_nothing_waiting,
    a_death_after_a_claim_is_no_failed_start,
    a_death_before_the_first_claim_is_a_failed_start,
    interrupted_starts_are_counted,
    failed_starts_are_read_by_all,
    a_worker_is_idle_from_its_finish_on,
    a_guarded_turn_does_not_wait_for_a_start,
    a_start_is_one_row_that_the_fleet_sees,
    the_last_of_two_starts_that_fail_together_ends_what_waits,
);
