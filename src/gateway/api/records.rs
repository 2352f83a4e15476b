//! The routes that read one turn, a conversation's history or a list of turns, and those that cancel a turn and erase a
//! conversation.

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::refusals::{AnyCall, OfSomething, WithJson};
use crate::gateway::Gateway;
use crate::gateway::audit::Subject;
use crate::gateway::caller::ApiCaller;
use crate::gateway::conversations::{self, OwnerQuery};
use crate::problem::Problem;
use crate::store::{ListFilter, Record};
use crate::turn::frame::Frame;
use crate::turn::keys::TurnId;
use crate::turn::phase::Phase;
use crate::turn::reason::Reason;

/// How many records a page holds where the caller does not say.
const PAGE: u32 = 50;
/// The most records that a page holds.
const MAX_PAGE: u32 = 100;

pub(super) fn router() -> Router<Gateway> {
    Router::new()
        .route("/v1/conversations/{conversation}/turns", get(history))
        .route("/v1/conversations/{conversation}", delete(erase))
        .route("/v1/turns", get(list))
        .route("/v1/turns/{turn}", get(record))
        .route("/v1/turns/{turn}/cancel", post(cancel))
}

/// The record of a turn. A turn that the caller may not see is answered like one that does not exist.
async fn seen_turn(gateway: &Gateway, caller: &ApiCaller, turn: &str) -> Result<Record, Problem> {
    let turn: TurnId = turn.parse().map_err(|_| Problem::not_found("turn"))?;
    let record = gateway.store.turn_record(turn).await?.filter(|r| caller.sees(&r.organization, &r.owner));
    let record = record.ok_or_else(|| Problem::not_found("turn"))?;
    gateway.audit.reads(caller, &record.owner, Subject::Turn(turn)).await?;
    Ok(record)
}

/// A turn's record as a caller sees it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecordView {
    turn_id: TurnId,
    message_id: String,
    organization: String,
    /// The owner's name of the conversation.
    conversation: String,
    conversation_id: Uuid,
    number: i64,
    agent: String,
    /// What people call the worker group.
    worker_group: String,
    /// The owner of the conversation, who submitted the turn.
    user: String,
    platform: String,
    message: String,
    /// `Armed`, `Running`, `Succeeded` or `Failed`.
    phase: &'static str,
    #[serde(with = "time::serde::rfc3339")]
    armed_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    claimed_at: Option<OffsetDateTime>,
    /// When the agent's first output was made durable, to within a moment.
    #[serde(with = "time::serde::rfc3339::option")]
    first_output_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    ended_at: Option<OffsetDateTime>,
    /// Whether the terminal was shown to the conversation's owner, and on every other platform that it is for.
    delivered: bool,
    /// The incarnation of the worker that claimed the turn.
    worker: Option<Uuid>,
    reply: Option<ReplyView>,
    error: Option<ErrorView>,
    /// Why the model stopped, in its server's words: `length` means that the reply is cut off. Absent where no model server
    /// said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    finish_reason: Option<String>,
    /// What the agent had said before it failed; the first 16 KiB of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    partial: Option<String>,
    /// The agent's tool calls and their results in order, once the turn has ended; at most 64, and 64 KiB.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Frame>,
    /// There were more of them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    tools_truncated: bool,
    /// A worker's answer that came too late to be the turn's terminal. Only operators are shown it, and when it came.
    superseded: Option<String>,
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    superseded_at: Option<OffsetDateTime>,
}

/// A reply as a caller sees it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplyView {
    reply_id: Option<String>,
    /// Null if the log that held it is gone, wholly or in part.
    text: Option<String>,
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
    /// Exit code, stderr and the like. Only operators are shown it.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

fn shown(record: Record, caller: &ApiCaller) -> RecordView {
    let operator = caller.is_operator();
    let phase = record.phase().as_str();
    RecordView {
        turn_id: record.turn_id,
        message_id: record.message_id,
        organization: record.organization,
        conversation: record.conversation,
        conversation_id: record.conversation_id.0,
        number: record.number,
        worker_group: record.worker_group.name(&record.agent),
        agent: record.agent,
        user: record.user,
        platform: record.platform,
        message: record.message,
        phase,
        armed_at: record.armed_at,
        claimed_at: record.claimed_at,
        first_output_at: record.first_output_at,
        ended_at: record.ended_at,
        delivered: !record.open && !record.undelivered,
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
        finish_reason: record.finish_reason,
        partial: record.partial,
        tools: record.tools.frames,
        tools_truncated: record.tools.truncated,
        superseded: record.superseded.filter(|_| operator),
        superseded_at: record.superseded_at.filter(|_| operator),
    }
}

#[utoipa::path(get, operation_id = "getTurn", path = "/v1/turns/{turn}", params(("turn" = Uuid, Path)),
    responses((status = 200, body = RecordView), AnyCall, OfSomething))]
