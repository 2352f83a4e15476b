//! A worker whose lease ends: by silence, after a stop, or by a proof that is weighed against what the lease has on record.

use crate::turn::phase::LeasePhase;
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// On what ground a lease is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// Proof of the worker's death is at hand, or its own word.
    Proof,
    /// No sign of life came for a whole lease, or no worker connected within the start deadline.
    Silence,
    /// It was told to stop, and its time to drain is over.
    DrainOver,
}

/// What a lease has on record, as the one who ends it finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRecord {
    pub phase: LeasePhase,
    pub stop: Option<Stop>,
    /// What held the start up so far.
    pub start: Option<StartCause>,
}

/// A stop on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    pub reason: Reason,
    /// Whoever stops the worker said so; else it is the worker's guess.
    pub recorded: bool,
}

/// What held a start up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartCause {
    /// `None`: a reason that only a newer version knows.
    pub reason: Option<Reason>,
    pub detail: Option<String>,
}

/// What ends the turns of a worker: what the lease knows better than whoever ends it, else what that one `found`.
pub fn known_better(record: &LeaseRecord, found: &Failure, ground: Ground) -> Failure {
    let but = |reason| Failure { detail: found.detail.clone(), ..Failure::new(reason) };
    let mere_exit = found.reason == Reason::WorkerExited;
    match (record.stop, record.phase) {
        // A proof that knows why beats what the worker guessed from a signal.
        (Some(stop), _) if !stop.recorded && ground == Ground::Proof && !mere_exit => found.clone(),
        // What a worker leaves behind after it was told to stop carries the reason of the stop.
        (Some(stop), _) => but(stop.reason),
        // Nobody was connected that could have exited.
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

/// A lease that ran out in this phase.
pub fn lapsed(phase: LeasePhase) -> Failure {
    match phase {
        LeasePhase::Starting => Failure::detailed(Reason::StartFailed, "no worker connected within startSeconds"),
        LeasePhase::Live | LeasePhase::Draining | LeasePhase::Dead | LeasePhase::Unknown => {
            Failure::detailed(Reason::LeaseLapsed, "no heartbeat for a whole lease")
        }
    }
}

/// A worker that was told to stop and still holds turns when its time is over.
pub fn not_drained() -> Failure {
    Failure::detailed(Reason::Deleted, "not finished within drainSeconds")
}

/// A worker that said goodbye for good and still holds turns.
pub fn left() -> Failure {
    Failure::detailed(Reason::WorkerExited, "the worker left with the turn in hand")
}

/// A worker whose container or process has another incarnation now: the process that was the first is gone.
pub fn replaced() -> Failure {
    Failure::detailed(Reason::WorkerExited, "another incarnation started under the same credential")
}

/// A worker that is proven dead, and nobody could say why for as long as a cause is waited for.
pub fn unexplained() -> Failure {
    Failure::detailed(Reason::WorkerExited, "the cause was not learnt in time")
}

/// A turn that still names a worker that died before, with the reason and detail of that death. `None`: a reason that only
/// a newer version knows, which is no reason to leave the turn open.
pub fn died_before(reason: Option<Reason>, detail: Option<String>) -> Failure {
    Failure { detail, ..Failure::new(reason.unwrap_or(Reason::WorkerExited)) }
}

/// A turn that a worker was given, and that is not among those that its heartbeats name.
pub fn lost_by_worker() -> Failure {
    Failure::detailed(Reason::AgentError, "the worker was pushed the turn and does not hold it")
}
