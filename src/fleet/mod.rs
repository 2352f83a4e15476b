//! The fleet: workers come with demand and go with idleness. One logic, two runtimes.
//!
//! A pass reads Agents, demand and workers, decides ([`plan`], pure), and carries it out. A start is a lease row first,
//! then a process or a pod; a death is reported by the runtime with proof and ends the lease at once. Two fleets at once
//! cost work, never correctness: everything they decide is fenced by leases and markers.

pub mod plan;
pub mod process;
mod runtime;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::crd::AgentSpec;
use crate::store::{Lease, NewStart, Notice, Store, StoreError};
use crate::turn::decide::{AfterLook, after_look};
use crate::turn::keys::{Incarnation, StartId};
use crate::turn::reason::Reason;
use crate::wire::Credential;
pub use plan::{Action, KnownAgent, plan};
pub use runtime::{Death, StartRequest, WorkerRuntime};

/// A pass that takes longer is given up: its connection may be dead, unknown to the kernel.
const MAX_PASS: Duration = Duration::from_secs(30);
/// The least pause between passes, however many notices wake them.
const LEAST_PAUSE: Duration = Duration::from_millis(20);
/// How long the database may take to note that workers are stopped.
const SAY_STOP: Duration = Duration::from_secs(3);

/// For a worker without a lease to clean up behind itself; nothing that it says counts.
const LAST_GRACE: Duration = Duration::from_secs(5);

/// The fleet's knobs.
#[derive(Debug, Clone)]
pub struct FleetConfig {
    /// Pause between passes that nothing woke.
    pub poll: Duration,
    /// How long the cause of a proven death is waited for.
    pub cause_window: Duration,
}

impl Default for FleetConfig {
    fn default() -> Self {
        FleetConfig { poll: Duration::from_secs(1), cause_window: Duration::from_secs(5) }
    }
}

/// Runs the fleet until `shutdown`, then stops every worker of this runtime and reports their ends.
pub async fn run(store: Store, runtime: Arc<dyn WorkerRuntime>, config: FleetConfig, shutdown: CancellationToken) {
    let wake = Arc::new(Notify::new());
    let listening = shutdown.child_token();
    tokio::spawn(hear(store.clone(), wake.clone(), listening.clone()));
    let reporting = CancellationToken::new();
    let deaths = tokio::spawn(report_deaths(store.clone(), runtime.clone(), wake.clone(), reporting.clone()));
    let mut fleet = Fleet { store, runtime, config, awaited: HashMap::new(), forsaken: HashSet::new(), away: false };
    while !shutdown.is_cancelled() {
        let pass = tokio::time::timeout(MAX_PASS, fleet.pass()).await;
        let pass = pass.unwrap_or_else(|_| Err(StoreError::Unavailable("a pass took too long".into())));
        match pass {
            Ok(()) => fleet.away = false,
            Err(error) if !std::mem::replace(&mut fleet.away, true) => {
                tracing::warn!(%error, "the fleet waits for the database; running workers go on");
            }
            Err(_) => {}
        }
        tokio::time::sleep(LEAST_PAUSE).await;
        tokio::select! {
            () = wake.notified() => {}
            () = tokio::time::sleep(fleet.config.poll) => {}
            () = shutdown.cancelled() => {}
        }
    }
    fleet.stop_all().await;
    // Every worker of ours is reaped now; what the reporter still has, it writes before it ends.
    reporting.cancel();
    if deaths.await.is_err() {
        tracing::error!("the reporter of deaths panicked");
    }
}

