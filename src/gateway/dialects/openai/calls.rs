//! `/openai/v1/responses`: a response is a turn, and its id the turn's.
//!
//! What a client asked for is kept with the turn while the response can be retrieved. `DELETE` forgets that, so the response is
//! found by nobody any more; the turn stays a part of its conversation, and goes on if it is open.

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};

use super::asked::{ResponsesBody, told_agent};
use super::errors::OpenAiError;
use super::finish::OpenAiEnd;
use super::place::{AskedTurn, CameAt, place};
use super::response::{ResponseHead, ResponseState, turn_of};
use super::responses::ResponseEvents;
use super::{show, with_turn};
use crate::gateway::Gateway;
use crate::gateway::audit::Subject;
use crate::gateway::caller::ApiCaller;
use crate::gateway::open_streams::admitted;
use crate::problem::Problem;
use crate::store::{Record, TurnHead};

#[utoipa::path(post, path = "/openai/v1/responses", request_body = ResponsesBody,
    params(("Idempotency-Key" = Option<String>, Header, description = "the same key is the same turn")),
    responses((status = 200, description = "a response, or, with stream, its events as Server-Sent Events"),
              (status = "4XX", description = "OpenAI's error object"), (status = "5XX", description = "OpenAI's error object")))]
pub(in crate::gateway) async fn create(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    headers: HeaderMap,
    Extension(came): Extension<CameAt>,
    body: Body,
) -> Result<Response, OpenAiError> {
    let whole = gateway.bodies.whole(&caller.account(), body).await?;
    let request: ResponsesBody = whole.json()?;
    request.check()?;
    let input = request.new_input()?;
    let previous = match &request.previous_response_id {
        Some(id) => Some(previous(&gateway, &caller, id).await?),
        None => None,
    };
    let agent = request.model.clone().or_else(|| Some(previous.as_ref()?.agent.clone()));
    let agent = agent.ok_or_else(|| OpenAiError::bad_field("model", "model names no agent"))?;
    let named = request.conversation.as_ref().map(|c| c.name().to_owned());
    // The places are taken first: who cannot be shown a turn does not start one.
    let permit = admitted(&gateway, &caller)?;
    let instructions = [request.instructions.as_deref(), input.instructions.as_deref()];
    let instructions = instructions.into_iter().flatten().collect::<Vec<_>>().join("\n\n");
    let kept = request.asked();
    let asked = AskedTurn {
        route: "responses",
        agent: agent.clone(),
        conversation: named.or(previous.map(|p| p.conversation)),
        message: input.message,
        told: told_agent(Some(&instructions), request.metadata.as_ref()),
        context: None,
        asked: (request.store != Some(false)).then(|| kept.clone()),
    };
    let placed = place(&gateway, &caller, &headers, (&whole, came), asked).await?;
    // The turn may take long: what was sent is not kept for it.
    let stream = request.stream == Some(true);
    drop((whole, request));
    let armed = &placed.turn.armed;
    let turn_id = armed.turn_id;
    let created_at = armed.armed_at.unix_timestamp();
    let head = ResponseHead { turn_id, created_at, model: agent, asked: kept };
    let view = show::of_submitted(&placed.turn);
    let answer = if stream {
        show::streamed(gateway, &caller, view, ResponseEvents::new(head, None), permit).await
    } else if head.in_background() {
        drop(permit);
        in_background(gateway, &caller, head).await
    } else {
        show::ended(gateway, &caller, view, permit).await.map(|ended| match &ended.end {
            OpenAiEnd::Failed(failure) => OpenAiError::failed(failure).into_response(),
            end => Json(head.object(ResponseState::Ended { end, text: &ended.text, at: None })).into_response(),
        })
    };
    let answer = answer.map_err(|error| error.where_found_again(placed.found_again))?;
    Ok(with_turn(answer, turn_id))
}

/// The answer to a request in the background: the response as it is now.
async fn in_background(gateway: Gateway, caller: &ApiCaller, head: ResponseHead) -> Result<Response, OpenAiError> {
    match gateway.store.turn_record(head.turn_id).await.map_err(Problem::from)? {
        Some(record) if !record.open => whole_response(gateway, caller, record, head).await,
        Some(record) => Ok(Json(head.object(state_of_open(&record))).into_response()),
        None => Err(Problem::not_found("response").into()),
    }
}

/// The query of a response.
#[derive(Debug, Deserialize)]
pub(in crate::gateway) struct ResponseQuery {
    stream: Option<bool>,
    starting_after: Option<u64>,
}

#[utoipa::path(get, path = "/openai/v1/responses/{response}",
    params(("response" = String, Path), ("stream" = Option<bool>, Query),
           ("starting_after" = Option<u64>, Query, description = "with stream: only events with higher numbers")),
    responses((status = 200, description = "the response, or, with stream, its events as Server-Sent Events"),
              (status = "4XX", description = "OpenAI's error object"), (status = "5XX", description = "OpenAI's error object")))]
pub(in crate::gateway) async fn retrieve(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    Path(id): Path<String>,
    Query(query): Query<ResponseQuery>,
) -> Result<Response, OpenAiError> {
    let (turn, asked) = seen(&gateway, &caller, &id).await?;
    let record = record_of(&gateway, &turn).await?;
    let head = head_of(&record, asked);
    if query.stream == Some(true) {
        let permit = admitted(&gateway, &caller)?;
        let view = show::of_known(&caller, turn);
        return show::streamed(gateway, &caller, view, ResponseEvents::new(head, query.starting_after), permit).await;
    }
    if record.open {
        return Ok(Json(head.object(state_of_open(&record))).into_response());
    }
    whole_response(gateway, &caller, record, head).await
}

