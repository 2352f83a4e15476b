//! PURE: the status of an AgentTurn from where its turn stands. No time in it is "now".

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use time::OffsetDateTime;

use super::object::{Object, rank};
use crate::crd::{AgentTurnStatus, Phase, TurnError};
use crate::store::{AgentTurnProgress, AgentTurnState};
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// What a status is to say.
#[derive(Debug, Clone, PartialEq)]
pub enum Word {
    /// It waits to be armed.
    Pending { reason: Reason, message: String },
    /// It was refused: never armed.
    Refused { failure: Failure, at: OffsetDateTime },
    /// What the store says of its turn; `at` for what has no time of its own.
    Turn { state: AgentTurnState, at: OffsetDateTime },
}

impl Word {
    /// The phase that it amounts to.
    pub fn phase(&self) -> Phase {
        match self {
            Word::Pending { .. } => Phase::Pending,
            Word::Refused { .. } => Phase::Failed,
            Word::Turn { state, .. } => match state.standing {
                AgentTurnProgress::Waiting => Phase::Armed,
                AgentTurnProgress::Running => Phase::Running,
                AgentTurnProgress::Replied { .. } => Phase::Succeeded,
                AgentTurnProgress::Failed { .. } | AgentTurnProgress::Erased | AgentTurnProgress::Unknown => {
                    Phase::Failed
                }
            },
        }
    }

    /// How far the status is with it.
    pub fn rank(&self) -> u8 {
        rank(Some(self.phase()))
    }

    /// The whole status of this object.
    pub fn status(&self, object: &Object) -> AgentTurnStatus {
        match self {
            Word::Pending { reason, message } => {
                let created = object.created;
                let not_yet = ("Pending", "");
                let conditions = [
                    condition("Armed", "False", (reason.as_str(), message), created),
                    condition("Dispatched", "False", not_yet, created),
                    condition("Succeeded", "Unknown", not_yet, created),
                    condition("Terminal", "False", not_yet, created),
                ];
                status(object, Phase::Pending, conditions)
            }
            Word::Refused { failure, at } => refused(object, failure, stamp(*at)),
            Word::Turn { state, at } => of_turn(object, state, stamp(*at)),
        }
    }
}

/// When a turn ended, and whose word that was.
fn ending(standing: &AgentTurnProgress, at: Timestamp) -> Option<(Timestamp, Option<Failure>)> {
    let erased = "its conversation was erased";
    let lost = "the database does not know this turn: it may have been restored or replaced";
    match standing {
        AgentTurnProgress::Waiting | AgentTurnProgress::Running => None,
        AgentTurnProgress::Replied { at, .. } => Some((stamp(*at), None)),
        AgentTurnProgress::Failed { failure, at } => Some((stamp(*at), Some(failure.clone()))),
        AgentTurnProgress::Erased => Some((at, Some(Failure::new(Reason::Cancelled).with_message(erased)))),
        AgentTurnProgress::Unknown => Some((at, Some(Failure::new(Reason::Internal).with_message(lost)))),
    }
}

fn of_turn(object: &Object, state: &AgentTurnState, at: Timestamp) -> AgentTurnStatus {
    let armed = state.armed_at.map_or(object.created, stamp);
    let claimed = state.claimed_at.map(stamp);
    let ended = ending(&state.standing, at);
    let why = match &ended {
        Some((_, Some(failure))) => (failure.reason.as_str(), failure.message.as_str()),
        Some((_, None)) => ("Succeeded", ""),
        None if claimed.is_some() => ("Running", ""),
        None => ("Armed", ""),
    };
    let since = ended.as_ref().map_or(claimed.unwrap_or(armed), |ended| ended.0);
    let (succeeded, terminal) = match &ended {
        None => ("Unknown", "False"),
        Some((_, None)) => ("True", "True"),
        Some((_, Some(_))) => ("False", "True"),
    };
    let conditions = [
        condition("Armed", "True", ("Armed", ""), armed),
        match claimed {
            Some(claimed) => condition("Dispatched", "True", ("Claimed", ""), claimed),
            None => condition("Dispatched", "False", if ended.is_some() { why } else { ("Waiting", "") }, armed),
        },
        condition("Succeeded", succeeded, why, since),
        condition("Terminal", terminal, why, since),
    ];
    let phase = match &ended {
        None if claimed.is_some() => Phase::Running,
        None => Phase::Armed,
        Some((_, None)) => Phase::Succeeded,
        Some(_) => Phase::Failed,
    };
    let (reply, reply_truncated) = match &state.standing {
        AgentTurnProgress::Replied { text, cut, .. } => (Some(text.clone()), cut.then_some(true)),
        _ => (None, None),
    };
    AgentTurnStatus {
        turn_id: Some(state.turn_id.to_string()),
        reply,
        reply_truncated,
        error: ended.as_ref().and_then(|(_, failure)| failure.as_ref()).map(error),
        worker_pod: state.worker.as_deref().map(|pod| pod.rsplit('/').next().unwrap_or(pod).to_owned()),
        armed_time: state.armed_at.map(|at| Time(stamp(at))),
        dispatched_time: claimed.map(Time),
        completion_time: ended.map(|ended| Time(ended.0)),
        ..status(object, phase, conditions)
    }
}

fn refused(object: &Object, failure: &Failure, at: Timestamp) -> AgentTurnStatus {
    let why = (failure.reason.as_str(), failure.message.as_str());
    let conditions = [
        condition("Armed", "False", why, at),
        condition("Dispatched", "False", why, at),
        condition("Succeeded", "False", why, at),
        condition("Terminal", "True", why, at),
    ];
    AgentTurnStatus {
        error: Some(error(failure)),
        completion_time: Some(Time(at)),
        ..status(object, Phase::Failed, conditions)
    }
}

fn status(object: &Object, phase: Phase, conditions: [Condition; 4]) -> AgentTurnStatus {
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

fn condition(type_: &str, status: &str, (reason, message): (&str, &str), since: Timestamp) -> Condition {
    Condition {
        type_: type_.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: Time(since),
        observed_generation: None,
    }
}

/// A time of the database as Kubernetes writes it.
pub fn stamp(at: OffsetDateTime) -> Timestamp {
    // Out of range only beyond the year 9999.
    Timestamp::new(at.unix_timestamp(), at.nanosecond() as i32).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
