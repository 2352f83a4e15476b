//! A running worker process, as those who stop it know it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::child::keeper::KeptProcess;
use crate::turn::keys::StartId;

/// A worker process that is running, or that ended a moment ago and was not reported yet.
pub(super) struct WorkerProcess {
    process: KeptProcess,
    /// The time between SIGTERM and SIGKILL when it is stopped.
    pub grace: Duration,
    stopping: AtomicBool,
}

impl WorkerProcess {
    pub fn new(process: KeptProcess, grace: Duration) -> Self {
        WorkerProcess { process, grace, stopping: AtomicBool::new(false) }
    }

    /// Sends SIGTERM to the worker now; after the grace, kills it and all that it has started. A second call does nothing. The
    /// worker alone gets the SIGTERM, since ending the agent program is the worker's own task.
    pub fn stop(self: &Arc<Self>, start: StartId) {
        if self.stopping.swap(true, Ordering::Relaxed) {
            return;
        }
        warn_undelivered(start, self.process.signal(Signal::TERM));
        let worker = self.clone();
        tokio::spawn(async move {
            if !worker.process.exited_within(worker.grace).await {
                tracing::warn!(%start, "the worker did not end within its drainSeconds and is killed");
                worker.process.end().await;
            }
        });
    }

    /// Kills the worker and all that it has started.
    pub fn kill(self: &Arc<Self>) {
        let worker = self.clone();
        tokio::spawn(async move { worker.process.end().await });
    }
}

/// A signal that was not delivered proves nothing: only reaping is proof of death.
fn warn_undelivered(start: StartId, sent: io::Result<()>) {
    if let Err(error) = sent {
        tracing::warn!(%start, %error, "cannot signal a worker");
    }
}
