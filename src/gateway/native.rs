//! The client API of Lastword itself: `docs/api.md`.

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use super::Gateway;
use super::auth::Caller;
use super::problem::Problem;
use crate::deliver::session::{Registered, Viewer};
use crate::store::{Conversation, ListFilter, Record};
use crate::submit::{Submission, SubmitError};
use crate::turn::cursor::{Cursor, CursorError};
use crate::turn::frame::{storable, storable_json};
use crate::turn::keys::{ConversationId, SessionId, TurnId, check_conversation, check_name};
use crate::turn::reason::Reason;
use crate::turn::routing::API;
use crate::turn::terminal::Failure;

/// The largest body that a client may send, in bytes.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;
/// Records of one page, by default and at most.
const PAGE: u32 = 50;
const MAX_PAGE: u32 = 100;

/// The routes of the client port.
pub fn router(gateway: Gateway) -> Router {
    Router::new()
        .route("/v1/conversations/{conversation}/turns", post(submit).get(history))
        .route("/v1/conversations/{conversation}/events", get(session))
        .route("/v1/conversations/{conversation}", axum::routing::delete(erase))
        .route("/v1/turns", get(list))
        .route("/v1/turns/{turn}", get(record))
        .route("/v1/turns/{turn}/events", get(turn_stream))
        .route("/v1/turns/{turn}/cancel", post(cancel))
        .route("/openapi.json", get(super::openapi::document))
        .fallback(|| async { Problem::not_found("path; see /openapi.json") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "the path has no such method; see /openapi.json")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(gateway)
}

/// Body of a submit.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Submit {
    /// `name`, or `namespace/name` within the caller's organization.
    pub agent: String,
    /// What the person says.
    pub message: String,
    /// Makes the call idempotent; default: a new UUID.
    pub message_id: Option<String>,
    /// Where the terminal is shown besides; default `api`.
    pub platform: Option<String>,
    #[serde(default)]
    pub platform_metadata: Value,
}

/// Answer to a submit.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Submitted {
    pub turn_id: TurnId,
    pub message_id: String,
    pub conversation: String,
    pub deployment: String,
    /// The place just before this turn: a session opened with it shows the turn whole.
    pub cursor: String,
}

#[utoipa::path(post, path = "/v1/conversations/{conversation}/turns", request_body = Submit,
    params(("conversation" = String, Path, description = "the conversation's name")),
    responses((status = 202, body = Submitted), (status = 200, body = Submitted, description = "armed before"),
              (status = "4XX", body = Problem), (status = 503, body = Problem)))]
pub(super) async fn submit(
    State(gateway): State<Gateway>,
    caller: Result<Caller, Problem>,
    Path(conversation): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let caller = match caller {
        // Nobody knows yet who calls; what they would have to send again is named all the same.
        Err(problem) if problem.status() == StatusCode::SERVICE_UNAVAILABLE => {
            let body: Submit = parse(&headers, &body)?;
            return Err(problem.with_message_id(&body.message_id.unwrap_or_else(new_message_id)));
        }
        caller => caller?,
    };
    let body: Submit = parse(&headers, &body)?;
    let message_id = body.message_id.unwrap_or_else(new_message_id);
    let platform = body.platform.unwrap_or_else(|| API.to_string());
    check_conversation(&conversation).map_err(|e| Problem::bad_request(e.to_string()))?;
    for (what, name) in [("messageId", &message_id), ("platform", &platform)] {
        check_name(what, name).map_err(|e| Problem::bad_request(e.to_string()))?;
    }
    if body.message.is_empty() {
        return Err(Problem::bad_request("message is empty"));
    }
    let submission = Submission {
        agent: agent_name(&caller, &body.agent)?,
        organization: caller.0.organization,
        user: caller.0.user,
        conversation,
        message_id,
        message: storable(body.message),
        platform,
        platform_metadata: storable_json(body.platform_metadata),
        traceparent: headers.get("traceparent").and_then(|v| v.to_str().ok()).map(str::to_string),
        deadline_seconds: None,
        object: None,
    };
    let (message_id, conversation) = (submission.message_id.clone(), submission.conversation.clone());
    let (armed, deployment) = gateway.submitter.submit(submission).await.map_err(|e| refused(e, &message_id))?;
    let cursor = Cursor::after(armed.conversation_id, armed.number - 1).to_string();
    let status = if armed.fresh { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(Submitted { turn_id: armed.turn_id, message_id, conversation, deployment, cursor }))
        .into_response())
}

fn new_message_id() -> String {
    Uuid::now_v7().to_string()
}

fn parse<T: serde::de::DeserializeOwned>(headers: &HeaderMap, body: &Bytes) -> Result<T, Problem> {
    // A browser sends JSON across origins only after asking, which is never granted.
    let json = headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.split(';').next().is_some_and(|t| t.trim().eq_ignore_ascii_case("application/json")));
    if !json {
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send application/json"));
    }
    if body.len() > MAX_BODY_BYTES {
        return Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is larger than {MAX_BODY_BYTES} bytes"),
        ));
    }
    serde_json::from_slice(body).map_err(|e| Problem::bad_request(format!("the body is malformed: {e}")))
}

