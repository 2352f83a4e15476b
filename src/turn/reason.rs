//! Why a turn ended without a reply: one enum for the CRD, HTTP, metrics and the store.
//!
//! A [`Reason`] is what a client may know. What only operators may know (container state, exit code, stderr, addresses)
//! stands in the record's detail and in logs, never in a reason or its sentence.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why a turn ended without a reply.
///
/// Written everywhere as its CamelCase name, e.g. `OutOfMemory`. Names are never reused or renamed: they are stored, are
/// values of metric labels, and clients switch on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, ToSchema)]
pub enum Reason {
    /// The agent program itself failed: it exited with an error or gave no output; or its model began an answer and did not
    /// finish it.
    AgentError,
    /// The agent's model did not answer, for a cause that may pass: its server could not be reached, was overloaded or
    /// failed before an answer began.
    ModelUnavailable,
    /// The agent's model, or its server, refused the request, and will do so until somebody changes it or the agent: a wrong
    /// key, an unknown model, a conversation that is too long.
    ModelRejected,
    /// The worker process or its container ended while it held the turn, and nothing more specific is known.
    WorkerExited,
    /// The kernel killed the agent or its worker because it exceeded its memory limit.
    OutOfMemory,
    /// The node evicted the worker's pod to free a resource (memory, disk, process ids), or the eviction API did.
    Evicted,
    /// The scheduler removed the worker's pod in favour of one with a higher priority.
    Preempted,
    /// The worker was stopped on purpose and did not finish the turn in time: somebody deleted its pod, or Lastword
    /// stopped it (idle, its Agent changed or is gone, not drained within `drainSeconds`).
    Deleted,
    /// The worker's node shut down and did not leave enough time to finish the turn.
    NodeShutdown,
    /// The worker's node vanished or was declared unreachable.
    NodeLost,
    /// No worker could start since an image could not be pulled.
    ImagePull,
    /// No worker could start since no node has room for it, or none satisfies its constraints.
    Unschedulable,
    /// No worker could start, for another cause: bad command, missing Secret, crash before its first claim, start deadline.
    StartFailed,
    /// The worker was silent for longer than its lease; whether it still lives is unknown.
    LeaseLapsed,
    /// The turn was not finished within its hard deadline (`turnSeconds`, or `deadlineSeconds` of the AgentTurn).
    DeadlineExceeded,
    /// An input guardrail of the agent rejected the message, or could not check it under `failurePolicy: Fail`.
    GuardrailRejected,
    /// A quota of the namespace forbids to start a worker, or the agent's queue was full after the turn was armed.
    QuotaExceeded,
    /// The agent does not exist, or was deleted while the turn waited.
    AgentNotFound,
    /// The message id is already taken by a turn with another content or origin.
    Conflict,
    /// The user, an operator, or the deletion of the conversation or AgentTurn cancelled the turn.
    Cancelled,
    /// A fault of Lastword itself or of its storage: malformed marker, result that cannot be stored, lost bookkeeping.
    Internal,
}

/// A name that is no [`Reason`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown reason {0:?}")]
pub struct UnknownReason(pub String);

impl Reason {
    /// Every reason, in the order of their declaration.
    pub const ALL: [Self; 21] = [
        Self::AgentError,
        Self::ModelUnavailable,
        Self::ModelRejected,
        Self::WorkerExited,
        Self::OutOfMemory,
        Self::Evicted,
        Self::Preempted,
        Self::Deleted,
        Self::NodeShutdown,
        Self::NodeLost,
        Self::ImagePull,
        Self::Unschedulable,
        Self::StartFailed,
        Self::LeaseLapsed,
        Self::DeadlineExceeded,
        Self::GuardrailRejected,
        Self::QuotaExceeded,
        Self::AgentNotFound,
        Self::Conflict,
        Self::Cancelled,
        Self::Internal,
    ];

