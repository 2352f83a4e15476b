//! `POST /worker/v1/turns/{id}/output`: frames of a turn while it runs.
//!
//! They go into the live log, which hands them to sessions at once and makes them durable in batches. The answer tells the
//! worker what is durable; the worker keeps the rest, and sends it again if this replica dies.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use uuid::Uuid;

use super::WorkerPort;
use super::body::{check_offset, parse, storable};
use super::identity::AuthenticatedWorker;
use crate::dispatch::live::OutputRefused;
use crate::problem::Problem;
use crate::turn::frame::Span;
use crate::turn::keys::TurnId;
use crate::wire::{Acked, Output};

/// The query of an output post.
#[derive(Deserialize)]
pub(super) struct OutputOffset {
    /// Where the frames begin in the turn's log, in log units.
    offset: u64,
}

/// Takes frames of a turn in the caller's hand. 409 says from where on the frames must be sent again.
pub(super) async fn output(
    State(port): State<WorkerPort>,
    caller: AuthenticatedWorker,
    Path(turn): Path<Uuid>,
    Query(at): Query<OutputOffset>,
    body: Bytes,
) -> Result<Json<Acked>, Problem> {
    let turn = TurnId(turn);
    check_offset(at.offset)?;
    let output: Output = parse(&body)?;
    let span = Span::new(at.offset, storable(output.frames)?);
    let open = port.live.is_open(turn, caller.incarnation);
    let behind = open && port.live.lacks(turn, at.offset);
    if behind {
        // The worker may have been with another replica, which wrote more than this one knows.
        port.live.close(turn);
    }
    if behind || !open {
        adopt(&port, &caller, turn).await?;
    }
    port.live.accept(turn, span).map(Json).map_err(|refused| match refused {
        OutputRefused::Missing(missing) => {
            Problem::new(StatusCode::CONFLICT, "something before this output is missing here").with_acked(missing.acked)
        }
        OutputRefused::Full => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "the turn's log is full; finish it with an error")
        }
        OutputRefused::Busy => Problem::new(StatusCode::TOO_MANY_REQUESTS, "too much output waits to become durable"),
        OutputRefused::NotInHand => Problem::not_found("turn in this worker's hand"),
    })
}

/// Opens the live log of a turn in the caller's hand that this replica does not know yet: the worker was connected to
/// another one.
async fn adopt(port: &WorkerPort, caller: &AuthenticatedWorker, turn: TurnId) -> Result<(), Problem> {
    let held = port.store.turns_held_by(&[turn], caller.incarnation).await?;
    if let Some(turn) = held.first() {
        port.live.open(turn.turn_id, turn.conversation_id, caller.incarnation, turn.log_end);
        return Ok(());
    }
    port.live.close(turn);
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
            && (&head.organization, &head.agent, head.worker_group)
                != (&caller.terms.organization, &caller.terms.agent, caller.terms.worker_group)
        {
            return Ok(Problem::new(StatusCode::FORBIDDEN, "the turn is not of this worker's worker group"));
        }
    }
    Ok(Problem::not_found("turn in this worker's hand"))
}
