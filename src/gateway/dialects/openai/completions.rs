//! `POST /openai/v1/chat/completions`.
//!
//! A client of this protocol sends all messages each time, and the agent has the history of its conversation. So which conversation
//! a call belongs to is either said (the header `X-Lastword-Conversation`, or `conversation` in `metadata`), or follows from the
//! messages: a call that repeats the messages of an earlier one, with its reply behind them, goes on in that one's conversation.
//! Any other call begins a conversation. Of the messages, only those behind the assistant's last word are sent to the agent.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::asked::{check_metadata, told_agent};
use super::chat::{ChatBody, CompletionChunks, CompletionHead};
use super::errors::OpenAiError;
use super::input::{behind, canonical, new_input};
use super::place::{AskedTurn, CameAt, digest, place};
use super::{show, with_turn};
use crate::gateway::Gateway;
use crate::gateway::caller::ApiCaller;
use crate::gateway::open_streams::admitted;
use crate::problem::Problem;
use crate::turn::keys::check_conversation;

/// Names the conversation of a call.
const CONVERSATION: &str = "x-lastword-conversation";
/// The pair of `metadata` that does the same.
const CONVERSATION_PAIR: &str = "conversation";

#[utoipa::path(post, path = "/openai/v1/chat/completions", request_body = ChatBody,
    params(("X-Lastword-Conversation" = Option<String>, Header, description = "the caller's name of the conversation, or its id"),
           ("Idempotency-Key" = Option<String>, Header, description = "the same key is the same turn")),
    responses((status = 200, description = "a chat.completion, or, with stream, its chunks as Server-Sent Events"),
              (status = "4XX", description = "OpenAI's error object"), (status = "5XX", description = "OpenAI's error object")))]
pub(in crate::gateway) async fn complete(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    headers: HeaderMap,
    Extension(came): Extension<CameAt>,
    body: Body,
) -> Result<Response, OpenAiError> {
    let whole = gateway.bodies.whole(&caller.account(), body).await?;
    let chat: ChatBody = whole.json()?;
    if chat.n.is_some_and(|n| n != 1) {
        return Err(OpenAiError::bad_field("n", "n is 1: an agent gives one reply"));
    }
    check_metadata(chat.metadata.as_ref())?;
    let input = new_input(&chat.messages).map_err(|p| OpenAiError::from(p).about("messages"))?;
    let conversation = match named(&headers, &chat)? {
        Some(name) => Some(name),
        None => conversation_behind(&gateway, &caller, &chat, input.new).await?,
    };
    // The places are taken first: who cannot be shown a turn does not start one.
    let permit = admitted(&gateway, &caller)?;
    let asked = AskedTurn {
        route: "chat",
        conversation,
        told: told_agent(input.instructions.as_deref(), chat.metadata.as_ref()),
        message: input.message,
        context: canonical(&chat.messages).map(|all| context(&chat.model, &all)),
        asked: None,
        agent: chat.model.clone(),
    };
    let placed = place(&gateway, &caller, &headers, (&whole, came), asked).await?;
    let armed = &placed.turn.armed;
    let turn_id = armed.turn_id;
    // The turn may take long: what was sent is not kept for it.
    let ChatBody { model, stream, stream_options, messages, metadata, n: _ } = chat;
    drop((whole, messages, metadata));
    let head = CompletionHead { turn_id, created: armed.armed_at.unix_timestamp(), model };
    let view = show::of_submitted(&placed.turn);
    let answer = if stream == Some(true) {
        let include_usage = stream_options.and_then(|o| o.include_usage) == Some(true);
        show::streamed(gateway, &caller, view, CompletionChunks { head, include_usage }, permit).await
    } else {
        show::ended(gateway, &caller, view, permit).await.map(|ended| match head.object(&ended.end, &ended.text) {
            Ok(object) => Json(object).into_response(),
            Err(failure) => OpenAiError::failed(&failure).into_response(),
        })
    };
    let answer = answer.map_err(|error| error.where_found_again(placed.found_again))?;
    Ok(with_turn(answer, turn_id))
}

/// The conversation that a call names.
fn named(headers: &HeaderMap, chat: &ChatBody) -> Result<Option<String>, Problem> {
    let pair = chat.metadata.as_ref().and_then(|metadata| metadata.get(CONVERSATION_PAIR)).map(String::as_str);
    let header = headers.get(CONVERSATION).map(|value| std::str::from_utf8(value.as_bytes()));
    let name = match header.transpose() {
        Ok(name) => name.or(pair),
        Err(_) => return Err(Problem::bad_request(format!("the header {CONVERSATION} is not UTF-8"))),
    };
    let Some(name) = name else { return Ok(None) };
    check_conversation(name).map_err(|e| Problem::bad_request(e.to_string()))?;
    Ok(Some(name.to_owned()))
}

/// The conversation whose last reply the messages go on from.
async fn conversation_behind(
    gateway: &Gateway,
    caller: &ApiCaller,
    chat: &ChatBody,
    new: usize,
) -> Result<Option<String>, Problem> {
    let Some((before, reply)) = behind(&chat.messages, new) else { return Ok(None) };
    let Some(before) = canonical(before) else { return Ok(None) };
    let principal = &caller.principal;
    let context = context(&chat.model, &before);
    let turns = gateway.store.turns_behind(&principal.organization, &principal.user, &context).await?;
    for (turn, conversation) in turns {
        let record = gateway.store.turn_record(turn).await?;
        let said = record.and_then(|record| record.reply?.text);
        if said.is_some_and(|text| text.trim() == reply.trim()) {
            return Ok(Some(conversation));
        }
    }
    Ok(None)
}

fn context(model: &str, messages: &str) -> Vec<u8> {
    digest(&[b"context", model.as_bytes(), messages.as_bytes()])
}