/// Wakes the fleet when something may have to be started, looked at or stopped.
async fn hear(store: Store, wake: Arc<Notify>, shutdown: CancellationToken) {
    let relevant = |notice: &Notice| matches!(notice, Notice::Deployment(..) | Notice::Worker(_) | Notice::Agents);
    let mut local = store.local_notices();
    let mut others = store.listen().await.ok();
    loop {
        let heard = async {
            match &mut others {
                Some(notices) => notices.next().await,
                None => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    Err(StoreError::Unavailable("not listening".into()))
                }
            }
        };
        tokio::select! {
            notice = local.recv() => {
                if notice.as_ref().map_or(true, relevant) {
                    wake.notify_one();
                }
            }
            heard = heard => match heard {
                Ok(Some(notices)) if !notices.iter().any(relevant) => {}
                Ok(_) => wake.notify_one(),
                Err(_) => others = store.listen().await.ok(),
            },
            () = shutdown.cancelled() => return,
        }
    }
}

/// Carries every proof of death to the database, for as long as that takes.
async fn report_deaths(store: Store, runtime: Arc<dyn WorkerRuntime>, wake: Arc<Notify>, shutdown: CancellationToken) {
    loop {
        let death = tokio::select! {
            biased;
            death = runtime.next_death() => death,
            () = shutdown.cancelled() => return,
        };
        let (store, wake) = (store.clone(), wake.clone());
        let report = async move {
            loop {
                match bury(&store, &death).await {
                    Ok(()) => return wake.notify_one(),
                    Err(error) => {
                        tracing::warn!(start = %death.start_id, %error, "the death of worker {} waits for the database", death.start_id);
                        tokio::time::sleep(Duration::from_millis(300)).await;
                    }
                }
            }
        };
        // Deaths wait for nothing but the database, and each other only while it is away.
        tokio::select! {
            () = report => {}
            () = async { shutdown.cancelled().await; tokio::time::sleep(Duration::from_secs(2)).await } => return,
        }
    }
}

async fn bury(store: &Store, death: &Death) -> Result<(), StoreError> {
    // Again until none lives: a worker that connected at this moment gave its lease another name.
    while let Some(incarnation) = store.incarnation_of(death.start_id).await? {
        let failed = store.fail_worker(incarnation, &death.failure).await?;
        if failed.died_now {
            tracing::info!(%incarnation, turns = failed.ended.len(), detail = death.failure.detail.as_deref(),
                "worker {incarnation} is dead ({}); {} turns ended with it", death.failure.reason, failed.ended.len());
        }
    }
    Ok(())
}

struct Fleet {
    store: Store,
    runtime: Arc<dyn WorkerRuntime>,
    config: FleetConfig,
    /// Proven deaths whose cause is awaited, since when.
    awaited: HashMap<Incarnation, Instant>,
    /// Workers without a lease that were told to end.
    forsaken: HashSet<StartId>,
    away: bool,
}

impl Fleet {
    async fn pass(&mut self) -> Result<(), StoreError> {
        let agents = self.agents().await?;
        let demand = self.store.demand().await?;
        let workers = self.store.workers().await?;
        for suspected in workers.iter().filter(|w| w.suspected) {
            self.look(suspected).await?;
        }
        self.awaited.retain(|incarnation, _| workers.iter().any(|w| w.incarnation == *incarnation));
        self.end_the_forsaken(&workers).await;
        for action in plan(&agents, &demand, &workers) {
            self.act(action, &agents).await?;
        }
        for (key, agent) in &agents {
            self.store.shed(&key.0, &key.1, agent.spec.limits.max_queued_turns()).await?;
        }
        for (organization, name) in self.store.removed_agents().await? {
            self.store.orphan(&organization, &name).await?;
        }
        Ok(())
    }

    /// Ends the workers whose lease has ended without them: silent for too long, not connected in time, not drained in
    /// time. Each was started by an earlier pass, so that its lease, if it had one, was read.
    async fn end_the_forsaken(&mut self, workers: &[Lease]) {
        let running = self.runtime.running();
        self.forsaken.retain(|start| running.contains(start));
        for start in running {
            if !workers.iter().any(|w| w.start_id == start) && self.forsaken.insert(start) {
                tracing::info!(%start, "worker {start} has no lease any more and is ended");
                self.runtime.stop(start, LAST_GRACE).await;
            }
        }
    }

