//! Submit: a message becomes a turn.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::MAX_BODY_BYTES;
use crate::gateway::Gateway;
use crate::gateway::auth::Caller;
use crate::problem::Problem;
use crate::store::ArmError;
use crate::submit::{Submission, SubmitError};
use crate::turn::cursor::Cursor;
use crate::turn::frame::{storable, storable_json};
use crate::turn::keys::{TurnId, check_conversation, check_name};
use crate::turn::reason::Reason;
use crate::turn::routing::API;

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
    pub worker_group: String,
    /// The place just before this turn: a session opened with it shows the turn whole.
    pub cursor: String,
}

#[utoipa::path(post, path = "/v1/conversations/{conversation}/turns", request_body = Submit,
    params(("conversation" = String, Path, description = "the conversation's name")),
    responses((status = 202, body = Submitted), (status = 200, body = Submitted, description = "armed before"),
              (status = "4XX", body = Problem), (status = 503, body = Problem)))]
pub(in crate::gateway) async fn submit(
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
    let (armed, worker_group) = gateway.submitter.submit(submission).await.map_err(|e| refused(e, &message_id))?;
    let cursor = Cursor::after(armed.conversation_id, armed.number - 1).to_string();
    let status = if armed.fresh { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(Submitted { turn_id: armed.turn_id, message_id, conversation, worker_group, cursor }))
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
