//! Streams: a conversation's session, and a turn's own; both by cursor.

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;

use crate::gateway::Gateway;
use crate::gateway::auth::Caller;
use crate::problem::Problem;
use crate::store::Conversation;
use crate::stream::session::{Registered, Viewer};
use crate::turn::cursor::{Cursor, CursorError};
use crate::turn::keys::{ConversationId, SessionId, TurnId, check_conversation};

/// Where a stream begins.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct After {
    after: Option<String>,
}

fn resume_at(headers: &HeaderMap, after: After) -> Result<Option<String>, Problem> {
    // An EventSource that reconnects repeats the URL with its old `after`: the header is newer.
    match headers.get("last-event-id") {
        Some(id) if id.is_empty() => Ok(after.after),
        Some(id) => {
            let id = id.to_str().map_err(|_| Problem::bad_request(CursorError::Malformed.to_string()))?;
            Ok(Some(id.to_string()))
        }
        None => Ok(after.after),
    }
}

fn place(text: &str, conversation: &Conversation) -> Result<Cursor, Problem> {
    let cursor = Cursor::parse(text, conversation.id).map_err(|e| Problem::bad_request(e.to_string()))?;
    if cursor.base() > conversation.last_number {
        return Err(Problem::bad_request("the cursor is ahead of its conversation"));
    }
    if cursor.lacks(conversation.pruned_through) {
        return Err(past_retention());
    }
    Ok(cursor)
}

/// A cursor where there is no conversation: it was removed after its turns. Whoever only comes back makes no new one.
fn nowhere(cursor: &str) -> Problem {
    match Cursor::parse(cursor, ConversationId::new()) {
        Err(error @ CursorError::Malformed) => Problem::bad_request(error.to_string()),
        _ => past_retention(),
    }
}

fn past_retention() -> Problem {
    Problem::new(StatusCode::GONE, "turns behind this cursor are past their retention; start again without one")
}

#[utoipa::path(get, path = "/v1/conversations/{conversation}/events",
    params(("conversation" = String, Path), ("after" = Option<String>, Query, description = "a cursor"),
           ("Last-Event-ID" = Option<String>, Header, description = "a cursor")),
    responses((status = 200, content_type = "text/event-stream", body = String),
              (status = "4XX", body = Problem), (status = 503, body = Problem)))]
pub(in crate::gateway) async fn session(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(name): Path<String>,
    headers: HeaderMap,
    Query(after): Query<After>,
) -> Result<Response, Problem> {
    check_conversation(&name).map_err(|e| Problem::bad_request(e.to_string()))?;
    let after = resume_at(&headers, after)?;
    let store = &gateway.store;
    let found = store.conversation(&caller.0.organization, &name).await?;
    let conversation = match (found, &after) {
        (Some(found), _) => found,
        (None, Some(cursor)) => return Err(nowhere(cursor)),
        (None, None) => store.open_conversation(&caller.0.organization, &name, &caller.0.user).await?,
    };
    if !caller.sees(&caller.0.organization, &conversation.owner) {
        return Err(Problem::not_found("conversation"));
    }
    let owner = conversation.owner == caller.0.user;
    let given = after.map(|a| place(&a, &conversation)).transpose()?;
    let permit = admitted(&gateway)?;
    // Registered, and committed, before anything is read.
    let session = SessionId::new();
    store.register_session(session, gateway.streams.gateway, &caller.0.organization, conversation.id, owner).await?;
    let session = gateway.streams.registered(session);
    let cursor = match given {
        Some(cursor) => cursor,
        None => Cursor::after(conversation.id, store.session_base(conversation.id).await?),
    };
    let viewer = Viewer { conversation_id: conversation.id, conversation: name, turn: None, cursor, owner };
    Ok(stream(gateway, &caller, viewer, permit, Some(session)))
}

#[utoipa::path(get, path = "/v1/turns/{turn}/events",
    params(("turn" = Uuid, Path), ("after" = Option<String>, Query, description = "a cursor of this stream"),
           ("Last-Event-ID" = Option<String>, Header, description = "a cursor of this stream")),
    responses((status = 200, content_type = "text/event-stream", body = String),
              (status = "4XX", body = Problem), (status = 503, body = Problem)))]
pub(in crate::gateway) async fn turn_stream(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(turn): Path<String>,
    headers: HeaderMap,
    Query(after): Query<After>,
) -> Result<Response, Problem> {
    let after = resume_at(&headers, after)?;
    let id: TurnId = turn.parse().map_err(|_| Problem::not_found("turn"))?;
    // Only the place: a stream reads what it shows by itself.
    let turn = gateway.store.turn_head(id).await?.filter(|t| caller.sees(&t.organization, &t.owner));
    let turn = turn.ok_or_else(|| Problem::not_found("turn"))?;
    let cursor = match after {
        Some(text) => {
            let cursor = Cursor::parse(&text, turn.conversation_id).map_err(|e| Problem::bad_request(e.to_string()))?;
            if cursor.base() >= turn.number { Cursor::after(turn.conversation_id, turn.number) } else { cursor }
        }
        None => Cursor::after(turn.conversation_id, turn.number - 1),
    };
    let viewer = Viewer {
        conversation_id: turn.conversation_id,
        conversation: turn.conversation,
        turn: Some((turn.turn_id, turn.message_id)),
        cursor,
        owner: turn.owner == caller.0.user,
    };
    let permit = admitted(&gateway)?;
    Ok(stream(gateway, &caller, viewer, permit, None))
}

fn admitted(gateway: &Gateway) -> Result<OwnedSemaphorePermit, Problem> {
    gateway.open_streams.clone().try_acquire_owned().map_err(|_| {
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "this replica has as many streams as it may; try again")
    })
}

fn stream(
    gateway: Gateway,
    caller: &Caller,
    viewer: Viewer,
    permit: OwnedSemaphorePermit,
    session: Option<Registered>,
) -> Response {
    let (auth, key) = (gateway.auth.clone(), caller.1);
    let frames = gateway.streams.clone().open(viewer, session);
    let body = async_stream::stream! {
        let _permit = permit;
        let revoked = auth.until_revoked(key);
        tokio::pin!(frames, revoked);
        loop {
            tokio::select! {
                frame = frames.next() => match frame {
                    Some(frame) => yield frame,
                    None => return,
                },
                () = &mut revoked => {
                    yield Err(std::io::Error::other("the key was revoked"));
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
