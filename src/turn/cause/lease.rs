//! Why the turns of a worker fail whose lease ends: by silence, after a stop, or by a proof, which is compared with
//! what the lease has on record.

use crate::turn::phase::LeasePhase;
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// On what ground a lease is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// There is proof of the worker's death, or the worker has said that it ends.
    Proof,
    /// No sign of life came for a whole lease, or no worker connected within the start deadline.
    Silence,
    /// The worker was told to stop, and its time to drain is over.
    DrainOver,
}

/// What a lease has on record when it is ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRecord {
    pub phase: LeasePhase,
    /// The stop of the worker, if it was told to stop or got a signal.
    pub stop: Option<LeaseStop>,
    /// What held the start up so far.
    pub start: Option<StartCause>,
}

/// The stop of a worker, as its lease records it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseStop {
    pub reason: Reason,
    /// Whether whoever stops the worker recorded the reason; otherwise the worker has guessed it.
    pub recorded: bool,
}

/// What held a start up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartCause {
    /// `None` if only a newer version of Lastword knows the reason.
    pub reason: Option<Reason>,
    pub detail: Option<String>,
}

/// Picks the failure of a dead worker's turns: from the lease's record where it knows more than `found`, else `found`.
pub fn known_better(record: &LeaseRecord, found: &Failure, ground: Ground) -> Failure {
    let but = |reason| Failure { detail: found.detail.clone(), ..Failure::new(reason) };
    let mere_exit = found.reason == Reason::WorkerExited;
    match (record.stop, record.phase) {
        // A proof that knows why beats what the worker guessed from a signal.
        (Some(stop), _) if !stop.recorded && ground == Ground::Proof && !mere_exit => found.clone(),
        // What a worker leaves behind after it was told to stop carries the reason of the stop.
        (Some(stop), _) => but(stop.reason),
        // No worker had connected, so none can have exited while it worked.
        (None, LeasePhase::Starting) if mere_exit => but(Reason::StartFailed),
        (None, LeasePhase::Starting) if ground == Ground::Silence => match &record.start {
            Some(StartCause { reason, detail }) => Failure {
                detail: detail.clone().or_else(|| found.detail.clone()),
                ..Failure::new(reason.unwrap_or(found.reason))
            },
            None => found.clone(),
        },
        (None, _) => found.clone(),
    }
}

/// The failure of a worker whose lease ran out in this phase.
pub fn lapsed(phase: LeasePhase) -> Failure {
    match phase {
        LeasePhase::Starting => Failure::detailed(Reason::StartFailed, "no worker connected within startSeconds"),
        LeasePhase::Live | LeasePhase::Draining | LeasePhase::Dead | LeasePhase::Unknown => {
            Failure::detailed(Reason::LeaseLapsed, "no heartbeat for a whole lease")
        }
    }
}

/// The failure of a worker that was told to stop and still holds turns when its time to drain is over.
pub fn not_drained() -> Failure {
    Failure::detailed(Reason::Deleted, "not finished within drainSeconds")
}

/// The failure of a worker that said that it ends, and still holds turns.
pub fn left() -> Failure {
    Failure::detailed(Reason::WorkerExited, "the worker left with the turn in hand")
}

/// The failure of a worker whose container or process has connected as another incarnation, which proves that the first
/// process is gone.
pub fn replaced() -> Failure {
    Failure::detailed(Reason::WorkerExited, "another incarnation started under the same credential")
}

/// The failure of a worker that is proven dead and whose cause of death did not become known within the cause window.
pub fn unexplained() -> Failure {
    Failure::detailed(Reason::WorkerExited, "the cause was not learnt in time")
}

/// The failure of a turn that still names a worker which died before: the reason and detail of that death. The reason
/// is `None` if only a newer version of Lastword knows it; the turn ends all the same.
pub fn died_before(reason: Option<Reason>, detail: Option<String>) -> Failure {
    Failure { detail, ..Failure::new(reason.unwrap_or(Reason::WorkerExited)) }
}

/// The failure of a turn that a worker was given, and that is not among the turns that its heartbeats name.
pub fn lost_by_worker() -> Failure {
    Failure::detailed(Reason::AgentError, "the worker was pushed the turn and does not hold it")
}