fn agent_name(caller: &Caller, agent: &str) -> Result<String, Problem> {
    let name = match agent.split_once('/') {
        Some((namespace, name)) if namespace == caller.0.organization => name,
        Some(_) => return Err(Problem::not_found("agent").with_reason(Reason::AgentNotFound)),
        None => agent,
    };
    check_name("agent", name).map_err(|e| Problem::bad_request(e.to_string()))?;
    Ok(name.to_string())
}

fn refused(error: SubmitError, message_id: &str) -> Problem {
    use crate::store::ArmError;
    let text = error.to_string();
    let problem = match error {
        SubmitError::NoAgent => Problem::not_found("agent").with_reason(Reason::AgentNotFound),
        SubmitError::NoPlatform => Problem::bad_request(text),
        SubmitError::QueueFull(_) | SubmitError::TooManyOpen => {
            Problem::new(StatusCode::TOO_MANY_REQUESTS, text).with_reason(Reason::QuotaExceeded)
        }
        SubmitError::Refused(ArmError::NotYours) => Problem::not_found("conversation"),
        SubmitError::Refused(ArmError::OtherAgent(_) | ArmError::OtherContent) => {
            Problem::new(StatusCode::CONFLICT, text).with_reason(Reason::Conflict)
        }
        SubmitError::Store(error) => match Problem::from(error) {
            problem if problem.status() == StatusCode::SERVICE_UNAVAILABLE => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "not known to be armed; send it again with the same messageId",
            ),
            problem => problem,
        },
    };
    problem.with_message_id(message_id)
}

/// Where a stream begins.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct After {
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
pub(super) async fn session(
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
pub(super) async fn turn_stream(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(turn): Path<String>,
    headers: HeaderMap,
    Query(after): Query<After>,
) -> Result<Response, Problem> {
    let after = resume_at(&headers, after)?;
    let id: TurnId = turn.parse().map_err(|_| Problem::not_found("turn"))?;
    // Only the place: a stream reads what it shows by itself.
    let turn = gateway.store.head(id).await?.filter(|t| caller.sees(&t.organization, &t.owner));
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

/// The record of a turn that the caller may see; others do not exist.
async fn seen_turn(gateway: &Gateway, caller: &Caller, turn: &str) -> Result<Record, Problem> {
    let turn: TurnId = turn.parse().map_err(|_| Problem::not_found("turn"))?;
    let record = gateway.store.record(turn).await?;
    record.filter(|r| caller.sees(&r.organization, &r.owner)).ok_or_else(|| Problem::not_found("turn"))
}

/// A turn's record as a caller sees it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecordView {
    turn_id: TurnId,
    message_id: String,
    organization: String,
    conversation: String,
    number: i64,
    agent: String,
    deployment: String,
    user: String,
    platform: String,
    message: String,
    /// `Armed`, `Running`, `Succeeded` or `Failed`.
    phase: &'static str,
    #[serde(with = "time::serde::rfc3339")]
    armed_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    claimed_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    ended_at: Option<OffsetDateTime>,
    /// The incarnation that ran it.
    worker: Option<Uuid>,
    reply: Option<ReplyView>,
    error: Option<ErrorView>,
    /// For operators: a word that came too late.
    superseded: Option<String>,
}

/// A reply as a caller sees it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplyView {
    reply_id: Option<String>,
    text: String,
    turn_ids: Vec<TurnId>,
    message_ids: Vec<String>,
}

/// An error as a caller sees it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrorView {
    reason: Reason,
    message: String,
    retryable: bool,
    /// For operators: exit code, stderr and the like.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

fn shown(record: Record, caller: &Caller) -> RecordView {
    let operator = caller.operates();
    let phase = match (record.open, record.claimed_at, &record.failure) {
        (true, None, _) => "Armed",
        (true, Some(_), _) => "Running",
        (false, _, None) => "Succeeded",
        (false, _, Some(_)) => "Failed",
    };
    RecordView {
        turn_id: record.turn_id,
        message_id: record.message_id,
        organization: record.organization,
        conversation: record.conversation,
        number: record.number,
        agent: record.agent,
        deployment: record.deployment,
        user: record.user,
        platform: record.platform,
        message: record.message,
        phase,
        armed_at: record.armed_at,
        claimed_at: record.claimed_at,
        ended_at: record.ended_at,
        worker: record.worker.map(|w| w.0),
        reply: record.reply.map(|r| ReplyView {
            reply_id: r.reply_id,
            text: r.text,
            turn_ids: r.turns.iter().map(|t| t.0).collect(),
            message_ids: r.turns.into_iter().map(|t| t.1).collect(),
        }),
        error: record.failure.map(|f| ErrorView {
            retryable: f.retryable(),
            reason: f.reason,
            message: f.message,
            detail: f.detail.filter(|_| operator),
        }),
        superseded: record.superseded.filter(|_| operator),
    }
}

