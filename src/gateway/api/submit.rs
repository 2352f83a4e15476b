//! Submit: takes a message, which becomes a turn.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::gateway::Gateway;
use crate::gateway::caller::ApiCaller;
use crate::problem::Problem;
use crate::store::ArmError;
use crate::submit::{Submission, SubmitError};
use crate::turn::cause::rule;
use crate::turn::cursor::Cursor;
use crate::turn::frame::{storable, storable_json};
use crate::turn::keys::{TurnId, check_conversation, check_name};
use crate::turn::objects::objects_only;
use crate::turn::routing::API;
use crate::turn::trace::traceparent;

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
    pub conversation: String,
    pub worker_group: String,
    /// The cursor just before this turn: a session that begins with it shows the whole turn.
    pub cursor: String,
}

#[utoipa::path(post, path = "/v1/conversations/{conversation}/turns", request_body = Submit,
    params(("conversation" = String, Path, description = "the conversation's name")),
    responses((status = 202, body = Submitted), (status = 200, body = Submitted, description = "armed before"),
              (status = "4XX", body = Problem), (status = 503, body = Problem)))]
pub(super) async fn submit(
    State(gateway): State<Gateway>,
    caller: Result<ApiCaller, Problem>,
    Path(conversation): Path<String>,
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
        organization: caller.principal.organization,
        user: caller.principal.user,
        conversation,
        message_id,
        message: storable(body.message),
        platform,
        platform_metadata: storable_json(body.platform_metadata),
        traceparent: headers.get("traceparent").and_then(|v| v.to_str().ok()).and_then(traceparent).map(str::to_string),
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

/// Reads `platformMetadata`, which takes many times its length once it is read.
fn small<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    let text = <&RawValue>::deserialize(deserializer)?.get();
    if text.len() > MAX_METADATA_BYTES {
        let said = format!("platformMetadata has {} bytes; {MAX_METADATA_BYTES} are allowed", text.len());
        return Err(D::Error::custom(said));
    }
    serde_json::from_str(text).map_err(D::Error::custom)
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
        SubmitError::QueueFull(_) | SubmitError::TooManyOpen => told(Problem::new(StatusCode::TOO_MANY_REQUESTS, text)),
        SubmitError::Refused(ArmError::NotYours) => Problem::not_found("conversation"),
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

objects_only!(read Submit);
