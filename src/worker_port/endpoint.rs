//! The worker protocol over HTTP, on the worker port. The protocol itself: `docs/worker-protocol.md`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::identity::{Reviewer, Reviews};
use crate::dispatch::live::{LiveLogs, Refused};
use crate::dispatch::workers::{Worker, Workers};
use crate::heartbeat::Heartbeats;
use crate::problem::Problem;
use crate::store::{ConnectError, Connected, FinishError, Replica, Store, WorkerWord};
use crate::turn::frame::{Frame, Span};
use crate::turn::keys::{Incarnation, TurnId};
use crate::turn::reason::Reason;
use crate::turn::terminal::{Failure, Outcome};
use crate::wire::{
    Acked, Connect, Credential, Finish, FinishResult, Finished, Goodbye, GoodbyePhase, Heartbeat, HeartbeatAnswer,
    Hello, INCARNATION, MAX_BODY_BYTES, MAX_FRAME_BYTES, MAX_LOG_UNITS, Output, ToWorker,
};

/// A worker's stream that closes without goodbye raises a suspicion after this, unless it came back meanwhile.
pub const SUSPICION_GRACE: Duration = Duration::from_millis(250);
/// Sign of life on an idle stream.
const PING_EVERY: Duration = Duration::from_secs(15);
/// How long a worker of another replica is known without asking the database again.
const KNOWN_FOR: Duration = Duration::from_secs(5);
/// The most turns that one word may end.
const MAX_TURNS_OF_A_WORD: usize = 64;

/// Workers that were checked lately: the hash of what they showed (a comparison of secrets would take longer the more of one
/// is right), their terms, and when.
type Known = HashMap<Incarnation, (Vec<u8>, Connected, Instant)>;

/// What the endpoints need.
#[derive(Clone)]
pub struct WorkerPort {
    pub replica: Replica,
    pub store: Store,
    pub live: LiveLogs,
    pub workers: Workers,
    pub heartbeats: Heartbeats,
    /// Absent: no pod can show who it is here.
    pub(super) reviews: Option<Reviews>,
    /// How long it is waited for that somebody records why a worker was stopped.
    pub(super) cause_window: Duration,
    known: Arc<Mutex<Known>>,
}

impl WorkerPort {
    pub fn new(replica: Replica, store: Store, live: LiveLogs, workers: Workers, heartbeats: Heartbeats) -> Self {
        let (reviews, cause_window) = (None, Duration::ZERO);
        WorkerPort { replica, store, live, workers, heartbeats, reviews, cause_window, known: Arc::default() }
    }

    /// The same for workers that are pods, too.
    pub fn for_pods(self, reviewer: Option<Arc<dyn Reviewer>>, cause_window: Duration) -> Self {
        WorkerPort { reviews: reviewer.map(Reviews::new), cause_window, ..self }
    }

    /// The routes of the worker port.
    pub fn router(self) -> Router {
        Router::new()
            .route("/worker/v1/session", post(super::identity::session))
            .route("/worker/v1/turns", get(turns))
            .route("/worker/v1/turns/{id}/output", post(output))
            .route("/worker/v1/finish", post(finish))
            .route("/worker/v1/heartbeat", post(heartbeat))
            .route("/worker/v1/goodbye", post(goodbye))
            .route("/peer/v1/turns/{id}/frames", get(super::peers::frames))
            .fallback(|| async { Problem::not_found("path; this is the worker port") })
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .with_state(self)
    }

    fn remembered(&self, credential: &Credential, incarnation: Incarnation) -> Option<Connected> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (shown, terms, at) = known.get(&incarnation)?;
        (*shown == credential.hash() && at.elapsed() < KNOWN_FOR).then(|| terms.clone())
    }

    fn remember(&self, credential: &Credential, incarnation: Incarnation, terms: Connected) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() > 10_000 {
            known.retain(|_, (_, _, at)| at.elapsed() < KNOWN_FOR);
        }
        known.insert(incarnation, (credential.hash(), terms, Instant::now()));
    }

    fn forget(&self, incarnation: Incarnation) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(&incarnation);
    }
}

/// What a caller shows of itself.
struct Shown {
    credential: Credential,
    incarnation: Incarnation,
}

