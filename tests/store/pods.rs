//! Workers that are pods: which pod a start has, what its token is good for, and whose word counts on why it stops.

use lastword::store::{CredentialExchange, NewStart, Store};
use lastword::turn::keys::{Incarnation, StartId};
use lastword::turn::reason::Reason;
use lastword::turn::terminal::Failure;
use lastword::wire::Credential;

use crate::support::Db;
use crate::support::actors::{Worker, failure, new_start};

const POD: &str = "acme/bot-1";
const UID: &str = "uid-1";

fn kubernetes(start: &mut NewStart) {
    start.runtime = "kubernetes";
    start.runtime_ref = POD.into();
}

/// A start whose pod is not recorded yet.
async fn start(db: &Db) -> StartId {
    let (mut start, _) = new_start();
    kubernetes(&mut start);
    assert!(db.store.start_worker(&start, false).await.expect("starts"));
    start.start_id
}

/// A live worker in the pod.
async fn live(db: &Db) -> Worker {
    let worker = Worker::with(&db.store, kubernetes).await;
    assert!(db.store.record_pod_of_start(worker.credential.start, UID, 100).await.expect("answers"));
    worker
}

async fn session(db: &Db, uid: &str) -> (CredentialExchange, Option<Credential>) {
    let made = std::sync::Mutex::new(None);
    let make = |start| {
        let credential = Credential::new(start);
        let hash = credential.hash();
        *made.lock().expect("alone") = Some(credential);
        hash
    };
    let answer = db.store.exchange_credential_of_pod(POD, uid, make).await.expect("answers");
    (answer, made.into_inner().expect("alone"))
}

async fn drain_left(db: &Db, worker: &Worker) -> i64 {
    let left = "SELECT round(extract(epoch FROM drain_until - clock_timestamp())) FROM lease WHERE incarnation =";
    db.number(format!("{left} '{}'", worker.incarnation)).await
}

/// Every start has a number of its own, on whichever replica.
async fn every_start_of_an_agent_has_a_number_of_its_own(db: Db) {
    let other = db.another_store();
    let next = async |store: &Store| store.next_start_number().await.expect("answers");
    assert_eq!((next(&db.store).await, next(&other).await, next(&db.store).await), (1, 2, 3));
}

/// A pod gets a secret when it is the very one that was recorded, and only the last secret counts.
async fn a_session_is_for_the_recorded_pod_alone(db: Db) {
    assert_eq!(session(&db, UID).await, (CredentialExchange::Unknown, None));
    let start = start(&db).await;
    assert_eq!(session(&db, UID).await.0, CredentialExchange::NotRecorded);
    assert!(db.store.record_pod_of_start(start, UID, 30).await.expect("answers"));
    assert!(db.store.record_pod_of_start(start, UID, 30).await.expect("answers"), "again");
    assert!(!db.store.record_pod_of_start(start, "another", 30).await.expect("answers"), "a start has one pod");
    assert_eq!(session(&db, "another").await, (CredentialExchange::Unknown, None));
    assert_eq!(db.store.start_of_pod(POD, UID).await.expect("answers"), Some(start));
    assert_eq!(db.store.start_of_pod(POD, "another").await.expect("answers"), None);

    let (granted, first) = session(&db, UID).await;
    assert_eq!(granted, CredentialExchange::Granted(start));
    let (granted, second) = session(&db, UID).await;
    assert_eq!(granted, CredentialExchange::Granted(start));
    let worker = Worker::connect(&db.store, second.expect("made")).await;
    let old = db.store.authenticate_worker(&first.expect("made"), worker.incarnation).await;
    assert!(old.is_err(), "the first secret is replaced");

    assert!(db.store.record_stop_of_start(start, Reason::Deleted, Some(20)).await.expect("answers"));
    assert_eq!(session(&db, UID).await, (CredentialExchange::Dead, None), "who is being stopped begins no session");
    db.store.fail_worker(worker.incarnation, &failure(Reason::WorkerExited)).await.expect("answers");
    assert_eq!(session(&db, UID).await, (CredentialExchange::Dead, None));
    assert_eq!(session(&db, "another").await, (CredentialExchange::Unknown, None));
    assert_eq!(db.store.start_of_pod(POD, UID).await.expect("answers"), None);
    assert!(!db.store.record_pod_of_start(start, UID, 30).await.expect("answers"), "the dead have no pod");
}

/// The token lies where an `Exec` program can read it: once its adapter has connected, it opens nothing. A `Custom` worker
/// may be started anew within its container.
async fn a_session_of_our_adapters_is_begun_once(db: Db) {
    for adapter in ["Exec", "OpenAI", "Custom"] {
        db.store.put_agent("acme", "bot", &serde_json::json!({"adapter": adapter})).await.expect("puts");
        let start = start(&db).await;
        assert!(db.store.record_pod_of_start(start, UID, 30).await.expect("answers"));
        for _ in 0..2 {
            assert_eq!(session(&db, UID).await.0, CredentialExchange::Granted(start), "an answer may be lost");
        }
        let worker = Worker::connect(&db.store, session(&db, UID).await.1.expect("granted")).await;
        let known = async || db.store.authenticate_worker(&worker.credential, worker.incarnation).await;
        let again =
            if adapter == "Custom" { CredentialExchange::Granted(start) } else { CredentialExchange::AlreadyConnected };
        assert_eq!(session(&db, UID).await.0, again, "{adapter}");
        assert_eq!(known().await.is_ok(), again == CredentialExchange::AlreadyConnected, "the first secret, {adapter}");
        db.store.fail_worker(worker.incarnation, &failure(Reason::WorkerExited)).await.expect("answers");
        db.sql("DELETE FROM lease").await;
    }
}

