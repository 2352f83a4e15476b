//! One pass after another: read, plan, carry out.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::FleetConfig;
use super::pauses::Pauses;
use super::plan::{Action, Agent, AgentKey, Known, Why, plan};
use super::runtime::{Death, StartRequest, WorkerRuntime};
use crate::crd::AgentSpec;
use crate::leadership::Leadership;
use crate::store::{Lease, NewStart, Store, StoreError, StoredAgent};
use crate::turn::decide::Look;
use crate::turn::keys::{Incarnation, StartId};
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;
use crate::wire::Credential;

/// Ending an Agent's turns takes at most 500 a call: calls of one pass.
const MAX_BATCHES: usize = 20;
const BATCH: u32 = 500;
/// Between two attempts to make a worker of one start.
/// A suspected worker is looked at again after this: as often as passes are polled.
const LOOK_EVERY: Duration = Duration::from_millis(900);
const REMAKE_EVERY: Duration = Duration::from_secs(2);

pub(super) struct Passes {
    store: Store,
    runtime: Arc<dyn WorkerRuntime>,
    config: FleetConfig,
    leadership: Leadership,
    looks: mpsc::UnboundedSender<Death>,
    specs: HashMap<AgentKey, (i64, Option<Arc<AgentSpec>>)>,
    known: Known,
    /// Workers that run without a lease, since when.
    strays: HashMap<StartId, Instant>,
    /// Starts that were made again, and when.
    remade: HashMap<StartId, Instant>,
    /// Suspected workers that were looked at, when.
    looked: HashMap<StartId, Instant>,
    /// Starts whose row may or may not have been written: nothing was started.
    unsure: Mutex<HashSet<StartId>>,
    away: bool,
}

impl Passes {
    pub fn new(
        store: Store,
        runtime: Arc<dyn WorkerRuntime>,
        config: FleetConfig,
        leadership: Leadership,
        looks: mpsc::UnboundedSender<Death>,
    ) -> Self {
        Passes {
            store,
            runtime,
            config,
            leadership,
            looks,
            specs: HashMap::new(),
            known: Known::default(),
            strays: HashMap::new(),
            remade: HashMap::new(),
            looked: HashMap::new(),
            unsure: Mutex::default(),
            away: false,
        }
    }

