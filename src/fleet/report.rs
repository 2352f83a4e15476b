//! Reports the deaths of workers to the database. None is lost while the database is away.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::runtime::Death;
use crate::every::Outage;
use crate::store::Store;
use crate::turn::decide::{AfterLook, Look, after_look};
use crate::turn::keys::StartId;
use crate::turn::terminal::Failure;

/// The time between two attempts to report a death that the database did not take, or whose cause is waited for.
const RETRY: Duration = Duration::from_millis(250);

/// The deaths that are to be reported.
pub(super) struct Reports {
    store: Store,
    /// How long the cause of a death is waited for.
    cause_window: Duration,
    /// Wakes the passes: a death leaves room for another worker, and perhaps turns that need one.
    wake: Arc<Notify>,
    pending: HashMap<StartId, PendingDeath>,
    outage: Outage,
}

/// A death that the database does not know yet. There is at most one for each worker.
struct PendingDeath {
    cause: Option<Failure>,
    /// When this process learned of it.
    since: Instant,
}

impl Reports {
    pub fn new(store: Store, cause_window: Duration, wake: Arc<Notify>) -> Self {
        let outage = Outage::new("the report of workers' deaths");
        Reports { store, cause_window, wake, pending: HashMap::new(), outage }
    }

    /// Reports deaths until `end`, and then until none is pending; the caller bounds that. Neither channel has a bound,
    /// since a worker's death comes once, or twice with a late cause. `deaths` are the runtime's; `looked` are those
    /// that looks at suspected workers and failed starts prove.
    pub async fn run(
        mut self,
        mut deaths: mpsc::UnboundedReceiver<Death>,
        mut looked: mpsc::UnboundedReceiver<Death>,
        end: CancellationToken,
    ) {
        loop {
            let retry = tokio::time::sleep(RETRY);
            tokio::select! {
                Some(death) = deaths.recv() => self.note(death),
                Some(death) = looked.recv() => self.note(death),
                () = retry, if !self.pending.is_empty() => {}
                () = end.cancelled() => break,
            }
            while let Ok(death) = deaths.try_recv() {
                self.note(death);
            }
            self.report().await;
        }
        // `looked` may still hold starts that failed in the fleet's last pass.
        while let Ok(death) = deaths.try_recv().or_else(|_| looked.try_recv()) {
            self.note(death);
        }
        loop {
            self.report().await;
            if self.pending.is_empty() {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Notes a death, or the cause of one that is pending.
    fn note(&mut self, death: Death) {
        let pending =
            self.pending.entry(death.start_id).or_insert_with(|| PendingDeath { cause: None, since: Instant::now() });
        if death.cause.is_some() {
            pending.cause = death.cause;
        }
    }

    /// Reports the deaths whose cause is known or has been waited for. After an error the rest is tried later.
    async fn report(&mut self) {
        let mut due = Vec::new();
        for (&start, pending) in &self.pending {
            let look = Look::Terminated { cause: pending.cause.clone() };
            if let AfterLook::Fail(failure) = after_look(look, pending.since.elapsed() >= self.cause_window) {
                due.push((start, failure));
            }
        }
        for (start, failure) in due {
            match self.store.fail_start(start, &failure).await {
                Ok(failed) => {
                    self.pending.remove(&start);
                    self.outage.is_over();
                    // `None`: the lease was dead already.
                    if let Some((incarnation, failed)) = failed
                        && failed.died_now
                    {
                        let (reason, turns) = (failure.reason, failed.ended.len());
                        let detail = failure.detail.as_deref().unwrap_or_default();
                        tracing::warn!(%start, %incarnation, %reason, turns, detail, "worker died");
                        self.wake.notify_one();
                    }
                }
                Err(error) => return self.outage.goes_on(&error),
            }
        }
    }
}
