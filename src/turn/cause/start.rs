//! Why a worker cannot be started: the API server refuses its pod, or it cannot be made as its Agent asks.

use std::fmt::Display;

use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// What is in the way of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// The obstacle may pass by itself. The start waits until its deadline, and then ends with this failure.
    MayHeal(Failure),
    /// The same start would fail the same way again, so it ends now.
    ForGood(Failure),
}

/// Whether the API server's refusal of a pod may heal. Kubernetes gives the same status code for different causes, so
/// the message is searched for known words.
pub fn refused(code: u16, message: &str) -> Obstacle {
    let says = |words: &str| message.contains(words);
    let failure = |reason| Failure::detailed(reason, format!("the pod was refused (status {code}): {message}"));
    match code {
        403 if says("exceeded quota") || says("status unknown for quota") => {
            Obstacle::MayHeal(failure(Reason::QuotaExceeded))
        }
        // The controller lacks a right, or the namespace's ServiceAccount is not made yet.
        403 if says("cannot create resource") || says("error looking up service account") => {
            Obstacle::MayHeal(failure(Reason::StartFailed))
        }
        // The controller's own token, or a proxy on the way, is the cause. The pod is not.
        401 | 407 | 408 => Obstacle::MayHeal(failure(Reason::StartFailed)),
        400..=428 if code != 409 => Obstacle::ForGood(failure(Reason::StartFailed)),
        _ => Obstacle::MayHeal(failure(Reason::StartFailed)),
    }
}

/// The API server did not answer.
pub fn unanswered(why: impl Display) -> Obstacle {
    let detail = format!("the API server cannot be asked for a pod: {why}");
    Obstacle::MayHeal(Failure::detailed(Reason::StartFailed, detail))
}

/// A pod, a command or a memory limit cannot be made as the Agent asks; `why` says what is wrong with it.
pub fn impossible(why: impl Into<String>) -> Failure {
    Failure::detailed(Reason::StartFailed, why)
}

/// Another start's pod, or a stranger's, has the name.
pub fn name_taken(pod: &str) -> Failure {
    impossible(format!("a pod {pod} that is not of this start exists already"))
}

/// The start was stopped while there was no pod yet.
pub fn stopped_before_made() -> Failure {
    impossible("it was stopped before its pod was made")
}

/// The fleet does not know whether the start's row was written.
pub fn unsure() -> Failure {
    impossible("the database was away when the start was written")
}
