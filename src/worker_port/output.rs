//! `POST /worker/v1/turns/{id}/output`: frames of a turn while it runs.
//!
//! They go into the live log, which hands them to sessions at once and makes them durable in batches. The answer tells the
//! worker what is durable; the worker keeps the rest, and sends it again if this replica dies.
//!
//! A worker takes 404 for "this turn is over" and stops its program, so only the database's word makes one. What is in memory
//! here proves nothing: the worker may have been with another replica, or its stream here has just closed.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use uuid::Uuid;

use super::WorkerPort;
use super::body::{check_offset, storable};
use super::identity::AuthenticatedWorker;
use crate::dispatch::live::{LiveLogs, OutputRefused};
use crate::problem::Problem;
use crate::turn::frame::Span;
use crate::turn::keys::{Incarnation, TurnId};
use crate::wire::{Acked, Output};

/// The query of an output post.
#[derive(Deserialize)]
pub(super) struct OutputOffset {
    /// Where the frames begin in the turn's log, in log units.
    offset: u64,
}

/// A turn that the database says is in the caller's hand is looked for so often in memory. One that is gone each time is lost to
/// a worker that opens and closes its streams all the time: it may send the frames again.
const ADOPTIONS: u32 = 4;

/// Takes frames of a turn in the caller's hand. 409 says from where on the frames must be sent again.
pub(super) async fn output(
    State(port): State<WorkerPort>,
    caller: AuthenticatedWorker,
    Path(turn): Path<Uuid>,
    Query(at): Query<OutputOffset>,
    body: Body,
) -> Result<Json<Acked>, Problem> {
    let turn = TurnId(turn);
    check_offset(at.offset)?;
    let body = port.room.output.whole(&caller.account(), body).await?;
    let output: Output = body.json()?;
    let span = Span::new(at.offset, storable(output.frames)?);
    take(&port.live, turn, caller.incarnation, &span, || adopt(&port, &caller, turn)).await.map(Json)
}

/// Takes frames into the live log. Where they do not fit it, `adopt` opens the log as the database has it: the worker was with
/// another replica, which may have written more than this one knows; or its stream here has closed since.
async fn take<F: Future<Output = Result<(), Problem>>>(
    live: &LiveLogs,
    turn: TurnId,
    worker: Incarnation,
    span: &Span,
    adopt: impl Fn() -> F,
) -> Result<Acked, Problem> {
    let mut refused = live.accept(turn, worker, span);
    for _ in 0..ADOPTIONS {
        let Err(OutputRefused::NotInHand | OutputRefused::Missing(_)) = refused else { break };
        adopt().await?;
        let adopted = live.accept(turn, worker, span);
        let asked_again = matches!(adopted, Err(OutputRefused::NotInHand));
        refused = adopted;
        if !asked_again {
            break;
        }
    }
    refused.map_err(|refused| match refused {
        OutputRefused::Missing(missing) => {
            Problem::new(StatusCode::CONFLICT, "something before this output is missing here").with_acked(missing.acked)
        }
        OutputRefused::Full => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "the turn's log is full; finish it with an error")
        }
        OutputRefused::Busy => Problem::new(StatusCode::TOO_MANY_REQUESTS, "too much output waits to become durable"),
        OutputRefused::NotInHand => Problem::unavailable(),
    })
}

/// Opens the live log of a turn in the caller's hand as the database has it.
///
/// # Errors
/// 404 or 403 if the database says that the turn is not in the caller's hand.
async fn adopt(port: &WorkerPort, caller: &AuthenticatedWorker, turn: TurnId) -> Result<(), Problem> {
    let held = port.store.turns_held_by(&[turn], caller.incarnation).await?;
    if let Some(turn) = held.first() {
        port.live.open(turn.turn_id, turn.conversation_id, caller.incarnation, turn.log_end);
        return Ok(());
    }
    port.live.close(turn, caller.incarnation);
    Err(not_held(port, caller, &[turn]).await?)
}

/// The answer about turns that are not in the caller's hand. 403 makes a worker stop for good, so that is only for turns
/// that are known to be another worker group's. All others are over, or erased: 404.
pub(super) async fn not_held(
    port: &WorkerPort,
    caller: &AuthenticatedWorker,
    turns: &[TurnId],
) -> Result<Problem, Problem> {
    for &turn in turns {
        if let Some(head) = port.store.turn_head(turn).await?
            && (head.organization != caller.terms.organization || head.worker_group != caller.terms.worker_group)
        {
            return Ok(Problem::new(StatusCode::FORBIDDEN, "the turn is not of this worker's worker group"));
        }
    }
    Ok(Problem::not_found("turn in this worker's hand"))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use uuid::Uuid;

    use super::*;
    use crate::dispatch::subscriptions::Subscriptions;
    use crate::turn::frame::Frame;
    use crate::turn::keys::ConversationId;

    /// The worker's stream closes between the database's word and the taking of the frames, `times` times in a row.
    async fn taken_while_the_stream_closes(times: u32) -> (Result<Acked, Problem>, u32) {
        let live = LiveLogs::new(Subscriptions::default());
        let (turn, worker, conversation) = (TurnId::new(), Incarnation::new(), ConversationId::new());
        let asked = Cell::new(0);
        let adopt = || async {
            let stream = Uuid::new_v4();
            live.attach(worker, stream);
            live.open(turn, conversation, worker, 0);
            asked.set(asked.get() + 1);
            if asked.get() <= times {
                live.detach(worker, stream);
            }
            Ok(())
        };
        let span = Span::new(0, vec![Frame::text("hello")]);
        (take(&live, turn, worker, &span, adopt).await, asked.get())
    }

    #[tokio::test]
    async fn a_stream_that_closes_meanwhile_makes_no_404() {
        for times in 0..ADOPTIONS {
            let (taken, asked) = taken_while_the_stream_closes(times).await;
            assert_eq!((taken.ok(), asked), (Some(Acked { acked: 0, received: 5 }), times + 1));
        }
        let (refused, asked) = taken_while_the_stream_closes(u32::MAX).await;
        let status = refused.map_err(|problem| problem.status()).expect_err("not taken");
        assert_eq!((status, asked), (StatusCode::SERVICE_UNAVAILABLE, ADOPTIONS));
    }
}
