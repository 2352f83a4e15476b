//! Stand-in until the real one is merged: why a turn has no reply.

use serde::{Deserialize, Serialize};

/// Why a turn has no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub enum Reason {
    AgentError,
    WorkerExited,
    OutOfMemory,
    Evicted,
    Preempted,
    Deleted,
    NodeShutdown,
    NodeLost,
    ImagePull,
    Unschedulable,
    StartFailed,
    LeaseLapsed,
    DeadlineExceeded,
    GuardrailRejected,
    QuotaExceeded,
    AgentNotFound,
    Conflict,
    Cancelled,
    Internal,
}

impl Reason {
    /// Whether sending the message again can help.
    pub fn retryable(self) -> bool {
        !matches!(self, Reason::GuardrailRejected | Reason::AgentNotFound | Reason::Conflict | Reason::Cancelled)
    }

    /// A sentence for the chat client.
    pub fn client_message(self) -> &'static str {
        match self {
            Reason::AgentError => "The agent failed.",
            Reason::OutOfMemory => "The agent ran out of memory.",
            Reason::StartFailed => "The agent did not start.",
            _ => "The agent is gone.",
        }
    }

    /// The word of the enum.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::AgentError => "AgentError",
            Reason::WorkerExited => "WorkerExited",
            Reason::OutOfMemory => "OutOfMemory",
            Reason::StartFailed => "StartFailed",
            Reason::Internal => "Internal",
            _ => "Other",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
