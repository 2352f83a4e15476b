//! Which AgentTurn gets which operation, and when.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::super::tracked::{AGENT_RETRY, LONGEST_PAUSE};
use super::*;
use crate::store::{AgentTurnRef, Armed};
use crate::turn::keys::{ConversationId, WorkerGroup};
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

const CREATED: i64 = 1_800_000_000;

fn object(uid: &str, version: u32, spec: Value, status: Value) -> TurnObject {
    let mut full = json!({"agentRef": {"name": "bot"}, "input": "hi"});
    for (field, value) in spec.as_object().into_iter().flatten() {
        full[field] = value.clone();
    }
    let object = json!({
        "apiVersion": "lastword.dev/v1alpha1", "kind": "AgentTurn",
        "metadata": {"namespace": "team", "name": format!("t-{uid}"), "uid": uid, "generation": 1,
                     "resourceVersion": version.to_string(), "creationTimestamp": "2027-01-15T08:00:00Z"},
        "spec": full, "status": status,
    });
    let object = TurnObject::read(serde_json::from_value::<DynamicObject>(object).expect("an object"));
    object.expect("has a UID")
}

fn database(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(CREATED + seconds).expect("in range")
}

struct Scene {
    queue: WorkQueue,
    now: Now,
}

impl Scene {
    fn new() -> Scene {
        let wall = Timestamp::from_second(CREATED).expect("in range");
        Scene { queue: WorkQueue::default(), now: Now { instant: Instant::now(), wall } }
    }

    fn with(object: TurnObject) -> Scene {
        let mut scene = Scene::new();
        scene.queue.apply(0, object, scene.now);
        scene
    }

    fn pass(&mut self, seconds: u64) {
        self.now.instant += Duration::from_secs(seconds);
        self.now.wall = self.now.wall.checked_add(Duration::from_secs(seconds)).expect("in range");
        self.queue.run_timers(self.now);
    }

    fn next(&mut self) -> Option<TurnOperation> {
        self.queue.pop(self.now).map(|(_, operation)| operation)
    }

    fn done(&mut self, done: TurnReconciled) {
        self.queue.reconciled(&"u".into(), done, self.now);
    }

    /// The phase of the status that is to be written next.
    fn writes(&mut self) -> crate::crd::Phase {
        match self.next() {
            Some(TurnOperation::PatchStatus(desired)) => desired.phase(),
            other => panic!("writes nothing: {other:?}"),
        }
    }

    fn written(&mut self, version: u32, turn: TurnId, phase: &str) {
        let status = json!({"phase": phase, "turnId": turn.to_string(), "observedGeneration": 1,
                            "completionTime": "2027-01-15T08:00:00Z"});
        self.done(TurnReconciled::StatusPatched(Box::new(object("u", version, json!({}), status))));
    }
}

fn armed(turn_id: TurnId) -> TurnReconciled {
    TurnReconciled::Armed(Armed {
        turn_id,
        conversation_id: ConversationId::new(),
        number: 1,
        armed_at: database(1),
        worker_group: WorkerGroup::OfAgent,
        fresh: true,
    })
}

fn ended(turn_id: TurnId) -> AgentTurnState {
    AgentTurnState {
        turn_id,
        object: Some(("team".into(), AgentTurnRef { name: "t-u".into(), uid: "u".into() })),
        armed_at: Some(database(1)),
        claimed_at: Some(database(2)),
        worker: None,
        progress: AgentTurnProgress::Replied { text: Some("hello".into()), cut: false, at: database(3) },
    }
}

fn fresh() -> TurnObject {
    object("u", 1, json!({}), Value::Null)
}

#[test]
fn an_object_is_armed_then_shown_then_forgotten() {
    let mut scene = Scene::with(fresh());
    assert!(matches!(scene.next(), Some(TurnOperation::Arm(Ok(_)))));
    assert!(scene.next().is_none(), "one operation at a time");
    let turn = TurnId::new();
    scene.done(armed(turn));
    assert_eq!(scene.writes(), crate::crd::Phase::Armed);
    scene.written(2, turn, "Armed");
    assert!(scene.next().is_none());
    assert_eq!(scene.queue.to_ask_for().1.len(), 1, "it is asked whether it runs");
    scene.queue.deliveries_due(vec![ended(turn)], database(4), scene.now);
    assert_eq!(scene.writes(), crate::crd::Phase::Succeeded);
    assert!(scene.queue.shown.is_empty());
    scene.written(3, turn, "Succeeded");
    assert_eq!(scene.queue.shown, [turn]);
    // The watch lags behind our writes, then tells of the last one.
    scene.queue.apply(0, object("u", 2, json!({}), json!({"phase": "Armed", "turnId": turn.to_string()})), scene.now);
    assert!(scene.next().is_none() && scene.queue.to_ask_for() == (vec![], vec![]));
    scene.queue.apply(0, object("u", 3, json!({}), json!({"phase": "Succeeded", "observedGeneration": 1})), scene.now);
    assert!(scene.next().is_none() && scene.queue.turns.is_empty() && scene.queue.deleted.is_empty());
}