#[utoipa::path(post, path = "/openai/v1/responses/{response}/cancel", params(("response" = String, Path)),
    responses((status = 200, description = "the response"),
              (status = "4XX", description = "OpenAI's error object"), (status = "5XX", description = "OpenAI's error object")))]
pub(in crate::gateway) async fn cancel(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    Path(id): Path<String>,
) -> Result<Response, OpenAiError> {
    let (turn, asked) = seen(&gateway, &caller, &id).await?;
    if asked["background"] != true {
        let said = "only a response in the background is cancelled here; any turn is by POST /v1/turns/{turn}/cancel";
        return Err(Problem::bad_request(said).into());
    }
    gateway.store.cancel_turn(turn.turn_id, caller.actor()).await.map_err(Problem::from)?;
    let record = record_of(&gateway, &turn).await?;
    let head = head_of(&record, asked);
    whole_response(gateway, &caller, record, head).await
}

#[utoipa::path(get, path = "/openai/v1/responses/{response}/input_items", params(("response" = String, Path)),
    responses((status = 200, description = "the message of the turn, as a list of one item"),
              (status = "4XX", description = "OpenAI's error object"), (status = "5XX", description = "OpenAI's error object")))]
pub(in crate::gateway) async fn input_items(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    Path(id): Path<String>,
) -> Result<Json<Value>, OpenAiError> {
    let (turn, _) = seen(&gateway, &caller, &id).await?;
    let record = record_of(&gateway, &turn).await?;
    // The reply has the id that the turn's own digits make.
    let item = format!("msg_in_{}", turn.turn_id.0.simple());
    Ok(Json(json!({
        "object": "list",
        "data": [{"id": item, "type": "message", "role": "user", "status": "completed",
                  "content": [{"type": "input_text", "text": record.message}]}],
        "first_id": item,
        "last_id": item,
        "has_more": false,
    })))
}

#[utoipa::path(delete, path = "/openai/v1/responses/{response}", params(("response" = String, Path)),
    responses((status = 200, description = "the response cannot be retrieved any more"),
              (status = "4XX", description = "OpenAI's error object"), (status = "5XX", description = "OpenAI's error object")))]
pub(in crate::gateway) async fn delete(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    Path(id): Path<String>,
) -> Result<Json<Value>, OpenAiError> {
    let (turn, _) = seen(&gateway, &caller, &id).await?;
    gateway.store.withdraw_response(turn.turn_id).await.map_err(Problem::from)?;
    Ok(Json(json!({"id": id, "object": "response", "deleted": true})))
}

/// The turn of a response that the caller may see, and what it was asked for with. One that the caller may not see is answered
/// like one that does not exist.
async fn seen(gateway: &Gateway, caller: &ApiCaller, id: &str) -> Result<(TurnHead, Value), Problem> {
    let found = match turn_of(id) {
        Some(turn) => look(gateway, caller, turn).await?,
        None => None,
    };
    let (turn, asked) = found.ok_or_else(|| Problem::not_found("response"))?;
    gateway.audit.reads(caller, &turn.owner, Subject::Turn(turn.turn_id)).await?;
    Ok((turn, asked))
}

async fn look(
    gateway: &Gateway,
    caller: &ApiCaller,
    turn: crate::turn::keys::TurnId,
) -> Result<Option<(TurnHead, Value)>, Problem> {
    let head = gateway.store.turn_head(turn).await?.filter(|t| caller.sees(&t.organization, &t.owner));
    let Some(head) = head else { return Ok(None) };
    Ok(gateway.store.asked_for(turn).await?.map(|asked| (head, asked)))
}

/// The turn of the response that a new one follows.
async fn previous(gateway: &Gateway, caller: &ApiCaller, id: &str) -> Result<TurnHead, OpenAiError> {
    let found = match turn_of(id) {
        Some(turn) => look(gateway, caller, turn).await?,
        None => None,
    };
    // Only its owner sends messages to a conversation.
    let own = found.map(|(turn, _)| turn).filter(|turn| turn.owner == caller.principal.user);
    own.ok_or_else(|| {
        OpenAiError::bad_field("previous_response_id", "no such response").coded("previous_response_not_found")
    })
}

async fn record_of(gateway: &Gateway, turn: &TurnHead) -> Result<Record, Problem> {
    gateway.store.turn_record(turn.turn_id).await?.ok_or_else(|| Problem::not_found("response"))
}

fn head_of(record: &Record, asked: Value) -> ResponseHead {
    // The name that the client used, which may have its organization in front.
    let model = asked["model"].as_str().unwrap_or(&record.agent).to_owned();
    ResponseHead { turn_id: record.turn_id, created_at: record.armed_at.unix_timestamp(), model, asked }
}

fn state_of_open(record: &Record) -> ResponseState<'static> {
    if record.claimed_at.is_some() { ResponseState::InProgress } else { ResponseState::Queued }
}

/// The response of a turn that has ended. It is read as streams read it, so that none is shown of which a part is gone.
async fn whole_response(
    gateway: Gateway,
    caller: &ApiCaller,
    record: Record,
    head: ResponseHead,
) -> Result<Response, OpenAiError> {
    let permit = admitted(&gateway, caller)?;
    let turn = gateway.store.turn_head(record.turn_id).await.map_err(Problem::from)?;
    let turn = turn.ok_or_else(|| Problem::not_found("response"))?;
    let ended = show::ended(gateway, caller, show::of_known(caller, turn), permit).await?;
    let at = record.ended_at.map(|at| at.unix_timestamp());
    let state = ResponseState::Ended { end: &ended.end, text: &ended.text, at };
    Ok(Json(head.object(state)).into_response())
}
