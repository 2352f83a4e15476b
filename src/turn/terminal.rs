//! A turn's terminal, its last event: a reply, or the failure that says why there is none.

use serde::{Deserialize, Serialize};

use super::frame::storable;
use super::reason::Reason;
use crate::turn::objects::objects_only;

/// The longest client-visible error message that is stored, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024;
/// The longest detail for operators (stderr tail, container state) that is stored, in bytes.
pub const MAX_DETAIL_BYTES: usize = 16 * 1024;
/// The longest finish reason that is kept, in bytes. Model servers use single words.
pub const MAX_FINISH_REASON_BYTES: usize = 64;

/// Why a turn has no reply: the cause that a client is told, and a detail that only operators see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[serde(remote = "Self")]
pub struct Failure {
    pub reason: Reason,
    /// A sentence for the person in the chat, without internals.
    pub message: String,
    /// Exit code, signal, stderr tail and the like, for operators alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// How the agent program ended, where its adapter saw the end. It is never sent: only the worker itself uses it.
    #[serde(skip)]
    pub exit: Option<Exit>,
}

/// How an agent program ended.
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

    /// The same failure with texts that Postgres can hold, cut to [`MAX_MESSAGE_BYTES`] and [`MAX_DETAIL_BYTES`].
    pub fn storable(self) -> Self {
        Failure {
            reason: self.reason,
            message: cut(storable(self.message), MAX_MESSAGE_BYTES),
            detail: self.detail.map(|d| cut(storable(d), MAX_DETAIL_BYTES)),
            exit: self.exit,
        }
    }
}

/// How a turn ends. Workers send it, and terminals hold it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "type", rename_all = "camelCase")]
#[serde(remote = "Self")]
pub enum Outcome {
    /// The text in the turn's log, up to the log's recorded end, is the reply.
    Reply,
    /// There is no reply, for this cause.
    Error(Failure),
}

impl Outcome {
    /// The name in the table `terminal` and in the APIs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Outcome::Reply => "reply",
            Outcome::Error(_) => "error",
        }
    }
}

/// A finish reason as it is kept: storable, and cut to [`MAX_FINISH_REASON_BYTES`]. A blank one is none.
pub fn finish_reason(said: Option<String>) -> Option<String> {
    let said = said.filter(|reason| !reason.trim().is_empty())?;
    Some(cut(storable(said), MAX_FINISH_REASON_BYTES))
}

/// Cuts text to at most `max` bytes, between two characters.
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

objects_only!(both Failure, Outcome);
