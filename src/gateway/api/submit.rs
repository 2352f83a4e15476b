//! Submit: takes a message, which becomes a turn.

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::refusals::{AnyCall, OfSomething, OfSubmit, WithBody, WithJson};
use crate::gateway::Gateway;
use crate::gateway::caller::ApiCaller;
use crate::gateway::conversations::OwnerQuery;
use crate::gateway::messages::{self, ClientMessage};
use crate::problem::Problem;
use crate::turn::cursor::Cursor;
use crate::turn::keys::TurnId;
use crate::turn::objects::objects_only;
use crate::turn::routing::API;

/// The longest `platformMetadata`, in bytes of its JSON.
const MAX_METADATA_BYTES: usize = 64 * 1024;
/// The account of bodies whose sender's key could not be checked; no principal's account is named so.
const UNKNOWN: &str = "";

/// The route of a submit.
pub(super) fn router() -> Router<Gateway> {
    Router::new().route("/v1/conversations/{conversation}/turns", post(submit))
}

/// Body of a submit.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[serde(remote = "Self")]
pub struct Submit {
    /// `name`, or `namespace/name` within the caller's organization.
    pub agent: String,
    /// What the person says.
    pub message: String,
    /// Makes the call idempotent; default: a new UUID.
    pub message_id: Option<String>,
    /// A platform of the agent where the terminal is shown as well; the default, `api`, is none.
    pub platform: Option<String>,
    /// Passed on to the platform; 64 KiB at most.
    #[serde(default, deserialize_with = "small")]
    pub platform_metadata: Value,
}

/// Answer to a submit.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Submitted {
    pub turn_id: TurnId,
    pub message_id: String,
    /// The caller's name of the conversation.
    pub conversation: String,
    /// Names the conversation for whoever may see it.
    pub conversation_id: Uuid,
    /// What people call the worker group.
    pub worker_group: String,
    /// The cursor just before this turn: a session that begins with it shows the whole turn.
    pub cursor: String,
}

#[utoipa::path(post, operation_id = "submitTurn", path = "/v1/conversations/{conversation}/turns", request_body = Submit,
    params(("conversation" = String, Path, description = "the caller's name of it, or its id")),
    responses((status = 202, body = Submitted), (status = 200, body = Submitted, description = "armed before"),
              AnyCall, OfSomething, OfSubmit, WithBody, WithJson))]
pub(super) async fn submit(
    State(gateway): State<Gateway>,
    caller: Result<ApiCaller, Problem>,
    Path(conversation): Path<String>,
    Query(query): Query<OwnerQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let caller = match caller {
        // Who calls could not be found out. The message id is named all the same: it makes a repeat safe.
        Err(problem) if problem.status() == StatusCode::SERVICE_UNAVAILABLE => {
            let body: Submit = gateway.bodies.whole(UNKNOWN, body).await?.json()?;
            return Err(problem.with_message_id(&body.message_id.unwrap_or_else(new_message_id)));
        }
        caller => caller?,
    };
    // The room is kept until the turn is armed.
    let whole = gateway.bodies.whole(&caller.account(), body).await?;
    let body: Submit = whole.json()?;
    let message_id = body.message_id.unwrap_or_else(new_message_id);
    let message = ClientMessage {
        agent: body.agent,
        conversation,
        message_id: message_id.clone(),
        message: body.message,
        platform: body.platform.unwrap_or_else(|| API.to_string()),
        platform_metadata: body.platform_metadata,
    };
    let turn = messages::submit(&gateway, &caller, &headers, query.owner.as_deref(), message).await?;
    let armed = turn.armed;
    let cursor = Cursor::after(armed.conversation_id, armed.number - 1).to_string();
    let status = if armed.fresh { StatusCode::ACCEPTED } else { StatusCode::OK };
    let submitted = Submitted {
        turn_id: armed.turn_id,
        message_id,
        conversation: turn.conversation,
        conversation_id: armed.conversation_id.0,
        worker_group: turn.worker_group,
        cursor,
    };
    Ok((status, Json(submitted)).into_response())
}

fn new_message_id() -> String {
    Uuid::now_v7().to_string()
}

/// Reads `platformMetadata`, which takes many times its length once it is read.
fn small<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    let text = <&RawValue>::deserialize(deserializer)?.get();
    if text.len() > MAX_METADATA_BYTES {
        let said = format!("platformMetadata has {} bytes; {MAX_METADATA_BYTES} are allowed", text.len());
        return Err(D::Error::custom(said));
    }
    serde_json::from_str(text).map_err(D::Error::custom)
}

objects_only!(read Submit);
