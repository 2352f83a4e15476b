//! What other replicas are served: the output of a turn whose worker is connected here (`dispatch/follow.rs` asks for it).

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use subtle::ConstantTimeEq;

use super::endpoint::WorkerPort;
use crate::dispatch::follow::Piece;
use crate::problem::Problem;
use crate::turn::keys::TurnId;

#[derive(Deserialize)]
pub(super) struct After {
    after: u64,
}

/// Serves a turn in hand here to another replica.
pub(super) async fn frames(
    State(port): State<WorkerPort>,
    Path(turn): Path<TurnId>,
    Query(After { after }): Query<After>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let shown =
        headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
    if !shown.is_some_and(|s| bool::from(s.as_bytes().ct_eq(port.replica.secret.as_bytes()))) {
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "for replicas alone"));
    }
    let conversation = port.live.conversation_of(turn).ok_or_else(|| Problem::not_found("turn in hand here"))?;
    let mut feed = port.live.feeds().subscribe(conversation);
    let live = port.live.clone();
    let body = async_stream::stream! {
        let mut at = after;
        // Ends when the turn is in hand no more, or the place is no longer in memory: the store has it then.
        while let Some(span) = live.read(turn, at) {
            if !span.is_empty() {
                at = span.end();
                let mut line = match serde_json::to_vec(&Piece { start: span.start, frames: span.frames }) {
                    Ok(line) => line,
                    Err(error) => return yield Err(std::io::Error::other(error)),
                };
                line.push(b'\n');
                yield Ok(Bytes::from(line));
            }
            feed.changed().await;
        }
    };
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response())
}
