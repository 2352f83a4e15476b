//! A worker that is stopped, on purpose or by a signal: what it leaves behind carries the stop's reason.

use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// Who stops a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopper {
    /// The fleet's plan: the worker was idle, its Agent changed or is gone, or another conversation needs the place.
    Plan,
    /// The process that runs the workers shuts down, and they with it.
    ShutDown,
    /// Nobody: the process that ran it was restarted, and it is gone.
    Restart,
    /// The fleet takes back a start that was never carried out.
    Withdrawal,
    /// Somebody who sent the worker a signal. The worker guesses: whoever stopped the pod, if it is one, records it soon.
    Signal,
    /// Somebody deleted the worker's pod; with the disruption that the pod names, if it does.
    PodDeletion(Option<Reason>),
}

/// The reason that goes on record for a stop.
pub fn reason(stopper: Stopper) -> Reason {
    match stopper {
        Stopper::Plan => Reason::Deleted,
        Stopper::ShutDown | Stopper::Signal => Reason::NodeShutdown,
        Stopper::Restart => Reason::WorkerExited,
        Stopper::Withdrawal => Reason::StartFailed,
        Stopper::PodDeletion(disruption) => disruption.unwrap_or(Reason::Deleted),
    }
}

/// Whether a worker's word on a turn may be a stop's doing: its program was killed, and it does not know by whom.
pub fn may_explain(failure: &Failure) -> bool {
    failure.reason == Reason::WorkerExited
}

/// A worker's word that its program was killed: while the worker is being stopped, that is the stop's doing.
pub fn explained(failure: Failure, stop: Option<Reason>) -> Failure {
    match stop.filter(|_| may_explain(&failure)) {
        Some(reason) => Failure { detail: failure.detail, ..Failure::new(reason) },
        None => failure,
    }
}
