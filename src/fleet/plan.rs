//! What to start and what to stop: a plain function of what a pass has read.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::crd::{AgentSpec, Scope};
use crate::store::{DeploymentDemand, Lease, LeasePhase};
use crate::turn::decide::{Demand, Limits, starts};
use crate::turn::keys::{Incarnation, StartId};
use crate::turn::reason::Reason;

/// An Agent as the fleet knows it.
#[derive(Debug, Clone)]
pub struct KnownAgent {
    pub spec: Arc<AgentSpec>,
    pub generation: i64,
}

/// A step of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Start {
        organization: String,
        agent: String,
        deployment: String,
    },
    /// A deliberate stop: idle, surplus, or its Agent changed or is gone.
    Drain {
        incarnation: Incarnation,
        start_id: StartId,
        reason: Reason,
        grace: Duration,
        /// Not if it holds a turn by then.
        only_idle: bool,
    },
}

/// Whether each conversation has a worker of its own.
pub fn is_per_conversation(spec: &AgentSpec) -> bool {
    spec.scope == Scope::Conversation
}

type Key = (String, String);

/// Decides a pass. Draining workers count against `maxWorkers` (they run still), but carry nothing new.
pub fn plan(agents: &HashMap<Key, KnownAgent>, demand: &[DeploymentDemand], workers: &[Lease]) -> Vec<Action> {
    let mut actions: Vec<Action> = workers.iter().filter_map(|w| outdated(agents, w)).collect();
    let mut names: Vec<&Key> = agents.keys().collect();
    names.sort();
    for key in names {
        let agent = &agents[key];
        let mine: Vec<&Lease> = workers.iter().filter(|w| w.organization == key.0 && w.agent == key.1).collect();
        let current: Vec<&Lease> =
            mine.iter().copied().filter(|w| !w.stopping && w.generation == agent.generation).collect();
        let waiting = demand.iter().filter(|d| d.organization == key.0 && d.agent == key.1);
        let begun = actions.len();
        let unmet = start(key, agent, waiting.clone(), &mine, &current, &mut actions);
        if actions.len() == begun {
            let busy = waiting.filter(|d| d.claimable > 0).map(|d| d.deployment.as_str()).collect();
            stop_idle(agent, &current, &busy, unmet, &mut actions);
        }
    }
    actions
}

/// A worker whose Agent is gone, or changed since it was started.
fn outdated(agents: &HashMap<Key, KnownAgent>, worker: &Lease) -> Option<Action> {
    let agent = agents.get(&(worker.organization.clone(), worker.agent.clone()));
    let old = agent.is_none_or(|a| a.generation != worker.generation);
    (old && !worker.stopping).then(|| drain(worker, agent, false))
}

fn drain(worker: &Lease, agent: Option<&KnownAgent>, only_idle: bool) -> Action {
    let seconds = agent.map_or(crate::crd::defaults::DRAIN_SECONDS, |a| a.spec.timing.drain_seconds());
    Action::Drain {
        incarnation: worker.incarnation,
        start_id: worker.start_id,
        reason: Reason::Deleted,
        grace: Duration::from_secs(u64::from(seconds)),
        only_idle,
    }
}

