//! AG-UI 1.0 (<https://docs.ag-ui.com>): a run is a turn. `threadId` is the caller's name of the conversation and `runId` the message
//! id, so a run that is posted again is shown again from its beginning, and goes on live.

pub(super) mod events;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::post;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

use self::events::AgUiWriter;
use super::input::{checked, last_of_user, message_as, text_of};
use super::run::run;
use crate::gateway::Gateway;
use crate::gateway::caller::ApiCaller;
use crate::gateway::messages::ClientMessage;
use crate::problem::Problem;
use crate::turn::keys::check_conversation;
use crate::turn::objects::objects_only;
use crate::turn::routing::API;

/// The routes of AG-UI.
pub(super) fn router() -> Router<Gateway> {
    Router::new().route("/agui/{agent}", post(run_agent)).route("/agui/{namespace}/{agent}", post(run_agent_of))
}

/// AG-UI's `RunAgentInput`, as much of it as is read.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[serde(remote = "Self")]
pub(in crate::gateway) struct RunAgentInput {
    /// The caller's name of the conversation, or its id.
    thread_id: String,
    /// Makes the call idempotent: the same run, posted again, is shown again.
    run_id: String,
    /// The conversation as the client sees it. The newest message of the user is what the agent is sent; the rest is not read,
    /// since Lastword keeps the conversation itself.
    #[schema(value_type = Vec<Object>)]
    messages: Vec<Box<RawValue>>,
    /// Answers to interrupts, of which there are none here.
    #[serde(default)]
    #[schema(value_type = Option<Vec<Object>>)]
    resume: Option<Vec<IgnoredAny>>,
}

/// A user's message.
#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
struct UserMessage {
    content: Value,
}

impl RunAgentInput {
    /// The turn that the run asks for.
    fn message(&self, agent: String) -> Result<ClientMessage, Problem> {
        checked("runId", &self.run_id)?;
        checked("threadId", &self.thread_id)?;
        check_conversation(&self.thread_id).map_err(|_| Problem::bad_request("threadId cannot be . or .."))?;
        if self.resume.as_ref().is_some_and(|answers| !answers.is_empty()) {
            return Err(Problem::bad_request("resume: no run of this agent waits for an answer"));
        }
        let (message, _) = last_of_user(&self.messages)?;
        let message: UserMessage = message_as(message)?;
        Ok(ClientMessage {
            agent,
            conversation: self.thread_id.clone(),
            message_id: self.run_id.clone(),
            message: text_of(&message.content)?,
            platform: API.to_string(),
            platform_metadata: Value::Null,
        })
    }
}

#[utoipa::path(post, path = "/agui/{agent}", request_body = RunAgentInput,
    params(("agent" = String, Path, description = "`name`, or `namespace/name` within the caller's organization")),
    responses((status = 200, content_type = "text/event-stream", body = String, description = "AG-UI events"),
              (status = "4XX", body = Problem), (status = 503, body = Problem)))]
pub(in crate::gateway) async fn run_agent(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    Path(agent): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    // The room of the body is kept until the turn is armed.
    let whole = gateway.bodies.whole(&caller.account(), body).await?;
    let input: RunAgentInput = whole.json()?;
    let message = input.message(agent)?;
    let writer = AgUiWriter::new(input.thread_id, input.run_id);
    run(gateway, &caller, &headers, message, writer).await
}

async fn run_agent_of(
    state: State<Gateway>,
    caller: ApiCaller,
    Path((namespace, agent)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    run_agent(state, caller, Path(format!("{namespace}/{agent}")), headers, body).await
}

objects_only!(read RunAgentInput, UserMessage);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(input: Value) -> Result<ClientMessage, String> {
        let input: RunAgentInput = serde_json::from_value(input).map_err(|e| e.to_string())?;
        input.message("bc".into()).map_err(|problem| format!("{problem:?}"))
    }

    #[test]
    fn a_run_asks_for_a_turn() {
        let sent = message(json!({
            "threadId": "t", "runId": "r", "state": {}, "tools": [], "context": [], "forwardedProps": {},
            "messages": [{"id": "1", "role": "user", "content": [{"type": "text", "text": "6*7"}]}],
        }))
        .expect("a turn");
        assert_eq!((sent.conversation.as_str(), sent.message_id.as_str(), sent.message.as_str()), ("t", "r", "6*7"));
    }

    #[test]
    fn what_makes_no_turn_is_refused_with_the_cause() {
        let user = json!([{"role": "user", "content": "hello"}]);
        for (input, cause) in [
            (json!({"threadId": "", "runId": "r", "messages": user}), "threadId is empty"),
            (json!({"threadId": "..", "runId": "r", "messages": user}), "threadId cannot be"),
            (json!({"threadId": "t", "runId": "x".repeat(257), "messages": user}), "runId is longer than 256 bytes"),
            (json!({"threadId": "t", "runId": "a\nb", "messages": user}), "runId holds a control character"),
            (json!({"threadId": "t", "runId": "r", "messages": []}), "no message of the user"),
            (json!({"threadId": "t", "runId": "r"}), "missing field"),
            (json!({"threadId": "t", "runId": "r", "messages": user, "resume": [{"interruptId": "1"}]}), "resume"),
            (
                json!({"threadId": "t", "runId": "r", "messages": [{"role": "user", "content": [{"type": "image"}]}]}),
                "\\\"image\\\"",
            ),
        ] {
            let refused = message(input.clone()).expect_err("refused");
            assert!(refused.contains(cause), "{input}: {refused}");
        }
    }
}
