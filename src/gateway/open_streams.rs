//! The body of a client's stream, in whichever dialect: its places, and what cuts it.

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use tokio::sync::OwnedSemaphorePermit;

use super::Gateway;
use super::caller::ApiCaller;
use super::limits::StreamPlace;
use crate::metrics::METRICS;
use crate::problem::Problem;
use crate::store::TurnHead;
use crate::stream::registry::SessionRegistration;
use crate::stream::render::is_out_of_reach;
use crate::stream::session::Viewer;
use crate::stream::writer::StreamWriter;
use crate::turn::cursor::Cursor;
use crate::turn::keys::ConversationId;

/// The answer for what a cursor can never be shown.
pub(in crate::gateway) fn past_retention() -> Problem {
    Problem::new(StatusCode::GONE, "turns behind this cursor are past their retention; start again without one")
}

/// Whether a turn's reply can never be shown behind this cursor, since its log is gone.
pub(in crate::gateway) async fn is_out_of_retention(
    gateway: &Gateway,
    conversation: ConversationId,
    number: i64,
    cursor: &Cursor,
) -> Result<bool, Problem> {
    let gone = gateway.store.gone_replies_after(conversation, number - 1).await?;
    Ok(gone.first().is_some_and(|g| g.number == number && is_out_of_reach(g, cursor)))
}

/// A stream's places among all of this replica's, and among its principal's.
pub(in crate::gateway) type StreamPermit = (OwnedSemaphorePermit, StreamPlace);

/// The places for one more stream.
pub(in crate::gateway) fn admitted(gateway: &Gateway, caller: &ApiCaller) -> Result<StreamPermit, Problem> {
    let place = gateway.counters.open_stream(&caller.principal)?;
    let permit = gateway.open_streams.clone().try_acquire_owned().map_err(|_| {
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "this replica has as many streams as it may; try again")
    })?;
    Ok((permit, place))
}

/// Answers with a turn's own stream behind a cursor.
///
/// # Errors
/// 410 where its log is past its retention, 429 where there is no place for one more stream.
pub(in crate::gateway) async fn turn_behind(
    gateway: Gateway,
    caller: &ApiCaller,
    turn: TurnHead,
    cursor: Cursor,
    writer: Box<dyn StreamWriter>,
) -> Result<Response, Problem> {
    if is_out_of_retention(&gateway, turn.conversation_id, turn.number, &cursor).await? {
        return Err(past_retention());
    }
    let viewer = Viewer {
        conversation_id: turn.conversation_id,
        conversation: turn.conversation,
        turn: Some((turn.turn_id, turn.message_id)),
        cursor,
        owner: turn.owner == caller.principal.user,
    };
    let permit = admitted(&gateway, caller)?;
    Ok(stream(gateway, caller, viewer, writer, permit, None))
}

/// Answers with the stream. Where it cannot go on it is broken off: it ends cleanly only where nothing more is owed.
pub(in crate::gateway) fn stream(
    gateway: Gateway,
    caller: &ApiCaller,
    viewer: Viewer,
    writer: Box<dyn StreamWriter>,
    permit: StreamPermit,
    session: Option<SessionRegistration>,
) -> Response {
    let (auth, known_by) = (gateway.auth.clone(), caller.known_by);
    let frames = gateway.streams.clone().open(viewer, writer, session);
    let body = async_stream::stream! {
        let _permit = permit;
        let ended = auth.until_ended(known_by);
        tokio::pin!(frames, ended);
        loop {
            tokio::select! {
                frame = frames.next() => match frame {
                    Some(frame) => yield frame,
                    None => return,
                },
                () = &mut ended => {
                    METRICS.streams_cut.with_label_values(&["credential"]).inc();
                    yield Err(std::io::Error::other("the caller's key or token is good no more"));
                    return;
                }
            }
        }
    };
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(body)).into_response()
}
