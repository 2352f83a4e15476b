//! The UI message stream of the Vercel AI SDK, version 1, as its `useChat` speaks it. A chat is a conversation, known by the name
//! that the page gave it, and the id of the user's message is the message id.
//!
//! A page that is loaded again asks for the stream of its chat: it is shown the newest turn that is open, from its beginning.

pub(super) mod events;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use self::events::UiMessageWriter;
use super::input::{checked, last_of_user, message_as, text_of};
use super::run::{rejoin, run};
use crate::gateway::Gateway;
use crate::gateway::caller::ApiCaller;
use crate::gateway::conversations;
use crate::gateway::messages::{ClientMessage, agent_name};
use crate::problem::Problem;
use crate::turn::keys::{check_conversation, content_hash, hex};
use crate::turn::objects::objects_only;
use crate::turn::routing::API;

/// What says that a stream is one of this protocol, and its version.
const PROTOCOL: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-vercel-ai-ui-message-stream"), HeaderValue::from_static("v1"));
/// How many digits of a digest tell apart the texts that a message had before and after it was edited.
const EDITED_DIGITS: usize = 16;

/// The routes of this protocol.
pub(super) fn router() -> Router<Gateway> {
    Router::new()
        .route("/ui/{agent}", post(send))
        .route("/ui/{namespace}/{agent}", post(send_to))
        .route("/ui/{agent}/{chat}/stream", get(resume))
        .route("/ui/{namespace}/{agent}/{chat}/stream", get(resume_of))
}

/// What `useChat` sends, as much of it as is read.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[serde(remote = "Self")]
pub(in crate::gateway) struct UiRequest {
    /// The chat: the caller's name of the conversation, or its id.
    id: String,
    /// The conversation as the page sees it. The newest message of the user is what the agent is sent; the rest is not read, since
    /// Lastword keeps the conversation itself.
    #[schema(value_type = Vec<Object>)]
    messages: Vec<Box<RawValue>>,
    /// `submit-message` (the default) or `regenerate-message`.
    #[serde(default)]
    trigger: UiTrigger,
    /// The message that was edited, or whose answer is to be made again.
    #[serde(default)]
    message_id: Option<String>,
}

/// Why a page sends.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
enum UiTrigger {
    #[default]
    SubmitMessage,
    RegenerateMessage,
}

/// A user's message.
#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
struct UiUserMessage {
    id: String,
    parts: Value,
}

impl UiRequest {
    /// The turn that is asked for. `new_id` makes the id of an answer that is made again.
    fn message(&self, agent: String, new_id: impl FnOnce() -> String) -> Result<ClientMessage, Problem> {
        checked("id", &self.id)?;
        check_conversation(&self.id).map_err(|_| Problem::bad_request("id cannot be . or .."))?;
        let (message, _) = last_of_user(&self.messages)?;
        let message: UiUserMessage = message_as(message)?;
        checked("the message's id", &message.id)?;
        let text = text_of(&message.parts)?;
        let message_id = match self.trigger {
            // The same text is sent once more, on purpose: a turn of its own.
            UiTrigger::RegenerateMessage => new_id(),
            // An edited message keeps its id, and its text is another one.
            UiTrigger::SubmitMessage if self.message_id.as_ref() == Some(&message.id) => {
                let digest = hex(&content_hash(&message.id, "", "", &text, &Value::Null));
                let id = format!("{}.{}", message.id, &digest[..EDITED_DIGITS]);
                checked("the message's id", &id)?;
                id
            }
            UiTrigger::SubmitMessage => message.id,
        };
        Ok(ClientMessage {
            agent,
            conversation: self.id.clone(),
            message_id,
            message: text,
            platform: API.to_string(),
            platform_metadata: Value::Null,
        })
    }
}

#[utoipa::path(post, path = "/ui/{agent}", request_body = UiRequest,
    params(("agent" = String, Path, description = "`name`, or `namespace/name` within the caller's organization")),
    responses((status = 200, content_type = "text/event-stream", body = String, description = "a UI message stream"),
              (status = "4XX", body = Problem), (status = 503, body = Problem)))]
pub(in crate::gateway) async fn send(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    Path(agent): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    // The room of the body is kept until the turn is armed.
    let whole = gateway.bodies.whole(&caller.account(), body).await?;
    let request: UiRequest = whole.json()?;
    let message = request.message(agent, || Uuid::now_v7().to_string())?;
    Ok(marked(run(gateway, &caller, &headers, message, UiMessageWriter::default()).await?))
}

async fn send_to(
    state: State<Gateway>,
    caller: ApiCaller,
    Path((namespace, agent)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    send(state, caller, Path(format!("{namespace}/{agent}")), headers, body).await
}

#[utoipa::path(get, path = "/ui/{agent}/{chat}/stream",
    params(("agent" = String, Path, description = "`name`, or `namespace/name` within the caller's organization"),
           ("chat" = String, Path, description = "the caller's name of the conversation, or its id")),
    responses((status = 200, content_type = "text/event-stream", body = String,
               description = "a UI message stream of the newest open turn"),
              (status = 204, description = "no turn is open that the caller sees"),
              (status = "4XX", body = Problem), (status = 503, body = Problem)))]
pub(in crate::gateway) async fn resume(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    Path((agent, chat)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let agent = agent_name(&caller, &agent)?;
    let found = conversations::find(&gateway, &caller, &chat, None).await?;
    let Some(conversation) = found.filter(|c| c.agent.as_ref() == Some(&agent)) else {
        return Ok(StatusCode::NO_CONTENT.into_response());
    };
    match gateway.store.newest_open_turn(conversation.id).await? {
        Some(turn) => Ok(marked(rejoin(gateway, &caller, turn, UiMessageWriter::default()).await?)),
        None => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

async fn resume_of(
    state: State<Gateway>,
    caller: ApiCaller,
    Path((namespace, agent, chat)): Path<(String, String, String)>,
) -> Result<Response, Problem> {
    resume(state, caller, Path((format!("{namespace}/{agent}"), chat))).await
}

fn marked(mut response: Response) -> Response {
    let (name, version) = PROTOCOL;
    response.headers_mut().insert(name, version);
    response
}

objects_only!(read UiRequest, UiUserMessage);