#[test]
fn statuses_that_were_overtaken_are_not_written() {
    let mut scene = Scene::with(fresh());
    scene.next();
    let turn = TurnId::new();
    scene.done(armed(turn));
    scene.queue.deliveries_due(vec![ended(turn)], database(4), scene.now);
    assert_eq!(scene.writes(), crate::crd::Phase::Succeeded);
    // An event of before lags behind.
    scene.queue.apply(0, fresh(), scene.now);
    scene.written(2, turn, "Succeeded");
    scene.queue.apply(0, object("u", 1, json!({}), Value::Null), scene.now);
    assert_eq!(scene.queue.shown, [turn]);
}

#[test]
fn an_agent_is_waited_for() {
    let mut scene = Scene::with(fresh());
    scene.next();
    scene.done(TurnReconciled::AgentMissing(database(0)));
    assert!(scene.next().is_none(), "nothing is written at once: it may be of the same apply");
    scene.pass(1);
    assert!(matches!(scene.next(), Some(TurnOperation::Arm(_))));
    scene.done(TurnReconciled::AgentMissing(database(1)));
    assert_eq!(scene.writes(), crate::crd::Phase::Pending);
    scene.done(TurnReconciled::StatusPatched(Box::new(object("u", 2, json!({}), json!({"phase": "Pending"})))));
    assert!(matches!(scene.next(), Some(TurnOperation::Arm(_))));
    scene.done(TurnReconciled::AgentMissing(database(1)));
    assert!(scene.next().is_none(), "said once");
    scene.queue.agents_changed(scene.now);
    assert!(matches!(scene.next(), Some(TurnOperation::Arm(_))), "news of Agents");
    scene.done(TurnReconciled::AgentMissing(database(2)));
    scene.pass(60);
    assert!(matches!(scene.next(), Some(TurnOperation::Arm(_))));
    scene.done(TurnReconciled::Refused(Failure::new(Reason::AgentNotFound), database(61)));
    assert_eq!(scene.writes(), crate::crd::Phase::Failed);
}

#[test]
fn what_says_terminal_is_never_armed() {
    for phase in ["Succeeded", "Failed"] {
        let mut scene = Scene::with(object("u", 1, json!({}), json!({"phase": phase, "observedGeneration": 1})));
        assert!(scene.next().is_none() && scene.queue.turns.is_empty(), "{phase}");
        scene.queue.object_deleted(&object("u", 2, json!({}), json!({"phase": phase})));
        assert!(scene.queue.deleted.is_empty());
    }
}

#[test]
fn what_says_armed_and_is_unknown_has_failed() {
    let turn = TurnId::new();
    let mut scene = Scene::with(object("u", 1, json!({}), json!({"phase": "Armed", "turnId": turn.to_string()})));
    assert!(scene.next().is_none());
    let (unchecked, _) = scene.queue.to_ask_for();
    assert_eq!(unchecked, [(turn, "u".into())]);
    let state = AgentTurnState { object: None, claimed_at: None, progress: AgentTurnProgress::Unknown, ..ended(turn) };
    scene.queue.states_read(vec![("u".into(), state)], database(9), scene.now);
    assert_eq!(scene.writes(), crate::crd::Phase::Failed);
    // The former leader wrote its end, and our list was older.
    scene.done(TurnReconciled::Changed(Box::new(object(
        "u",
        5,
        json!({}),
        json!({"phase": "Succeeded", "observedGeneration": 1}),
    ))));
    assert!(scene.next().is_none());
    scene.queue.apply(0, object("u", 5, json!({}), json!({"phase": "Succeeded", "observedGeneration": 1})), scene.now);
    assert!(scene.queue.turns.is_empty());
}

