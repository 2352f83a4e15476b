//! Streams of Server-Sent Events: a conversation's session and a turn's own stream. Both begin at a cursor.

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::refusals::{AnyCall, OfSomething, OfStream};
use crate::edge::framing::needs_framing;
use crate::gateway::Gateway;
use crate::gateway::audit::Subject;
use crate::gateway::caller::ApiCaller;
use crate::gateway::conversations;
use crate::gateway::open_streams::{admitted, past_retention, stream, turn_behind};
use crate::problem::Problem;
use crate::store::Conversation;
use crate::stream::render::is_out_of_reach;
use crate::stream::session::Viewer;
use crate::stream::sse::NativeWriter;
use crate::turn::cursor::{Cursor, CursorError, Shown};
use crate::turn::keys::{ConversationId, TurnId};

/// The routes of streams.
pub(super) fn router() -> Router<Gateway> {
    Router::new()
        .route("/v1/conversations/{conversation}/events", get(session))
        .route("/v1/turns/{turn}/events", get(turn_stream))
        .route_layer(middleware::from_fn(needs_framing))
}

/// The query of a turn's stream: the cursor to begin behind, and the ticket by which the caller was known.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AfterQuery {
    after: Option<String>,
    #[serde(rename = "ticket")]
    _ticket: Option<IgnoredAny>,
}

/// The query of a session: the cursor to begin behind, and, for operators, whose conversation it is.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SessionQuery {
    after: Option<String>,
    owner: Option<String>,
    #[serde(rename = "ticket")]
    _ticket: Option<IgnoredAny>,
}

/// The cursor that a client wants to go on from, by header or query.
fn resume_at(headers: &HeaderMap, after: Option<String>) -> Result<Option<String>, Problem> {
    // An EventSource that reconnects sends the header, and repeats the URL with its old `after`: the header is newer.
    match headers.get("last-event-id") {
        Some(id) if id.is_empty() => Ok(after),
        Some(id) => {
            let id = id.to_str().map_err(|_| Problem::bad_request(CursorError::Malformed.to_string()))?;
            Ok(Some(id.to_string()))
        }
        None => Ok(after),
    }
}

/// Reads a cursor of this conversation, and refuses one whose turns are past their retention.
fn cursor_of(text: &str, conversation: &Conversation) -> Result<Cursor, Problem> {
    let cursor = Cursor::parse(text, conversation.id).map_err(|e| Problem::bad_request(e.to_string()))?;
    if cursor.base() > conversation.last_number {
        return Err(Problem::bad_request("the cursor is ahead of its conversation"));
    }
    if cursor.lacks(conversation.pruned_through) {
        return Err(past_retention());
    }
    Ok(cursor)
}

/// The answer to a cursor of a conversation that does not exist: the conversation was erased, or removed after its turns were.
fn cursor_without_conversation(cursor: &str) -> Problem {
    match Cursor::parse(cursor, ConversationId::new()) {
        Err(error @ CursorError::Malformed) => Problem::bad_request(error.to_string()),
        _ => past_retention(),
    }
}

#[utoipa::path(get, operation_id = "streamConversation", path = "/v1/conversations/{conversation}/events",
    params(("conversation" = String, Path, description = "the caller's name of it, or its id"),
           ("after" = Option<String>, Query, description = "a cursor"),
           ("owner" = Option<String>, Query, description = "whose name it is; for operators"),
           ("Last-Event-ID" = Option<String>, Header, description = "a cursor")),
    security(("key" = []), ("login" = []), ("ticket" = []), ()),
    responses((status = 200, content_type = "text/event-stream", body = String, extensions(("x-events" = json!("#/components/schemas/StreamEvents")))),
              AnyCall, OfSomething, OfStream))]
pub(super) async fn session(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    Path(name): Path<String>,
    headers: HeaderMap,
    Query(query): Query<SessionQuery>,
) -> Result<Response, Problem> {
    let after = resume_at(&headers, query.after)?;
    let found = conversations::find(&gateway, &caller, &name, query.owner.as_deref()).await?;
    let conversation = found.ok_or_else(|| match &after {
        Some(cursor) => cursor_without_conversation(cursor),
        None => Problem::not_found("conversation"),
    })?;
    let store = &gateway.store;
    let owner = conversation.owner == caller.principal.user;
    let given = after.map(|a| cursor_of(&a, &conversation)).transpose()?;
    let permit = admitted(&gateway, &caller)?;
    // The session is registered, and the registration committed, before anything is read, so that every turn that ends
    // from now on wakes the session.
    let sessions = &gateway.streams.sessions;
    let session = sessions.register(&caller.principal.organization, conversation.id, owner).await?;
    let resumes = given.is_some();
    let mut cursor = match given {
        Some(cursor) => cursor,
        None => Cursor::after(conversation.id, store.session_base(conversation.id).await?),
    };
    for gone in store.gone_replies_after(conversation.id, cursor.base()).await? {
        if !resumes {
            // A session that begins now does not begin with what it can never be shown.
            cursor.advance(gone.number, Shown::Done);
        } else if is_out_of_reach(&gone, &cursor) {
            return Err(past_retention());
        }
    }
    let viewer =
        Viewer { conversation_id: conversation.id, conversation: conversation.name, turn: None, cursor, owner };
    Ok(stream(gateway, &caller, viewer, Box::new(NativeWriter), permit, Some(session)))
}

#[utoipa::path(get, operation_id = "streamTurn", path = "/v1/turns/{turn}/events",
    params(("turn" = Uuid, Path), ("after" = Option<String>, Query, description = "a cursor of this stream"),
           ("Last-Event-ID" = Option<String>, Header, description = "a cursor of this stream")),
    security(("key" = []), ("login" = []), ("ticket" = []), ()),
    responses((status = 200, content_type = "text/event-stream", body = String, extensions(("x-events" = json!("#/components/schemas/StreamEvents")))),
              (status = 204, description = "the cursor is at the turn's terminal: there is nothing more"),
              AnyCall, OfSomething, OfStream))]
pub(super) async fn turn_stream(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    Path(turn): Path<String>,
    headers: HeaderMap,
    Query(query): Query<AfterQuery>,
) -> Result<Response, Problem> {
    let after = resume_at(&headers, query.after)?;
    let id: TurnId = turn.parse().map_err(|_| Problem::not_found("turn"))?;
    // Only the turn's conversation and number are read here; the stream reads what it shows.
    let turn = gateway.store.turn_head(id).await?.filter(|t| caller.sees(&t.organization, &t.owner));
    let turn = turn.ok_or_else(|| Problem::not_found("turn"))?;
    gateway.audit.reads(&caller, &turn.owner, Subject::Turn(id)).await?;
    let cursor = match after {
        Some(text) => {
            let cursor = Cursor::parse(&text, turn.conversation_id).map_err(|e| Problem::bad_request(e.to_string()))?;
            if cursor.base() >= turn.number { Cursor::after(turn.conversation_id, turn.number) } else { cursor }
        }
        None => Cursor::after(turn.conversation_id, turn.number - 1),
    };
    if cursor.shown(turn.number) == Shown::Done {
        // An EventSource asks again whenever a stream ends, and stops at this answer.
        let ended = gateway.store.turn_view(id).await?.is_some_and(|view| view.terminal.is_some());
        return match ended {
            true => Ok(StatusCode::NO_CONTENT.into_response()),
            false => Err(Problem::bad_request("the cursor is ahead of this turn, which has not ended")),
        };
    }
    turn_behind(gateway, &caller, turn, cursor, Box::new(NativeWriter)).await
}
