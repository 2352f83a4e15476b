//! The list of a user's conversations.

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::refusals::AnyCall;
use crate::gateway::Gateway;
use crate::gateway::caller::ApiCaller;
use crate::problem::Problem;
use crate::store::{ListedConversation, NewestTurn};
use crate::turn::keys::{ConversationId, TurnId};
use crate::turn::reason::Reason;

/// How many conversations a page holds where the caller does not say, and at the most.
const PAGE: u32 = 50;
const MAX_PAGE: u32 = 100;

/// The route of the list.
pub(super) fn router() -> Router<Gateway> {
    Router::new().route("/v1/conversations", get(list))
}

/// A conversation in a list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConversationView {
    conversation_id: Uuid,
    /// The owner's name of it.
    conversation: String,
    /// The owner.
    user: String,
    agent: Option<String>,
    /// The first words of the oldest message that is kept.
    title: String,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// The newest turn; null when all are past their retention.
    newest: Option<NewestTurnView>,
}

/// How a conversation's newest turn stands.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewestTurnView {
    turn_id: TurnId,
    number: i64,
    /// `Armed`, `Running`, `Succeeded` or `Failed`.
    phase: &'static str,
    /// Why it failed, if it did.
    reason: Option<Reason>,
    #[serde(with = "time::serde::rfc3339")]
    armed_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    ended_at: Option<OffsetDateTime>,
}

/// A page of conversations, newest first.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ConversationPage {
    conversations: Vec<ConversationView>,
    /// The value of `before` for the next page; null on the last one.
    next: Option<ConversationId>,
}

fn shown(listed: ListedConversation) -> ConversationView {
    let newest = |turn: NewestTurn| NewestTurnView {
        turn_id: turn.turn_id,
        number: turn.number,
        phase: turn.phase.as_str(),
        reason: turn.reason,
        armed_at: turn.armed_at,
        ended_at: turn.ended_at,
    };
    ConversationView {
        conversation_id: listed.id.0,
        conversation: listed.name,
        user: listed.owner,
        agent: listed.agent,
        title: listed.title,
        created_at: listed.created_at,
        newest: listed.newest.map(newest),
    }
}

/// The query of the list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConversationsQuery {
    limit: Option<u32>,
    before: Option<ConversationId>,
    owner: Option<String>,
}

#[utoipa::path(get, operation_id = "listConversations", path = "/v1/conversations",
    params(("limit" = Option<u32>, Query), ("before" = Option<Uuid>, Query, description = "a conversation's id"),
           ("owner" = Option<String>, Query, description = "whose they are; for operators")),
    responses((status = 200, body = ConversationPage), AnyCall))]
pub(super) async fn list(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    Query(query): Query<ConversationsQuery>,
) -> Result<Json<ConversationPage>, Problem> {
    let principal = &caller.principal;
    let owner = query.owner.as_ref().unwrap_or(&principal.user);
    if *owner != principal.user {
        if !caller.is_operator() {
            return Err(Problem::new(StatusCode::FORBIDDEN, "only operators may name another owner"));
        }
        gateway.audit.lists(&caller, format!("conversations of user {owner}")).await?;
    }
    let limit = query.limit.unwrap_or(PAGE).clamp(1, MAX_PAGE);
    let listed = gateway.store.list_conversations(&principal.organization, owner, query.before, limit).await?;
    let next = listed.last().filter(|_| listed.len() == limit as usize).map(|last| last.id);
    Ok(Json(ConversationPage { conversations: listed.into_iter().map(shown).collect(), next }))
}
