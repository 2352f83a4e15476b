//! Each state of a turn as a status.

use serde_json::Value;

use super::super::object::TurnObject;
use super::*;
use crate::turn::keys::TurnId;

fn at(second: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000 + second).expect("in range")
}

fn object() -> TurnObject {
    TurnObject { generation: 3, ..TurnObject::known_to_store("team", "t", "u", TurnId::new()) }
}

/// A turn that was armed at second 0 and, if `claimed`, claimed at second 1.
fn state(claimed: bool, progress: AgentTurnProgress) -> AgentTurnState {
    AgentTurnState {
        turn_id: TurnId::new(),
        object: None,
        armed_at: Some(at(0)),
        claimed_at: claimed.then(|| at(1)),
        worker: claimed.then(|| "team/bot-x-1".into()),
        progress,
    }
}

fn failed(reason: Reason) -> AgentTurnProgress {
    AgentTurnProgress::Failed { failure: Failure::detailed(reason, "exit 1"), at: at(2) }
}

fn replied(text: &str) -> AgentTurnProgress {
    AgentTurnProgress::Replied { text: Some(text.into()), cut: false, at: at(2) }
}

#[test]
fn a_standing_is_one_status() {
    let turn = |claimed, progress| DesiredStatus::OfTurn { state: state(claimed, progress), at: at(9) };
    let pending = DesiredStatus::Pending { reason: Reason::AgentNotFound, message: "no".into() };
    let refused = DesiredStatus::Refused { failure: Failure::new(Reason::QuotaExceeded), at: at(5) };
    // Phase; Armed, Dispatched, Succeeded, Terminal; the reason of Terminal.
    let cases = [
        (pending, Phase::Pending, "False False Unknown False", "Pending"),
        (turn(false, AgentTurnProgress::Waiting), Phase::Armed, "True False Unknown False", "Armed"),
        (turn(true, AgentTurnProgress::Running), Phase::Running, "True True Unknown False", "Running"),
        (turn(true, replied("hi")), Phase::Succeeded, "True True True True", "Succeeded"),
        (turn(true, failed(Reason::WorkerExited)), Phase::Failed, "True True False True", "WorkerExited"),
        (turn(false, failed(Reason::StartFailed)), Phase::Failed, "True False False True", "StartFailed"),
        (turn(true, AgentTurnProgress::Erased), Phase::Failed, "True True False True", "Cancelled"),
        (turn(false, AgentTurnProgress::Unknown), Phase::Failed, "True False False True", "Internal"),
        (refused, Phase::Failed, "False False False True", "QuotaExceeded"),
    ];
    for (desired, phase, conditions, reason) in cases {
        let status = desired.status(&object());
        assert_eq!(status.phase, Some(phase), "{desired:?}");
        assert_eq!(desired.phase(), phase, "{desired:?}");
        assert_eq!(status.observed_generation, Some(3));
        let said: Vec<&str> = status.conditions.iter().map(|c| c.status.as_str()).collect();
        assert_eq!(said.join(" "), conditions, "{desired:?}");
        let kinds: Vec<&str> = status.conditions.iter().map(|c| c.type_.as_str()).collect();
        assert_eq!(kinds, ["Armed", "Dispatched", "Succeeded", "Terminal"]);
        assert_eq!(status.conditions[3].reason, reason);
        assert!(status.conditions.iter().all(|c| !c.reason.is_empty()), "Kubernetes demands a reason");
        assert_eq!(status.error.is_some(), phase == Phase::Failed);
        assert_eq!(status.completion_time.is_some(), matches!(phase, Phase::Succeeded | Phase::Failed));
        assert_eq!(status, desired.status(&object()), "the same progress is the same status");
    }
}

#[test]
fn times_are_the_stores() {
    let status = DesiredStatus::OfTurn { state: state(true, replied("hi")), at: at(9) }.status(&object());
    let time = |seconds| Some(Time(timestamp(at(seconds))));
    assert_eq!((status.armed_time, status.dispatched_time), (time(0), time(1)));
    assert_eq!(status.completion_time, time(2));
    let since: Vec<_> = status.conditions.iter().map(|c| Some(c.last_transition_time.clone())).collect();
    assert_eq!(since, [time(0), time(1), time(2), time(2)]);
    assert_eq!(status.worker_pod.as_deref(), Some("bot-x-1"));
    let erased = DesiredStatus::OfTurn { state: state(false, AgentTurnProgress::Erased), at: at(9) }.status(&object());
    assert_eq!(erased.completion_time, time(9));
}

#[test]
fn an_error_is_the_clients_and_a_cut_reply_says_so() {
    let desired = DesiredStatus::OfTurn { state: state(true, failed(Reason::AgentNotFound)), at: at(9) };
    let status: Value = serde_json::to_value(desired.status(&object())).expect("serializable");
    assert_eq!(status["error"]["reason"], "AgentNotFound");
    assert_eq!(status["error"]["retryable"], false);
    assert!(!status.to_string().contains("exit 1"), "the detail is for operators");
    let partly = AgentTurnProgress::Replied { text: Some("abc".into()), cut: true, at: at(2) };
    let status = DesiredStatus::OfTurn { state: state(true, partly), at: at(9) }.status(&object());
    assert_eq!((status.reply.as_deref(), status.reply_truncated), (Some("abc"), Some(true)));
    let status = DesiredStatus::OfTurn { state: state(true, replied("abc")), at: at(9) }.status(&object());
    assert_eq!(status.reply_truncated, None);
}
