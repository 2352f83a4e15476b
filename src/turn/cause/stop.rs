//! Stops of a worker, on purpose or by a signal: the turns that the worker does not finish get the stop's reason.

use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// Who stops a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopper {
    /// The fleet's plan: the worker was idle, its Agent changed or is gone, or another conversation needs the place.
    Plan,
    /// The process that runs the workers shuts down and stops them.
    ShutDown,
    /// Nobody stopped the worker: the process that ran it was restarted, and the worker ended with it.
    Restart,
    /// The fleet takes back a start that was never carried out.
    Withdrawal,
    /// Somebody sent the worker a signal, and the worker does not know why. In Kubernetes the controller, which sees
    /// the pod, soon records the reason.
    Signal,
    /// Somebody deleted the worker's pod. The reason is that of the disruption which the pod's status names, if it
    /// names one.
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

/// Whether a stop may explain this failure: the agent's program was killed, and the worker cannot know who did it.
pub fn may_explain(failure: &Failure) -> bool {
    failure.reason == Reason::WorkerExited
}

/// Gives a worker's report that its program was killed the reason of the stop, if the worker is being stopped.
pub fn explained(failure: Failure, stop: Option<Reason>) -> Failure {
    match stop.filter(|_| may_explain(&failure)) {
        Some(reason) => Failure { detail: failure.detail, ..Failure::new(reason) },
        None => failure,
    }
}