/// Adds the starts of one Agent; answers how many more there would be without `maxWorkers`.
fn start<'a>(
    key: &Key,
    agent: &KnownAgent,
    waiting: impl Iterator<Item = &'a DeploymentDemand>,
    mine: &[&Lease],
    current: &[&Lease],
    actions: &mut Vec<Action>,
) -> u32 {
    let limits = Limits {
        min_workers: agent.spec.limits.min_workers(),
        max_workers: agent.spec.limits.max_workers(),
        turns_per_worker: agent.spec.limits.turns_per_worker(),
        per_conversation: is_per_conversation(&agent.spec),
    };
    let mut claimable: Vec<(String, u32)> = waiting.map(|d| (d.deployment.clone(), d.claimable)).collect();
    if !limits.per_conversation && claimable.is_empty() {
        claimable.push((key.1.clone(), 0));
    }
    claimable.sort();
    let (mut agent_workers, mut unmet) = (mine.len() as u32, 0);
    for (deployment, claimable) in claimable {
        let here = |phase| current.iter().filter(move |w| w.phase == phase);
        let live: Vec<_> = here(LeasePhase::Live).filter(|w| w.deployment == deployment).collect();
        let demand = Demand {
            claimable,
            live: live.len() as u32,
            room: live.iter().map(|w| w.capacity.saturating_sub(w.held)).sum(),
            starting: here(LeasePhase::Starting).filter(|w| w.deployment == deployment).count() as u32,
            agent_workers,
        };
        let wanted = starts(Demand { agent_workers: 0, ..demand }, Limits { max_workers: u32::MAX, ..limits });
        let allowed = starts(demand, limits);
        agent_workers += allowed;
        unmet += wanted - allowed;
        for _ in 0..allowed {
            let (organization, agent) = key.clone();
            actions.push(Action::Start { organization, agent, deployment: deployment.clone() });
        }
    }
    unmet
}