#[test]
fn a_cancel_ends_the_turn_or_the_object() {
    let cancel = || object("u", 2, json!({"cancel": true}), Value::Null);
    let mut scene = Scene::with(cancel());
    assert!(matches!(scene.next(), Some(TurnOperation::Cancel)));
    scene.done(TurnReconciled::NeverArmed(database(1)));
    assert_eq!(scene.writes(), crate::crd::Phase::Failed, "never armed");

    let mut scene = Scene::with(fresh());
    scene.next();
    let turn = TurnId::new();
    scene.queue.apply(0, cancel(), scene.now);
    scene.done(armed(turn));
    assert!(matches!(scene.next(), Some(TurnOperation::Cancel)), "before it is shown as armed");
    scene.done(TurnReconciled::Cancelled);
    assert_eq!(scene.writes(), crate::crd::Phase::Armed);
}

#[test]
fn what_is_gone_is_cancelled_once_nothing_is_under_way() {
    let gone = vec![("team".to_owned(), "u".to_owned())];
    let mut scene = Scene::with(fresh());
    scene.next();
    scene.queue.object_deleted(&fresh());
    assert!(scene.queue.deleted.is_empty(), "it is being armed");
    scene.done(armed(TurnId::new()));
    assert_eq!(scene.queue.deleted, gone);
    assert!(scene.next().is_none());

    let mut scene = Scene::with(fresh());
    scene.next();
    scene.done(TurnReconciled::Deleted);
    assert_eq!(scene.queue.deleted, gone);

    // A relist without it; one of another namespace says nothing.
    let mut scene = Scene::with(fresh());
    scene.queue.list_begins(1);
    scene.queue.list_ends(1);
    assert!(scene.queue.deleted.is_empty());
    scene.queue.list_begins(0);
    scene.queue.list_ends(0);
    assert_eq!(scene.queue.deleted, gone);
    // One that shows it.
    let mut scene = Scene::with(fresh());
    scene.queue.list_begins(0);
    scene.queue.apply(0, fresh(), scene.now);
    scene.queue.list_ends(0);
    assert!(scene.queue.deleted.is_empty());
}

#[test]
fn an_ended_object_is_deleted_in_time() {
    let status = json!({"phase": "Succeeded", "observedGeneration": 1, "completionTime": "2027-01-15T08:00:00Z"});
    let mut scene = Scene::with(object("u", 1, json!({"ttlSecondsAfterFinished": 30}), status));
    assert!(scene.next().is_none());
    scene.pass(29);
    assert!(scene.next().is_none());
    scene.pass(2);
    assert!(matches!(scene.next(), Some(TurnOperation::Delete)));
    scene.done(TurnReconciled::Deleted);
    assert!(scene.queue.turns.is_empty() && scene.queue.deleted.is_empty());
}

#[test]
fn what_was_not_done_is_done_later() {
    let mut scene = Scene::with(fresh());
    scene.next();
    scene.done(TurnReconciled::Requeue("away".into()));
    assert!(scene.next().is_none());
    scene.pass(1);
    assert!(matches!(scene.next(), Some(TurnOperation::Arm(_))));
    for _ in 0..40 {
        scene.done(TurnReconciled::Requeue("away".into()));
        scene.pass(LONGEST_PAUSE.as_secs());
        assert!(matches!(scene.next(), Some(TurnOperation::Arm(_))), "never later than that");
    }
}

#[test]
fn a_terminal_of_an_unknown_object_is_shown_after_a_look() {
    let mut scene = Scene::new();
    let turn = TurnId::new();
    scene.queue.deliveries_due(vec![ended(turn)], database(4), scene.now);
    let (object, operation) = scene.queue.pop(scene.now).expect("an operation");
    assert!(
        object.version.is_none() && matches!(operation, TurnOperation::PatchStatus(_)),
        "it is read before it is written"
    );
    let there = super::tests::object("u", 7, json!({}), json!({"phase": "Armed", "turnId": turn.to_string()}));
    scene.done(TurnReconciled::Changed(Box::new(there)));
    assert_eq!(scene.writes(), crate::crd::Phase::Succeeded);
    // The row of an object that nobody knows any more is put away.
    scene.queue.deliveries_due(vec![AgentTurnState { object: None, ..ended(turn) }], database(4), scene.now);
    assert_eq!(scene.queue.shown, [turn]);
}