    pub async fn run(&mut self, wake: &Notify, shutdown: &CancellationToken) {
        let mut poll = tokio::time::interval(self.config.poll);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let polled = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                _ = poll.tick() => true,
                () = wake.notified() => false,
            };
            let begun = Instant::now();
            match self.pass(polled).await {
                Ok(true) => wake.notify_one(),
                Ok(false) => {}
                Err(error) if std::mem::replace(&mut self.away, true) => {
                    tracing::debug!(%error, "the fleet still waits for the database");
                }
                Err(error) => tracing::warn!(%error, "the fleet waits for the database; running workers go on"),
            }
            // Not interrupted by wake-ups: they are answered by the next pass, all at once.
            let spacing = (begun.elapsed() * 5).clamp(self.config.spacing.start, self.config.spacing.end);
            tokio::time::sleep_until(begun + spacing).await;
        }
    }

    /// One pass; true when there is more to do at once.
    async fn pass(&mut self, polled: bool) -> Result<bool, StoreError> {
        // In this order: a worker's lease is older than its process, and its Agent older than its lease.
        let running = self.runtime.running().await;
        let workers = self.store.living_workers().await?;
        self.withdraw(&workers).await?;
        let demand = self.store.demand_of_worker_groups().await?;
        let pauses = Pauses::after(&self.store.futile_starts().await?);
        let agents = self.agents(&pauses).await?;
        self.known.paused = pauses.demand;
        let alive: HashSet<StartId> = workers.iter().map(|w| w.start_id).collect();
        self.known.stopped.retain(|start| alive.contains(start));
        self.known.check_queues = polled;
        self.remade.retain(|start, at| alive.contains(start) && at.elapsed() < REMAKE_EVERY);
        self.known.remade = self.remade.keys().copied().collect();
        self.looked.retain(|_, at| at.elapsed() < LOOK_EVERY);
        self.known.looked = self.looked.keys().copied().collect();
        let mut actions = plan(&agents, &demand, &workers, &self.known);
        let leads = self.leadership.is_leader();
        if !leads {
            actions.retain(|action| matches!(action, Action::Look { .. } | Action::Shed { .. }));
        }
        let remakes = actions.iter().filter_map(|action| match action {
            Action::Remake { start_id, .. } => Some((*start_id, Instant::now())),
            _ => None,
        });
        self.remade.extend(remakes);
        let looks = actions.iter().filter_map(|action| match action {
            Action::Look { start_id, .. } => Some((*start_id, Instant::now())),
            _ => None,
        });
        self.looked.extend(looks);
        let more = actions.len() > self.config.max_actions;
        actions.truncate(self.config.max_actions);
        let agents: HashMap<&AgentKey, &Agent> = agents.iter().map(|a| (&a.key, a)).collect();
        let this = &*self;
        // After an error the rest waits for the next pass; what is under way is finished, not dropped half-way.
        let failed = AtomicBool::new(false);
        let (failed, agents) = (&failed, &agents);
        let done: Vec<Result<Option<StartId>, StoreError>> = futures::stream::iter(actions)
            .map(|action| async move {
                if failed.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let done = this.carry_out(action, agents).await;
                failed.fetch_or(done.is_err(), Ordering::Relaxed);
                done
            })
            .buffer_unordered(this.config.concurrency)
            .collect()
            .await;
        for done in done {
            self.known.stopped.extend(done?);
        }
        if leads {
            self.kill_strays(&running, &alive).await;
        }
        if polled {
            self.orphan().await?;
        }
        if std::mem::take(&mut self.away) {
            tracing::info!("the fleet has its database again");
        }
        Ok(more)
    }

    /// The Agents, each spec parsed once a generation.
    async fn agents(&mut self, pauses: &Pauses) -> Result<Vec<Agent>, StoreError> {
        let stored = self.store.agents().await?;
        let mut before = std::mem::take(&mut self.specs);
        let mut agents = Vec::with_capacity(stored.len());
        for StoredAgent { namespace, name, spec, generation, uid, .. } in stored {
            let key = AgentKey { organization: namespace, name };
            let spec = match before.remove(&key) {
                Some((parsed, spec)) if parsed == generation => spec,
                _ => match serde_json::from_value::<AgentSpec>(spec) {
                    Ok(spec) => Some(Arc::new(spec)),
                    Err(error) => {
                        let (organization, agent) = (&key.organization, &key.name);
                        tracing::error!(organization, agent, generation, %error, "the Agent's spec is unreadable; it gets no workers");
                        None
                    }
                },
            };
            self.specs.insert(key.clone(), (generation, spec.clone()));
            let may_warm = pauses.may_warm(&key, generation);
            agents.push(Agent { key, generation, uid, spec, may_warm });
        }
        Ok(agents)
    }

    /// Carries one action out; answers with the worker whose runtime was told to stop it.
    async fn carry_out(
        &self,
        action: Action,
        agents: &HashMap<&AgentKey, &Agent>,
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
            Action::Drain { incarnation, start_id, runtime_ref, why } => {
                let reason = Reason::Deleted;
                let told = match why {
                    // What was read may be old: whoever works by now is not idle.
                    Why::Idle | Why::MakeRoom => self.store.drain_idle_worker(incarnation, reason).await?,
                    Why::Changed | Why::Removed => self.store.drain_worker(incarnation, reason).await?,
                };
                if told {
                    self.stop_drained(incarnation, start_id, &runtime_ref, why.as_str()).await;
                    return Ok(Some(start_id));
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

    /// A start is a lease row first, then a worker.
    async fn start(&self, agent: &Agent, worker_group: String, only_first: bool) -> Result<(), StoreError> {
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
        let StartRequest { organization, agent, worker_group, .. } = &request;
        tracing::info!(organization, agent, worker_group, start = %start_id, "starting a worker");
        self.make(&request).await;
        Ok(())
    }

    async fn make(&self, request: &StartRequest) {
        if let Err(failure) = self.runtime.start(request).await {
            // As a death, so that it is not lost if the database goes away just now.
            let _ = self.looks.send(Death { start_id: request.start_id, cause: Some(failure) });
        }
    }

    /// Ends the leases of starts that an outage kept from happening. As stops, so that no turn fails for it. One that
    /// another leader has carried out meanwhile is a worker like any other.
    async fn withdraw(&self, workers: &[Lease]) -> Result<(), StoreError> {
        let unsure = std::mem::take(&mut *self.unsure.lock().unwrap_or_else(PoisonError::into_inner));
        for worker in workers.iter().filter(|w| unsure.contains(&w.start_id)) {
            let failure = Failure::detailed(Reason::StartFailed, "the database was away when the start was written");
            let withdrawn = async {
                if self.store.withdraw_start(worker.start_id, Reason::StartFailed).await? {
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

    /// True when the runtime was told.
    async fn drain(
        &self,
        incarnation: Incarnation,
        start_id: StartId,
        runtime_ref: &str,
        reason: Reason,
        why: &str,
    ) -> Result<bool, StoreError> {
        if !self.store.drain_worker(incarnation, reason).await? {
            // It connected meanwhile, died, or drains already: the next pass sees which.
            return Ok(false);
        }
        self.stop_drained(incarnation, start_id, runtime_ref, why).await;
        Ok(true)
    }

    async fn stop_drained(&self, incarnation: Incarnation, start_id: StartId, runtime_ref: &str, why: &str) {
        tracing::info!(%incarnation, start = %start_id, "draining worker {incarnation}: {why}");
        self.runtime.stop(start_id, runtime_ref).await;
    }

    async fn look(&self, start_id: StartId, runtime_ref: &str) {
        let look = self.runtime.look(start_id, runtime_ref).await;
        tracing::debug!(start = %start_id, ?look, "looked at a suspected worker");
        if let Look::Terminated { cause } = look {
            let _ = self.looks.send(Death { start_id, cause });
        }
    }

    /// A worker without a lease serves nobody, and nothing that it says counts.
    async fn kill_strays(&mut self, running: &[StartId], alive: &HashSet<StartId>) {
        let stray: HashSet<StartId> = running.iter().copied().filter(|start| !alive.contains(start)).collect();
        self.strays.retain(|start, _| stray.contains(start));
        for start in stray {
            if self.strays.entry(start).or_insert_with(Instant::now).elapsed() >= self.config.stray {
                tracing::warn!(%start, "killing a worker whose lease is dead");
                self.runtime.kill(start).await;
            }
        }
    }

    async fn orphan(&self) -> Result<(), StoreError> {
        for (organization, agent) in self.store.removed_agents().await? {
            let turns = in_batches(|| self.store.end_turns_of_removed_agent(&organization, &agent)).await?;
            if turns > 0 {
                tracing::info!(organization, agent, turns, "ended the waiting turns of a removed Agent");
            }
        }
        Ok(())
    }

    /// This process ends, and its workers with it: nothing more is claimed by them.
    pub async fn leave(&mut self, within: Duration) {
        let leave = async {
            let running: HashSet<StartId> = self.runtime.running().await.into_iter().collect();
            let workers = self.store.living_workers().await?;
            let drains = workers.iter().filter(|w| running.contains(&w.start_id) && !w.stopping).map(|w| {
                self.drain(w.incarnation, w.start_id, &w.runtime_ref, Reason::NodeShutdown, "lastword is shutting down")
            });
            futures::future::try_join_all(drains).await.map(|_| ())
        };
        match tokio::time::timeout(within, leave).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the workers' drain is not in the database"),
            Err(_) => tracing::warn!("the workers' drain is not in the database: no answer within {within:?}"),
        }
    }
}

/// Calls again while a call ends as many turns as one may.
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

fn request(agent: &Agent, spec: Arc<AgentSpec>, worker_group: String, start_id: StartId) -> StartRequest {
    StartRequest {
        start_id,
        organization: agent.key.organization.clone(),
        agent: agent.key.name.clone(),
        worker_group,
        generation: agent.generation,
        spec,
        agent_uid: agent.uid.clone(),
        attempt: 0,
        runtime_ref: String::new(),
        credential: Credential::new(start_id),
    }
}

fn new_start(request: &StartRequest, runtime: &dyn WorkerRuntime) -> NewStart {
    let (limits, timing) = (&request.spec.limits, &request.spec.timing);
    NewStart {
        start_id: request.start_id,
        organization: request.organization.clone(),
        agent: request.agent.clone(),
        worker_group: request.worker_group.clone(),
        generation: request.generation,
        runtime: runtime.name(),
        runtime_ref: request.runtime_ref.clone(),
        secret_hash: request.credential.hash(),
        capacity: limits.turns_per_worker(),
        // Whole seconds in the protocol: a lease of 1 or 2 s beats each second.
        heartbeat_seconds: (timing.heartbeat().as_secs() as u32).max(1),
        lease_seconds: timing.lease_seconds(),
        drain_seconds: timing.drain_seconds(),
        start_attempts: timing.start_attempts(),
        start_seconds: timing.start_seconds(),
    }
}
