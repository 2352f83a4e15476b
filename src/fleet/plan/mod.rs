//! Which workers to start, drain and look at. Pure: decided from what was just read from the database, without IO and without
//! a clock.
//!
//! - Every worker that is not dead takes a place under `maxWorkers`, also one that drains: where the limit is the size of a
//!   machine or the number of its GPUs, a worker started beside a draining one would find no room. So a turn may have to
//!   wait for a drain, for `drainSeconds` at most; an idle worker drains in milliseconds.
//! - A draining worker claims nothing: if its worker group has turns to claim, another worker is started.
//! - A worker of an older config than its Agent's *retires*: it claims nothing more, and leaves when it holds nothing. It does so
//!   when the worker that replaces it is there, or as far as `maxUnavailable` allows. Until a worker of the new config has come
//!   to life once, one is tried at a time, so that a config that does not work replaces nobody. How: `rollout`.
//! - A worker whose conversation is gone, erased or removed by the retention, is drained: nobody ever has a turn for it again.
//! - Where every conversation has its own worker and all places are taken, the worker of another conversation that has been
//!   idle the longest is drained to make room.

mod rollout;

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::crd::{AgentSpec, Scope};
use crate::store::{Lease, WorkerGroupDemand};
use crate::turn::decide::{self, Demand, StartLimits};
use crate::turn::keys::{Incarnation, StartId, WorkerGroup};
use crate::turn::phase::LeasePhase;

/// The name of an Agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentKey {
    /// The Agent's namespace.
    pub organization: String,
    pub name: String,
}

/// What the plan needs to know of an Agent.
#[derive(Debug, Clone)]
pub struct PlannedAgent {
    pub key: AgentKey,
    /// Grows with each change of what a worker is made of.
    pub config: i64,
    /// Whether a worker of this config has come to life.
    pub proven: bool,
    /// The UID of the Agent's object in Kubernetes.
    pub uid: Option<String>,
    /// `None` if the stored spec cannot be parsed. Then its workers are left as they are.
    pub spec: Option<Arc<AgentSpec>>,
    /// Whether workers may be started that nobody waits for, see `pauses`.
    pub may_warm: bool,
}

/// What the plan needs to know beside the database: what earlier passes did, and what pauses.
#[derive(Debug, Clone, Default)]
pub struct PlanContext {
    /// Draining workers that the runtime was told to stop.
    pub stopped: HashSet<StartId>,
    /// Suspected workers that were looked at a moment ago, and need no other look yet.
    pub looked: HashSet<StartId>,
    /// Starts that were made again a moment ago, and are not to be made again yet.
    pub remade: HashSet<StartId>,
    /// Worker groups that get no worker for now, see `pauses`.
    pub paused: HashSet<(AgentKey, WorkerGroup)>,
    /// Whether queues are to be checked against `maxQueuedTurns` in this pass.
    pub check_queues: bool,
}

/// One thing that a pass is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start a worker; with `only_first` only if the worker group has none.
    Start { agent: AgentKey, worker_group: WorkerGroup, only_first: bool },
    /// Ask the runtime again for a worker whose start may have been lost: the lease is there, and perhaps nothing else.
    Remake { agent: AgentKey, worker_group: WorkerGroup, start_id: StartId, runtime_ref: String },
    /// Let a worker of an older config claim nothing more.
    Retire { incarnation: Incarnation },
    /// The same, and start the one that is to replace it for its conversation.
    Replace { agent: AgentKey, worker_group: WorkerGroup, incarnation: Incarnation },
    /// Let a worker that retires serve on, since the one that was to replace it is not there.
    Restore { incarnation: Incarnation },
    /// Let a worker drain: its lease first, then what [`Action::Stop`] does.
    Drain { incarnation: Incarnation, start_id: StartId, runtime_ref: String, cause: DrainCause },
    /// Tell the runtime to stop a worker whose lease is draining already.
    Stop { start_id: StartId, runtime_ref: String },
    /// Ask the runtime for a worker that is suspected to be dead.
    Look { start_id: StartId, runtime_ref: String },
    /// End the newest of an Agent's waiting turns, so that `max_queued` are left.
    Shed { agent: AgentKey, max_queued: u32 },
}