/// A worker of another runtime is no pod, whatever it is called.
async fn a_process_has_no_session(db: Db) {
    let worker = Worker::with(&db.store, |start| start.runtime_ref = POD.into()).await;
    assert!(!db.store.record_pod_of_start(worker.credential.start, UID, 30).await.expect("answers"));
    assert_eq!(session(&db, UID).await, (CredentialExchange::Unknown, None));
}

/// The worker's guess first, the recorded reason after it: the reason counts, and the drain is as long as the pod's.
async fn a_recorded_reason_replaces_a_guess(db: Db) {
    let worker = live(&db).await;
    let turn = db.in_hand(&worker).await;
    db.store.note_stop_of_worker(worker.incarnation, Reason::NodeShutdown).await.expect("answers");
    db.store.worker_draining(worker.incarnation, &[]).await.expect("answers");
    assert!((99..=100).contains(&drain_left(&db, &worker).await), "the pod's grace, not drainSeconds");
    assert!(db.store.worker_awaits_stop_reason(worker.incarnation).await.expect("answers"));
    assert!(db.store.record_stop_of_start(worker.credential.start, Reason::Evicted, Some(50)).await.expect("answers"));
    assert!(!db.store.worker_awaits_stop_reason(worker.incarnation).await.expect("answers"));
    assert!((49..=50).contains(&drain_left(&db, &worker).await));
    db.store.worker_gone(worker.incarnation, &[]).await.expect("answers");
    assert_eq!(db.outcome(turn).await.as_deref(), Some("Evicted"));
}

/// The recorded reason first: a guess changes nothing, nor does a later stop, which may only hurry.
async fn a_recorded_reason_outlasts_later_guesses_and_stops(db: Db) {
    let worker = live(&db).await;
    let turn = db.in_hand(&worker).await;
    assert!(
        db.store.record_stop_of_start(worker.credential.start, Reason::Preempted, Some(60)).await.expect("answers")
    );
    assert!(
        !db.store.record_stop_of_start(worker.credential.start, Reason::Preempted, Some(60)).await.expect("answers")
    );
    assert!(worker.claim(&db.store, 1).await.is_empty());
    db.store.note_stop_of_worker(worker.incarnation, Reason::NodeShutdown).await.expect("answers");
    assert!(!db.store.worker_awaits_stop_reason(worker.incarnation).await.expect("answers"));
    assert!(
        !db.store.record_stop_of_start(worker.credential.start, Reason::Deleted, Some(500)).await.expect("answers")
    );
    assert!((58..=60).contains(&drain_left(&db, &worker).await));
    assert!(
        db.store.record_stop_of_start(worker.credential.start, Reason::Deleted, Some(2)).await.expect("answers"),
        "by force"
    );
    assert!((1..=2).contains(&drain_left(&db, &worker).await));
    db.settled().await;
    db.sql("UPDATE lease SET drain_until = clock_timestamp() - interval '1 second'").await;
    assert_eq!(db.store.sweep().await.expect("sweeps").turns, 1);
    assert_eq!(db.outcome(turn).await.as_deref(), Some("Preempted"));
    assert!(
        !db.store.record_stop_of_start(worker.credential.start, Reason::Deleted, Some(2)).await.expect("answers"),
        "dead"
    );
}

/// An idle stop that we asked for keeps its reason and its time, whatever the pod's deletion looks like.
async fn a_stop_of_our_own_keeps_its_reason_and_its_time(db: Db) {
    let worker = live(&db).await;
    assert!(db.store.drain_idle_worker(worker.incarnation, Reason::Deleted).await.expect("answers"));
    assert!(
        !db.store.record_stop_of_start(worker.credential.start, Reason::NodeLost, Some(100)).await.expect("answers")
    );
    assert!((29..=30).contains(&drain_left(&db, &worker).await));
    assert_eq!(db.store.stop_reason_of_worker(worker.incarnation).await.expect("answers"), Some(Reason::Deleted));
}

/// A stop of a pod that never connected is no failed start.
async fn a_stop_before_the_first_connect_ends_no_turn(db: Db) {
    let start = start(&db).await;
    db.store.record_pod_of_start(start, UID, 30).await.expect("answers");
    let waiting = db.armed("waiting").await.turn_id;
    assert!(db.store.record_stop_of_start(start, Reason::Evicted, None).await.expect("answers"));
    let failed = db.store.fail_worker(Incarnation(start.0), &failure(Reason::Evicted)).await.expect("answers");
    assert!(failed.died_now && !failed.failed_start);
    assert_eq!(db.phase(waiting).await.as_deref(), Some("waiting"));
}

