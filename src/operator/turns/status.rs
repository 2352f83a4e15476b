//! The status of an AgentTurn, computed from the state of its turn. Pure: every time in a status is one of the database's, so
//! the same state is the same status, whoever computes it and when.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use time::OffsetDateTime;

use super::object::{Progress, TurnObject};
use crate::crd::{AgentTurnStatus, TurnError};
use crate::operator::clock::timestamp;
use crate::operator::condition::{ARMED, ConditionStatus, DISPATCHED, SUCCEEDED, TERMINAL};
use crate::store::{AgentTurnProgress, AgentTurnState};
use crate::turn::cause::rule;
use crate::turn::phase::Phase;
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// What the status of an AgentTurn should say.
#[derive(Debug, Clone, PartialEq)]
pub enum DesiredStatus {
    /// The turn is not armed yet, and why.
    Pending { reason: Reason, message: String },
    /// The turn was refused at this time and will never be armed.
    Refused { failure: Failure, at: OffsetDateTime },
    /// The turn is in this state. It was read at `at`, which stands in for the time of an end that has none (an erased turn).
    OfTurn { state: AgentTurnState, at: OffsetDateTime },
}

impl DesiredStatus {
    /// The phase of this status.
    pub fn phase(&self) -> Phase {
        match self {
            DesiredStatus::Pending { .. } => Phase::Pending,
            DesiredStatus::Refused { .. } => Phase::Failed,
            DesiredStatus::OfTurn { state, .. } => match state.progress {
                AgentTurnProgress::Waiting => Phase::Armed,
                AgentTurnProgress::Running => Phase::Running,
                AgentTurnProgress::Replied { .. } => Phase::Succeeded,
                AgentTurnProgress::Failed { .. } | AgentTurnProgress::Erased | AgentTurnProgress::Unknown => {
                    Phase::Failed
                }
            },
        }
    }

    /// How far the turn has come in this status.
    pub fn progress(&self) -> Progress {
        Progress::of(Some(self.phase()))
    }

    /// The whole status, for this object.
    pub fn status(&self, object: &TurnObject) -> AgentTurnStatus {
        match self {
            DesiredStatus::Pending { reason, message } => {
                let created = object.created;
                let not_yet = ("Pending", "");
                let conditions = [
                    condition(ARMED, ConditionStatus::False, (reason.as_str(), message), created),
                    condition(DISPATCHED, ConditionStatus::False, not_yet, created),
                    condition(SUCCEEDED, ConditionStatus::Unknown, not_yet, created),
                    condition(TERMINAL, ConditionStatus::False, not_yet, created),
                ];
                status(object, Phase::Pending, conditions)
            }
            DesiredStatus::Refused { failure, at } => refused(object, failure, timestamp(*at)),
            DesiredStatus::OfTurn { state, at } => of_turn(object, state, timestamp(*at)),
        }
    }
}

/// When a turn ended, and by which failure if not by a reply; `None` while it is open.
fn ending(progress: &AgentTurnProgress, at: Timestamp) -> Option<(Timestamp, Option<Failure>)> {
    match progress {
        AgentTurnProgress::Waiting | AgentTurnProgress::Running => None,
        AgentTurnProgress::Replied { at, .. } => Some((timestamp(*at), None)),
        AgentTurnProgress::Failed { failure, at } => Some((timestamp(*at), Some(failure.clone()))),
        AgentTurnProgress::Erased => Some((at, Some(rule::erased()))),
        AgentTurnProgress::Unknown => Some((at, Some(rule::forgotten()))),
    }
}

fn of_turn(object: &TurnObject, state: &AgentTurnState, at: Timestamp) -> AgentTurnStatus {
    let armed = state.armed_at.map_or(object.created, timestamp);
    let claimed = state.claimed_at.map(timestamp);
    let ended = ending(&state.progress, at);
    let lacks_text = matches!(state.progress, AgentTurnProgress::Replied { text: None, .. });
    let why = match &ended {
        Some((_, Some(failure))) => (failure.reason.as_str(), failure.message.as_str()),
        Some((_, None)) => ("Succeeded", if lacks_text { rule::TEXT_GONE } else { "" }),
        None if claimed.is_some() => ("Running", ""),
        None => ("Armed", ""),
    };
    let since = ended.as_ref().map_or(claimed.unwrap_or(armed), |ended| ended.0);
    let (succeeded, terminal) = match &ended {
        None => (ConditionStatus::Unknown, ConditionStatus::False),
        Some((_, None)) => (ConditionStatus::True, ConditionStatus::True),
        Some((_, Some(_))) => (ConditionStatus::False, ConditionStatus::True),
    };
    let unclaimed = if ended.is_some() { why } else { ("Waiting", "") };
    let conditions = [
        condition(ARMED, ConditionStatus::True, ("Armed", ""), armed),
        match claimed {
            Some(claimed) => condition(DISPATCHED, ConditionStatus::True, ("Claimed", ""), claimed),
            None => condition(DISPATCHED, ConditionStatus::False, unclaimed, armed),
        },
        condition(SUCCEEDED, succeeded, why, since),
        condition(TERMINAL, terminal, why, since),
    ];
    let phase = match &ended {
        None if claimed.is_some() => Phase::Running,
        None => Phase::Armed,
        Some((_, None)) => Phase::Succeeded,
        Some(_) => Phase::Failed,
    };
    let (reply, reply_truncated) = match &state.progress {
        AgentTurnProgress::Replied { text, cut, .. } => (text.clone(), cut.then_some(true)),
        _ => (None, None),
    };
    AgentTurnStatus {
        turn_id: Some(state.turn_id.to_string()),
        reply,
        reply_truncated,
        error: ended.as_ref().and_then(|(_, failure)| failure.as_ref()).map(error),
        worker_pod: state.worker.as_deref().map(|pod| pod.rsplit('/').next().unwrap_or(pod).to_owned()),
        armed_time: state.armed_at.map(|at| Time(timestamp(at))),
        dispatched_time: claimed.map(Time),
        completion_time: ended.map(|ended| Time(ended.0)),
        ..status(object, phase, conditions)
    }
}

fn refused(object: &TurnObject, failure: &Failure, at: Timestamp) -> AgentTurnStatus {
    let why = (failure.reason.as_str(), failure.message.as_str());
    let conditions = [
        condition(ARMED, ConditionStatus::False, why, at),
        condition(DISPATCHED, ConditionStatus::False, why, at),
        condition(SUCCEEDED, ConditionStatus::False, why, at),
        condition(TERMINAL, ConditionStatus::True, why, at),
    ];
    AgentTurnStatus {
        error: Some(error(failure)),
        completion_time: Some(Time(at)),
        ..status(object, Phase::Failed, conditions)
    }
}

fn status(object: &TurnObject, phase: Phase, conditions: [Condition; 4]) -> AgentTurnStatus {
    AgentTurnStatus {
        phase: Some(phase),
        observed_generation: Some(object.generation),
        conditions: conditions.into(),
        ..AgentTurnStatus::default()
    }
}

fn error(failure: &Failure) -> TurnError {
    TurnError { reason: failure.reason, message: failure.message.clone(), retryable: failure.retryable() }
}

/// A condition that names no generation, since it follows from the turn and not from a newer spec.
fn condition(type_: &str, status: ConditionStatus, why: (&str, &str), since: Timestamp) -> Condition {
    crate::operator::condition::condition(type_, status, why, since, None)
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
