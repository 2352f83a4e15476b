//! The passes of the fleet: read, plan, carry out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::action::ActionRunner;
use super::config::FleetConfig;
use super::pauses::Pauses;
use super::plan::{Action, AgentKey, PlanContext, PlannedAgent, plan};
use super::runtime::{Death, WorkerRuntime};
use crate::crd::AgentSpec;
use crate::every::{Again, Cause, Every};
use crate::leadership::Leadership;
use crate::store::{ClaimOrder, Store, StoreError, StoredAgent};
use crate::turn::keys::StartId;

/// A suspected worker is looked at again after this: a little less than the default poll, so that each polled pass looks.
const LOOK_EVERY: Duration = Duration::from_millis(900);
/// The time between two attempts to make the worker of one start.
const REMAKE_EVERY: Duration = Duration::from_secs(2);

/// What is kept from one pass to the next.
pub(super) struct Passes {
    store: Store,
    runtime: Arc<dyn WorkerRuntime>,
    config: FleetConfig,
    leadership: Leadership,
    runner: ActionRunner,
    /// The Agents' specs as they were parsed last, with the generation; `None` for one that cannot be parsed.
    specs: HashMap<AgentKey, (i64, Option<Arc<AgentSpec>>)>,
    context: PlanContext,
    /// Which worker groups come first, if there are too few places for all: both orders in turn.
    order: ClaimOrder,
    /// Workers that run without a lease, and since when.
    strays: HashMap<StartId, Instant>,
    /// Starts that were made again, and when.
    remade: HashMap<StartId, Instant>,
    /// Suspected workers that were looked at, and when.
    looked: HashMap<StartId, Instant>,
}

impl Passes {
    /// `deaths` takes the deaths that looks and failed starts prove.
    pub fn new(
        store: Store,
        runtime: Arc<dyn WorkerRuntime>,
        config: FleetConfig,
        leadership: Leadership,
        deaths: mpsc::UnboundedSender<Death>,
    ) -> Self {
        Passes {
            runner: ActionRunner::new(store.clone(), runtime.clone(), deaths),
            store,
            runtime,
            config,
            leadership,
            specs: HashMap::new(),
            context: PlanContext::default(),
            order: ClaimOrder::default(),
            strays: HashMap::new(),
            remade: HashMap::new(),
            looked: HashMap::new(),
        }
    }

    /// Makes passes until `shutdown`: one each [`FleetConfig::poll`], the first at once, and one at each wake-up. Two passes
    /// begin at least [`FleetConfig::spacing`] apart.
    pub async fn run(&mut self, wake: &Notify, shutdown: &CancellationToken) {
        let mut passes = Every::new("the fleet", self.config.poll).at_once().woken_by(wake);
        while let Some(cause) = passes.next(shutdown).await {
            let begun = Instant::now();
            let done = self.pass(cause == Cause::Period).await;
            if let Ok(Again::AtOnce) = done {
                // The rest is left to a wake-up, so that the pass which does it comes after the spacing and does not
                // count as a poll.
                wake.notify_one();
            }
            passes.ended(done.map(|_| Again::Later));
            // Wake-ups do not interrupt this: the next pass answers them all.
            let spacing = (begun.elapsed() * 5).clamp(self.config.spacing.start, self.config.spacing.end);
            tokio::time::sleep_until(begun + spacing).await;
        }
    }

    /// Drains the workers that end with this process, see [`ActionRunner::leave`].
    pub async fn leave(&self, within: Duration) {
        self.runner.leave(within).await;
    }

    /// Makes one pass. Those that are `polled` also check the queues of all Agents and look for removed ones.
    async fn pass(&mut self, polled: bool) -> Result<Again, StoreError> {
        // The order of these reads matters: a worker's lease is older than its process, and its Agent is older than its
        // lease.
        let running = self.runtime.running().await;
        let workers = self.store.living_workers().await?;
        self.runner.withdraw(&workers).await?;
        let demand = self.store.demand_of_worker_groups(self.order).await?;
        let pauses = Pauses::after(&self.store.futile_starts().await?);
        let agents = self.agents(&pauses).await?;
        let alive: HashSet<StartId> = workers.iter().map(|w| w.start_id).collect();
        self.refresh_context(&alive, pauses, polled);
        let mut actions = plan(&agents, &demand, &workers, &self.context);
        let leads = self.leadership.is_leader();
        if !leads {
            actions.retain(|action| matches!(action, Action::Look { .. } | Action::Shed { .. }));
        }
        if actions.iter().any(|action| matches!(action, Action::Start { .. })) {
            self.order = self.order.next();
        }
        self.note(&actions);
        let more = actions.len() > self.config.max_actions;
        actions.truncate(self.config.max_actions);
        self.carry_out(actions, &agents).await?;
        if leads {
            self.kill_strays(&running, &alive).await;
        }
        if polled {
            self.runner.orphan().await?;
        }
        Ok(if more { Again::AtOnce } else { Again::Later })
    }

    /// Reads the Agents. Each spec is parsed once a generation.
    async fn agents(&mut self, pauses: &Pauses) -> Result<Vec<PlannedAgent>, StoreError> {
        let stored = self.store.agents().await?;
        let mut before = std::mem::take(&mut self.specs);
        let mut agents = Vec::with_capacity(stored.len());
        for StoredAgent { namespace, name, spec, generation, config, proven, uid } in stored {
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
            let may_warm = pauses.may_warm(&key, config);
            agents.push(PlannedAgent { key, config, proven, uid, spec, may_warm });
        }
        Ok(agents)
    }

    /// Forgets what is over, and tells the plan the rest.
    fn refresh_context(&mut self, alive: &HashSet<StartId>, pauses: Pauses, polled: bool) {
        self.remade.retain(|start, at| alive.contains(start) && at.elapsed() < REMAKE_EVERY);
        self.looked.retain(|_, at| at.elapsed() < LOOK_EVERY);
        let context = &mut self.context;
        context.paused = pauses.demand;
        context.stopped.retain(|start| alive.contains(start));
        context.check_queues = polled;
        context.remade = self.remade.keys().copied().collect();
        context.looked = self.looked.keys().copied().collect();
    }

    /// Notes when starts are made again and workers are looked at.
    fn note(&mut self, actions: &[Action]) {
        let now = Instant::now();
        for action in actions {
            match action {
                Action::Remake { start_id, .. } => drop(self.remade.insert(*start_id, now)),
                Action::Look { start_id, .. } => drop(self.looked.insert(*start_id, now)),
                _ => {}
            }
        }
    }

    /// Carries actions out, several at a time. After an error the rest is left to the next pass; what is under way is
    /// finished.
    async fn carry_out(&mut self, actions: Vec<Action>, agents: &[PlannedAgent]) -> Result<(), StoreError> {
        let agents: HashMap<&AgentKey, &PlannedAgent> = agents.iter().map(|a| (&a.key, a)).collect();
        let failed = AtomicBool::new(false);
        let (runner, failed, agents) = (&self.runner, &failed, &agents);
        let done: Vec<Result<Option<StartId>, StoreError>> = futures::stream::iter(actions)
            .map(|action| async move {
                if failed.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let done = runner.run(action, agents).await;
                failed.fetch_or(done.is_err(), Ordering::Relaxed);
                done
            })
            .buffer_unordered(self.config.concurrency)
            .collect()
            .await;
        for done in done {
            self.context.stopped.extend(done?);
        }
        Ok(())
    }

    /// Kills the workers that have run without a lease for [`FleetConfig::stray`]: nothing that they say counts any more.
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
}