/// Stops workers that have been idle for long, down to `minWorkers`; and, where `maxWorkers` keeps others from starting,
/// the longest idle ones at once. One whose own deployment has turns waiting is about to take them: it stays.
fn stop_idle(agent: &KnownAgent, current: &[&Lease], busy: &HashSet<&str>, unmet: u32, actions: &mut Vec<Action>) {
    let idle_after = f64::from(agent.spec.timing.idle_seconds());
    let live = current.iter().filter(|w| w.phase == LeasePhase::Live).count() as u32;
    let mut spare = live.saturating_sub(agent.spec.limits.min_workers());
    let mut idle: Vec<(&Lease, f64)> = current
        .iter()
        .filter(|w| w.phase == LeasePhase::Live && w.held == 0 && !busy.contains(w.deployment.as_str()))
        .filter_map(|w| Some((*w, w.idle_seconds?)))
        .collect();
    idle.sort_by(|a, b| b.1.total_cmp(&a.1));
    for (nth, (worker, seconds)) in idle.into_iter().enumerate() {
        let displaced = (nth as u32) < unmet;
        if spare > 0 && (displaced || seconds >= idle_after) {
            spare -= 1;
            actions.push(drain(worker, Some(agent), true));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn agent(yaml: &str) -> KnownAgent {
        let spec: AgentSpec = serde_json::from_str(yaml).expect("a spec");
        KnownAgent { spec: Arc::new(spec), generation: 1 }
    }

    fn agents(json: &str) -> HashMap<Key, KnownAgent> {
        HashMap::from([(("default".to_string(), "a".to_string()), agent(json))])
    }

    fn worker(deployment: &str, phase: LeasePhase, held: u32, idle: Option<f64>) -> Lease {
        Lease {
            incarnation: Incarnation::new(),
            start_id: StartId::new(),
            organization: "default".into(),
            agent: "a".into(),
            deployment: deployment.into(),
            generation: 1,
            phase,
            runtime_ref: String::new(),
            capacity: 1,
            held,
            idle_seconds: idle,
            suspected: false,
            stopping: phase == LeasePhase::Draining,
        }
    }

    fn demand(deployment: &str, claimable: u32) -> DeploymentDemand {
        DeploymentDemand { organization: "default".into(), agent: "a".into(), deployment: deployment.into(), claimable }
    }

    fn counts(actions: &[Action]) -> (usize, usize) {
        let starts = actions.iter().filter(|a| matches!(a, Action::Start { .. })).count();
        (starts, actions.len() - starts)
    }

    const PER_AGENT: &str =
        r#"{"adapter":"Exec","scope":"Agent","limits":{"maxWorkers":3},"timing":{"idleSeconds":60}}"#;
    const PER_CONVERSATION: &str = r#"{"adapter":"Exec","limits":{"maxWorkers":2},"timing":{"idleSeconds":60}}"#;

    fn idle(deployment: &str) -> Lease {
        worker(deployment, LeasePhase::Live, 0, Some(61.0))
    }

    #[test]
    fn the_table() {
        use LeasePhase::*;
        for (spec, demands, workers, expected, why) in [
            (PER_AGENT, vec![], vec![], (0, 0), "nothing to do"),
            (PER_AGENT, vec![demand("a", 2)], vec![], (2, 0), "two wait"),
            (PER_AGENT, vec![demand("a", 2)], vec![worker("a", Starting, 0, None)], (1, 0), "one is coming"),
            (PER_AGENT, vec![demand("a", 9)], vec![worker("a", Draining, 1, None)], (2, 0), "a draining one counts"),
            (PER_AGENT, vec![], vec![worker("a", Live, 0, Some(61.0))], (0, 1), "idle for long"),
            (
                PER_AGENT,
                vec![demand("a", 9)],
                vec![idle("a"), idle("a"), idle("a")],
                (0, 0),
                "about to take what waits",
            ),
            (PER_AGENT, vec![], vec![worker("a", Live, 0, Some(59.0))], (0, 0), "not yet"),
            (PER_AGENT, vec![], vec![worker("a", Live, 1, Some(99.0))], (0, 0), "busy by its marker"),
            (
                PER_CONVERSATION,
                vec![demand("a-1", 1), demand("a-2", 1), demand("a-3", 1)],
                vec![],
                (2, 0),
                "maxWorkers",
            ),
            (
                PER_CONVERSATION,
                vec![demand("a-1", 1)],
                vec![worker("a-1", Live, 1, None)],
                (0, 0),
                "its worker is busy",
            ),
            (
                PER_CONVERSATION,
                vec![demand("a-3", 1)],
                vec![worker("a-1", Live, 0, Some(1.0)), worker("a-2", Live, 0, Some(2.0))],
                (0, 1),
                "an idle one makes room",
            ),
        ] {
            assert_eq!(counts(&plan(&agents(spec), &demands, &workers)), expected, "{why}");
        }
    }

    #[test]
    fn a_worker_of_a_changed_or_gone_agent_is_drained_once() {
        let mut old = worker("a", LeasePhase::Live, 1, None);
        old.generation = 0;
        assert_eq!(counts(&plan(&agents(PER_AGENT), &[], &[old.clone()])), (0, 1));
        assert_eq!(counts(&plan(&HashMap::new(), &[], &[old.clone()])), (0, 1));
        old.stopping = true;
        assert_eq!(counts(&plan(&agents(PER_AGENT), &[], &[old])), (0, 0));
    }

    proptest! {
        #[test]
        fn never_more_than_max_workers(
            claimable in prop::collection::vec(0u32..5, 0..6),
            live in 0usize..4, starting in 0usize..3, draining in 0usize..3, per_agent: bool,
        ) {
            let spec = if per_agent { PER_AGENT } else { PER_CONVERSATION };
            let name = |i: usize| if per_agent { "a".to_string() } else { format!("a-{i}") };
            let demands: Vec<_> = claimable.iter().enumerate().take(if per_agent { 1 } else { 6 })
                .map(|(i, &n)| demand(&name(i), n)).collect();
            let mut workers = Vec::new();
            for (count, phase) in [(live, LeasePhase::Live), (starting, LeasePhase::Starting), (draining, LeasePhase::Draining)] {
                workers.extend((0..count).map(|i| worker(&name(i), phase, 1, None)));
            }
            let known = agents(spec);
            let max = known.values().next().map_or(0, |a| a.spec.limits.max_workers()) as usize;
            let (starts, _) = counts(&plan(&known, &demands, &workers));
            prop_assert!(starts == 0 || starts + workers.len() <= max);
        }
    }
}
