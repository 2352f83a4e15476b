//! Which workers to start, drain, look at: decided from what was just read, without IO and without a clock.
//!
//! - Every worker that is not dead has a place under `maxWorkers`, also one that drains: where the limit is a machine's
//!   or a GPU's size, a start beside a draining worker would fail. So a turn may wait for a drain, at most
//!   `drainSeconds`; an idle worker drains in milliseconds.
//! - A draining worker serves nobody: its worker group is started anew.
//! - A worker of an older generation than its Agent's is drained, also while it starts.
//! - Where every conversation has its own worker and all places are taken, the longest idle worker of another
//!   conversation makes room.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::crd::{AgentSpec, Scope};
use crate::store::{Lease, LeasePhase, WorkerGroupDemand};
use crate::turn::decide::{self, Demand, StartLimits};
use crate::turn::keys::{Grouping, Incarnation, StartId, worker_group};

/// Names an Agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentKey {
    /// Its namespace.
    pub organization: String,
    pub name: String,
}

/// An Agent as the plan needs it.
#[derive(Debug, Clone)]
pub struct Agent {
    pub key: AgentKey,
    pub generation: i64,
    /// The object's UID in Kubernetes.
    pub uid: Option<String>,
    /// `None`: it cannot be read. Its workers are left as they are.
    pub spec: Option<Arc<AgentSpec>>,
    /// Whether workers may be started for `minWorkers` alone (see `pauses`).
    pub may_warm: bool,
}

/// What earlier passes did.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Workers whose runtime was told to stop them.
    pub stopped: HashSet<StartId>,
    /// Suspected workers that were looked at a moment ago.
    pub looked: HashSet<StartId>,
    /// Starts that were made again a moment ago.
    pub remade: HashSet<StartId>,
    /// Worker groups whose starts pause (see `pauses`).
    pub paused: HashSet<(AgentKey, String)>,
    /// Whether queues are to be checked against `maxQueuedTurns` in this pass.
    pub check_queues: bool,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start a worker; `only_first`: unless the worker group has one.
    Start { agent: AgentKey, worker_group: String, only_first: bool },
    /// Make a start again whose worker may have been lost on its way.
    Remake { agent: AgentKey, worker_group: String, start_id: StartId, runtime_ref: String },
    /// Stop a worker deliberately: draining in the store, then [`Action::Stop`].
    Drain { incarnation: Incarnation, start_id: StartId, runtime_ref: String, why: Why },
    /// Tell the runtime of a stop that the store knows of.
    Stop { start_id: StartId, runtime_ref: String },
    /// A worker is suspected dead: ask the runtime.
    Look { start_id: StartId, runtime_ref: String },
    /// End the newest waiting turns beyond this many.
    Shed { agent: AgentKey, max_queued: u32 },
}

/// Why a worker is drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    Idle,
    /// The Agent has another generation now.
    Changed,
    /// The Agent is gone.
    Removed,
    /// Another conversation needs the place.
    MakeRoom,
}

impl Why {
    /// For logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Why::Idle => "it was idle",
            Why::Changed => "its Agent changed",
            Why::Removed => "its Agent was removed",
            Why::MakeRoom => "another conversation needs its place",
        }
    }
}

/// Looks of one pass: a lost zone must not keep the others from their workers.
const MAX_LOOKS: usize = 64;

/// Decides. `workers` must have been read before `agents`, so that a worker without an Agent is one whose Agent is gone.
pub fn plan(agents: &[Agent], demand: &[WorkerGroupDemand], workers: &[Lease], known: &Known) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut looks = 0;
    let mut by_agent: BTreeMap<AgentKey, Vec<&Lease>> = BTreeMap::new();
    for worker in workers {
        let key = AgentKey { organization: worker.organization.clone(), name: worker.agent.clone() };
        by_agent.entry(key).or_default().push(worker);
        if worker.suspected && looks < MAX_LOOKS && !known.looked.contains(&worker.start_id) {
            looks += 1;
            actions.push(Action::Look { start_id: worker.start_id, runtime_ref: worker.runtime_ref.clone() });
        }
        if worker.stopping && !known.stopped.contains(&worker.start_id) {
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
        if known.check_queues && !(demand.is_empty() && workers.is_empty()) {
            let max_queued = spec.limits.max_queued_turns();
            actions.push(Action::Shed { agent: agent.key.clone(), max_queued });
        }
        let total = workers.len() as u32;
        let mut fleet = OneAgent { agent, spec, demand, workers, total, taken: total, actions: &mut actions };
        fleet.drain_changed();
        fleet.remake(known);
        fleet.drain_idle();
        fleet.start(&known.paused);
    }
    for worker in by_agent.into_values().flatten().filter(|w| serves(w)) {
        actions.push(drain(worker, Why::Removed));
    }
    actions
}

/// One Agent's part of a plan.
struct OneAgent<'a> {
    agent: &'a Agent,
    spec: &'a AgentSpec,
    demand: Vec<&'a WorkerGroupDemand>,
    /// Those that this plan does not drain.
    workers: Vec<&'a Lease>,
    /// Workers that are not dead, as read.
    total: u32,
    /// Places taken: those, and the starts of this plan.
    taken: u32,
    actions: &'a mut Vec<Action>,
}

fn serves(worker: &Lease) -> bool {
    matches!(worker.phase, LeasePhase::Starting | LeasePhase::Live) && !worker.stopping
}

fn drain(worker: &Lease, why: Why) -> Action {
    Action::Drain {
        incarnation: worker.incarnation,
        start_id: worker.start_id,
        runtime_ref: worker.runtime_ref.clone(),
        why,
    }
}

