//! The seam between what a stream shows and how a client protocol (a *dialect*) writes it.
//!
//! What a cursor is owed, when a stream is aborted, when it is kept alive, and what counts as shown is decided by the rest of
//! this room, once for all dialects. A [`StreamWriter`] only turns one thing that is to be shown into bytes.

use bytes::Bytes;

use crate::turn::cursor::Cursor;
use crate::turn::frame::Frame;
use crate::turn::keys::TurnId;
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// The turn that a frame is about.
#[derive(Debug, Clone, Copy)]
pub struct FrameSubject<'a> {
    pub turn_id: TurnId,
    pub message_id: &'a str,
}

/// How a turn ended, as its clients are told. A dialect matches it in full: what is no error need not be a reply.
#[derive(Debug, Clone, Copy)]
pub enum ShownOutcome<'a> {
    /// The output so far is the reply.
    Reply,
    /// Somebody stopped the turn on purpose. Its failure has the reason [`Reason::Cancelled`].
    Cancelled(&'a Failure),
    /// There is no reply, for this cause.
    Failed(&'a Failure),
}

impl<'a> ShownOutcome<'a> {
    /// The outcome of a terminal that has this failure; `None` is a reply.
    pub fn of(failure: Option<&'a Failure>) -> Self {
        match failure {
            None => ShownOutcome::Reply,
            Some(failure) if failure.reason == Reason::Cancelled => ShownOutcome::Cancelled(failure),
            Some(failure) => ShownOutcome::Failed(failure),
        }
    }
}

/// A turn's terminal, as it is to be shown.
#[derive(Debug, Clone, Copy)]
pub struct ShownEnd<'a> {
    pub outcome: ShownOutcome<'a>,
    /// Why the model stopped, in its server's words.
    pub finish_reason: Option<&'a str>,
    /// The turns that end with it, with their message ids: all that a reply answers, otherwise the turn alone.
    pub answered: &'a [(TurnId, String)],
}

/// Writes a stream in one dialect. It does no IO, and what it writes depends on nothing but what it was given so far: so a
/// replay is the same as what was live.
///
/// Where there is nothing to say, a method returns empty bytes, which are not sent.
pub trait StreamWriter: Send + Sync {
    /// The first bytes of a connection. A session is about no turn.
    fn connected(&mut self, cursor: &Cursor, conversation: &str, about: Option<FrameSubject<'_>>) -> Bytes;

    /// A frame of output. `cursor` is behind it, and so is `offset`, the position in the turn's log, in log units.
    fn output(&mut self, cursor: &Cursor, about: FrameSubject<'_>, offset: u64, frame: &Frame) -> Bytes;

    /// In how many steps a terminal is written: 1 to 3. After each step the cursor counts it as shown, so a client that comes
    /// back between two of them is sent the rest. Dialects without cursors write all in one step.
    fn terminal_steps(&self, end: &ShownEnd<'_>) -> u8;

    /// A step of a terminal, from 1 on. `cursor` is behind it.
    fn terminal(&mut self, cursor: &Cursor, about: FrameSubject<'_>, step: u8, end: &ShownEnd<'_>) -> Bytes;

    /// What keeps proxies from closing an idle stream.
    fn keep_alive(&self) -> Bytes {
        Bytes::from_static(b": keep-alive\n\n")
    }
}
