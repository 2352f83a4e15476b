//! AgentTurns in the store: the tie between object and turn, where turns stand, what vanished; the projection of Agents.

use std::time::Duration;

use lastword::store::{AgentTurnProgress, AgentTurnRef, AgentTurnState, Arm, Retention, WorkerWord};
use lastword::turn::frame::Span;
use lastword::turn::keys::{GatewayId, TurnId};
use lastword::turn::reason::Reason;
use lastword::turn::routing::{KUBERNETES, Routing};
use serde_json::{Value, json};

use crate::support::Db;
use crate::support::actors::{Worker, arm, armed, failure, finish};

fn object(name: &str) -> AgentTurnRef {
    AgentTurnRef { name: name.into(), uid: format!("uid-of-{name}") }
}

/// A turn of an AgentTurn.
fn of(name: &str) -> Arm {
    let routing = Routing::on(KUBERNETES, Value::Null);
    Arm {
        routing: serde_json::to_value(routing).expect("serializable"),
        object: Some(object(name)),
        ..arm(&format!("turn-{name}"))
    }
}

async fn state(db: &Db, turn: TurnId) -> AgentTurnState {
    db.store.agent_turn_states(&[turn]).await.expect("answers").remove(0)
}

async fn moved(db: &Db, turn: TurnId) -> usize {
    db.store.moved_agent_turns(&[turn]).await.expect("answers").len()
}

/// The tie is the arm's own; arming again finds the same turn and ties nothing anew; it goes with the delivery.
async fn a_tie_lives_from_arm_to_its_status(db: Db) {
    let worker = Worker::live(&db.store).await;
    let first = of("t");
    let turn = armed(&db.store, first.clone()).await;
    let again = armed(&db.store, Arm { turn_id: TurnId::new(), ..first }).await;
    assert_eq!((again.turn_id, again.armed_at, again.fresh), (turn.turn_id, turn.armed_at, false));
    let turn = turn.turn_id;
    assert_eq!(db.count("agent_turn").await, 1);
    assert_eq!(db.store.turn_of_agent_turn("acme", "uid-of-t").await.expect("answers"), Some(turn));
    assert_eq!(db.store.turn_of_agent_turn("umbrella", "uid-of-t").await.expect("answers"), None);
    assert_eq!((state(&db, turn).await.progress, moved(&db, turn).await), (AgentTurnProgress::Waiting, 0));
    // One without an object leaves no tie.
    db.armed("c").await;
    assert_eq!(db.count("agent_turn").await, 1);

    assert!(worker.claim_ids(&db.store, 10).await.contains(&turn));
    let running = state(&db, turn).await;
    assert_eq!((running.progress, moved(&db, turn).await), (AgentTurnProgress::Running, 1));
    assert_eq!(running.worker, None, "a process is no pod");
    assert!(running.armed_at < running.claimed_at);
    db.sql("UPDATE lease SET runtime = 'kubernetes', runtime_ref = 'acme/bot-1'").await;
    assert_eq!(finish(&db.store, worker.reply(&[turn], "hello")).await, Ok(true));
    let shown = state(&db, turn).await;
    assert!(
        matches!(shown.progress, AgentTurnProgress::Replied { text: Some(ref text), cut: false, .. } if text == "hello")
    );
    assert_eq!(shown.worker.as_deref(), Some("acme/bot-1"));
    assert_eq!(shown.object, Some(("acme".into(), object("t"))));
    assert_eq!(moved(&db, turn).await, 0, "its delivery is on its way");

    let taken = db.store.take_deliveries(KUBERNETES, GatewayId::new(), 30, 10).await.expect("takes");
    assert_eq!(taken.iter().map(|d| d.turn_id).collect::<Vec<_>>(), [turn]);
    // Retention waits for the status.
    db.sql("UPDATE terminal SET ended_at = ended_at - interval '60 days'").await;
    assert_eq!(db.store.prune_past_retention(&Retention::default()).await.expect("prunes"), 0);
    db.store.remove_agent_turn_deliveries(&[turn]).await.expect("removes");
    assert_eq!((db.count("agent_turn").await, db.count("delivery").await), (0, 0));
    assert_eq!(db.store.prune_past_retention(&Retention::default()).await.expect("prunes"), 1);
    assert_eq!(state(&db, turn).await.progress, AgentTurnProgress::Unknown);
}

