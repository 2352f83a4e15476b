//! A message that a client sends to an agent becomes a turn: what all dialects share of it. Each reads its own bodies, and
//! hands over a [`ClientMessage`].

use axum::http::{HeaderMap, StatusCode};
use serde_json::Value;

use super::Gateway;
use super::caller::ApiCaller;
use super::conversations;
use crate::problem::Problem;
use crate::store::{ArmError, Armed};
use crate::submit::{Submission, SubmitError};
use crate::turn::cause::rule;
use crate::turn::frame::{storable, storable_json};
use crate::turn::keys::check_name;
use crate::turn::trace::traceparent;

/// The seconds after which a caller is told to try again whose turns, or whose Agent's, have no room now.
const WAIT_FOR_PLACE: u64 = 2;

/// A message as a client sent it. Nothing of it was checked.
#[derive(Debug)]
pub(in crate::gateway) struct ClientMessage {
    /// `name`, or `namespace/name` within the caller's organization.
    pub agent: String,
    /// The caller's name of the conversation, or its id.
    pub conversation: String,
    /// The same id with the same content is the same turn.
    pub message_id: String,
    pub message: String,
    /// `api`, or a platform of the agent.
    pub platform: String,
    pub platform_metadata: Value,
}

/// The turn that a message became, or had become.
#[derive(Debug)]
pub(in crate::gateway) struct SubmittedTurn {
    pub armed: Armed,
    pub message_id: String,
    /// The caller's name of the conversation.
    pub conversation: String,
    /// What people call the worker group.
    pub worker_group: String,
}

/// Arms a turn for the caller, or finds the one that the same message id armed.
///
/// # Errors
/// What can be refused before there is a turn. With 503 it is not known whether there is one: the same message id finds out.
pub(in crate::gateway) async fn submit(
    gateway: &Gateway,
    caller: &ApiCaller,
    headers: &HeaderMap,
    owner: Option<&str>,
    sent: ClientMessage,
) -> Result<SubmittedTurn, Problem> {
    let submission = submission(gateway, caller, headers, owner, sent).await?;
    arm(gateway, submission).await
}

/// What is submitted for a message, once it was checked.
///
/// # Errors
/// As of [`submit`]; nothing was armed.
pub(in crate::gateway) async fn submission(
    gateway: &Gateway,
    caller: &ApiCaller,
    headers: &HeaderMap,
    owner: Option<&str>,
    sent: ClientMessage,
) -> Result<Submission, Problem> {
    let message_id = sent.message_id;
    for (what, name) in [("messageId", &message_id), ("platform", &sent.platform)] {
        check_name(what, name).map_err(|e| Problem::bad_request(e.to_string()))?;
    }
    if sent.message.is_empty() {
        return Err(Problem::bad_request("message is empty"));
    }
    let conversation = conversations::own_name(gateway, caller, sent.conversation, owner)
        .await
        .map_err(|problem| problem.with_message_id(&message_id))?;
    Ok(Submission {
        agent: agent_name(caller, &sent.agent)?,
        organization: caller.principal.organization.clone(),
        user: caller.principal.user.clone(),
        conversation,
        message_id,
        message: storable(sent.message),
        platform: sent.platform,
        platform_metadata: storable_json(sent.platform_metadata),
        traceparent: headers.get("traceparent").and_then(|v| v.to_str().ok()).and_then(traceparent).map(str::to_string),
        deadline_seconds: None,
        object: None,
        limits: gateway.counters.in_store(),
        request: None,
    })
}

/// Arms what was checked.
///
/// # Errors
/// As of [`submit`].
pub(in crate::gateway) async fn arm(gateway: &Gateway, submission: Submission) -> Result<SubmittedTurn, Problem> {
    let (message_id, conversation) = (submission.message_id.clone(), submission.conversation.clone());
    let (armed, worker_group) = gateway.submitter.submit(submission).await.map_err(|e| refused(e, &message_id))?;
    Ok(SubmittedTurn { armed, message_id, conversation, worker_group })
}

/// The name of an agent that a client named as `name` or as `namespace/name`.
///
/// # Errors
/// 404 for another organization's, 400 for what is no name.
pub(in crate::gateway) fn agent_name(caller: &ApiCaller, agent: &str) -> Result<String, Problem> {
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