pub(super) async fn record(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    Path(turn): Path<String>,
) -> Result<Json<RecordView>, Problem> {
    let record = seen_turn(&gateway, &caller, &turn).await?;
    if !record.open && record.owner == caller.principal.user {
        gateway.streams.shown.note(record.turn_id);
    }
    Ok(Json(shown(record, &caller)))
}

/// A page of records, newest first.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Page {
    turns: Vec<RecordView>,
    /// The value of `before` for the next page; null on the last one.
    next: Value,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HistoryQuery {
    limit: Option<u32>,
    before: Option<i64>,
    owner: Option<String>,
}

#[utoipa::path(get, operation_id = "listConversationTurns", path = "/v1/conversations/{conversation}/turns",
    params(("conversation" = String, Path, description = "the caller's name of it, or its id"),
           ("limit" = Option<u32>, Query), ("before" = Option<i64>, Query),
           ("owner" = Option<String>, Query, description = "whose name it is; for operators")),
    responses((status = 200, body = Page), AnyCall, OfSomething))]
pub(super) async fn history(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    Path(name): Path<String>,
    Query(query): Query<HistoryQuery>,
) -> Result<Json<Page>, Problem> {
    let conversation = conversations::seen(&gateway, &caller, &name, query.owner.as_deref()).await?;
    let limit = query.limit.unwrap_or(PAGE).clamp(1, MAX_PAGE);
    let records = gateway.store.conversation_history(conversation.id, query.before, limit).await?;
    let next = if records.len() == limit as usize { records.last().map(|r| r.number).into() } else { Value::Null };
    Ok(Json(Page { turns: records.into_iter().map(|r| shown(r, &caller)).collect(), next }))
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

#[utoipa::path(get, operation_id = "listTurns", path = "/v1/turns",
    params(("agent" = Option<String>, Query), ("conversation" = Option<String>, Query, description = "a name or an id"), ("user" = Option<String>, Query),
           ("phase" = Option<String>, Query, description = "Armed, Running, Succeeded or Failed"),
           ("limit" = Option<u32>, Query), ("before" = Option<Uuid>, Query)),
    responses((status = 200, body = Page), AnyCall, OfSomething))]
pub(super) async fn list(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page>, Problem> {
    if !caller.is_operator() {
        return Err(Problem::new(StatusCode::FORBIDDEN, "only operators list all turns; see the conversation's turns"));
    }
    let phase = match query.phase.as_deref().map(str::parse) {
        Some(Ok(Phase::Pending) | Err(_)) => {
            return Err(Problem::bad_request("phase is Armed, Running, Succeeded or Failed"));
        }
        phase => phase.and_then(Result::ok),
    };
    let by = |what: &str, value: &Option<String>| value.as_ref().map(|value| format!("{what} {value}"));
    let asked = [by("agent", &query.agent), by("conversation", &query.conversation), by("user", &query.user)];
    gateway.audit.lists(&caller, asked.into_iter().flatten().collect::<Vec<_>>().join(", ")).await?;
    let limit = query.limit.unwrap_or(PAGE).clamp(1, MAX_PAGE);
    let filter = ListFilter {
        agent: query.agent,
        conversation: query.conversation,
        user: query.user,
        phase,
        before: query.before,
        limit,
    };
    let records = gateway.store.list_turns(&caller.principal.organization, &filter).await?;
    let next = match records.last() {
        Some(last) if records.len() == limit as usize => last.turn_id.to_string().into(),
        _ => Value::Null,
    };
    Ok(Json(Page { turns: records.into_iter().map(|r| shown(r, &caller)).collect(), next }))
}

#[utoipa::path(post, operation_id = "cancelTurn", path = "/v1/turns/{turn}/cancel", params(("turn" = Uuid, Path)),
    responses((status = 200, body = RecordView), AnyCall, OfSomething, WithJson))]
pub(super) async fn cancel(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    Path(turn): Path<String>,
) -> Result<Json<RecordView>, Problem> {
    let record = seen_turn(&gateway, &caller, &turn).await?;
    if record.open {
        gateway.store.cancel_turn(record.turn_id, caller.actor()).await?;
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

#[utoipa::path(delete, operation_id = "eraseConversation", path = "/v1/conversations/{conversation}",
    params(("conversation" = String, Path, description = "the caller's name of it, or its id"),
           ("owner" = Option<String>, Query, description = "whose name it is; for operators")),
    responses((status = 200, body = ErasedView), AnyCall, OfSomething))]
pub(super) async fn erase(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    Path(name): Path<String>,
    Query(query): Query<OwnerQuery>,
) -> Result<Json<ErasedView>, Problem> {
    let conversation = conversations::seen(&gateway, &caller, &name, query.owner.as_deref()).await?;
    let erased = gateway.store.erase_conversation(conversation.id, caller.actor()).await?;
    let erased = erased.ok_or_else(|| Problem::not_found("conversation"))?;
    Ok(Json(ErasedView { turns: erased.turns, cancelled: erased.cancelled }))
}