impl<S: Sync> FromRequestParts<S> for Shown {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let text = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok());
        let credential = text(header::AUTHORIZATION.as_str())
            .and_then(|v| v.strip_prefix("Bearer "))
            .and_then(Credential::parse)
            .ok_or_else(|| Problem::new(StatusCode::UNAUTHORIZED, "show the worker credential as a bearer token"))?;
        let incarnation = text(INCARNATION).and_then(|v| v.parse().ok()).ok_or_else(|| {
            Problem::bad_request(format!(
                "the header {INCARNATION} must hold the UUID that the worker made at its start"
            ))
        })?;
        Ok(Shown { credential, incarnation })
    }
}

/// A worker whose credential was checked.
struct Caller {
    incarnation: Incarnation,
    terms: Connected,
}

impl FromRequestParts<WorkerPort> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, port: &WorkerPort) -> Result<Self, Problem> {
        let Shown { credential, incarnation } = Shown::from_request_parts(parts, port).await?;
        if let Some(terms) = port.remembered(&credential, incarnation) {
            return Ok(Caller { incarnation, terms });
        }
        let terms = port.store.authenticate_worker(&credential, incarnation).await.map_err(refused)?;
        port.remember(&credential, incarnation, terms.clone());
        Ok(Caller { incarnation, terms })
    }
}

fn refused(error: ConnectError) -> Problem {
    match error {
        ConnectError::Forbidden => Problem::new(StatusCode::FORBIDDEN, "unknown worker credential"),
        ConnectError::Dead => gone(),
        ConnectError::Store(error) => error.into(),
    }
}

fn gone() -> Problem {
    Problem::new(StatusCode::GONE, "this incarnation is dead to Lastword; stop")
}

/// Reads a JSON body; what is wrong with it is the caller's to mend.
fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|e| Problem::bad_request(format!("the body is malformed: {e}")))
}

async fn turns(
    State(port): State<WorkerPort>,
    shown: Shown,
    Query(asked): Query<Connect>,
) -> Result<Response, Problem> {
    let stream = Uuid::now_v7();
    let Shown { credential, incarnation } = shown;
    let in_hand: Vec<TurnId> = asked
        .turns
        .split(',')
        .filter(|t| !t.is_empty())
        .map(|t| t.parse().map_err(|_| Problem::bad_request("turns must be UUIDs, comma-separated")))
        .collect::<Result<_, _>>()?;
    let terms = port
        .store
        .connect_worker(&credential, incarnation, port.replica.id, stream, asked.capacity.max(1), asked.together)
        .await
        .map_err(refused)?;
    port.remember(&credential, incarnation, terms.clone());
    let beat = port.store.worker_state(incarnation).await?.ok_or_else(gone)?;
    let hello = Hello {
        heartbeat_seconds: terms.heartbeat_seconds,
        lease_seconds: terms.lease_seconds,
        capacity: terms.capacity,
    };
    let drain = terms.draining;
    let (worker, mut lines) = port.workers.join(incarnation, stream, terms, &asked);
    tracing::info!(%incarnation, worker_group = worker.terms.worker_group, "worker {incarnation} is connected");
    // From here on the stream's end is noticed, whatever ends it.
    let open = OpenStream { port: port.clone(), worker: worker.clone() };
    let first = port.workers.compare(incarnation, &in_hand, beat, asked.history).await?;
    tokio::spawn(port.workers.clone().claim_for(worker.clone()));

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
                () = tokio::time::sleep(PING_EVERY) => yield line(&ToWorker::Ping),
            }
        }
    };
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response())
}

fn line(message: &ToWorker) -> Result<Bytes, std::io::Error> {
    let mut text = serde_json::to_vec(message).map_err(std::io::Error::other)?;
    text.push(b'\n');
    Ok(text.into())
}

/// Lives as long as the stream's body: dropped when the worker closed it, or we did.
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
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "a suspicion was not written; the lease decides"),
            }
        });
    }
}

#[derive(Deserialize)]
struct At {
    offset: u64,
}