#[test]
fn an_agent_that_exists_is_waited_for() {
    let mut scene = Scene::with(fresh());
    scene.next();
    scene.done(TurnReconciled::AgentNotReady);
    assert_eq!(scene.writes(), crate::crd::Phase::Pending);
    scene.done(TurnReconciled::StatusPatched(Box::new(object("u", 2, json!({}), json!({"phase": "Pending"})))));
    assert!(matches!(scene.next(), Some(TurnOperation::Arm(_))));
    scene.done(TurnReconciled::AgentNotReady);
    assert!(scene.next().is_none(), "said once");
    scene.pass(AGENT_RETRY.as_secs());
    assert!(matches!(scene.next(), Some(TurnOperation::Arm(_))));
}

/// The answer to our own write may come after the watch has shown what was written later.
#[test]
fn an_answer_does_not_hide_what_was_asked_later() {
    let mut scene = Scene::with(fresh());
    scene.next();
    let turn = TurnId::new();
    scene.done(armed(turn));
    assert_eq!(scene.writes(), crate::crd::Phase::Armed);
    let status = json!({"phase": "Armed", "turnId": turn.to_string(), "observedGeneration": 1});
    scene.queue.apply(0, object("u", 3, json!({"cancel": true}), status), scene.now);
    scene.written(2, turn, "Armed");
    assert!(matches!(scene.next(), Some(TurnOperation::Cancel)));
}

/// Objects that cannot be written keep nobody else waiting.
#[test]
fn what_cannot_be_shown_is_put_off() {
    let refused = || TurnReconciled::PatchRefused("forbidden".into());
    let again = || TurnReconciled::Requeue("away".into());
    // (known from the store alone, what comes of a write, how often until it is put off, only if others need the room)
    for (unseen, done, tries, need) in [
        (true, &refused as &dyn Fn() -> TurnReconciled, MAX_REFUSALS, false),
        (false, &refused, MAX_REFUSALS, false),
        (true, &again, MAX_FAILURES, true),
    ] {
        let turn = TurnId::new();
        let status = json!({"phase": "Armed", "turnId": turn.to_string(), "observedGeneration": 1});
        let mut scene = if unseen { Scene::new() } else { Scene::with(object("u", 1, json!({}), status)) };
        scene.queue.deliveries_due(vec![ended(turn)], database(4), scene.now);
        for _ in 0..tries {
            scene.queue.make_room();
            assert_eq!((scene.queue.owed(), scene.queue.postponed.len()), (1, 0));
            assert!(matches!(scene.next(), Some(TurnOperation::PatchStatus(_))));
            scene.done(done());
            scene.pass(LONGEST_PAUSE.as_secs());
        }
        assert_eq!(scene.queue.owed() == 1, need);
        scene.queue.make_room();
        assert_eq!((scene.queue.owed(), scene.queue.postponed.clone()), (0, vec![turn]));
        assert_eq!((scene.queue.turns.is_empty(), scene.queue.timers.len()), (unseen, 0));
        assert!(scene.next().is_none());
        // Its delivery comes again: one try.
        scene.queue.deliveries_due(vec![ended(turn)], database(9), scene.now);
        assert!(matches!(scene.next(), Some(TurnOperation::PatchStatus(_))));
        scene.written(2, turn, "Succeeded");
        assert_eq!((scene.queue.owed(), scene.queue.shown.clone()), (0, vec![turn]));
    }
}

#[test]
fn an_object_has_one_timer() {
    let status = json!({"phase": "Succeeded", "observedGeneration": 1, "completionTime": "2027-01-15T08:00:00Z"});
    let mut scene = Scene::new();
    for version in 1..5 {
        scene.queue.apply(0, object("u", version, json!({"ttlSecondsAfterFinished": 30}), status.clone()), scene.now);
        scene.pass(1);
        // Two clocks never agree.
        scene.now.instant += Duration::from_micros(1);
    }
    assert_eq!(scene.queue.timers.len(), 1);
    scene.queue.object_deleted(&object("u", 9, json!({}), status));
    assert!(scene.queue.timers.is_empty());
}

/// A newer version of ours may write what we do not know: what has ended is not armed again.
#[test]
fn an_unknown_status_is_read_as_far_as_it_goes() {
    for (status, ended) in [
        (json!({"phase": "Failed", "error": {"reason": "Unheard", "message": "", "retryable": false}}), true),
        (json!({"phase": "Unheard", "conditions": [{"type": "Terminal", "status": "True"}]}), true),
        (json!({"phase": "Unheard", "conditions": [{"type": "Terminal", "status": "False"}]}), false),
        (json!("nonsense"), false),
    ] {
        let object = object("u", 1, json!({}), status.clone());
        assert_eq!((object.has_ended(), object.spec.is_none()), (ended, ended), "{status}");
    }
}
