//! Carries out what a pass has planned: writes the store first, then tells the runtime.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::plan::{Action, AgentKey, DrainCause, PlannedAgent};
use super::runtime::{Death, StartRequest, WorkerRuntime};
use crate::crd::AgentSpec;
use crate::store::{Lease, NewStart, Store, StoreError};
use crate::turn::cause;
use crate::turn::cause::stop::{self, Stopper};
use crate::turn::decide::Look;
use crate::turn::keys::{Incarnation, StartId, WorkerGroup};
use crate::turn::reason::Reason;
use crate::wire::Credential;

/// The most turns that one call of the store sheds or orphans.
const BATCH: u32 = 500;
/// The most such calls for one Agent in one pass.
const MAX_BATCHES: usize = 20;

/// Carries out actions, several at a time.
pub(super) struct ActionRunner {
    store: Store,
    runtime: Arc<dyn WorkerRuntime>,
    /// Deaths that looks and failed starts prove.
    deaths: mpsc::UnboundedSender<Death>,
    /// Starts of which nobody knows whether their row was written, since the database did not answer. The runtime was not
    /// asked for their workers.
    unsure: Mutex<HashSet<StartId>>,
}

impl ActionRunner {
    pub fn new(store: Store, runtime: Arc<dyn WorkerRuntime>, deaths: mpsc::UnboundedSender<Death>) -> Self {
        ActionRunner { store, runtime, deaths, unsure: Mutex::default() }
    }

    /// Carries one action out. If the runtime was told to stop a worker, this gives its start.
    pub async fn run(
        &self,
        action: Action,
        agents: &HashMap<&AgentKey, &PlannedAgent>,
    ) -> Result<Option<StartId>, StoreError> {
        match action {
            Action::Start { agent, worker_group, only_first } => {
                if let Some(agent) = agents.get(&agent) {
                    self.start(agent, worker_group, only_first).await?;
                }
                Ok(None)
            }
            Action::Remake { agent, worker_group, start_id, runtime_ref } => {
                if let Some(agent) = agents.get(&agent)
                    && let Some(spec) = agent.spec.clone()
                {
                    let request = StartRequest { runtime_ref, ..request(agent, spec, worker_group, start_id) };
                    self.make(&request).await;
                }
                Ok(None)
            }
            Action::Drain { incarnation, start_id, runtime_ref, cause } => {
                let reason = stop::reason(Stopper::Plan);
                let told = match cause {
                    // The plan rests on what was read before: the worker may have claimed a turn since.
                    DrainCause::Idle | DrainCause::MakeRoom | DrainCause::Replaced | DrainCause::Excess => {
                        self.store.drain_idle_worker(incarnation, reason).await?
                    }
                    DrainCause::Changed | DrainCause::Removed | DrainCause::ConversationGone => {
                        self.store.drain_worker(incarnation, reason).await?
                    }
                };
                if told {
                    self.stop_drained(incarnation, start_id, &runtime_ref, cause.as_str()).await;
                    return Ok(Some(start_id));
                }
                Ok(None)
            }
            Action::Retire { incarnation } => {
                self.retire(incarnation).await?;
                Ok(None)
            }
            Action::Replace { agent, worker_group, incarnation } => {
                if let Some(agent) = agents.get(&agent)
                    && self.retire(incarnation).await?
                {
                    self.start(agent, worker_group, true).await?;
                }
                Ok(None)
            }
            Action::Restore { incarnation } => {
                if self.store.restore_worker(incarnation).await? {
                    tracing::warn!(%incarnation, "worker {incarnation} serves on: the one that was to replace it did not come to life");
                }
                Ok(None)
            }
            Action::Stop { start_id, runtime_ref } => {
                self.runtime.stop(start_id, &runtime_ref).await;
                Ok(Some(start_id))
            }
            Action::Look { start_id, runtime_ref } => {
                self.look(start_id, &runtime_ref).await;
                Ok(None)
            }
            Action::Shed { agent, max_queued } => {
                let shed = || self.store.shed_queue_of_agent(&agent.organization, &agent.name, max_queued);
                let turns = in_batches(shed).await?;
                if turns > 0 {
                    let AgentKey { organization, name } = &agent;
                    tracing::warn!(organization, agent = name, turns, max_queued, "shed turns beyond maxQueuedTurns");
                }
                Ok(None)
            }
        }
    }