async fn output(
    State(port): State<WorkerPort>,
    caller: Caller,
    Path(turn): Path<Uuid>,
    Query(at): Query<At>,
    body: Bytes,
) -> Result<Json<Acked>, Problem> {
    let turn = TurnId(turn);
    in_a_log(at.offset)?;
    let output: Output = parse(&body)?;
    let span = Span::new(at.offset, light(output.frames)?);
    let known = port.live.is_open(turn, caller.incarnation);
    let behind = known && port.live.lacks(turn, at.offset);
    if behind {
        // The worker may have been with another replica, which wrote more than this one knows.
        port.live.close(turn);
    }
    if behind || !known {
        adopt(&port, &caller, turn).await?;
    }
    match port.live.accept(turn, span) {
        Some(Ok(acked)) => Ok(Json(acked)),
        Some(Err(Refused::Missing(missing))) => {
            Err(Problem::new(StatusCode::CONFLICT, "something before this output is missing here")
                .with_acked(missing.acked))
        }
        Some(Err(Refused::Full)) => {
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "the turn's log is full; finish it with an error"))
        }
        Some(Err(Refused::Busy)) => {
            Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too much output waits to become durable"))
        }
        None => Err(Problem::not_found("turn in this worker's hand")),
    }
}

/// A turn in the caller's hand that this replica does not know yet: the worker came from another one.
async fn adopt(port: &WorkerPort, caller: &Caller, turn: TurnId) -> Result<(), Problem> {
    let held = port.store.turns_held_by(&[turn], caller.incarnation).await?;
    if let Some(turn) = held.first() {
        port.live.open(turn.turn_id, turn.conversation_id, caller.incarnation, turn.log_end);
        return Ok(());
    }
    port.live.close(turn);
    Err(not_held(port, caller, &[turn]).await?)
}

/// What to say of turns that are not in the caller's hand. 403 makes a worker stop for good, so it is only for turns that
/// are known to be of another worker group; one that was erased meanwhile is just over.
async fn not_held(port: &WorkerPort, caller: &Caller, turns: &[TurnId]) -> Result<Problem, Problem> {
    for &turn in turns {
        if let Some(head) = port.store.turn_head(turn).await?
            && (head.organization != caller.terms.organization || head.worker_group != caller.terms.worker_group)
        {
            return Ok(Problem::new(StatusCode::FORBIDDEN, "the turn is not of this worker's worker group"));
        }
    }
    Ok(Problem::not_found("turn in this worker's hand"))
}

async fn finish(State(port): State<WorkerPort>, caller: Caller, body: Bytes) -> Result<Json<Finished>, Problem> {
    let finish: Finish = parse(&body)?;
    check(&finish)?;
    let lead = finish.turn_ids[0];
    let own = |t: TurnId| port.live.is_open(t, caller.incarnation);
    let mut tail = port.live.tail(lead).filter(|_| own(lead)).unwrap_or_default();
    if let Some(last) = finish.tail {
        let last = Span::new(last.offset, light(last.frames)?);
        tail = join(tail, last);
    }
    let word = WorkerWord {
        incarnation: caller.incarnation,
        turn_ids: finish.turn_ids.clone(),
        reply_id: finish.reply_id,
        outcome: port.outcome_of(caller.incarnation, wordless(finish.outcome, finish.end)).await?,
        end: finish.end,
        tail,
    };
    let result = match port.store.finish(word).await {
        Ok(true) => FinishResult::Accepted,
        Ok(false) => FinishResult::Superseded,
        Err(FinishError::Missing { acked }) => {
            return Err(Problem::new(StatusCode::CONFLICT, "output below `end` is missing here").with_acked(acked));
        }
        Err(FinishError::Foreign) => {
            return Err(not_held(&port, &caller, &finish.turn_ids).await?);
        }
        Err(error @ FinishError::SeveralConversations) => return Err(Problem::bad_request(error.to_string())),
        Err(FinishError::Store(error)) => return Err(error.into()),
    };
    finish.turn_ids.iter().filter(|&&t| own(t)).for_each(|&t| port.live.close(t));
    match port.workers.get(caller.incarnation) {
        Some(worker) => worker.let_go(&finish.turn_ids),
        // Its stream is held by another replica, which does not know yet that there is room.
        None => port.store.notify_worker_changed(caller.incarnation),
    }
    Ok(Json(Finished { result }))
}

