//! A worker that was stopped by a signal knows not why. In Kubernetes somebody does, and records it on the lease within
//! moments: what the worker leaves behind waits for that, no longer than the cause window.

use std::time::Duration;

use tokio::time::Instant;

use super::endpoint::WorkerPort;
use crate::store::StoreError;
use crate::turn::keys::Incarnation;
use crate::turn::reason::Reason;
use crate::turn::terminal::{Failure, Outcome};

/// Between two looks.
const POLL: Duration = Duration::from_millis(50);

impl WorkerPort {
    /// Returns when it is recorded why this worker was stopped, when nobody will, or when the window is over.
    pub(super) async fn stop_reason_known(&self, worker: Incarnation) -> Result<(), StoreError> {
        let until = Instant::now() + self.cause_window;
        while self.store.worker_awaits_stop_reason(worker).await? && Instant::now() < until {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// A worker's last word on a turn: that its program was killed is, while the worker is being stopped, the stop's doing.
    pub(super) async fn outcome_of(&self, worker: Incarnation, outcome: Outcome) -> Result<Outcome, StoreError> {
        let Outcome::Error(failure) = outcome else { return Ok(outcome) };
        if failure.reason != Reason::WorkerExited {
            return Ok(Outcome::Error(failure));
        }
        self.stop_reason_known(worker).await?;
        Ok(Outcome::Error(match self.store.stop_reason_of_worker(worker).await? {
            Some(reason) => Failure { detail: failure.detail, ..Failure::new(reason) },
            None => failure,
        }))
    }
}
