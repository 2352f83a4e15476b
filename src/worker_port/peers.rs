//! `GET /peer/v1/turns/{id}/frames`: another replica follows a turn whose worker is connected to this one. The asking side
//! is `dispatch/follow.rs`.

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use subtle::ConstantTimeEq;

use super::WorkerPort;
use crate::dispatch::follow::PeerFrames;
use crate::problem::Problem;
use crate::turn::keys::TurnId;

/// The query of a replica that follows a turn.
#[derive(Deserialize)]
pub(super) struct FramesAfter {
    /// How much of the turn's log it has, in log units.
    after: u64,
}

/// NDJSON of [`PeerFrames`], as the worker produces them, until the turn is no longer in hand here. The caller shows this
/// replica's secret, which only those who read the table `gateway` know.
pub(super) async fn frames(
    State(port): State<WorkerPort>,
    Path(turn): Path<TurnId>,
    Query(FramesAfter { after }): Query<FramesAfter>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let shown =
        headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
    if !shown.is_some_and(|s| bool::from(s.as_bytes().ct_eq(port.replica.secret.as_bytes()))) {
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "for replicas alone"));
    }
    let conversation = port.live.conversation_of(turn).ok_or_else(|| Problem::not_found("turn in hand here"))?;
    let mut changes = port.live.subscriptions().subscribe(conversation);
    let live = port.live.clone();
    let body = async_stream::stream! {
        let mut at = after;
        // The stream ends when the turn is no longer in hand here, or when the log at `at` is no longer in memory,
        // since then the store has it.
        while let Some(span) = live.read(turn, at) {
            if !span.is_empty() {
                at = span.end();
                let mut line = match serde_json::to_vec(&PeerFrames { start: span.start, frames: span.frames }) {
                    Ok(line) => line,
                    Err(error) => return yield Err(std::io::Error::other(error)),
                };
                line.push(b'\n');
                yield Ok(Bytes::from(line));
            }
            changes.changed().await;
        }
    };
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response())
}
