//! Who gets which step, and when.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::super::entry::{LONGEST_PAUSE, LOOK_LATER};
use super::*;
use crate::store::{AgentTurnRef, Armed};
use crate::turn::keys::ConversationId;
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

const CREATED: i64 = 1_800_000_000;

fn object(uid: &str, version: u32, spec: Value, status: Value) -> Object {
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
    let object = Object::read(serde_json::from_value::<DynamicObject>(object).expect("an object"));
    object.expect("has a UID")
}

fn database(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(CREATED + seconds).expect("in range")
}

struct Scene {
    table: Table,
    now: Now,
}

impl Scene {
    fn new() -> Scene {
        let wall = Timestamp::from_second(CREATED).expect("in range");
        Scene { table: Table::default(), now: Now { instant: Instant::now(), wall } }
    }

    fn with(object: Object) -> Scene {
        let mut scene = Scene::new();
        scene.table.seen(0, object, scene.now);
        scene
    }

    fn pass(&mut self, seconds: u64) {
        self.now.instant += Duration::from_secs(seconds);
        self.now.wall = self.now.wall.checked_add(Duration::from_secs(seconds)).expect("in range");
        self.table.fire(self.now);
    }

    fn next(&mut self) -> Option<Step> {
        self.table.next(self.now).map(|(_, step)| step)
    }

    fn done(&mut self, done: Done) {
        self.table.done(&"u".into(), done, self.now);
    }

    /// The phase of the status that is to be written next.
    fn writes(&mut self) -> crate::crd::Phase {
        match self.next() {
            Some(Step::Write(word)) => word.phase(),
            other => panic!("writes nothing: {other:?}"),
        }
    }

    fn written(&mut self, version: u32, turn: TurnId, phase: &str) {
        let status = json!({"phase": phase, "turnId": turn.to_string(), "observedGeneration": 1,
                            "completionTime": "2027-01-15T08:00:00Z"});
        self.done(Done::Written(Box::new(object("u", version, json!({}), status))));
    }
}