/// A failed turn says whose hand it was in; a long reply is cut between two characters.
async fn a_status_is_short_and_names_the_worker(db: Db) {
    let worker = Worker::live(&db.store).await;
    db.sql("UPDATE lease SET runtime = 'kubernetes', runtime_ref = 'acme/bot-1'").await;
    let (failed, long) = (armed(&db.store, of("a")).await.turn_id, armed(&db.store, of("b")).await.turn_id);
    assert_eq!(worker.claim_ids(&db.store, 10).await.len(), 2);
    db.store.fail_turn(failed, &failure(Reason::OutOfMemory)).await.expect("answers");
    let state_of_failed = state(&db, failed).await;
    assert_eq!(state_of_failed.worker.as_deref(), Some("acme/bot-1"));
    assert!(
        matches!(state_of_failed.progress, AgentTurnProgress::Failed { ref failure, .. } if failure.reason == Reason::OutOfMemory)
    );
    assert_eq!(finish(&db.store, worker.reply(&[long], &"é".repeat(20_000))).await, Ok(true));
    let AgentTurnProgress::Replied { text: Some(text), cut, .. } = state(&db, long).await.progress else {
        panic!("replied")
    };
    assert!(cut && text.len() == 16 * 1024 && text.chars().all(|c| c == 'é'));
    let failures =
        db.store.failed_turns(db.store.database_time().await.expect("now") - Duration::from_secs(60), 10).await;
    let failures = failures.expect("reads");
    assert_eq!(failures.iter().map(|f| (f.id, f.reason)).collect::<Vec<_>>(), [(failed.0, Reason::OutOfMemory)]);
}

/// Whatever part of a reply's log is missing: no record, no status and no history has the rest of it.
async fn half_a_reply_is_in_no_record(db: Db) {
    let worker = Worker::live(&db.store).await;
    for lost in ["start_at = 0", "start_at = 3", "start_at = 6", "true"] {
        let turn = armed(&db.store, of(lost)).await;
        assert_eq!(worker.claim_ids(&db.store, 10).await, [turn.turn_id]);
        for (at, text) in [(0, "one"), (3, "two"), (6, "end")] {
            assert!(worker.append(&db.store, turn.turn_id, at, text).await.is_ok());
        }
        let tail = Span::new(9, Vec::new());
        let word = WorkerWord { end: 9, tail, ..worker.reply(&[turn.turn_id], "") };
        assert_eq!(finish(&db.store, word).await, Ok(true));
        let text = async || {
            let record = db.store.turn_record(turn.turn_id).await.expect("reads").expect("exists");
            let AgentTurnProgress::Replied { text: status, .. } = state(&db, turn.turn_id).await.progress else {
                panic!("it replied")
            };
            let history = db.store.conversation_exchanges(turn.conversation_id, 100, 10).await.expect("reads");
            let history = history.into_iter().map(|exchange| exchange.reply).collect::<Vec<_>>();
            (record.reply.expect("a reply").text, status, history)
        };
        let whole = || Some("onetwoend".to_owned());
        assert_eq!(text().await, (whole(), whole(), vec!["onetwoend".to_owned()]), "{lost}");
        db.sql(&format!("DELETE FROM output WHERE turn_id = '{}' AND {lost}", turn.turn_id)).await;
        assert_eq!(text().await, (None, None, vec![]), "{lost}");
    }
}

/// Objects that are gone: open turns end, what is owed goes, the others stay. Only those armed before a list began are
/// told from it.
async fn what_vanished_is_cancelled(db: Db) {
    let worker = Worker::live(&db.store).await;
    let held = armed(&db.store, of("held")).await.turn_id;
    let done = armed(&db.store, of("done")).await.turn_id;
    assert_eq!(worker.claim_ids(&db.store, 10).await.len(), 2);
    assert_eq!(finish(&db.store, worker.reply(&[done], "hello")).await, Ok(true));
    let began = db.store.database_time().await.expect("now");
    let later = armed(&db.store, of("later")).await.turn_id;
    let rows = db.store.agent_turn_ties(None, began, 10).await.expect("reads");
    let mut before: Vec<TurnId> = rows.iter().map(|row| row.turn_id).collect();
    before.sort();
    assert_eq!(before, {
        let mut both = [held, done];
        both.sort();
        both
    });
    let behind = db.store.agent_turn_ties(Some(before[0]), began, 10).await.expect("reads");
    assert_eq!(behind.iter().map(|row| row.turn_id).collect::<Vec<_>>(), before[1..]);

    let gone: Vec<_> = rows.into_iter().map(|row| (row.organization, row.object.uid)).collect();
    let cancelled = failure(Reason::Cancelled);
    assert_eq!(db.store.forget_agent_turns(&gone, &cancelled).await.expect("ends"), 1, "one was open");
    assert_eq!(db.store.forget_agent_turns(&gone, &cancelled).await.expect("ends"), 0);
    assert_eq!(db.count("delivery").await, 0, "there is nothing to show it on");
    let reason = db.text(format!("SELECT reason FROM terminal WHERE turn_id = '{held}'")).await;
    assert_eq!(reason.as_deref(), Some("Cancelled"));
    assert_eq!(state(&db, later).await.progress, AgentTurnProgress::Waiting);
    assert_eq!(db.count("agent_turn").await, 1);
}

