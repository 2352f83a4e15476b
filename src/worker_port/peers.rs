//! `GET /peer/v1/turns/{id}/frames`: another replica follows a turn whose worker is connected to this one. The asking side
//! is `dispatch/follow.rs`.

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use subtle::ConstantTimeEq;

use super::WorkerPort;
use crate::dispatch::follow::{PING_EVERY, PeerFrames};
use crate::problem::Problem;
use crate::turn::frame::Frame;
use crate::turn::keys::TurnId;

/// The query of a replica that follows a turn.
#[derive(Deserialize)]
pub(super) struct FramesAfter {
    /// How much of the turn's log it has, in log units.
    after: u64,
}

/// NDJSON of [`PeerFrames`], as the worker produces them, until the worker's stream is no longer here. The first line has no
/// frames and says where the copy begins. The caller shows this replica's secret, which only those who read the table `gateway`
/// know.
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
    let not_here = || Problem::not_found("turn in hand here");
    let (conversation, begin) = port.live.serve(turn, after).ok_or_else(not_here)?;
    let mut changes = port.live.subscriptions().subscribe(conversation);
    let live = port.live.clone();
    let body = async_stream::stream! {
        let mut at = begin;
        yield line(at, Vec::new());
        // The stream ends when the worker's stream is no longer here, or when the log at `at` is no longer in memory, since
        // then the store has it.
        while let Some(span) = live.read_served(turn, at) {
            if !span.is_empty() {
                at = span.end();
                yield line(span.start, span.frames);
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(PING_EVERY) => yield line(at, Vec::new()),
            }
        }
    };
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response())
}

fn line(start: u64, frames: Vec<Frame>) -> Result<Bytes, std::io::Error> {
    let mut line = serde_json::to_vec(&PeerFrames { start, frames }).map_err(std::io::Error::other)?;
    line.push(b'\n');
    Ok(line.into())
}
