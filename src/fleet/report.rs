//! Proofs of death on their way to the database: none is lost while it is away.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::runtime::Death;
use crate::store::{Store, StoreError};
use crate::turn::decide::{AfterLook, Look, after_look};
use crate::turn::keys::StartId;
use crate::turn::terminal::Failure;

/// Between two attempts to report what the database did not take, or whose cause is awaited.
const RETRY: Duration = Duration::from_millis(250);
/// How often one death may find its worker under another incarnation: a connect that committed meanwhile.
const MAX_INCARNATIONS: u32 = 5;

/// Reports deaths until `end`, then what is still pending.
pub(super) struct Reports {
    pub store: Store,
    pub cause_window: Duration,
    /// Wakes the passes: a death makes room, and may leave demand.
    pub wake: Arc<Notify>,
    pending: HashMap<StartId, Pending>,
    away: bool,
}

/// A death that the database does not know yet. There is one for each start that died: as many as workers at the most.
struct Pending {
    cause: Option<Failure>,
    since: Instant,
}

impl Reports {
    pub fn new(store: Store, cause_window: Duration, wake: Arc<Notify>) -> Self {
        Reports { store, cause_window, wake, pending: HashMap::new(), away: false }
    }

    /// `deaths` comes from the runtime, `looked` from looks at suspected workers.
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
        // A start that failed in the last pass came by the second way.
        while let Ok(death) = deaths.try_recv().or_else(|_| looked.try_recv()) {
            self.note(death);
        }
        // The caller bounds this.
        loop {
            self.report().await;
            if self.pending.is_empty() {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    fn note(&mut self, death: Death) {
        let pending =
            self.pending.entry(death.start_id).or_insert_with(|| Pending { cause: None, since: Instant::now() });
        if death.cause.is_some() {
            pending.cause = death.cause;
        }
    }

    async fn report(&mut self) {
        let mut due = Vec::new();
        for (&start, pending) in &self.pending {
            let look = Look::Terminated { cause: pending.cause.clone() };
            if let AfterLook::Fail(failure) = after_look(look, pending.since.elapsed() >= self.cause_window) {
                due.push((start, failure));
            }
        }
        for (start, failure) in due {
            match fail(&self.store, start, failure).await {
                Ok(died_now) => {
                    self.pending.remove(&start);
                    if died_now {
                        self.wake.notify_one();
                    }
                    if std::mem::take(&mut self.away) {
                        tracing::info!("the database takes deaths of workers again");
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.away, true) {
                        tracing::warn!(%error, pending = self.pending.len(), "deaths of workers wait for the database");
                    }
                    return;
                }
            }
        }
    }
}

/// Fails whatever incarnation a dead start has. False: its lease was dead already.
async fn fail(store: &Store, start: StartId, failure: Failure) -> Result<bool, StoreError> {
    let mut died_now = false;
    // A connect of the worker may commit between the two statements, and change the incarnation.
    for _ in 0..MAX_INCARNATIONS {
        let Some(incarnation) = store.incarnation_of_start(start).await? else { return Ok(died_now) };
        let failed = store.fail_worker(incarnation, &failure).await?;
        if failed.died_now {
            let detail = failure.detail.as_deref().unwrap_or_default();
            tracing::warn!(%start, %incarnation, reason = %failure.reason, turns = failed.ended.len(), detail, "worker died");
            died_now = true;
        }
    }
    Err(StoreError::Raced(format!("start {start} changes its incarnation again and again").into()))
}
