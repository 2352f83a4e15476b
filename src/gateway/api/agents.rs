//! The list of the Agents that a caller may talk to: those of its organization.

use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::refusals::AnyCall;
use crate::agents::ServedAgent;
use crate::crd::Scope;
use crate::gateway::Gateway;
use crate::gateway::caller::ApiCaller;
use crate::problem::Problem;

/// How many Agents a page holds where the caller does not say, and at the most.
const PAGE: u32 = 100;
const MAX_PAGE: u32 = 500;

pub(super) fn router() -> Router<Gateway> {
    Router::new().route("/v1/agents", get(list))
}

/// An Agent that the caller may talk to.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentView {
    name: String,
    /// `Conversation`: each conversation has a worker of its own; `Agent`: they share the Agent's workers.
    scope: &'static str,
    /// The names that a message's `platform` may have, beside `api`.
    platforms: Vec<String>,
}

/// A page of Agents, by name.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AgentPage {
    agents: Vec<AgentView>,
    /// The value of `after` for the next page; null on the last one.
    next: Option<String>,
}

/// The query of the list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AgentsQuery {
    limit: Option<u32>,
    after: Option<String>,
}

fn shown(name: String, agent: &ServedAgent) -> AgentView {
    AgentView {
        name,
        scope: match agent.spec.scope {
            Scope::Conversation => "Conversation",
            Scope::Agent => "Agent",
        },
        platforms: agent.spec.platforms.iter().map(|platform| platform.name.clone()).collect(),
    }
}

#[utoipa::path(get, operation_id = "listAgents", path = "/v1/agents",
    params(("limit" = Option<u32>, Query), ("after" = Option<String>, Query, description = "an Agent's name")),
    responses((status = 200, body = AgentPage), AnyCall))]
pub(super) async fn list(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    Query(query): Query<AgentsQuery>,
) -> Result<Json<AgentPage>, Problem> {
    let limit = query.limit.unwrap_or(PAGE).clamp(1, MAX_PAGE) as usize;
    let after = query.after.unwrap_or_default();
    let known = gateway.agents.list(&caller.principal.organization, &after, limit);
    let next = known.last().filter(|_| known.len() == limit).map(|(name, _)| name.clone());
    Ok(Json(AgentPage { agents: known.into_iter().map(|(name, agent)| shown(name, &agent)).collect(), next }))
}
