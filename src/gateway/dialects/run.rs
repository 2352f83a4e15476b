//! What those dialects share in which a request starts a turn, or finds it again, and its answer is the turn's stream from its
//! beginning. Such a dialect writes a [`TurnWriter`]; the rest is here.

use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use serde_json::Value;

use crate::gateway::Gateway;
use crate::gateway::caller::ApiCaller;
use crate::gateway::messages::{self, ClientMessage};
use crate::gateway::open_streams::{admitted, is_out_of_retention, past_retention, stream, turn_behind};
use crate::problem::Problem;
use crate::store::TurnHead;
use crate::stream::session::Viewer;
use crate::stream::writer::{FrameSubject, ShownEnd, StreamWriter};
use crate::turn::cursor::Cursor;
use crate::turn::frame::Frame;
use crate::turn::keys::TurnId;

/// A turn as a dialect begins to show it.
#[derive(Debug, Clone, Copy)]
pub(super) struct BegunTurn<'a> {
    /// It holds the time at which the turn was submitted.
    pub turn_id: TurnId,
    pub message_id: &'a str,
    /// The owner's name of the conversation.
    pub conversation: &'a str,
}

/// Shows one turn, from its beginning to its terminal, in one dialect. It is pure: what it writes follows from what it was given
/// so far, so a replay equals what was live. Text may come in pieces of any length.
pub(super) trait TurnWriter: Send + Sync {
    /// The turn's stream begins.
    fn begin(&mut self, turn: BegunTurn<'_>, out: &mut EventText);

    /// A frame of output; `offset` is the position behind it in the turn's log, in log units.
    fn output(&mut self, offset: u64, frame: &Frame, out: &mut EventText);

    /// The turn's terminal. Nothing follows it.
    fn end(&mut self, end: &ShownEnd<'_>, out: &mut EventText);
}

/// Server-Sent Events as text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct EventText(String);

impl EventText {
    /// An event of a line of data. JSON has no raw line break, so nothing can break out of it.
    pub fn data(&mut self, data: &Value) {
        self.0.push_str(&format!("data: {data}\n\n"));
    }

    /// An event with a name.
    pub fn named(&mut self, event: &str, data: &Value) {
        self.0.push_str(&format!("event: {event}\ndata: {data}\n\n"));
    }

    /// A line that clients pass over.
    pub fn comment(&mut self, text: &str) {
        self.0.push_str(&format!(": {}\n\n", text.replace(|c: char| c.is_control(), " ")));
    }

    /// The event that ends a stream in the manner of OpenAI.
    pub fn done(&mut self) {
        self.0.push_str("data: [DONE]\n\n");
    }

    /// What was written so far.
    #[cfg(test)]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// What was written since the last call.
    pub fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.0).into()
    }
}

/// A [`TurnWriter`] as the writer of a stream.
pub(super) struct TurnEvents<W>(pub W);

impl<W: TurnWriter> StreamWriter for TurnEvents<W> {
    fn connected(&mut self, _: &Cursor, conversation: &str, about: Option<FrameSubject<'_>>) -> Bytes {
        let mut out = EventText::default();
        if let Some(FrameSubject { turn_id, message_id }) = about {
            self.0.begin(BegunTurn { turn_id, message_id, conversation }, &mut out);
        }
        out.take()
    }

    fn output(&mut self, _: &Cursor, _: FrameSubject<'_>, offset: u64, frame: &Frame) -> Bytes {
        let mut out = EventText::default();
        self.0.output(offset, frame, &mut out);
        out.take()
    }

    fn terminal_steps(&self, _: &ShownEnd<'_>) -> u8 {
        1
    }

    fn terminal(&mut self, _: &Cursor, _: FrameSubject<'_>, _: u8, end: &ShownEnd<'_>) -> Bytes {
        let mut out = EventText::default();
        self.0.end(end, &mut out);
        out.take()
    }
}

/// Arms the turn that a message asks for, or finds the one that it armed before, and answers with its stream from its beginning.
///
/// # Errors
/// What can be refused before there is a turn; 410 where its log is past its retention.
pub(super) async fn run(
    gateway: Gateway,
    caller: &ApiCaller,
    headers: &HeaderMap,
    message: ClientMessage,
    writer: impl TurnWriter + 'static,
) -> Result<Response, Problem> {
    // The places are taken first: who cannot be shown a turn does not start one.
    let permit = admitted(&gateway, caller)?;
    let turn = messages::submit(&gateway, caller, headers, None, message).await?;
    let (conversation_id, number) = (turn.armed.conversation_id, turn.armed.number);
    let cursor = Cursor::after(conversation_id, number - 1);
    if !turn.armed.fresh && is_out_of_retention(&gateway, conversation_id, number, &cursor).await? {
        return Err(past_retention());
    }
    let viewer = Viewer {
        conversation_id,
        conversation: turn.conversation,
        turn: Some((turn.armed.turn_id, turn.message_id)),
        cursor,
        owner: true,
    };
    Ok(stream(gateway, caller, viewer, Box::new(TurnEvents(writer)), permit, None))
}

/// Answers with the stream of a turn that there is, from its beginning. Whether the caller may see it was asked before.
///
/// # Errors
/// 410 where its log is past its retention, 429 where there is no place for one more stream.
pub(super) async fn rejoin(
    gateway: Gateway,
    caller: &ApiCaller,
    turn: TurnHead,
    writer: impl TurnWriter + 'static,
) -> Result<Response, Problem> {
    let cursor = Cursor::after(turn.conversation_id, turn.number - 1);
    turn_behind(gateway, caller, turn, cursor, Box::new(TurnEvents(writer))).await
}