    /// The name as it is stored, sent and used as a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AgentError => "AgentError",
            Self::ModelUnavailable => "ModelUnavailable",
            Self::ModelRejected => "ModelRejected",
            Self::WorkerExited => "WorkerExited",
            Self::OutOfMemory => "OutOfMemory",
            Self::Evicted => "Evicted",
            Self::Preempted => "Preempted",
            Self::Deleted => "Deleted",
            Self::NodeShutdown => "NodeShutdown",
            Self::NodeLost => "NodeLost",
            Self::ImagePull => "ImagePull",
            Self::Unschedulable => "Unschedulable",
            Self::StartFailed => "StartFailed",
            Self::LeaseLapsed => "LeaseLapsed",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::GuardrailRejected => "GuardrailRejected",
            Self::QuotaExceeded => "QuotaExceeded",
            Self::AgentNotFound => "AgentNotFound",
            Self::Conflict => "Conflict",
            Self::Cancelled => "Cancelled",
            Self::Internal => "Internal",
        }
    }

    /// Whether it can help to send the same message again, unchanged and as a new turn, without an operator's help.
    ///
    /// It is advice to a person or client, never a licence for Lastword to run a begun turn twice. The agent may have
    /// acted before it died: "retryable" promises nothing about its side effects.
    pub const fn retryable(self) -> bool {
        match self {
            // The program or its model may do better next time: models are not deterministic, rate limits pass.
            Self::AgentError => true,
            // A server comes back, a limit of its rate passes.
            Self::ModelUnavailable => true,
            // The worker died or was taken away; the next turn gets another one.
            Self::WorkerExited | Self::Evicted | Self::Preempted | Self::Deleted => true,
            Self::NodeShutdown | Self::NodeLost | Self::LeaseLapsed => true,
            // Often the turn's own doing, but memory also adds up over turns, and the next worker starts empty.
            Self::OutOfMemory => true,
            // Room comes back when others finish or a node is added; quota and queue likewise.
            Self::Unschedulable | Self::QuotaExceeded => true,
            // A fault of ours that is usually transient (storage failed over, a row was lost).
            Self::Internal => true,
            // Configuration: the same start fails the same way until somebody changes the Agent.
            Self::ImagePull | Self::StartFailed | Self::AgentNotFound | Self::ModelRejected => false,
            // The same work would take as long again, and would cost as much.
            Self::DeadlineExceeded => false,
            // The same message is rejected again; the same message id conflicts again; nobody wants it any more.
            Self::GuardrailRejected | Self::Conflict | Self::Cancelled => false,
        }
    }

    /// One sentence for the person in the chat: what happened and what they can do, without internals.
    pub const fn client_message(self) -> &'static str {
        match self {
            Self::AgentError => "The agent failed while answering. Please try again.",
            Self::ModelUnavailable => "The agent's model is not available at the moment. Please try again later.",
            Self::ModelRejected => "The agent's model refused the request. Please contact whoever operates the agent.",
            Self::WorkerExited => "The agent stopped unexpectedly before it could answer. Please try again.",
            Self::OutOfMemory => "The agent ran out of memory. Please try again, if need be with a smaller request.",
            Self::Evicted | Self::Preempted | Self::Deleted | Self::NodeShutdown => {
                "The agent was stopped before it could answer. Please try again."
            }
            Self::NodeLost | Self::LeaseLapsed => {
                "Contact with the agent was lost before it answered. Please try again."
            }
            Self::ImagePull | Self::StartFailed => {
                "The agent could not be started. Please contact whoever operates it."
            }
            Self::Unschedulable => "There is no capacity for the agent at the moment. Please try again later.",
            Self::DeadlineExceeded => "The agent did not answer in time. Please try a smaller or simpler request.",
            Self::GuardrailRejected => "The message was rejected by this agent's input rules. Please rephrase it.",
            Self::QuotaExceeded => "The agent is at its limit at the moment. Please try again later.",
            Self::AgentNotFound => "This agent does not exist or was removed. Please choose another one.",
            Self::Conflict => "This message id was already used for another message. Please send it under a new one.",
            Self::Cancelled => "The request was cancelled before the agent answered.",
            Self::Internal => "Something went wrong on our side. Please try again.",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|r| r.as_str() == name).ok_or_else(|| UnknownReason(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_everywhere() {
        for (position, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, position, "ALL is in order and complete");
            assert_eq!(reason.to_string(), reason.as_str());
            assert_eq!(reason.as_str().parse(), Ok(reason));
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
            assert_eq!(format!("{reason:?}"), reason.as_str());
        }
        // The schema is derived from the enum itself, so it has every variant, wherever it was added.
        let schema = serde_json::to_value(schemars::schema_for!(Reason)).unwrap();
        let alternatives = schema["oneOf"].as_array().expect("one alternative a documented variant");
        let derived: Vec<&str> = alternatives.iter().map(|one| one["const"].as_str().expect("a name")).collect();
        assert_eq!(derived, Reason::ALL.map(Reason::as_str), "ALL has every variant");
        assert_eq!("internal".parse::<Reason>(), Err(UnknownReason("internal".into())));
    }

    #[test]
    fn a_client_hears_no_internals_and_the_advice_agrees_with_retryable() {
        let internals = ["pod", "node", "lease", "container", "image", "database", "kube", "worker", "exit", "quota"];
        for reason in Reason::ALL {
            let message = reason.client_message();
            assert!(message.ends_with('.') && message.len() < 120, "{reason}");
            let lower = message.to_lowercase();
            let mut words = lower.split(|c: char| !c.is_alphabetic());
            assert!(!words.any(|word| internals.contains(&word)), "{reason}: {message:?}");
            assert_eq!(message.to_lowercase().contains("try again"), reason.retryable(), "{reason}: {message}");
        }
    }
}
