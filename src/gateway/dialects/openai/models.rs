//! `/openai/v1/models`: the agents that the caller may talk to. When an agent was made is not kept, so `created` is 0.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::errors::OpenAiError;
use crate::gateway::Gateway;
use crate::gateway::caller::ApiCaller;
use crate::gateway::messages::agent_name;
use crate::problem::Problem;

#[utoipa::path(get, operation_id = "listModels", path = "/openai/v1/models",
    responses((status = 200, description = "the agents that the caller may talk to"),
              (status = "4XX", description = "OpenAI's error object"), (status = "5XX", description = "OpenAI's error object")))]
pub(in crate::gateway) async fn list(State(gateway): State<Gateway>, caller: ApiCaller) -> Json<Value> {
    let organization = &caller.principal.organization;
    let agents = gateway.agents.list(organization, "", usize::MAX);
    let data: Vec<Value> = agents.iter().map(|(name, _)| model(name, organization)).collect();
    Json(json!({"object": "list", "data": data}))
}

#[utoipa::path(get, operation_id = "retrieveModel", path = "/openai/v1/models/{model}",
    params(("model" = String, Path, description = "`name`, or `namespace/name` within the caller's organization")),
    responses((status = 200, description = "the agent"),
              (status = "4XX", description = "OpenAI's error object"), (status = "5XX", description = "OpenAI's error object")))]
pub(in crate::gateway) async fn retrieve(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    Path(name): Path<String>,
) -> Result<Json<Value>, OpenAiError> {
    let agent = agent_name(&caller, &name)?;
    let organization = &caller.principal.organization;
    let found = gateway.agents.find(&gateway.store, organization, &agent).await.map_err(Problem::from)?;
    found.ok_or_else(|| Problem::not_found("model"))?;
    Ok(Json(model(&name, organization)))
}

fn model(name: &str, organization: &str) -> Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": organization})
}