fn armed(turn_id: TurnId) -> Done {
    Done::Armed(Armed {
        turn_id,
        conversation_id: ConversationId::new(),
        number: 1,
        armed_at: database(1),
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
        standing: AgentTurnProgress::Replied { text: "hello".into(), cut: false, at: database(3) },
    }
}

fn fresh() -> Object {
    object("u", 1, json!({}), Value::Null)
}

#[test]
fn an_object_is_armed_then_shown_then_forgotten() {
    let mut scene = Scene::with(fresh());
    assert!(matches!(scene.next(), Some(Step::Arm(Ok(_)))));
    assert!(scene.next().is_none(), "one step at a time");
    let turn = TurnId::new();
    scene.done(armed(turn));
    assert_eq!(scene.writes(), crate::crd::Phase::Armed);
    scene.written(2, turn, "Armed");
    assert!(scene.next().is_none());
    assert_eq!(scene.table.questions().1.len(), 1, "it is asked whether it runs");
    scene.table.due(vec![ended(turn)], database(4), scene.now);
    assert_eq!(scene.writes(), crate::crd::Phase::Succeeded);
    assert!(scene.table.settled.is_empty());
    scene.written(3, turn, "Succeeded");
    assert_eq!(scene.table.settled, [turn]);
    // The watch lags behind our writes, then tells of the last one.
    scene.table.seen(0, object("u", 2, json!({}), json!({"phase": "Armed", "turnId": turn.to_string()})), scene.now);
    assert!(scene.next().is_none() && scene.table.questions() == (vec![], vec![]));
    scene.table.seen(0, object("u", 3, json!({}), json!({"phase": "Succeeded", "observedGeneration": 1})), scene.now);
    assert!(scene.next().is_none() && scene.table.entries.is_empty() && scene.table.gone.is_empty());
}

#[test]
fn statuses_that_were_overtaken_are_not_written() {
    let mut scene = Scene::with(fresh());
    scene.next();
    let turn = TurnId::new();
    scene.done(armed(turn));
    scene.table.due(vec![ended(turn)], database(4), scene.now);
    assert_eq!(scene.writes(), crate::crd::Phase::Succeeded);
    // An event of before lags behind.
    scene.table.seen(0, fresh(), scene.now);
    scene.written(2, turn, "Succeeded");
    scene.table.seen(0, object("u", 1, json!({}), Value::Null), scene.now);
    assert_eq!(scene.table.settled, [turn]);
}

#[test]
fn an_agent_is_waited_for() {
    let mut scene = Scene::with(fresh());
    scene.next();
    scene.done(Done::NoAgent(database(0)));
    assert!(scene.next().is_none(), "nothing is written at once: it may be of the same apply");
    scene.pass(1);
    assert!(matches!(scene.next(), Some(Step::Arm(_))));
    scene.done(Done::NoAgent(database(1)));
    assert_eq!(scene.writes(), crate::crd::Phase::Pending);
    scene.done(Done::Written(Box::new(object("u", 2, json!({}), json!({"phase": "Pending"})))));
    assert!(matches!(scene.next(), Some(Step::Arm(_))));
    scene.done(Done::NoAgent(database(1)));
    assert!(scene.next().is_none(), "said once");
    scene.table.agents_changed(scene.now);
    assert!(matches!(scene.next(), Some(Step::Arm(_))), "news of Agents");
    scene.done(Done::NoAgent(database(2)));
    scene.pass(60);
    assert!(matches!(scene.next(), Some(Step::Arm(_))));
    scene.done(Done::Refused(Failure::new(Reason::AgentNotFound), database(61)));
    assert_eq!(scene.writes(), crate::crd::Phase::Failed);
}

#[test]
fn what_says_terminal_is_never_armed() {
    for phase in ["Succeeded", "Failed"] {
        let mut scene = Scene::with(object("u", 1, json!({}), json!({"phase": phase, "observedGeneration": 1})));
        assert!(scene.next().is_none() && scene.table.entries.is_empty(), "{phase}");
        scene.table.deleted(&object("u", 2, json!({}), json!({"phase": phase})));
        assert!(scene.table.gone.is_empty());
    }
}

#[test]
fn what_says_armed_and_is_unknown_has_failed() {
    let turn = TurnId::new();
    let mut scene = Scene::with(object("u", 1, json!({}), json!({"phase": "Armed", "turnId": turn.to_string()})));
    assert!(scene.next().is_none());
    let (unchecked, _) = scene.table.questions();
    assert_eq!(unchecked, [(turn, "u".into())]);
    let state = AgentTurnState { object: None, claimed_at: None, standing: AgentTurnProgress::Unknown, ..ended(turn) };
    scene.table.told(vec![("u".into(), state)], database(9), scene.now);
    assert_eq!(scene.writes(), crate::crd::Phase::Failed);
    // The former leader wrote its end, and our list was older.
    scene.done(Done::Stale(Box::new(object(
        "u",
        5,
        json!({}),
        json!({"phase": "Succeeded", "observedGeneration": 1}),
    ))));
    assert!(scene.next().is_none());
    scene.table.seen(0, object("u", 5, json!({}), json!({"phase": "Succeeded", "observedGeneration": 1})), scene.now);
    assert!(scene.table.entries.is_empty());
}

#[test]
fn a_cancel_ends_the_turn_or_the_object() {
    let cancel = || object("u", 2, json!({"cancel": true}), Value::Null);
    let mut scene = Scene::with(cancel());
    assert!(matches!(scene.next(), Some(Step::Cancel)));
    scene.done(Done::NotArmed(database(1)));
    assert_eq!(scene.writes(), crate::crd::Phase::Failed, "never armed");

    let mut scene = Scene::with(fresh());
    scene.next();
    let turn = TurnId::new();
    scene.table.seen(0, cancel(), scene.now);
    scene.done(armed(turn));
    assert!(matches!(scene.next(), Some(Step::Cancel)), "before it is shown as armed");
    scene.done(Done::Cancelled);
    assert_eq!(scene.writes(), crate::crd::Phase::Armed);
}

#[test]
fn what_is_gone_is_cancelled_once_nothing_is_under_way() {
    let gone = vec![("team".to_owned(), "u".to_owned())];
    let mut scene = Scene::with(fresh());
    scene.next();
    scene.table.deleted(&fresh());
    assert!(scene.table.gone.is_empty(), "it is being armed");
    scene.done(armed(TurnId::new()));
    assert_eq!(scene.table.gone, gone);
    assert!(scene.next().is_none());

    let mut scene = Scene::with(fresh());
    scene.next();
    scene.done(Done::Gone);
    assert_eq!(scene.table.gone, gone);

    // A relist without it; one of another namespace says nothing.
    let mut scene = Scene::with(fresh());
    scene.table.list_begins(1);
    scene.table.list_ends(1);
    assert!(scene.table.gone.is_empty());
    scene.table.list_begins(0);
    scene.table.list_ends(0);
    assert_eq!(scene.table.gone, gone);
    // One that shows it.
    let mut scene = Scene::with(fresh());
    scene.table.list_begins(0);
    scene.table.seen(0, fresh(), scene.now);
    scene.table.list_ends(0);
    assert!(scene.table.gone.is_empty());
}

#[test]
fn an_ended_object_is_deleted_in_time() {
    let status = json!({"phase": "Succeeded", "observedGeneration": 1, "completionTime": "2027-01-15T08:00:00Z"});
    let mut scene = Scene::with(object("u", 1, json!({"ttlSecondsAfterFinished": 30}), status));
    assert!(scene.next().is_none());
    scene.pass(29);
    assert!(scene.next().is_none());
    scene.pass(2);
    assert!(matches!(scene.next(), Some(Step::Delete)));
    scene.done(Done::Gone);
    assert!(scene.table.entries.is_empty() && scene.table.gone.is_empty());
}

#[test]
fn what_was_not_done_is_done_later() {
    let mut scene = Scene::with(fresh());
    scene.next();
    scene.done(Done::Again("away".into()));
    assert!(scene.next().is_none());
    scene.pass(1);
    assert!(matches!(scene.next(), Some(Step::Arm(_))));
    for _ in 0..40 {
        scene.done(Done::Again("away".into()));
        scene.pass(LONGEST_PAUSE.as_secs());
        assert!(matches!(scene.next(), Some(Step::Arm(_))), "never later than that");
    }
}

#[test]
fn a_terminal_of_an_unknown_object_is_shown_after_a_look() {
    let mut scene = Scene::new();
    let turn = TurnId::new();
    scene.table.due(vec![ended(turn)], database(4), scene.now);
    let (object, step) = scene.table.next(scene.now).expect("a step");
    assert!(object.version.is_none() && matches!(step, Step::Write(_)), "it is read before it is written");
    let there = super::tests::object("u", 7, json!({}), json!({"phase": "Armed", "turnId": turn.to_string()}));
    scene.done(Done::Stale(Box::new(there)));
    assert_eq!(scene.writes(), crate::crd::Phase::Succeeded);
    // The row of an object that nobody knows any more is put away.
    scene.table.due(vec![AgentTurnState { object: None, ..ended(turn) }], database(4), scene.now);
    assert_eq!(scene.table.settled, [turn]);
}

#[test]
fn an_agent_that_exists_is_waited_for() {
    let mut scene = Scene::with(fresh());
    scene.next();
    scene.done(Done::AgentNotReady);
    assert_eq!(scene.writes(), crate::crd::Phase::Pending);
    scene.done(Done::Written(Box::new(object("u", 2, json!({}), json!({"phase": "Pending"})))));
    assert!(matches!(scene.next(), Some(Step::Arm(_))));
    scene.done(Done::AgentNotReady);
    assert!(scene.next().is_none(), "said once");
    scene.pass(LOOK_LATER.as_secs());
    assert!(matches!(scene.next(), Some(Step::Arm(_))));
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
    scene.table.seen(0, object("u", 3, json!({"cancel": true}), status), scene.now);
    scene.written(2, turn, "Armed");
    assert!(matches!(scene.next(), Some(Step::Cancel)));
}

/// Objects that cannot be written keep nobody else waiting.
#[test]
fn what_cannot_be_shown_is_put_off() {
    let refused = || Done::Unwritable("forbidden".into());
    let again = || Done::Again("away".into());
    // (known from the store alone, what comes of a write, how often until it is put off, only if others need the room)
    for (unseen, done, tries, need) in [
        (true, &refused as &dyn Fn() -> Done, REFUSALS, false),
        (false, &refused, REFUSALS, false),
        (true, &again, TRIES, true),
    ] {
        let turn = TurnId::new();
        let status = json!({"phase": "Armed", "turnId": turn.to_string(), "observedGeneration": 1});
        let mut scene = if unseen { Scene::new() } else { Scene::with(object("u", 1, json!({}), status)) };
        scene.table.due(vec![ended(turn)], database(4), scene.now);
        for _ in 0..tries {
            scene.table.make_room();
            assert_eq!((scene.table.owed(), scene.table.put_off.len()), (1, 0));
            assert!(matches!(scene.next(), Some(Step::Write(_))));
            scene.done(done());
            scene.pass(LONGEST_PAUSE.as_secs());
        }
        assert_eq!(scene.table.owed() == 1, need);
        scene.table.make_room();
        assert_eq!((scene.table.owed(), scene.table.put_off.clone()), (0, vec![turn]));
        assert_eq!((scene.table.entries.is_empty(), scene.table.timers.len()), (unseen, 0));
        assert!(scene.next().is_none());
        // Its delivery comes again: one try.
        scene.table.due(vec![ended(turn)], database(9), scene.now);
        assert!(matches!(scene.next(), Some(Step::Write(_))));
        scene.written(2, turn, "Succeeded");
        assert_eq!((scene.table.owed(), scene.table.settled.clone()), (0, vec![turn]));
    }
}

#[test]
fn an_object_has_one_timer() {
    let status = json!({"phase": "Succeeded", "observedGeneration": 1, "completionTime": "2027-01-15T08:00:00Z"});
    let mut scene = Scene::new();
    for version in 1..5 {
        scene.table.seen(0, object("u", version, json!({"ttlSecondsAfterFinished": 30}), status.clone()), scene.now);
        scene.pass(1);
        // Two clocks never agree.
        scene.now.instant += Duration::from_micros(1);
    }
    assert_eq!(scene.table.timers.len(), 1);
    scene.table.deleted(&object("u", 9, json!({}), status));
    assert!(scene.table.timers.is_empty());
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
        assert_eq!((object.ended(), object.spec.is_none()), (ended, ended), "{status}");
    }
}