/// Frames as they are stored; none is so large that a client, or another replica, could not take it whole.
fn light(frames: Vec<Frame>) -> Result<Vec<Frame>, Problem> {
    let heavy = |f: &&Frame| !matches!(f, Frame::Text { .. }) && f.weight() > MAX_FRAME_BYTES;
    if let Some(heavy) = frames.iter().find(heavy) {
        let said = format!("a frame {:?} has {} bytes; {MAX_FRAME_BYTES} are allowed", heavy.event(), heavy.weight());
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, said));
    }
    Ok(frames.into_iter().map(Frame::storable).collect())
}

/// No log is longer; and an offset near the end of its type would break every sum behind it.
fn in_a_log(offset: u64) -> Result<(), Problem> {
    if offset > MAX_LOG_UNITS {
        return Err(Problem::bad_request(format!(
            "no log is longer than {MAX_LOG_UNITS}; the offset {offset} is in none"
        )));
    }
    Ok(())
}

fn check(finish: &Finish) -> Result<(), Problem> {
    in_a_log(finish.end)?;
    in_a_log(finish.tail.as_ref().map_or(0, |t| t.offset))?;
    if finish.turn_ids.is_empty() || finish.turn_ids.len() > MAX_TURNS_OF_A_WORD {
        return Err(Problem::bad_request(format!("turnIds must name 1 to {MAX_TURNS_OF_A_WORD} turns")));
    }
    crate::turn::keys::check_name("replyId", &finish.reply_id).map_err(|e| Problem::bad_request(e.to_string()))
}

/// An empty reply is none: nobody is shown an empty "done".
fn wordless(outcome: Outcome, end: u64) -> Outcome {
    match outcome {
        Outcome::Reply if end == 0 => {
            Outcome::Error(Failure::detailed(Reason::AgentError, "the worker sent a reply without any output"))
        }
        outcome => outcome,
    }
}

/// Two pieces of one log, `last` the later. Where they leave a gap the later one is tried: the store knows what is durable
/// better than this replica does.
fn join(known: Span, last: Span) -> Span {
    if known.is_empty() || last.start <= known.start {
        return last;
    }
    if last.start > known.end() {
        return last;
    }
    let end = known.end();
    let mut joined = known;
    last.from(end).frames.into_iter().for_each(|f| joined.push(f));
    joined
}

async fn heartbeat(
    State(port): State<WorkerPort>,
    caller: Caller,
    body: Bytes,
) -> Result<Json<HeartbeatAnswer>, Problem> {
    let beat: Heartbeat = parse(&body)?;
    let answer = port.heartbeats.beat(caller.incarnation, !beat.turns.is_empty()).await?;
    match answer {
        Some(answer) => Ok(Json(port.workers.compare(caller.incarnation, &beat.turns, answer, 0).await?)),
        None => {
            port.forget(caller.incarnation);
            Err(gone())
        }
    }
}

async fn gone_by_its_word(port: WorkerPort, worker: Incarnation, hand_back: Vec<TurnId>) -> Result<(), Problem> {
    port.store.worker_draining(worker, &hand_back).await?;
    port.stop_reason_known(worker).await?;
    port.store.worker_gone(worker, &hand_back).await?;
    Ok(())
}

async fn goodbye(State(port): State<WorkerPort>, caller: Caller, body: Bytes) -> Result<StatusCode, Problem> {
    let goodbye: Goodbye = parse(&body)?;
    let worker = port.workers.get(caller.incarnation);
    if let Some(worker) = &worker {
        worker.stop_claiming();
    }
    if let Some(reason) = goodbye.reason {
        port.store.note_stop_of_worker(caller.incarnation, reason).await?;
    }
    match goodbye.phase {
        GoodbyePhase::Draining => {
            port.store.worker_draining(caller.incarnation, &goodbye.hand_back).await?;
            if let Some(worker) = &worker {
                worker.let_go(&goodbye.hand_back);
            }
        }
        GoodbyePhase::Gone => {
            // To its end, though the worker may not wait for the answer.
            let ending = tokio::spawn(gone_by_its_word(port.clone(), caller.incarnation, goodbye.hand_back.clone()));
            ending.await.map_err(|_| Problem::unavailable())??;
            port.forget(caller.incarnation);
            if let Some(worker) = &worker {
                worker.says_goodbye();
            }
        }
    }
    let own = goodbye.hand_back.iter().filter(|&&t| port.live.is_open(t, caller.incarnation));
    own.for_each(|&t| port.live.close(t));
    Ok(StatusCode::NO_CONTENT)
}