    async fn agents(&self) -> Result<HashMap<(String, String), KnownAgent>, StoreError> {
        let mut agents = HashMap::new();
        for stored in self.store.agents().await? {
            // The gateway logs what cannot be read; here it starts nothing.
            if let Ok(spec) = serde_json::from_value::<AgentSpec>(stored.spec) {
                let known = KnownAgent { spec: Arc::new(spec), generation: stored.generation };
                agents.insert((stored.namespace, stored.name), known);
            }
        }
        Ok(agents)
    }

    async fn act(&self, action: Action, agents: &HashMap<(String, String), KnownAgent>) -> Result<(), StoreError> {
        match action {
            Action::Start { organization, agent, deployment } => {
                if let Some(known) = agents.get(&(organization.clone(), agent.clone())) {
                    self.start(organization, agent, deployment, known).await?;
                }
            }
            Action::Drain { incarnation, start_id, reason, grace, only_idle } => {
                let told = match only_idle {
                    true => self.store.drain_idle_worker(incarnation, reason).await?,
                    false => self.store.drain_worker(incarnation, reason).await?,
                };
                if told {
                    tracing::info!(%incarnation, "worker {incarnation} is told to stop");
                    self.runtime.stop(start_id, grace).await;
                }
            }
        }
        Ok(())
    }

    async fn start(
        &self,
        organization: String,
        agent: String,
        deployment: String,
        known: &KnownAgent,
    ) -> Result<(), StoreError> {
        let (spec, timing) = (&known.spec, &known.spec.timing);
        let start_id = StartId::new();
        let credential = Credential::new(start_id);
        let row = NewStart {
            start_id,
            organization: organization.clone(),
            agent: agent.clone(),
            deployment: deployment.clone(),
            generation: known.generation,
            runtime: self.runtime.name(),
            runtime_ref: self.runtime.reference(start_id),
            secret_hash: credential.hash(),
            capacity: spec.limits.turns_per_worker(),
            heartbeat_seconds: timing.heartbeat().as_secs_f64().round().max(1.0) as u32,
            lease_seconds: timing.lease_seconds(),
            drain_seconds: timing.drain_seconds(),
            start_attempts: timing.start_attempts(),
            start_seconds: timing.start_seconds(),
        };
        let only_first = plan::is_per_conversation(spec);
        if !self.store.start_worker(&row, only_first).await? {
            return Ok(());
        }
        tracing::info!(start = %start_id, deployment, "starting worker {start_id} for {organization}/{deployment}");
        let request = StartRequest { start_id, organization, agent, deployment, spec: spec.clone(), credential };
        if let Err(failure) = self.runtime.start(request).await {
            self.store.fail_worker(Incarnation(start_id.0), &failure).await?;
        }
        Ok(())
    }

    /// Asks the runtime about a suspected worker. Only proof ends it.
    async fn look(&mut self, worker: &Lease) -> Result<(), StoreError> {
        let look = self.runtime.look(worker.start_id, &worker.runtime_ref).await;
        let since = self.awaited.entry(worker.incarnation).or_insert_with(Instant::now);
        match after_look(look, since.elapsed() >= self.config.cause_window) {
            AfterLook::Fail(failure) => drop(self.store.fail_worker(worker.incarnation, &failure).await?),
            AfterLook::AwaitCause => {}
            AfterLook::Nothing => drop(self.awaited.remove(&worker.incarnation)),
        }
        Ok(())
    }

    /// This machine's part of the fleet goes: what its workers leave behind says so.
    async fn stop_all(&self) {
        let say = async {
            for worker in self.store.workers().await?.iter().filter(|w| self.runtime.owns(&w.runtime_ref)) {
                self.store.drain_worker(worker.incarnation, Reason::NodeShutdown).await?;
            }
            Ok::<_, StoreError>(())
        };
        // Without the database the next start fails what is left.
        if !matches!(tokio::time::timeout(SAY_STOP, say).await, Ok(Ok(()))) {
            tracing::warn!("workers are stopped without a word in the database");
        }
        self.runtime.shutdown().await;
    }
}
