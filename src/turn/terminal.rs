//! The last event of a turn.

use serde::{Deserialize, Serialize};

use super::frame::storable;
use super::reason::Reason;

/// The longest client-visible error message that is stored, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024;
/// The longest detail for operators (stderr tail, container state) that is stored, in bytes.
pub const MAX_DETAIL_BYTES: usize = 16 * 1024;

/// Why a turn has no reply: the cause that a client is told, and the detail that only operators see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    pub reason: Reason,
    /// A sentence that a chat client can act on; never internals.
    pub message: String,
    /// Exit code, signal, stderr tail and the like, for operators alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// How the agent program ended, where its adapter saw it. It stays in the worker.
    #[serde(skip)]
    pub exit: Option<Exit>,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// Killed by the signal of this number.
    Signal(i32),
}

impl Failure {
    /// A failure with the reason's own sentence for the client.
    pub fn new(reason: Reason) -> Self {
        Failure { reason, message: reason.client_message().to_string(), detail: None, exit: None }
    }

    /// The same with a detail for operators.
    pub fn detailed(reason: Reason, detail: impl Into<String>) -> Self {
        Failure { detail: Some(detail.into()), ..Failure::new(reason) }
    }

    /// The same with another sentence for the client.
    pub fn with_message(self, message: impl Into<String>) -> Self {
        Failure { message: message.into(), ..self }
    }

    /// Whether sending the message again can help.
    pub fn retryable(&self) -> bool {
        self.reason.retryable()
    }

    /// Text that Postgres takes, within the limits.
    pub fn storable(self) -> Self {
        Failure {
            reason: self.reason,
            message: cut(storable(self.message), MAX_MESSAGE_BYTES),
            detail: self.detail.map(|d| cut(storable(d), MAX_DETAIL_BYTES)),
            exit: self.exit,
        }
    }
}

/// How a worker says that a turn ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Outcome {
    /// The log up to `end` is the reply.
    Reply,
    /// There is no reply.
    Error(Failure),
}

impl Outcome {
    /// The word in the `terminal` table and in APIs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Outcome::Reply => "reply",
            Outcome::Error(_) => "error",
        }
    }
}

/// Cuts text to at most `max` bytes between two characters.
pub fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let mut at = max;
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        text.truncate(at);
    }
    text
}
