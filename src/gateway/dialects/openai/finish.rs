//! How a turn ended, in the words of OpenAI's protocols.

use crate::stream::writer::{ShownEnd, ShownOutcome};
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// How a turn ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum OpenAiEnd {
    /// The reply is whole.
    Whole,
    /// The reply was cut off at the model's limit of tokens.
    TooLong,
    /// The reply was cut off by the model's filter.
    Filtered,
    /// Somebody stopped the turn on purpose.
    Cancelled(Failure),
    /// There is no reply.
    Failed(Failure),
}

impl OpenAiEnd {
    pub fn of(end: &ShownEnd<'_>) -> Self {
        match end.outcome {
            ShownOutcome::Reply => match end.finish_reason {
                Some("length" | "max_tokens" | "max_output_tokens" | "MAX_TOKENS") => OpenAiEnd::TooLong,
                Some("content_filter" | "SAFETY") => OpenAiEnd::Filtered,
                _ => OpenAiEnd::Whole,
            },
            ShownOutcome::Cancelled(failure) => OpenAiEnd::Cancelled(failure.clone()),
            ShownOutcome::Failed(failure) => OpenAiEnd::Failed(failure.clone()),
        }
    }
}

/// A failure in a sentence that begins with its reason.
pub(super) fn sentence(failure: &Failure) -> String {
    format!("{}: {}", failure.reason.as_str(), failure.message)
}

/// The HTTP status of a call whose turn failed. The turn is over, so none of them asks for a repetition.
pub(super) fn status(reason: Reason) -> u16 {
    match reason {
        Reason::GuardrailRejected => 400,
        Reason::AgentNotFound => 404,
        Reason::Cancelled | Reason::Conflict => 409,
        Reason::QuotaExceeded => 429,
        Reason::ModelUnavailable => 503,
        Reason::DeadlineExceeded => 504,
        Reason::AgentError
        | Reason::ModelRejected
        | Reason::WorkerExited
        | Reason::OutOfMemory
        | Reason::Evicted
        | Reason::Preempted
        | Reason::Deleted
        | Reason::NodeShutdown
        | Reason::NodeLost
        | Reason::ImagePull
        | Reason::Unschedulable
        | Reason::StartFailed
        | Reason::LeaseLapsed
        | Reason::Internal => 500,
    }
}
