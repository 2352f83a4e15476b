//! Why turns end by a person, a limit or a rule of Lastword, and why Lastword refuses submissions.

use std::fmt::Display;

use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// What stands for a reply whose log is gone, wholly or in part: half a reply is shown to nobody.
pub const TEXT_GONE: &str = "the reply's text is no longer stored";

/// The user, an operator, or the deletion of the conversation cancelled the turn.
pub fn cancelled() -> Failure {
    Failure::new(Reason::Cancelled)
}

/// The turn's AgentTurn was deleted.
pub fn object_deleted() -> Failure {
    Failure::detailed(Reason::Cancelled, "its AgentTurn was deleted")
}

/// The turn of an AgentTurn was erased along with its conversation.
pub fn erased() -> Failure {
    cancelled().with_message("its conversation was erased")
}

/// An AgentTurn says that it is armed, and the database has no such turn.
pub fn forgotten() -> Failure {
    let message = "the database does not know this turn: it may have been restored or replaced";
    Failure::new(Reason::Internal).with_message(message)
}

/// The turn's hard deadline has passed.
pub fn too_late() -> Failure {
    Failure::new(Reason::DeadlineExceeded)
}

/// A guardrail rejected the message: `message` for the person, `detail` for operators.
pub fn rejected(message: impl Into<String>, detail: impl Into<String>) -> Failure {
    Failure::detailed(Reason::GuardrailRejected, detail).with_message(message)
}

/// A guardrail could not be asked for want of something that Lastword owes; `detail` says what, for operators. The person may
/// try again, and no policy of the Agent decides it.
pub fn not_asked(detail: impl Into<String>) -> Failure {
    Failure::detailed(Reason::Internal, detail)
}

/// The turn has no place in its Agent's queue any more, whose limit was lowered after the turn was armed.
pub fn shed() -> Failure {
    Failure::new(Reason::QuotaExceeded)
}

/// The turn's Agent is gone.
pub fn agent_gone() -> Failure {
    Failure::new(Reason::AgentNotFound)
}

/// The turn's routing cannot be read (`why`), so nobody can be shown the turn's outcome (`was`). The detail tells
/// operators both.
pub fn unreadable(why: impl Display, was: impl Display) -> Failure {
    Failure::detailed(Reason::Internal, format!("{why}; the outcome was {was}"))
}

/// The database refused the content of a worker's reply or error. `was` says which of the two.
pub fn unstorable(was: &str) -> Failure {
    Failure::detailed(Reason::Internal, format!("the database refused the content of the {was}"))
}

/// No turn can be made of an AgentTurn's spec; `why` is for whoever wrote the spec.
pub fn unusable(why: impl Into<String>) -> Failure {
    Failure::new(refused(Refusal::Unusable)).with_message(why)
}

/// Why a submission arms no turn, now or when it is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    NoAgent,
    /// The Agent's queue is full, or the conversation has as many open turns as it may.
    Full,
    /// The message id, or the conversation, is already taken by something else.
    Taken,
    /// What was submitted cannot be read, routed or stored.
    Unusable,
}

/// The reason of a refused submission.
pub fn refused(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::NoAgent => Reason::AgentNotFound,
        Refusal::Full => Reason::QuotaExceeded,
        Refusal::Taken => Reason::Conflict,
        Refusal::Unusable => Reason::Internal,
    }
}