/// A guess yields to a proof that knows more, and fills in for one that does not.
async fn a_guess_yields_to_a_proof_that_knows_more(db: Db) {
    for (proof, reason) in [(Reason::OutOfMemory, "OutOfMemory"), (Reason::WorkerExited, "NodeShutdown")] {
        let worker = Worker::live(&db.store).await;
        let turn = db.in_hand(&worker).await;
        db.store.note_stop_of_worker(worker.incarnation, Reason::NodeShutdown).await.expect("answers");
        db.store.fail_worker(worker.incarnation, &failure(proof)).await.expect("answers");
        assert_eq!(db.outcome(turn).await.as_deref(), Some(reason));
    }
}

/// A second process of the same container is stopped as the first was, and has its pod.
async fn a_second_incarnation_inherits_pod_and_stop(db: Db) {
    let worker = live(&db).await;
    db.store.note_stop_of_worker(worker.incarnation, Reason::NodeShutdown).await.expect("answers");
    let second = Worker::connect(&db.store, worker.credential.clone()).await;
    assert_eq!(db.store.start_of_pod(POD, UID).await.expect("answers"), Some(worker.credential.start));
    let lease = format!("FROM lease WHERE incarnation = '{}'", second.incarnation);
    assert_eq!(
        db.text(format!("SELECT stop_recorded::text || grace_seconds {lease}")).await.as_deref(),
        Some("false100")
    );
}

/// What kept a start from its life is its reason when the start deadline passes, unless it healed.
async fn the_latest_cause_is_told_at_the_start_deadline(db: Db) {
    for (healed, reason) in [(false, "ImagePull"), (true, "StartFailed")] {
        let waiting = db.armed("waiting").await.turn_id;
        let start = start(&db).await;
        let cause = |reason| Failure::detailed(reason, "no such image");
        db.store.note_cause_of_start(start, Some(&cause(Reason::Unschedulable))).await.expect("answers");
        db.store.note_cause_of_start(start, Some(&cause(Reason::ImagePull))).await.expect("answers");
        if healed {
            db.store.note_cause_of_start(start, None).await.expect("answers");
        }
        db.settled().await;
        assert_eq!(db.store.sweep().await.expect("sweeps").turns, 0);
        db.silent(Incarnation(start.0), 1).await;
        assert_eq!(db.store.sweep().await.expect("sweeps").turns, 1);
        assert_eq!(db.outcome(waiting).await.as_deref(), Some(reason));
        let record = db.store.turn_record(waiting).await.expect("answers").expect("exists").failure.expect("failed");
        assert_eq!(record.detail.as_deref() == Some("no such image"), !healed);
    }
}

/// A start without a pod is made again, after a while; one with a pod is not, nor is a process.
async fn a_start_without_a_pod_is_made_again_after_a_while(db: Db) {
    let start = start(&db).await;
    let unmade = async || {
        let workers = db.store.living_workers().await.expect("answers");
        workers.iter().filter(|w| w.unmade).map(|w| w.start_id).collect::<Vec<_>>()
    };
    assert!(unmade().await.is_empty(), "it is being made");
    Worker::live(&db.store).await;
    db.sql("UPDATE lease SET started_at = clock_timestamp() - interval '10 seconds'").await;
    assert_eq!(unmade().await, [start]);
    db.store.record_pod_of_start(start, UID, 30).await.expect("answers");
    assert!(unmade().await.is_empty());
}

/// A leader that does not know whether its start was written withdraws it, unless another leader carried it out.
async fn a_start_that_was_made_is_not_withdrawn(db: Db) {
    let unmade = start(&db).await;
    assert!(db.store.withdraw_start(unmade, Reason::StartFailed).await.expect("answers"));
    assert!(!db.store.withdraw_start(unmade, Reason::StartFailed).await.expect("answers"), "it drains already");
    db.sql("DELETE FROM lease").await;
    let made = start(&db).await;
    db.store.record_pod_of_start(made, UID, 30).await.expect("answers");
    assert!(!db.store.withdraw_start(made, Reason::StartFailed).await.expect("answers"));
    let connected = Worker::live(&db.store).await;
    assert!(!db.store.withdraw_start(connected.credential.start, Reason::StartFailed).await.expect("answers"));
}

crate::both!(
    a_start_that_was_made_is_not_withdrawn,
    every_start_of_an_agent_has_a_number_of_its_own,
    a_session_is_for_the_recorded_pod_alone,
    a_session_of_our_adapters_is_begun_once,
    a_process_has_no_session,
    a_recorded_reason_replaces_a_guess,
    a_recorded_reason_outlasts_later_guesses_and_stops,
    a_stop_of_our_own_keeps_its_reason_and_its_time,
    a_stop_before_the_first_connect_ends_no_turn,
    a_guess_yields_to_a_proof_that_knows_more,
    a_second_incarnation_inherits_pod_and_stop,
    the_latest_cause_is_told_at_the_start_deadline,
    a_start_without_a_pod_is_made_again_after_a_while,
);