/// DrainCause the plan drains a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainCause {
    /// It had nothing to do for the Agent's `idleSeconds`.
    Idle,
    /// It was started for an older config of the Agent, and is not live yet.
    Changed,
    /// It retires for the Agent's newer config, and holds nothing any more.
    Replaced,
    /// There are more than `maxWorkers`, which was lowered, and it holds nothing.
    Excess,
    /// The Agent is gone.
    Removed,
    /// The conversation that it is for is gone.
    ConversationGone,
    /// It is idle, and another conversation needs its place under `maxWorkers`.
    MakeRoom,
}

impl DrainCause {
    /// The cause as a clause for the log.
    pub fn as_str(self) -> &'static str {
        match self {
            DrainCause::Idle => "it was idle",
            DrainCause::Changed => "its Agent changed before it was live",
            DrainCause::Replaced => "its Agent changed, and it is done with its turns",
            DrainCause::Excess => "maxWorkers was lowered",
            DrainCause::Removed => "its Agent was removed",
            DrainCause::ConversationGone => "its conversation is gone",
            DrainCause::MakeRoom => "another conversation needs its place",
        }
    }
}

/// The most looks of one pass: when a whole zone is lost, looks at its workers must leave room for starts elsewhere.
const MAX_LOOKS: usize = 64;

/// Plans one pass. `workers` must have been read before `agents`: then a worker whose Agent is not among them is one whose
/// Agent was removed.
pub fn plan(
    agents: &[PlannedAgent],
    demand: &[WorkerGroupDemand],
    workers: &[Lease],
    context: &PlanContext,
) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut looks = 0;
    let mut by_agent: BTreeMap<AgentKey, Vec<&Lease>> = BTreeMap::new();
    for worker in workers {
        let key = AgentKey { organization: worker.organization.clone(), name: worker.agent.clone() };
        by_agent.entry(key).or_default().push(worker);
        if worker.conversation_gone && is_up(worker) {
            actions.push(drain(worker, DrainCause::ConversationGone));
        }
        if worker.suspected && looks < MAX_LOOKS && !context.looked.contains(&worker.start_id) {
            looks += 1;
            actions.push(Action::Look { start_id: worker.start_id, runtime_ref: worker.runtime_ref.clone() });
        }
        if worker.stopping && !context.stopped.contains(&worker.start_id) {
            actions.push(Action::Stop { start_id: worker.start_id, runtime_ref: worker.runtime_ref.clone() });
        }
    }
    for agent in agents {
        let workers = by_agent.remove(&agent.key).unwrap_or_default();
        let Some(spec) = &agent.spec else { continue };
        let demand: Vec<&WorkerGroupDemand> = demand
            .iter()
            .filter(|d| d.organization == agent.key.organization && d.agent == agent.key.name && d.claimable > 0)
            .collect();
        if context.check_queues && !(demand.is_empty() && workers.is_empty()) {
            let max_queued = spec.limits.max_queued_turns();
            actions.push(Action::Shed { agent: agent.key.clone(), max_queued });
        }
        let total = workers.len() as u32;
        let mut fleet = AgentPlan { agent, spec, demand, workers, total, taken: total, actions: &mut actions };
        fleet.roll();
        fleet.shrink();
        fleet.remake(context);
        fleet.drain_idle();
        fleet.start(&context.paused);
    }
    for worker in by_agent.into_values().flatten().filter(|w| is_up(w) && !w.conversation_gone) {
        actions.push(drain(worker, DrainCause::Removed));
    }
    actions
}

/// The part of a plan that is about one Agent.
struct AgentPlan<'a> {
    agent: &'a PlannedAgent,
    spec: &'a AgentSpec,
    /// Its worker groups that have turns to claim, those in front that are served first.
    demand: Vec<&'a WorkerGroupDemand>,
    /// Its workers that are not dead, without those that this plan drains to save or make room.
    workers: Vec<&'a Lease>,
    /// The number of its workers that are not dead, as read.
    total: u32,
    /// The number of places taken: by those, and by the starts of this plan.
    taken: u32,
    actions: &'a mut Vec<Action>,
}

/// Whether a worker claims turns, or will when it has started, and this plan goes on to use it.
fn serves(worker: &Lease) -> bool {
    is_up(worker) && !worker.conversation_gone && !worker.retiring
}

