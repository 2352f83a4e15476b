//! Submit: takes a message, which becomes a turn.

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::conversations::{self, OwnerQuery};
use crate::gateway::Gateway;
use crate::gateway::caller::ApiCaller;
use crate::problem::Problem;
use crate::store::ArmError;
use crate::submit::{Submission, SubmitError};
use crate::turn::cause::rule;
use crate::turn::cursor::Cursor;
use crate::turn::frame::{storable, storable_json};
use crate::turn::keys::{TurnId, check_name};
use crate::turn::routing::API;

/// The largest body that a client may send, in bytes.
pub(in crate::gateway) const MAX_BODY_BYTES: usize = 1024 * 1024;

/// The seconds after which a caller is told to try again whose turns, or whose Agent's, have no room now.
const WAIT_FOR_PLACE: u64 = 2;

/// The route of a submit.
pub(super) fn router() -> Router<Gateway> {
    Router::new().route("/v1/conversations/{conversation}/turns", post(submit))
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
    /// A platform of the agent where the terminal is shown as well; the default, `api`, is none.
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
    /// The caller's name of the conversation.
    pub conversation: String,
    /// Names the conversation for whoever may see it.
    pub conversation_id: Uuid,
    /// What people call the worker group.
    pub worker_group: String,
    /// The cursor just before this turn: a session that begins with it shows the whole turn.
    pub cursor: String,
}

#[utoipa::path(post, path = "/v1/conversations/{conversation}/turns", request_body = Submit,
    params(("conversation" = String, Path, description = "the caller's name of it, or its id")),
    responses((status = 202, body = Submitted), (status = 200, body = Submitted, description = "armed before"),
              (status = "4XX", body = Problem), (status = 503, body = Problem)))]
pub(super) async fn submit(
    State(gateway): State<Gateway>,
    caller: Result<ApiCaller, Problem>,
    Path(conversation): Path<String>,
    Query(query): Query<OwnerQuery>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let caller = match caller {
        // Who calls could not be found out. The message id is named all the same: it makes a repeat safe.
        Err(problem) if problem.status() == StatusCode::SERVICE_UNAVAILABLE => {
            let body: Submit = parse(&headers, &body)?;
            return Err(problem.with_message_id(&body.message_id.unwrap_or_else(new_message_id)));
        }
        caller => caller?,
    };
    let body: Submit = parse(&headers, &body)?;
    let message_id = body.message_id.unwrap_or_else(new_message_id);
    let platform = body.platform.unwrap_or_else(|| API.to_string());
    for (what, name) in [("messageId", &message_id), ("platform", &platform)] {
        check_name(what, name).map_err(|e| Problem::bad_request(e.to_string()))?;
    }
    if body.message.is_empty() {
        return Err(Problem::bad_request("message is empty"));
    }
    let conversation = conversations::own_name(&gateway, &caller, conversation, query.owner.as_deref())
        .await
        .map_err(|problem| problem.with_message_id(&message_id))?;
    let submission = Submission {
        agent: agent_name(&caller, &body.agent)?,
        organization: caller.principal.organization,
        user: caller.principal.user,
        conversation,
        message_id,
        message: storable(body.message),
        platform,
        platform_metadata: storable_json(body.platform_metadata),
        traceparent: headers.get("traceparent").and_then(|v| v.to_str().ok()).map(str::to_string),
        deadline_seconds: None,
        object: None,
        limits: gateway.counters.in_store(),
    };
    let (message_id, conversation) = (submission.message_id.clone(), submission.conversation.clone());
    let (armed, worker_group) = gateway.submitter.submit(submission).await.map_err(|e| refused(e, &message_id))?;
    let cursor = Cursor::after(armed.conversation_id, armed.number - 1).to_string();
    let status = if armed.fresh { StatusCode::ACCEPTED } else { StatusCode::OK };
    let submitted = Submitted {
        turn_id: armed.turn_id,
        message_id,
        conversation,
        conversation_id: armed.conversation_id.0,
        worker_group,
        cursor,
    };
    Ok((status, Json(submitted)).into_response())
}

fn new_message_id() -> String {
    Uuid::now_v7().to_string()
}

fn parse<T: serde::de::DeserializeOwned>(headers: &HeaderMap, body: &Bytes) -> Result<T, Problem> {
    // A web page of another origin may send JSON only after a preflight request, which is never granted.
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

fn agent_name(caller: &ApiCaller, agent: &str) -> Result<String, Problem> {
    let name = match agent.split_once('/') {
        Some((namespace, name)) if namespace == caller.principal.organization => name,
        Some(_) => return Err(Problem::not_found("agent").with_reason(rule::refused(rule::Refusal::NoAgent))),
        None => agent,
    };
    check_name("agent", name).map_err(|e| Problem::bad_request(e.to_string()))?;
    Ok(name.to_string())
}

fn refused(error: SubmitError, message_id: &str) -> Problem {
    let (text, reason) = (error.to_string(), error.reason());
    let told = |problem: Problem| match reason {
        Some(reason) => problem.with_reason(reason),
        None => problem,
    };
    let problem = match error {
        SubmitError::NoAgent => told(Problem::not_found("agent")),
        SubmitError::NoPlatform => Problem::bad_request(text),
        SubmitError::QueueFull(_)
        | SubmitError::ShareFull(_)
        | SubmitError::TooManyOpen
        | SubmitError::Refused(ArmError::TooManyOpen(_) | ArmError::TooManyConversations(_)) => {
            told(Problem::new(StatusCode::TOO_MANY_REQUESTS, text).with_retry_after(WAIT_FOR_PLACE))
        }
        SubmitError::Refused(ArmError::OtherAgent(_) | ArmError::OtherContent) => {
            told(Problem::new(StatusCode::CONFLICT, text))
        }
        SubmitError::Refused(ArmError::Store(error)) | SubmitError::Store(error) => match Problem::from(error) {
            problem if problem.status() == StatusCode::SERVICE_UNAVAILABLE => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "not known to be armed; send it again with the same messageId",
            ),
            problem => problem,
        },
    };
    problem.with_message_id(message_id)
}
