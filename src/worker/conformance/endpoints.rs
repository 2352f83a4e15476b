//! The fake gateway's side of the worker protocol. What a worker must not do is noted as a problem.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Extension, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::StreamExt;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::state::{FinishFault, GatewayState, RecordedTurn, SharedState};
use crate::turn::frame::Span;
use crate::turn::keys::TurnId;
use crate::wire::{
    Acked, Connect, Finish, FinishResult, Finished, Goodbye, Heartbeat, HeartbeatAnswer, INCARNATION, MAX_BODY_BYTES,
    Missing, Output, ToWorker,
};

type FakeState = State<Arc<SharedState>>;

/// Serves the worker protocol. Each connection has a token that breaks it.
pub(super) async fn serve(listener: TcpListener, shared: Arc<SharedState>) {
    let router = Router::new()
        .route("/worker/v1/turns", get(turns))
        .route("/worker/v1/turns/{id}/output", post(output))
        .route("/worker/v1/finish", post(finish))
        .route("/worker/v1/heartbeat", post(heartbeat))
        .route("/worker/v1/goodbye", post(goodbye))
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(shared.clone(), check_caller))
        .with_state(shared);
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let broken = CancellationToken::new();
        let service = TowerToHyperService::new(router.clone().layer(Extension(broken.clone())));
        connections.spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::select! { _ = connection => {}, () = broken.cancelled() => {} }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Checks the headers that each call must have, and notes calls that are refused as malformed.
async fn check_caller(State(shared): FakeState, headers: HeaderMap, request: Request, next: Next) -> Response {
    let shown = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let incarnation = headers.get(INCARNATION).and_then(|v| v.to_str().ok()).unwrap_or_default().to_string();
    {
        let mut state = shared.state();
        if shown != format!("Bearer {}", state.credential) {
            let path = request.uri().path();
            state.problems.push(format!("{path} without Authorization: Bearer and the value of LASTWORD_CREDENTIAL"));
            return StatusCode::UNAUTHORIZED.into_response();
        }
        if Uuid::parse_str(&incarnation).is_err() {
            let problem = format!("{} without a UUID in the header {INCARNATION}", request.uri().path());
            state.problems.push(problem);
            return StatusCode::BAD_REQUEST.into_response();
        }
        if !state.incarnations.contains(&incarnation) {
            state.incarnations.push(incarnation);
        }
        if state.gone {
            drop(state);
            shared.changed();
            return StatusCode::GONE.into_response();
        }
    }
    let answer = next.run(request).await;
    if answer.status().is_client_error() && !matches!(answer.status().as_u16(), 404 | 409 | 410) {
        let (parts, body) = answer.into_parts();
        let said = axum::body::to_bytes(body, 4096).await.unwrap_or_default();
        let problem = format!("a malformed call ({}): {}", parts.status, String::from_utf8_lossy(&said));
        shared.state().problems.push(problem);
        shared.changed();
        return Response::from_parts(parts, Body::from(said));
    }
    shared.changed();
    answer
}

