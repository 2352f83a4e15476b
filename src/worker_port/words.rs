//! What a worker says of its turns and of itself: the end of turns, the heartbeat, the goodbye.

use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;

use super::WorkerPort;
use super::body::{check_finish, storable};
use super::identity::{AuthenticatedWorker, gone};
use super::output::not_held;
use crate::problem::Problem;
use crate::store::{FinishError, WorkerWord};
use crate::turn::cause;
use crate::turn::frame::Span;
use crate::turn::keys::{Incarnation, TurnId};
use crate::wire::{Finish, FinishResult, Finished, Goodbye, GoodbyePhase, Heartbeat, HeartbeatAnswer};

/// `POST /worker/v1/finish`: the worker reports how turns ended. The report becomes their terminal, unless they have
/// one already.
pub(super) async fn finish(
    State(port): State<WorkerPort>,
    caller: AuthenticatedWorker,
    body: Body,
) -> Result<Json<Finished>, Problem> {
    let body = port.room.finish.whole(&caller.account(), body).await?;
    let finish: Finish = body.json()?;
    check_finish(&finish)?;
    // The output is the first turn's; the others share it.
    let lead = finish.turn_ids[0];
    let mut tail = port.live.tail(lead, caller.incarnation).unwrap_or_default();
    if let Some(last) = finish.tail {
        let last = Span::new(last.offset, storable(last.frames)?);
        tail = join_pieces(tail, last);
    }
    let word = WorkerWord {
        incarnation: caller.incarnation,
        turn_ids: finish.turn_ids.clone(),
        reply_id: finish.reply_id,
        outcome: port.outcome_of(caller.incarnation, cause::program::reply(finish.outcome, finish.end)).await?,
        finish_reason: finish.finish_reason,
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
    port.heartbeats.finished(caller.incarnation);
    finish.turn_ids.iter().for_each(|&t| port.live.close(t, caller.incarnation));
    match port.workers.get(caller.incarnation) {
        Some(worker) => worker.let_go(&finish.turn_ids),
        // Another replica holds the worker's stream, and does not know yet that the worker can take another turn.
        None => port.store.notify_worker_changed(caller.incarnation),
    }
    Ok(Json(Finished { result }))
}

/// Joins two pieces of a log. `known` is what this replica has of the log that is not yet durable, `last` is what came
/// with the finish. Where they leave a gap, `last` alone is tried: the store may have the gap's content from another
/// replica.
fn join_pieces(known: Span, last: Span) -> Span {
    if known.is_empty() || last.start <= known.start || last.start > known.end() {
        return last;
    }
    let end = known.end();
    let mut joined = known;
    last.from(end).frames.into_iter().for_each(|f| joined.push(f));
    joined
}

/// `POST /worker/v1/heartbeat`: the worker lives, and names its turns in hand. 410 when its lease is dead.
pub(super) async fn heartbeat(
    State(port): State<WorkerPort>,
    caller: AuthenticatedWorker,
    body: Body,
) -> Result<Json<HeartbeatAnswer>, Problem> {
    let beat: Heartbeat = port.room.signs.whole(&caller.account(), body).await?.json()?;
    let asked = Instant::now();
    let answer = port.heartbeats.beat(caller.incarnation, !beat.turns.is_empty()).await?;
    match answer {
        Some(answer) => Ok(Json(port.workers.compare(caller.incarnation, &beat.turns, answer, asked, 0).await?)),
        None => {
            port.verified.remove(caller.incarnation);
            Err(gone())
        }
    }
}

/// `POST /worker/v1/goodbye`: the worker drains, or ends now.
pub(super) async fn goodbye(
    State(port): State<WorkerPort>,
    caller: AuthenticatedWorker,
    body: Body,
) -> Result<StatusCode, Problem> {
    let goodbye: Goodbye = port.room.signs.whole(&caller.account(), body).await?.json()?;
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
            // The ending runs in a task of its own, which goes on when the worker closes the connection without waiting
            // for the answer.
            let ending = tokio::spawn(end_worker(port.clone(), caller.incarnation, goodbye.hand_back.clone()));
            ending.await.map_err(|_| Problem::unavailable())??;
            port.verified.remove(caller.incarnation);
            if let Some(worker) = &worker {
                worker.says_goodbye();
            }
        }
    }
    goodbye.hand_back.iter().for_each(|&t| port.live.close(t, caller.incarnation));
    Ok(StatusCode::NO_CONTENT)
}

/// Ends the lease of a worker that has said that it ends now. What it still holds fails, with the reason of the stop if
/// somebody records one in time.
async fn end_worker(port: WorkerPort, worker: Incarnation, hand_back: Vec<TurnId>) -> Result<(), Problem> {
    port.store.worker_draining(worker, &hand_back).await?;
    port.stop_reason_known(worker).await?;
    port.store.worker_gone(worker, &hand_back).await?;
    Ok(())
}