/// Whether a worker starts or is live, and was not told to stop.
fn is_up(worker: &Lease) -> bool {
    matches!(worker.phase, LeasePhase::Starting | LeasePhase::Live) && !worker.stopping
}

fn drain(worker: &Lease, cause: DrainCause) -> Action {
    Action::Drain {
        incarnation: worker.incarnation,
        start_id: worker.start_id,
        runtime_ref: worker.runtime_ref.clone(),
        cause,
    }
}

impl AgentPlan<'_> {
    /// Replaces the workers of older configs, see [`rollout`].
    fn roll(&mut self) {
        let rollout = rollout::roll(self.agent, self.spec, &self.workers);
        for action in &rollout {
            match action {
                Action::Start { .. } | Action::Replace { .. } => self.taken += 1,
                _ => {}
            }
        }
        let left: HashSet<Incarnation> = rollout
            .iter()
            .filter_map(|action| match action {
                Action::Drain { incarnation, .. }
                | Action::Retire { incarnation }
                | Action::Replace { incarnation, .. } => Some(*incarnation),
                _ => None,
            })
            .collect();
        self.workers.retain(|w| !left.contains(&w.incarnation));
        self.actions.extend(rollout);
    }

    /// Lets the live workers go that are more than `maxWorkers`, the idle ones first: those that hold turns take no more, and leave
    /// when they are done. If the limit is raised meanwhile, they serve on.
    fn shrink(&mut self) {
        let max = self.spec.limits.max_workers() as usize;
        let live = |w: &&Lease| w.phase == LeasePhase::Live && !w.stopping && !w.conversation_gone;
        let (retiring, mut serving): (Vec<&Lease>, Vec<&Lease>) =
            self.workers.iter().copied().filter(live).partition(|w| w.retiring);
        let mut room = max.saturating_sub(serving.len());
        let mut drained = Vec::new();
        // Those of an older config retire for that.
        for worker in retiring.into_iter().filter(|w| w.config >= self.agent.config) {
            if room > 0 {
                room -= 1;
                self.actions.push(Action::Restore { incarnation: worker.incarnation });
            } else if worker.held == 0 {
                drained.push((worker.start_id, drain(worker, DrainCause::Excess)));
            }
        }
        let idle_for = |w: &Lease| w.idle_seconds.unwrap_or(0.0);
        // Those of an older config first, since they are to go in any case.
        serving.sort_by(|a, b| {
            let older = a.config.cmp(&b.config);
            older.then(a.held.cmp(&b.held)).then(idle_for(b).total_cmp(&idle_for(a)))
        });
        let excess = serving.len().saturating_sub(max);
        for worker in serving.into_iter().take(excess) {
            let idle = worker.held == 0 && self.claimable(worker.worker_group) == 0;
            let action = match idle {
                true => drain(worker, DrainCause::Excess),
                false => Action::Retire { incarnation: worker.incarnation },
            };
            drained.push((worker.start_id, action));
        }
        self.apply(drained);
    }

    /// Makes the starts of this config again that may have been lost.
    fn remake(&mut self, context: &PlanContext) {
        let current = self.workers.iter().filter(|w| serves(w) && w.config == self.agent.config);
        for worker in current.filter(|w| w.unmade && !context.remade.contains(&w.start_id)) {
            self.actions.push(Action::Remake {
                agent: self.agent.key.clone(),
                worker_group: worker.worker_group,
                start_id: worker.start_id,
                runtime_ref: worker.runtime_ref.clone(),
            });
        }
    }

    /// The live workers that serve, hold no turn and have none to claim, the longest idle first.
    fn idle(&self) -> Vec<&Lease> {
        let mut idle: Vec<(f64, &Lease)> = self
            .serving()
            .filter(|w| w.phase == LeasePhase::Live && w.held == 0 && self.claimable(w.worker_group) == 0)
            .filter_map(|w| Some((w.idle_seconds?, w)))
            .collect();
        idle.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal));
        idle.into_iter().map(|(_, w)| w).collect()
    }

    /// The workers that serve. Those of an older config do until they retire.
    fn serving(&self) -> impl Iterator<Item = &Lease> {
        self.workers.iter().copied().filter(|w| serves(w))
    }

    /// The number of turns that a worker group's workers may claim now.
    fn claimable(&self, worker_group: WorkerGroup) -> u32 {
        self.demand.iter().find(|d| d.worker_group == worker_group).map_or(0, |d| d.claimable)
    }

    /// Drains the workers that have been idle for too long; of those that are shared, `minWorkers` stay.
    fn drain_idle(&mut self) {
        let limit = f64::from(self.spec.timing.idle_seconds());
        let min = self.min_workers();
        // One that starts may never come to life: it keeps no warm one from staying.
        let live = self.serving().filter(|w| w.phase == LeasePhase::Live);
        let kept = live.filter(|w| w.worker_group == WorkerGroup::OfAgent).count() as u32;
        let mut spare = kept.saturating_sub(min);
        let mut drained = Vec::new();
        for worker in self.idle().into_iter().filter(|w| w.idle_seconds.is_some_and(|s| s >= limit)) {
            if worker.worker_group == WorkerGroup::OfAgent {
                if spare == 0 {
                    continue;
                }
                spare -= 1;
            }
            drained.push((worker.start_id, drain(worker, DrainCause::Idle)));
        }
        self.apply(drained);
    }

    /// Adds these drains to the plan. The workers keep their places until they are dead.
    fn apply(&mut self, drained: Vec<(StartId, Action)>) {
        let gone: HashSet<StartId> = drained.iter().map(|(id, _)| *id).collect();
        self.workers.retain(|w| !gone.contains(&w.start_id));
        self.actions.extend(drained.into_iter().map(|(_, action)| action));
    }

    fn min_workers(&self) -> u32 {
        match self.spec.scope {
            Scope::Agent => self.spec.limits.min_workers(),
            Scope::Conversation => 0,
        }
    }

    /// Starts the workers that are missing, as far as there are places, and makes room for the others.
    fn start(&mut self, paused: &HashSet<(AgentKey, WorkerGroup)>) {
        let min = self.min_workers();
        let mut queues: Vec<(WorkerGroup, u32)> = self.demand.iter().map(|d| (d.worker_group, d.claimable)).collect();
        if min > 0 && self.claimable(WorkerGroup::OfAgent) == 0 {
            queues.push((WorkerGroup::OfAgent, 0));
        }
        queues.retain(|(worker_group, _)| !paused.contains(&(self.agent.key.clone(), *worker_group)));
        let mut unmet = 0;
        for (worker_group, claimable) in queues {
            let per_conversation = worker_group != WorkerGroup::OfAgent;
            let limits = StartLimits {
                min_workers: if per_conversation || !self.agent.may_warm { 0 } else { min },
                max_workers: self.spec.limits.max_workers(),
                turns_per_worker: self.spec.limits.turns_per_worker(),
                per_conversation,
            };
            let demand = self.demand_of(worker_group, claimable);
            let starts = decide::starts(demand, limits);
            for _ in 0..starts {
                let agent = self.agent.key.clone();
                self.actions.push(Action::Start { agent, worker_group, only_first: per_conversation });
            }
            self.taken += starts;
            if per_conversation {
                unmet += decide::starts(demand, StartLimits { max_workers: u32::MAX, ..limits }) - starts;
            }
        }
        self.make_room(unmet);
    }

    /// What a worker group has and needs.
    fn demand_of(&self, worker_group: WorkerGroup, claimable: u32) -> Demand {
        let mut demand = Demand { claimable, agent_workers: self.taken, ..Demand::default() };
        for worker in self.serving().filter(|w| w.worker_group == worker_group) {
            if worker.phase == LeasePhase::Starting {
                demand.starting += 1;
            } else {
                demand.live += 1;
                demand.room += worker.capacity.saturating_sub(worker.held);
            }
        }
        demand
    }

    /// Drains idle workers of other conversations for the `unmet` starts that found no place. Fewer are drained if some are
    /// leaving anyhow.
    fn make_room(&mut self, unmet: u32) {
        let needed = unmet.saturating_sub(self.leaving());
        let others = self.idle().into_iter().filter(|w| w.worker_group != WorkerGroup::OfAgent);
        let drained = others.take(needed as usize).map(|w| (w.start_id, drain(w, DrainCause::MakeRoom))).collect();
        self.apply(drained);
    }

    /// The number of workers that are draining, or will be by this plan.
    fn leaving(&self) -> u32 {
        self.total - self.serving().count() as u32
    }
}

#[cfg(test)]
mod tests;