async fn turns(
    State(shared): FakeState,
    Extension(broken): Extension<CancellationToken>,
    query: Query<Connect>,
) -> Response {
    let mut state = shared.state();
    if state.unavailable_streams > 0 {
        state.unavailable_streams -= 1;
        state.refused_streams += 1;
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let (sender, receiver) = mpsc::unbounded_channel();
    let named: Vec<TurnId> = query.turns.split(',').filter_map(|id| id.parse().ok()).collect();
    state.stream = Some((sender, broken));
    state.connects.push(query.0);
    let hello = ToWorker::Hello(state.hello.clone());
    state.send(&hello);
    for turn in state.owed(&named) {
        state.send(&ToWorker::Turn(Box::new(turn)));
    }
    let body = Body::from_stream(UnboundedReceiverStream::new(receiver).map(Ok::<_, Infallible>));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

#[derive(Deserialize)]
struct PostOffset {
    offset: u64,
}

async fn output(
    State(shared): FakeState,
    Path(turn): Path<TurnId>,
    Query(PostOffset { offset }): Query<PostOffset>,
    Json(body): Json<Output>,
) -> Response {
    if shared.state().stall {
        return std::future::pending().await;
    }
    let mut state = shared.state();
    let (hold, mut problems) = (state.hold, Vec::new());
    let Some(log) = state.turns.get_mut(&turn).filter(|log| !log.closed) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    log.posts += 1;
    let answer = match append(log, offset, Span::new(offset, body.frames), &mut problems) {
        Some(missing) => (StatusCode::CONFLICT, Json(missing)).into_response(),
        None => {
            if !hold {
                log.acked = log.span.end();
            }
            Json(Acked { acked: log.acked, received: log.span.end() }).into_response()
        }
    };
    state.problems.extend(problems);
    answer
}

/// Appends a piece of output to a turn's log; `Some` if something between the log's end and the piece is missing. Of a repeated
/// piece only what is new is appended, and the rest must be what it was.
fn append(log: &mut RecordedTurn, offset: u64, piece: Span, problems: &mut Vec<String>) -> Option<Missing> {
    let end = log.span.end();
    if offset > end {
        log.gaps += 1;
        return Some(Missing { acked: log.acked });
    }
    let again = piece.clone().until(end);
    let known = log.span.clone().from(offset).until(again.end());
    if known.coalesced().frames != again.coalesced().frames {
        problems.push(format!("the output at offset {offset} is not what it was when it was posted before"));
    }
    for frame in piece.from(end).frames {
        log.span.push(frame);
    }
    None
}

async fn finish(
    State(shared): FakeState,
    Extension(broken): Extension<CancellationToken>,
    Json(finish): Json<Finish>,
) -> Response {
    let (answer, is_lost) = finished(&shared, finish);
    if is_lost {
        shared.changed();
        broken.cancel();
        return std::future::pending().await;
    }
    answer
}

/// The answer to a `finish` call, and whether it is to get lost.
fn finished(shared: &SharedState, finish: Finish) -> (Response, bool) {
    let mut state = shared.state();
    let fault = (!state.finish_faults.is_empty()).then(|| state.finish_faults.remove(0));
    let Some(first) = finish.turn_ids.first().copied() else {
        state.problems.push("a finish that names no turn".into());
        return (StatusCode::BAD_REQUEST.into_response(), false);
    };
    if fault == Some(FinishFault::Forgotten) {
        state.forget();
    }
    let mut problems = Vec::new();
    let answer = match state.turns.get_mut(&first) {
        None => StatusCode::NOT_FOUND.into_response(),
        Some(log) => {
            log.finishes.push(finish.clone());
            match fault {
                Some(FinishFault::Unavailable) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
                Some(FinishFault::Forgotten) => {
                    (StatusCode::CONFLICT, Json(Missing { acked: log.acked })).into_response()
                }
                _ => take(log, &finish, &mut problems),
            }
        }
    };
    state.problems.extend(problems);
    if answer.status() == StatusCode::OK {
        close(&mut state, &finish);
    }
    (answer, fault == Some(FinishFault::NoAnswer))
}

/// Takes a worker's last word on a turn.
fn take(log: &mut RecordedTurn, finish: &Finish, problems: &mut Vec<String>) -> Response {
    let others = log.finishes.iter().any(|other| other.reply_id != finish.reply_id);
    if others && !log.cancelled {
        problems.push("a turn that was finished twice, by different replyIds".into());
    }
    if log.closed {
        let result = if others || log.cancelled { FinishResult::Superseded } else { FinishResult::Accepted };
        return Json(Finished { result }).into_response();
    }
    if let Some(tail) = finish.tail.clone()
        && let Some(missing) = append(log, tail.offset, Span::new(tail.offset, tail.frames), problems)
    {
        return (StatusCode::CONFLICT, Json(missing)).into_response();
    }
    if log.span.end() < finish.end {
        return (StatusCode::CONFLICT, Json(Missing { acked: log.acked })).into_response();
    }
    if log.span.end() > finish.end {
        problems.push(format!("a finish with end {} after output up to {}", finish.end, log.span.end()));
    }
    log.acked = log.span.end();
    Json(Finished { result: FinishResult::Accepted }).into_response()
}

/// Closes the turns that a last word ended.
fn close(state: &mut GatewayState, finish: &Finish) {
    for turn in &finish.turn_ids {
        match state.turns.get_mut(turn) {
            Some(log) => log.closed = true,
            None => state.problems.push(format!("a finish of the unknown turn {turn}")),
        }
    }
}

async fn heartbeat(State(shared): FakeState, Json(heartbeat): Json<Heartbeat>) -> Json<HeartbeatAnswer> {
    let mut state = shared.state();
    let push = state.owed(&heartbeat.turns);
    // Finished turns are not among those to stop, since a worker that got no answer to its last word is to repeat it.
    let stopped = |turn: &TurnId| state.turns.get(turn).is_none_or(|log| log.cancelled || log.handed_back);
    let stop = heartbeat.turns.iter().filter(|turn| stopped(turn)).copied().collect();
    state.heartbeats.push((Instant::now(), heartbeat.turns));
    Json(HeartbeatAnswer { push, stop, drain: None })
}

async fn goodbye(State(shared): FakeState, Json(goodbye): Json<Goodbye>) -> StatusCode {
    let mut state = shared.state();
    for turn in &goodbye.hand_back {
        if let Some(log) = state.turns.get_mut(turn) {
            (log.closed, log.handed_back) = (true, true);
            if log.posts > 0 || !log.finishes.is_empty() {
                state.problems.push(format!("the turn {turn} was handed back although it had begun"));
            }
        }
    }
    state.goodbyes.push(goodbye);
    StatusCode::NO_CONTENT
}
