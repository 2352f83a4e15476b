//! Waits to learn why a worker was stopped.
//!
//! A worker that gets SIGTERM does not learn why. In Kubernetes the controller sees the cause (an eviction, a deleted
//! pod, a node that shuts down) and records it on the lease within moments. The last words of such a worker wait for
//! that record, no longer than the cause window, so that its turns end with the true reason.

use std::time::Duration;

use tokio::time::Instant;

use super::WorkerPort;
use crate::store::StoreError;
use crate::turn::cause::stop;
use crate::turn::keys::Incarnation;
use crate::turn::terminal::Outcome;

/// The pause between two looks at the lease.
const POLL: Duration = Duration::from_millis(50);

impl WorkerPort {
    /// Waits until it is recorded why this worker was stopped. Returns too when nobody is going to record it, or when
    /// the cause window is over.
    pub(super) async fn stop_reason_known(&self, worker: Incarnation) -> Result<(), StoreError> {
        let until = Instant::now() + self.cause_window;
        while self.store.worker_awaits_stop_reason(worker).await? && Instant::now() < until {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// The outcome that a worker reports for a turn, with the stop's reason if the worker reports that its program was
    /// killed and the worker is being stopped.
    pub(super) async fn outcome_of(&self, worker: Incarnation, outcome: Outcome) -> Result<Outcome, StoreError> {
        let Outcome::Error(failure) = outcome else { return Ok(outcome) };
        if !stop::may_explain(&failure) {
            return Ok(Outcome::Error(failure));
        }
        self.stop_reason_known(worker).await?;
        Ok(Outcome::Error(stop::explained(failure, self.store.stop_reason_of_worker(worker).await?)))
    }
}