impl OneAgent<'_> {
    fn drain_changed(&mut self) {
        let generation = self.agent.generation;
        for worker in self.workers.iter().filter(|w| serves(w) && w.generation < generation) {
            self.actions.push(drain(worker, Why::Changed));
        }
    }

    fn remake(&mut self, known: &Known) {
        let current = self.workers.iter().filter(|w| serves(w) && w.generation == self.agent.generation);
        for worker in current.filter(|w| w.unmade && !known.remade.contains(&w.start_id)) {
            self.actions.push(Action::Remake {
                agent: self.agent.key.clone(),
                worker_group: worker.worker_group.clone(),
                start_id: worker.start_id,
                runtime_ref: worker.runtime_ref.clone(),
            });
        }
    }

    /// Live workers of this generation without a turn and without one to claim, the longest idle first.
    fn idle(&self) -> Vec<&Lease> {
        let mut idle: Vec<(f64, &Lease)> = self
            .current()
            .filter(|w| w.phase == LeasePhase::Live && w.held == 0 && self.claimable(&w.worker_group) == 0)
            .filter_map(|w| Some((w.idle_seconds?, w)))
            .collect();
        idle.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal));
        idle.into_iter().map(|(_, w)| w).collect()
    }

    fn current(&self) -> impl Iterator<Item = &Lease> {
        let generation = self.agent.generation;
        self.workers.iter().copied().filter(move |w| serves(w) && w.generation >= generation)
    }

    fn claimable(&self, worker_group: &str) -> u32 {
        self.demand.iter().find(|d| d.worker_group == worker_group).map_or(0, |d| d.claimable)
    }

    fn drain_idle(&mut self) {
        let limit = f64::from(self.spec.timing.idle_seconds());
        let shared = self.shared();
        let min = self.min_workers();
        let kept = self.current().filter(|w| w.worker_group == shared).count() as u32;
        let mut spare = kept.saturating_sub(min);
        let mut drained = Vec::new();
        for worker in self.idle().into_iter().filter(|w| w.idle_seconds.is_some_and(|s| s >= limit)) {
            if worker.worker_group == shared {
                if spare == 0 {
                    continue;
                }
                spare -= 1;
            }
            drained.push((worker.start_id, drain(worker, Why::Idle)));
        }
        self.apply(drained);
    }

    /// Drains; the places stay taken.
    fn apply(&mut self, drained: Vec<(StartId, Action)>) {
        let gone: HashSet<StartId> = drained.iter().map(|(id, _)| *id).collect();
        self.workers.retain(|w| !gone.contains(&w.start_id));
        self.actions.extend(drained.into_iter().map(|(_, action)| action));
    }

    /// The worker group of scope Agent.
    fn shared(&self) -> String {
        worker_group(&self.agent.key.name, Grouping::PerAgent, "")
    }

    fn min_workers(&self) -> u32 {
        match self.spec.scope {
            Scope::Agent => self.spec.limits.min_workers(),
            Scope::Conversation => 0,
        }
    }

    fn start(&mut self, paused: &HashSet<(AgentKey, String)>) {
        let shared = self.shared();
        let min = self.min_workers();
        let mut queues: Vec<(String, u32)> =
            self.demand.iter().map(|d| (d.worker_group.clone(), d.claimable)).collect();
        if min > 0 && self.claimable(&shared) == 0 {
            queues.push((shared.clone(), 0));
        }
        queues.retain(|(worker_group, _)| !paused.contains(&(self.agent.key.clone(), worker_group.clone())));
        let mut unmet = 0;
        for (worker_group, claimable) in queues {
            let per_conversation = worker_group != shared;
            let limits = StartLimits {
                min_workers: if per_conversation || !self.agent.may_warm { 0 } else { min },
                max_workers: self.spec.limits.max_workers(),
                turns_per_worker: self.spec.limits.turns_per_worker(),
                per_conversation,
            };
            let demand = self.demand_of(&worker_group, claimable);
            let starts = decide::starts(demand, limits);
            for _ in 0..starts {
                let (agent, worker_group) = (self.agent.key.clone(), worker_group.clone());
                self.actions.push(Action::Start { agent, worker_group, only_first: per_conversation });
            }
            self.taken += starts;
            if per_conversation {
                unmet += decide::starts(demand, StartLimits { max_workers: u32::MAX, ..limits }) - starts;
            }
        }
        self.make_room(unmet);
    }

    fn demand_of(&self, worker_group: &str, claimable: u32) -> Demand {
        let mut demand = Demand { claimable, agent_workers: self.taken, ..Demand::default() };
        for worker in self.current().filter(|w| w.worker_group == worker_group) {
            if worker.phase == LeasePhase::Starting {
                demand.starting += 1;
            } else {
                demand.live += 1;
                demand.room += worker.capacity.saturating_sub(worker.held);
            }
        }
        demand
    }

    /// Drains idle workers of other conversations for starts that found no place; those that leave anyhow count.
    fn make_room(&mut self, unmet: u32) {
        let needed = unmet.saturating_sub(self.leaving());
        let shared = self.shared();
        let others = self.idle().into_iter().filter(|w| w.worker_group != shared);
        let drained = others.take(needed as usize).map(|w| (w.start_id, drain(w, Why::MakeRoom))).collect();
        self.apply(drained);
    }

    /// Workers that drain, also by this plan.
    fn leaving(&self) -> u32 {
        self.total - self.current().count() as u32
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