    /// Starts a worker: its lease's row is written first, then the runtime is asked for it.
    async fn start(&self, agent: &PlannedAgent, worker_group: WorkerGroup, only_first: bool) -> Result<(), StoreError> {
        let Some(spec) = agent.spec.clone() else { return Ok(()) };
        let start_id = StartId::new();
        let mut request = request(agent, spec, worker_group, start_id);
        if self.runtime.numbered() {
            request.attempt = self.store.next_start_number().await?;
        }
        request.runtime_ref = self.runtime.reference(&request);
        let row = new_start(&request, &*self.runtime);
        match self.store.start_worker(&row, only_first).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => {
                self.unsure.lock().unwrap_or_else(PoisonError::into_inner).insert(start_id);
                return Err(error);
            }
        }
        let StartRequest { organization, agent, .. } = &request;
        let worker_group = request.worker_group.name(agent);
        tracing::info!(organization, agent, worker_group, start = %start_id, "starting a worker");
        self.make(&request).await;
        Ok(())
    }

    /// Lets a worker claim nothing more; true if it did until now.
    async fn retire(&self, incarnation: Incarnation) -> Result<bool, StoreError> {
        let retired = self.store.retire_worker(incarnation).await?;
        if retired {
            tracing::info!(%incarnation, "worker {incarnation} takes no more turns: its Agent changed");
        }
        Ok(retired)
    }

    /// Asks the runtime for a worker whose lease is written.
    async fn make(&self, request: &StartRequest) {
        if let Err(failure) = self.runtime.start(request).await {
            // The failure is reported as a death, since a report is not lost if the database goes away just now.
            let _ = self.deaths.send(Death { start_id: request.start_id, cause: Some(failure) });
        }
    }

    /// Ends the leases of the `unsure` starts that were written after all, and whose workers do not exist. They end as if they
    /// had been stopped, so that no turn fails for an outage. A start whose worker another leader has made meanwhile (see
    /// [`Action::Remake`]) is left alone.
    pub async fn withdraw(&self, workers: &[Lease]) -> Result<(), StoreError> {
        let unsure = std::mem::take(&mut *self.unsure.lock().unwrap_or_else(PoisonError::into_inner));
        for worker in workers.iter().filter(|w| unsure.contains(&w.start_id)) {
            let failure = cause::start::unsure();
            let withdrawn = async {
                if self.store.withdraw_start(worker.start_id, stop::reason(Stopper::Withdrawal)).await? {
                    self.store.fail_worker(worker.incarnation, &failure).await?;
                }
                Ok::<_, StoreError>(())
            };
            if let Err(error) = withdrawn.await {
                self.unsure.lock().unwrap_or_else(PoisonError::into_inner).extend(unsure);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Drains a worker; true if the runtime was told to stop it.
    async fn drain(
        &self,
        incarnation: Incarnation,
        start_id: StartId,
        runtime_ref: &str,
        reason: Reason,
        why: &str,
    ) -> Result<bool, StoreError> {
        if !self.store.drain_worker(incarnation, reason).await? {
            // The worker has changed its incarnation, has died, or drains already; the next pass sees which.
            return Ok(false);
        }
        self.stop_drained(incarnation, start_id, runtime_ref, why).await;
        Ok(true)
    }

    /// Tells the runtime to stop a worker whose lease is draining now.
    async fn stop_drained(&self, incarnation: Incarnation, start_id: StartId, runtime_ref: &str, why: &str) {
        tracing::info!(%incarnation, start = %start_id, "draining worker {incarnation}: {why}");
        self.runtime.stop(start_id, runtime_ref).await;
    }

    /// Asks the runtime for a suspected worker, and reports it if it is dead.
    async fn look(&self, start_id: StartId, runtime_ref: &str) {
        let look = self.runtime.look(start_id, runtime_ref).await;
        tracing::debug!(start = %start_id, ?look, "looked at a suspected worker");
        if let Look::Terminated { cause } = look {
            let _ = self.deaths.send(Death { start_id, cause });
        }
    }

    /// Ends the waiting turns of Agents that were removed.
    pub async fn orphan(&self) -> Result<(), StoreError> {
        for (organization, agent) in self.store.removed_agents().await? {
            let turns = in_batches(|| self.store.end_turns_of_removed_agent(&organization, &agent)).await?;
            if turns > 0 {
                tracing::info!(organization, agent, turns, "ended the waiting turns of a removed Agent");
            }
        }
        Ok(())
    }

    /// Drains the workers that end with this process, so that they claim nothing more. Waits for the database at most
    /// `within`.
    pub async fn leave(&self, within: Duration) {
        let leave = async {
            let running: HashSet<StartId> = self.runtime.running().await.into_iter().collect();
            let workers = self.store.living_workers().await?;
            let reason = stop::reason(Stopper::ShutDown);
            let held = workers.iter().filter(|w| running.contains(&w.start_id) && !w.stopping);
            let drains = held
                .map(|w| self.drain(w.incarnation, w.start_id, &w.runtime_ref, reason, "lastword is shutting down"));
            futures::future::try_join_all(drains).await.map(|_| ())
        };
        match tokio::time::timeout(within, leave).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the workers' drain is not in the database"),
            Err(_) => tracing::warn!("the workers' drain is not in the database: no answer within {within:?}"),
        }
    }
}

/// Repeats a call while it ends as many turns as one call may; gives the number of turns that were ended.
async fn in_batches<F: Future<Output = Result<u32, StoreError>>>(call: impl Fn() -> F) -> Result<u32, StoreError> {
    let mut all = 0;
    for _ in 0..MAX_BATCHES {
        let some = call().await?;
        all += some;
        if some < BATCH {
            break;
        }
    }
    Ok(all)
}

/// The request for a worker, as far as it is known before the start is written.
fn request(agent: &PlannedAgent, spec: Arc<AgentSpec>, worker_group: WorkerGroup, start_id: StartId) -> StartRequest {
    StartRequest {
        start_id,
        organization: agent.key.organization.clone(),
        agent: agent.key.name.clone(),
        worker_group,
        config: agent.config,
        spec,
        agent_uid: agent.uid.clone(),
        attempt: 0,
        runtime_ref: String::new(),
        credential: Credential::new(start_id),
    }
}

/// The lease's row of a start.
fn new_start(request: &StartRequest, runtime: &dyn WorkerRuntime) -> NewStart {
    let (limits, timing) = (&request.spec.limits, &request.spec.timing);
    NewStart {
        start_id: request.start_id,
        organization: request.organization.clone(),
        agent: request.agent.clone(),
        worker_group: request.worker_group,
        config: request.config,
        runtime: runtime.name(),
        runtime_ref: request.runtime_ref.clone(),
        secret_hash: request.credential.hash(),
        capacity: limits.turns_per_worker(),
        heartbeat_seconds: timing.whole_heartbeat_seconds(),
        lease_seconds: timing.lease_seconds(),
        drain_seconds: timing.drain_seconds(),
        start_attempts: timing.start_attempts(),
        start_seconds: timing.start_seconds(),
    }
}
