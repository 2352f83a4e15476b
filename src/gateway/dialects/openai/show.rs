//! A turn is shown as a stream, or waited for and shown whole. Both go through the same streams, so both end by the same rules: a
//! client that goes cancels nothing, and no end is told that the turn has not had.

use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;

use super::errors::OpenAiError;
use super::finish::OpenAiEnd;
use crate::gateway::Gateway;
use crate::gateway::caller::ApiCaller;
use crate::gateway::dialects::run::{TurnEvents, TurnWriter};
use crate::gateway::messages::SubmittedTurn;
use crate::gateway::open_streams::{StreamPermit, is_out_of_retention, past_retention, stream};
use crate::problem::Problem;
use crate::store::{Store, TurnHead};
use crate::stream::session::Viewer;
use crate::stream::writer::{FrameSubject, ShownEnd, StreamWriter};
use crate::turn::cursor::Cursor;
use crate::turn::frame::Frame;
use crate::turn::keys::TurnId;

/// A turn as it ended.
#[derive(Debug)]
pub(super) struct AwaitedTurn {
    pub end: OpenAiEnd,
    pub text: String,
}

/// A view of a turn that was just submitted, from its beginning.
pub(super) fn of_submitted(turn: &SubmittedTurn) -> (Viewer, i64) {
    let armed = &turn.armed;
    let viewer = Viewer {
        conversation_id: armed.conversation_id,
        conversation: turn.conversation.clone(),
        turn: Some((armed.turn_id, turn.message_id.clone())),
        cursor: Cursor::after(armed.conversation_id, armed.number - 1),
        owner: true,
    };
    (viewer, armed.number)
}

/// A view of a turn that there is, from its beginning.
pub(super) fn of_known(caller: &ApiCaller, turn: TurnHead) -> (Viewer, i64) {
    let viewer = Viewer {
        conversation_id: turn.conversation_id,
        conversation: turn.conversation,
        turn: Some((turn.turn_id, turn.message_id)),
        cursor: Cursor::after(turn.conversation_id, turn.number - 1),
        owner: turn.owner == caller.principal.user,
    };
    (viewer, turn.number)
}

/// Answers with a turn's stream.
///
/// # Errors
/// 410 where its log is past its retention.
pub(super) async fn streamed(
    gateway: Gateway,
    caller: &ApiCaller,
    (viewer, number): (Viewer, i64),
    writer: impl TurnWriter + 'static,
    permit: StreamPermit,
) -> Result<Response, OpenAiError> {
    within_retention(&gateway, &viewer, number).await?;
    Ok(stream(gateway, caller, viewer, Box::new(TurnEvents(writer)), permit, None))
}

/// Waits for a turn's terminal.
///
/// # Errors
/// 410 where its log is past its retention, 404 where the turn was erased meanwhile; 503 where this replica cannot wait any longer:
/// it stops, or has lost the database.
pub(super) async fn ended(
    gateway: Gateway,
    caller: &ApiCaller,
    (viewer, number): (Viewer, i64),
    permit: StreamPermit,
) -> Result<AwaitedTurn, OpenAiError> {
    within_retention(&gateway, &viewer, number).await?;
    let known = (gateway.store.clone(), viewer.turn.as_ref().map(|(turn, _)| *turn));
    let ended = Arc::default();
    let collector = Collector { text: String::new(), ended: Arc::clone(&ended) };
    let mut frames = stream(gateway, caller, viewer, Box::new(collector), permit, None).into_body().into_data_stream();
    while let Some(frame) = frames.next().await {
        if frame.is_err() {
            break;
        }
    }
    let taken = ended.lock().unwrap_or_else(PoisonError::into_inner).take();
    match taken {
        Some(ended) => Ok(ended),
        None => Err(why_not(known).await.into()),
    }
}

/// Why a turn's stream broke off before its terminal.
async fn why_not((store, turn): (Store, Option<TurnId>)) -> Problem {
    let Some(turn) = turn else { return Problem::not_found("turn") };
    match store.turn_view(turn).await {
        Ok(None) => Problem::not_found("turn; it was erased"),
        Ok(Some(view)) if view.terminal.as_ref().is_some_and(|terminal| terminal.log_gone) => past_retention(),
        _ => Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the turn goes on, and cannot be waited for here any longer; send the request again",
        ),
    }
}

async fn within_retention(gateway: &Gateway, viewer: &Viewer, number: i64) -> Result<(), Problem> {
    match is_out_of_retention(gateway, viewer.conversation_id, number, &viewer.cursor).await? {
        true => Err(past_retention()),
        false => Ok(()),
    }
}

/// Keeps what a stream shows of a turn.
struct Collector {
    text: String,
    ended: Arc<Mutex<Option<AwaitedTurn>>>,
}

impl StreamWriter for Collector {
    fn connected(&mut self, _: &Cursor, _: &str, _: Option<FrameSubject<'_>>) -> Bytes {
        Bytes::new()
    }

    fn output(&mut self, _: &Cursor, _: FrameSubject<'_>, _: u64, frame: &Frame) -> Bytes {
        match frame {
            Frame::Text { text } => self.text.push_str(text),
            Frame::ToolCall { .. } | Frame::ToolResult { .. } | Frame::Progress { .. } | Frame::Data { .. } => {}
        }
        Bytes::new()
    }

    fn terminal_steps(&self, _: &ShownEnd<'_>) -> u8 {
        1
    }

    fn terminal(&mut self, _: &Cursor, _: FrameSubject<'_>, _: u8, end: &ShownEnd<'_>) -> Bytes {
        let ended = AwaitedTurn { end: OpenAiEnd::of(end), text: std::mem::take(&mut self.text) };
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
        Bytes::new()
    }

    fn keep_alive(&self) -> Bytes {
        Bytes::new()
    }
}