/// An erased conversation ends its AgentTurns though their turns are gone.
async fn an_erased_turn_is_known_as_such(db: Db) {
    let turn = armed(&db.store, of("t")).await.turn_id;
    db.erase("turn-t").await.expect("erases");
    assert_eq!((state(&db, turn).await.progress, moved(&db, turn).await), (AgentTurnProgress::Erased, 1));
    db.store.remove_agent_turn_deliveries(&[turn]).await.expect("removes");
    assert_eq!(state(&db, turn).await.progress, AgentTurnProgress::Unknown);
}

/// A generation is a spec of an object: a new spec, another object or a revived one is another; an older reading is none.
async fn each_spec_of_each_object_is_a_generation(db: Db) {
    let put = async |spec: Value, uid: &str, generation: i64| {
        db.store.put_agent_object("team", "bot", &spec, uid, generation).await.expect("puts")
    };
    let stored = async || db.store.agents().await.expect("reads").pop().map(|a| (a.generation, a.uid, a.spec));
    assert!(put(json!(1), "u", 1).await);
    assert!(!put(json!(1), "u", 1).await);
    assert!(put(json!(2), "u", 2).await);
    assert!(!put(json!(1), "u", 1).await, "an older reading");
    assert_eq!(stored().await, Some((2, Some("u".into()), json!(2))));
    assert!(put(json!(2), "v", 1).await, "deleted and made again");
    assert_eq!(stored().await, Some((3, Some("v".into()), json!(2))));
    assert!(!db.store.remove_agent_object("team", "bot", "u").await.expect("answers"), "that one is gone already");

    // A list that began before the Agent was written says nothing of it.
    let remove = async |namespaces: Option<&[String]>, listed: &[String], began| {
        db.store.remove_unlisted_agents(namespaces, listed, began).await.expect("removes")
    };
    let early = db.store.database_time().await.expect("now") - Duration::from_secs(60);
    assert_eq!(remove(None, &[], early).await, 0);
    let began = db.store.database_time().await.expect("now");
    assert_eq!(remove(Some(&["other".into()]), &[], began).await, 0);
    assert_eq!(remove(Some(&["team".into()]), &["v".into()], began).await, 0);
    assert_eq!(remove(Some(&["team".into()]), &["w".into()], began).await, 1);
    assert_eq!(stored().await, None);
    assert!(put(json!(2), "v", 1).await, "revived");
    assert_eq!(stored().await.map(|s| s.0), Some(4));

    db.store.put_agent("acme", "bot", &json!({})).await.expect("puts");
    let worker = Worker::live(&db.store).await;
    db.in_hand(&worker).await;
    db.armed("b").await;
    let mut counts = db.store.agent_counts().await.expect("counts");
    counts.retain(|c| c.namespace == "acme");
    let [counts] = &counts[..] else { panic!("one Agent: {counts:?}") };
    assert_eq!(counts.workers, 1);
    assert!(counts.running > 0 && counts.queued > 0, "{counts:?}");
}

