//! `GET /worker/v1/turns`: the stream on which a worker is sent its turns.
//!
//! The worker is live from the moment the stream opens. A gateway that has not ticked for half a worker's lease closes the stream,
//! so that the worker finds another gateway within the other half. When it closes without a goodbye, the worker may have died: that
//! is a *suspicion*, on which the worker's runtime is asked at once. It proves nothing, and fails no turn.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::WorkerPort;
use super::identity::{ShownCredential, gone, refused};
use crate::dispatch::workers::Worker;
use crate::every::supervised;
use crate::heartbeat::half_a_lease;
use crate::problem::Problem;
use crate::store::StoreError;
use crate::turn::keys::TurnId;
use crate::wire::{Connect, Hello, ToWorker};

/// A stream that closed raises its suspicion after this time, unless the worker has opened another one by then.
pub const SUSPICION_GRACE: Duration = Duration::from_millis(250);
/// A stream without other lines carries a ping this often, so that both ends notice a connection that is lost.
const PING_EVERY: Duration = Duration::from_secs(15);

/// Makes the worker live and opens its stream. The first lines are the terms of the lease, what the worker should stop of
/// the turns that it named as in hand, and what it should have and did not name.
pub(super) async fn turns(
    State(port): State<WorkerPort>,
    shown: ShownCredential,
    Query(asked): Query<Connect>,
) -> Result<Response, Problem> {
    let stream = Uuid::now_v7();
    let ShownCredential { credential, incarnation } = shown;
    let in_hand = turns_in_hand(&asked)?;
    let ticks = port.heartbeats.ticks();
    if !ticks.begun().await {
        return Err(StoreError::Unavailable("this gateway has not reached the database yet".into()).into());
    }
    let terms = port
        .store
        .connect_worker(&credential, incarnation, port.replica.id, stream, asked.capacity.max(1), asked.together)
        .await
        .map_err(refused)?;
    port.verified.insert(&credential, incarnation, terms.clone());
    let asked_at = Instant::now();
    let beat = port.store.worker_state(incarnation).await?.ok_or_else(gone)?.answer;
    let hello = Hello {
        heartbeat_seconds: terms.heartbeat_seconds,
        lease_seconds: terms.lease_seconds,
        capacity: terms.capacity,
        address: port.address.clone(),
    };
    let (drain, patience, begin) = (terms.draining, half_a_lease(terms.lease_seconds), tokio::time::Instant::now());
    let (worker, mut lines) = port.workers.join(incarnation, stream, terms, &asked);
    let worker_group = worker.terms.worker_group.name(&worker.terms.agent);
    tracing::info!(%incarnation, worker_group, "worker {incarnation} is connected");
    // From here on the end of the stream is noticed, whatever ends it.
    let open = OpenStream { port: port.clone(), worker: worker.clone() };
    let first = port.workers.compare(incarnation, &in_hand, beat, asked_at, asked.history).await?;
    supervised("claiming for a worker", port.workers.clone().claim_for(worker.clone()));

    let body = async_stream::stream! {
        let _open = open;
        yield line(&ToWorker::Hello(hello));
        for turn_id in first.stop {
            yield line(&ToWorker::Cancel { turn_id });
        }
        for turn in first.push {
            yield line(&ToWorker::Turn(Box::new(turn)));
        }
        if let Some(seconds) = drain {
            yield line(&ToWorker::Drain { seconds });
        }
        loop {
            tokio::select! {
                next = lines.recv() => match next {
                    Some(next) => yield line(&next),
                    None => return,
                },
                () = worker.closed.cancelled() => return,
                // This gateway is cut off from the database, and cannot write that the worker lives. Another one may.
                () = ticks.missing_for(patience, begin) => {
                    tracing::warn!(%incarnation, "worker {incarnation} is let go: no tick was written for half its lease");
                    worker.says_goodbye();
                    return;
                }
                () = tokio::time::sleep(PING_EVERY) => yield line(&ToWorker::Ping),
            }
        }
    };
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response())
}

/// The turns that a connecting worker names as in hand.
fn turns_in_hand(asked: &Connect) -> Result<Vec<TurnId>, Problem> {
    let malformed = |_| Problem::bad_request("turns must be UUIDs, comma-separated");
    asked.turns.split(',').filter(|t| !t.is_empty()).map(|t| t.parse().map_err(malformed)).collect()
}

fn line(message: &ToWorker) -> Result<Bytes, std::io::Error> {
    let mut text = serde_json::to_vec(message).map_err(std::io::Error::other)?;
    text.push(b'\n');
    Ok(text.into())
}

/// Part of the stream's body: it is dropped when the worker closes the stream, when the connection is lost, and when this
/// replica ends the stream.
struct OpenStream {
    port: WorkerPort,
    worker: Arc<Worker>,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.port.workers.leave(&self.worker);
        if self.worker.said_goodbye() {
            return;
        }
        let (store, worker) = (self.port.store.clone(), self.worker.clone());
        tokio::spawn(async move {
            tokio::time::sleep(SUSPICION_GRACE).await;
            match store.suspect_worker(worker.incarnation, worker.stream).await {
                Ok(true) => tracing::info!(incarnation = %worker.incarnation,
                    "the stream of worker {} closed without goodbye; asking its runtime", worker.incarnation),
                // The worker has opened another stream, here or elsewhere, or is dead already.
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "a suspicion was not written; the lease decides"),
            }
        });
    }
}
