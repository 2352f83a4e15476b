//! How workers of an older config are replaced.
//!
//! A config is *proven* once a worker of it has come to life. Until then one worker of it is tried at a time, and the older ones
//! serve on: a config that does not work replaces nobody.
//!
//! - **Shared workers.** A worker of the new config is started beside the older ones, as far as `maxSurge` allows. When it comes
//!   to life, the store retires one of the older ones in the same transaction, so the workers that claim never become fewer
//!   (`store/lease.rs`). Where all places are taken, as many as `maxUnavailable` allows retire first.
//! - **A conversation's own worker** can have no second one beside it that serves. So it retires, and the one that replaces it
//!   is started by the conversation's next turn; while the config is not proven, at once, and if that one does not come to
//!   life, the older one serves on.
//!
//! One that retires leaves when it holds nothing. It has as long as its turns have.

use std::cmp::Ordering;

use super::{Action, DrainCause, PlannedAgent, drain, is_up};
use crate::crd::{AgentSpec, Scope};
use crate::store::Lease;
use crate::turn::keys::WorkerGroup;
use crate::turn::phase::LeasePhase;

/// What is to be done about the workers of older configs. `workers` are the Agent's that are not dead.
pub(super) fn roll(agent: &PlannedAgent, spec: &AgentSpec, workers: &[&Lease]) -> Vec<Action> {
    let up = || workers.iter().copied().filter(|w| is_up(w) && !w.conversation_gone);
    let (older, newer): (Vec<&Lease>, Vec<&Lease>) = up().partition(|w| w.config < agent.config);
    let mut roll = Roll {
        agent,
        starting: newer.iter().filter(|w| w.phase == LeasePhase::Starting).count() as u32,
        retiring: older.iter().filter(|w| w.retiring).count() as u32,
        places: (spec.limits.max_workers() + spec.rollout.max_surge()).saturating_sub(workers.len() as u32),
        max_unavailable: spec.rollout.max_unavailable(),
        at_once: spec.rollout.max_surge().max(spec.rollout.max_unavailable()).max(1),
        actions: Vec::new(),
    };
    let mut serving = Vec::new();
    for worker in older {
        match (worker.phase, worker.retiring) {
            (LeasePhase::Starting, _) => roll.actions.push(drain(worker, DrainCause::Changed)),
            (_, true) => roll.leave(worker, &newer),
            (_, false) => serving.push(worker),
        }
    }
    // Idle ones first, those that have been idle for longest in front: they are done at once.
    let idle = |w: &Lease| if w.held == 0 { w.idle_seconds.unwrap_or(0.0) } else { -1.0 };
    serving.sort_by(|a, b| idle(b).partial_cmp(&idle(a)).unwrap_or(Ordering::Equal));
    let (shared, own): (Vec<&Lease>, Vec<&Lease>) =
        serving.into_iter().partition(|w| w.worker_group == WorkerGroup::OfAgent);
    match spec.scope {
        Scope::Agent => {
            roll.replace_shared(&shared);
            roll.retire(&own);
        }
        Scope::Conversation => {
            roll.replace_own(&own);
            roll.retire(&shared);
        }
    }
    roll.actions
}

struct Roll<'a> {
    agent: &'a PlannedAgent,
    /// Workers of the new config that are not live yet.
    starting: u32,
    /// Workers that retire.
    retiring: u32,
    /// How many workers more may run, those of `maxSurge` among them.
    places: u32,
    max_unavailable: u32,
    /// How many workers of a proven config may be on their way at a time.
    at_once: u32,
    actions: Vec<Action>,
}

impl Roll<'_> {
    /// Lets one that retires go when it holds nothing. One whose successor is the trial of a new config waits for that, and
    /// serves on if the trial has failed.
    fn leave(&mut self, worker: &Lease, newer: &[&Lease]) {
        let successor = newer.iter().find(|w| w.worker_group == worker.worker_group);
        let replaced = self.agent.proven || worker.worker_group == WorkerGroup::OfAgent;
        if replaced || successor.is_some_and(|w| w.phase == LeasePhase::Live) {
            if worker.held == 0 {
                self.actions.push(drain(worker, DrainCause::Replaced));
            }
        } else if successor.is_none() {
            self.actions.push(Action::Restore { incarnation: worker.incarnation });
        }
    }

    /// Starts workers beside shared ones, each of which retires one of these when it comes to life.
    fn replace_shared(&mut self, shared: &[&Lease]) {
        if shared.is_empty() || !self.agent.may_warm {
            return;
        }
        let at_once = if self.agent.proven { self.at_once } else { 1 };
        let missing = (shared.len() as u32).saturating_sub(self.starting);
        let starts = missing.min(at_once.saturating_sub(self.starting)).min(self.places);
        for _ in 0..starts {
            let agent = self.agent.key.clone();
            self.actions.push(Action::Start { agent, worker_group: WorkerGroup::OfAgent, only_first: false });
        }
        let may = self.max_unavailable.saturating_sub(self.retiring + self.starting + starts);
        if self.agent.proven {
            self.retire(&shared[..shared.len().min(may as usize)]);
        } else if self.places == 0 && self.retiring + self.starting == 0 && may > 0 {
            // Somebody has to make room for the trial.
            self.retire(&shared[..1]);
        }
    }

    /// Retires workers that serve one conversation each.
    fn replace_own(&mut self, own: &[&Lease]) {
        let Some(first) = own.first() else { return };
        if self.agent.proven {
            let may = self.at_once.saturating_sub(self.retiring + self.starting) as usize;
            return self.retire(&own[..own.len().min(may)]);
        }
        if !self.agent.may_warm || self.retiring + self.starting > 0 {
            return;
        }
        if self.places > 0 {
            let (agent, incarnation) = (self.agent.key.clone(), first.incarnation);
            self.actions.push(Action::Replace { agent, worker_group: first.worker_group, incarnation });
        } else if self.max_unavailable > 0 && first.held == 0 {
            self.actions.push(drain(first, DrainCause::Replaced));
        }
    }

    fn retire(&mut self, workers: &[&Lease]) {
        self.actions.extend(workers.iter().map(|w| Action::Retire { incarnation: w.incarnation }));
    }
}