/// A failure is of the object that it happened under: neither what ended before an Agent was made again, nor a worker of its
/// predecessor that dies after that, is its own.
async fn a_failure_is_of_its_own_agent(db: Db) {
    let put = async |uid: &str| {
        db.store.put_agent_object("acme", "bot", &json!({}), uid, 1).await.expect("puts");
        db.store.agents().await.expect("reads").pop().expect("is there").config
    };
    let worker = async |config: i64| {
        Worker::with(&db.store, |start| (start.runtime, start.config) = ("kubernetes", config)).await
    };
    let agents = async || {
        let since = db.store.database_time().await.expect("now") - Duration::from_secs(60);
        let mut failed = db.store.failed_turns(since, 10).await.expect("reads");
        failed.extend(db.store.failed_starts(since, 10).await.expect("reads"));
        failed.into_iter().map(|f| (f.id, f.agent_uid)).collect::<std::collections::HashMap<_, _>>()
    };
    let fail = async |turn: TurnId| db.store.fail_turn(turn, &failure(Reason::AgentError)).await.expect("answers");

    let old = worker(put("u").await).await;
    let (first, held) = (db.in_hand(&old).await, db.in_hand(&old).await);
    let idle = worker(1).await;
    fail(first).await;
    assert_eq!(agents().await, [(first.0, Some("u".into()))].into());

    let new = worker(put("v").await).await;
    let (second, waiting) = (db.in_hand(&new).await, db.armed("waits").await.turn_id);
    db.store.fail_worker(old.incarnation, &failure(Reason::Deleted)).await.expect("answers");
    db.store.fail_worker(idle.incarnation, &failure(Reason::WorkerExited)).await.expect("answers");
    fail(second).await;
    fail(waiting).await;
    let expected = [(first.0, None), (held.0, None), (idle.incarnation.0, None)];
    let expected = expected.into_iter().chain([second, waiting].map(|turn| (turn.0, Some("v".to_owned()))));
    assert_eq!(agents().await, expected.collect());
}

/// Only the terminals of the named namespaces are taken; what could not be shown waits longer each time.
async fn what_cannot_be_shown_comes_again_later(db: Db) {
    let worker = Worker::live(&db.store).await;
    let turn = armed(&db.store, of("t")).await.turn_id;
    assert_eq!(worker.claim_ids(&db.store, 10).await, [turn]);
    assert_eq!(finish(&db.store, worker.reply(&[turn], "hello")).await, Ok(true));
    let take = async |namespaces: &[String]| {
        db.sql("UPDATE delivery SET due_at = clock_timestamp() - interval '1 second'").await;
        db.store.take_agent_turn_deliveries(namespaces, GatewayId::new(), 30, 10).await.expect("takes")
    };
    assert!(take(&["other".into()]).await.is_empty());
    for (namespaces, longer_than) in [(vec![], 4), (vec!["other".into(), "acme".into()], 9)] {
        assert_eq!(take(&namespaces).await, [turn]);
        db.store.put_off_agent_turn_deliveries(&[turn]).await.expect("puts off");
        let of = |seconds: u32| format!("delivery WHERE due_at > clock_timestamp() + interval '{seconds} seconds'");
        assert_eq!((db.count(&of(longer_than)).await, db.count(&of(longer_than + 2)).await), (1, 0));
    }
}

/// A removed Agent is looked at while turns wait for it, and forgotten after the retention once nothing names it.
async fn a_removed_agent_is_forgotten(db: Db) {
    let worker = Worker::live(&db.store).await;
    db.store.put_agent("acme", "bot", &json!({})).await.expect("puts");
    db.store.put_agent("acme", "idle", &json!({})).await.expect("puts");
    let turn = armed(&db.store, of("t")).await.turn_id;
    for name in ["bot", "idle"] {
        assert!(db.store.remove_agent("acme", name).await.expect("removes"));
    }
    let bot = ("acme".to_owned(), "bot".to_owned());
    assert_eq!(db.store.removed_agents().await.expect("reads"), [bot]);
    let prune = async || db.store.prune_past_retention(&Retention::default()).await.expect("prunes");
    prune().await;
    assert_eq!(db.count("agent").await, 2);
    db.sql("UPDATE agent SET deleted_at = deleted_at - interval '60 days'").await;
    prune().await;
    assert_eq!(db.count("agent").await, 1, "a turn waits for one of them");
    db.store.fail_turn(turn, &failure(Reason::Cancelled)).await.expect("ends");
    assert!(db.store.removed_agents().await.expect("reads").is_empty());
    prune().await;
    assert_eq!(db.count("agent").await, 1, "it has a worker");
    db.store.fail_worker(worker.incarnation, &failure(Reason::Deleted)).await.expect("ends");
    db.sql("UPDATE lease SET died_at = died_at - interval '60 days'").await;
    prune().await;
    assert_eq!(db.count("agent").await, 0);
}

crate::both!(
    what_cannot_be_shown_comes_again_later,
    a_removed_agent_is_forgotten,
    a_tie_lives_from_arm_to_its_status,
    a_status_is_short_and_names_the_worker,
    what_vanished_is_cancelled,
    an_erased_turn_is_known_as_such,
    each_spec_of_each_object_is_a_generation,
    half_a_reply_is_in_no_record,
    a_failure_is_of_its_own_agent,
);