#[utoipa::path(get, path = "/v1/turns/{turn}", params(("turn" = Uuid, Path)),
    responses((status = 200, body = RecordView), (status = "4XX", body = Problem)))]
pub(super) async fn record(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(turn): Path<String>,
) -> Result<Json<RecordView>, Problem> {
    let record = seen_turn(&gateway, &caller, &turn).await?;
    if !record.open && record.owner == caller.0.user {
        gateway.streams.shown.note(record.turn_id);
    }
    Ok(Json(shown(record, &caller)))
}

/// A page of records, newest first.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Page {
    turns: Vec<RecordView>,
    /// The value of `before` for the next page.
    next: Value,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HistoryQuery {
    limit: Option<u32>,
    before: Option<i64>,
}

#[utoipa::path(get, path = "/v1/conversations/{conversation}/turns",
    params(("conversation" = String, Path), ("limit" = Option<u32>, Query), ("before" = Option<i64>, Query)),
    responses((status = 200, body = Page), (status = "4XX", body = Problem)))]
pub(super) async fn history(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<HistoryQuery>,
) -> Result<Json<Page>, Problem> {
    let conversation = seen_conversation(&gateway, &caller, &name).await?;
    let limit = query.limit.unwrap_or(PAGE).clamp(1, MAX_PAGE);
    let records = gateway.store.history(conversation.id, query.before, limit).await?;
    let next = if records.len() == limit as usize { records.last().map(|r| r.number).into() } else { Value::Null };
    Ok(Json(Page { turns: records.into_iter().map(|r| shown(r, &caller)).collect(), next }))
}

async fn seen_conversation(gateway: &Gateway, caller: &Caller, name: &str) -> Result<Conversation, Problem> {
    let found = gateway.store.conversation(&caller.0.organization, name).await?;
    found.filter(|c| caller.sees(&caller.0.organization, &c.owner)).ok_or_else(|| Problem::not_found("conversation"))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    agent: Option<String>,
    conversation: Option<String>,
    user: Option<String>,
    phase: Option<String>,
    limit: Option<u32>,
    before: Option<TurnId>,
}

#[utoipa::path(get, path = "/v1/turns",
    params(("agent" = Option<String>, Query), ("conversation" = Option<String>, Query), ("user" = Option<String>, Query),
           ("phase" = Option<String>, Query, description = "Armed, Running, Succeeded or Failed"),
           ("limit" = Option<u32>, Query), ("before" = Option<Uuid>, Query)),
    responses((status = 200, body = Page), (status = "4XX", body = Problem)))]
pub(super) async fn list(
    State(gateway): State<Gateway>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page>, Problem> {
    if !caller.operates() {
        return Err(Problem::new(StatusCode::FORBIDDEN, "only operators list all turns; see the conversation's turns"));
    }
    if let Some(phase) = query.phase.as_deref()
        && !["Armed", "Running", "Succeeded", "Failed"].contains(&phase)
    {
        return Err(Problem::bad_request("phase is Armed, Running, Succeeded or Failed"));
    }
    let limit = query.limit.unwrap_or(PAGE).clamp(1, MAX_PAGE);
    let filter = ListFilter {
        agent: query.agent,
        conversation: query.conversation,
        user: query.user,
        phase: query.phase,
        before: query.before,
        limit,
    };
    let records = gateway.store.list(&caller.0.organization, &filter).await?;
    let next = match records.last() {
        Some(last) if records.len() == limit as usize => last.turn_id.to_string().into(),
        _ => Value::Null,
    };
    Ok(Json(Page { turns: records.into_iter().map(|r| shown(r, &caller)).collect(), next }))
}

#[utoipa::path(post, path = "/v1/turns/{turn}/cancel", params(("turn" = Uuid, Path)),
    responses((status = 200, body = RecordView), (status = "4XX", body = Problem), (status = 503, body = Problem)))]
pub(super) async fn cancel(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(turn): Path<String>,
) -> Result<Json<RecordView>, Problem> {
    let record = seen_turn(&gateway, &caller, &turn).await?;
    if record.open {
        gateway.store.fail_turn(record.turn_id, &Failure::new(Reason::Cancelled)).await?;
    }
    let record = seen_turn(&gateway, &caller, &turn).await?;
    Ok(Json(shown(record, &caller)))
}

/// What erasing removed.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ErasedView {
    turns: u64,
    cancelled: u64,
}

#[utoipa::path(delete, path = "/v1/conversations/{conversation}", params(("conversation" = String, Path)),
    responses((status = 200, body = ErasedView), (status = "4XX", body = Problem), (status = 503, body = Problem)))]
pub(super) async fn erase(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<ErasedView>, Problem> {
    seen_conversation(&gateway, &caller, &name).await?;
    let erased = gateway.store.erase(&caller.0.organization, &name, &caller.0.user).await?;
    let erased = erased.ok_or_else(|| Problem::not_found("conversation"))?;
    Ok(Json(ErasedView { turns: erased.turns, cancelled: erased.cancelled }))
}
