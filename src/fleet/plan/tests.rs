use proptest::prelude::*;
use serde_json::json;

use super::*;

const ORG: &str = "default";

fn key(name: &str) -> AgentKey {
    AgentKey { organization: ORG.into(), name: name.into() }
}

fn agent(scope: &str, limits: serde_json::Value) -> PlannedAgent {
    let spec = json!({"scope": scope, "adapter": "Custom", "limits": limits, "timing": {"idleSeconds": 10}});
    let spec = Some(Arc::new(serde_json::from_value(spec).expect("a spec")));
    PlannedAgent { key: key("a"), config: 2, proven: true, uid: None, spec, may_warm: true }
}

/// The group that is called so: `a` is the Agent's, `a-7` that of the seventh conversation.
fn group(name: &str) -> WorkerGroup {
    let number: u128 = name.strip_prefix("a-").map_or(0, |number| number.parse().expect("a number"));
    WorkerGroup::from_key(uuid::Uuid::from_u128(number))
}

/// What [`group`] calls a group.
fn called(group: WorkerGroup) -> String {
    match group.key().as_u128() {
        0 => "a".into(),
        number => format!("a-{number}"),
    }
}

fn worker(worker_group: &str, phase: LeasePhase) -> Lease {
    Lease {
        incarnation: Incarnation::new(),
        start_id: StartId::new(),
        organization: ORG.into(),
        agent: "a".into(),
        worker_group: group(worker_group),
        config: 2,
        retiring: false,
        phase,
        runtime_ref: "r".into(),
        capacity: 1,
        held: 0,
        idle_seconds: None,
        suspected: false,
        stopping: phase == LeasePhase::Draining,
        unmade: false,
        conversation_gone: false,
    }
}

fn idle(worker_group: &str, seconds: f64) -> Lease {
    Lease { idle_seconds: Some(seconds), ..worker(worker_group, LeasePhase::Live) }
}

fn busy(worker_group: &str) -> Lease {
    Lease { held: 1, ..worker(worker_group, LeasePhase::Live) }
}

fn waits(worker_group: &str, claimable: u32) -> WorkerGroupDemand {
    WorkerGroupDemand { organization: ORG.into(), agent: "a".into(), worker_group: group(worker_group), claimable }
}

fn starts(actions: &[Action]) -> Vec<String> {
    let of = |a: &'_ Action| matches!(a, Action::Start { .. });
    actions
        .iter()
        .filter(|a| of(a))
        .map(|a| match a {
            Action::Start { worker_group, .. } => called(*worker_group),
            _ => unreachable!("filtered"),
        })
        .collect()
}

fn drains(actions: &[Action]) -> Vec<(StartId, DrainCause)> {
    let drain = |a: &Action| match a {
        Action::Drain { start_id, cause, .. } => Some((*start_id, *cause)),
        _ => None,
    };
    actions.iter().filter_map(drain).collect()
}

#[test]
fn starts_follow_demand_within_the_places() {
    use LeasePhase::*;
    let shared = |limits| agent("Agent", limits);
    let own = |limits| agent("Conversation", limits);
    for (agent, demand, workers, expected, why) in [
        (own(json!({})), vec![waits("a-1", 3), waits("a-2", 1)], vec![], vec!["a-1", "a-2"], "one each"),
        (own(json!({})), vec![waits("a-1", 1)], vec![worker("a-1", Starting)], vec![], "it is coming"),
        (
            own(json!({})),
            vec![waits("a-1", 1)],
            vec![worker("a-1", Draining)],
            vec!["a-1"],
            "a draining one serves nobody",
        ),
        (
            own(json!({"maxWorkers": 1})),
            vec![waits("a-1", 1)],
            vec![worker("a-1", Draining)],
            vec![],
            "but has its place",
        ),
        (
            own(json!({"maxWorkers": 2})),
            vec![waits("a-1", 1), waits("a-2", 1)],
            vec![busy("a-3")],
            vec!["a-1"],
            "oldest first",
        ),
        (own(json!({"minWorkers": 2})), vec![], vec![], vec![], "minWorkers is for scope Agent"),
        (shared(json!({})), vec![waits("a", 2)], vec![], vec!["a", "a"], "a turn each"),
        (shared(json!({"turnsPerWorker": 2})), vec![waits("a", 3)], vec![], vec!["a", "a"], "two a worker"),
        (shared(json!({"minWorkers": 1})), vec![], vec![], vec!["a"], "kept warm"),
        (
            shared(json!({"minWorkers": 1})),
            vec![],
            vec![worker("a", Draining)],
            vec!["a"],
            "a draining one is not kept",
        ),
        (PlannedAgent { may_warm: false, ..shared(json!({"minWorkers": 1})) }, vec![], vec![], vec![], "held back"),
        (
            PlannedAgent { may_warm: false, ..shared(json!({"minWorkers": 1})) },
            vec![waits("a", 1)],
            vec![],
            vec!["a"],
            "somebody waits",
        ),
        (shared(json!({})), vec![waits("a-1", 2)], vec![], vec!["a-1"], "a turn routed before the scope changed"),
        (PlannedAgent { spec: None, ..own(json!({})) }, vec![waits("a-1", 1)], vec![], vec![], "unreadable"),
    ] {
        assert_eq!(starts(&plan(&[agent], &demand, &workers, &PlanContext::default())), expected, "{why}");
    }
}

#[test]
fn the_longest_idle_worker_goes_first_and_the_least_stay() {
    let (young, old, fresh) = (idle("a", 20.0), idle("a", 30.0), idle("a", 5.0));
    let workers = [young.clone(), old.clone(), fresh.clone(), busy("a")];
    let drained = |limits, demand: &[WorkerGroupDemand]| {
        drains(&plan(&[agent("Agent", limits)], demand, &workers, &PlanContext::default()))
    };
    let gone = |w: &Lease| (w.start_id, DrainCause::Idle);
    assert_eq!(drained(json!({}), &[]), [gone(&old), gone(&young)]);
    assert_eq!(drained(json!({"minWorkers": 3}), &[]), [gone(&old)]);
    assert_eq!(drained(json!({"minWorkers": 4}), &[]), []);
    assert_eq!(drained(json!({}), &[waits("a", 1)]), [], "there is something to claim");
}

#[test]
fn an_older_start_and_a_removed_agent_are_drained_once() {
    let old = |phase| Lease { config: 1, ..worker("a", phase) };
    let newer = Lease { config: 3, ..busy("a") };
    let workers = [old(LeasePhase::Starting), old(LeasePhase::Live), old(LeasePhase::Draining), newer];
    let demand = [waits("a", 1)];
    let actions = plan(&[agent("Agent", json!({}))], &demand, &workers, &PlanContext::default());
    assert_eq!(drains(&actions), [(workers[0].start_id, DrainCause::Changed)]);
    assert_eq!(starts(&actions), ["a"], "one is started beside the one that serves, which claims the turn");
    let actions = plan(&[], &[], &workers, &PlanContext::default());
    assert_eq!(drains(&actions).len(), 3);
    assert!(drains(&actions).iter().all(|(_, why)| *why == DrainCause::Removed));
    let unreadable = PlannedAgent { spec: None, ..agent("Agent", json!({})) };
    assert_eq!(drains(&plan(&[unreadable], &[], &workers, &PlanContext::default())), []);
}

#[test]
fn another_conversation_makes_room() {
    let full = || agent("Conversation", json!({"maxWorkers": 3}));
    let (short, long) = (idle("a-1", 1.0), idle("a-2", 2.0));
    let workers = [short, long.clone(), busy("a-3")];
    let one = plan(&[full()], &[waits("a-4", 1)], &workers, &PlanContext::default());
    assert_eq!((starts(&one), drains(&one)), (vec![], vec![(long.start_id, DrainCause::MakeRoom)]));
    let leaving = [worker("a-9", LeasePhase::Draining), workers[0].clone(), workers[2].clone()];
    let wait = plan(&[full()], &[waits("a-4", 1)], &leaving, &PlanContext::default());
    assert_eq!(drains(&wait), [], "a place comes free anyhow");
    let theirs =
        plan(&[full()], &[waits("a-2", 1), waits("a-1", 1), waits("a-4", 1)], &workers, &PlanContext::default());
    assert_eq!(drains(&theirs), [], "they are about to claim");
}

/// Its turns were cancelled with it, so no other rule of the plan looks at its worker; and nobody speaks to it ever again.
#[test]
fn a_worker_whose_conversation_is_gone_is_drained() {
    use LeasePhase::*;
    let agents = [agent("Conversation", json!({"maxWorkers": 1}))];
    for phase in [Starting, Live] {
        let gone = Lease { conversation_gone: true, ..worker("a-1", phase) };
        let kept = worker("a-2", Live);
        for agents in [&agents[..], &[PlannedAgent { spec: None, ..agents[0].clone() }], &[]] {
            let actions = plan(agents, &[waits("a-3", 1)], &[gone.clone(), kept.clone()], &PlanContext::default());
            let of_gone: Vec<_> = drains(&actions).into_iter().filter(|(start, _)| *start == gone.start_id).collect();
            assert_eq!(of_gone, [(gone.start_id, DrainCause::ConversationGone)]);
            assert_eq!(starts(&actions), [""; 0], "it has its place until it is dead");
        }
    }
    let draining = Lease { conversation_gone: true, ..worker("a-1", Draining) };
    assert_eq!(drains(&plan(&agents, &[], &[draining], &PlanContext::default())), [], "it was told");
}

#[test]
fn a_worker_group_that_pauses_is_not_started() {
    let agents = [agent("Conversation", json!({"maxWorkers": 2}))];
    let demand = [waits("a-1", 1), waits("a-2", 1), waits("a-3", 1)];
    let paused = HashSet::from([(key("a"), group("a-1"))]);
    let context = PlanContext { paused, ..PlanContext::default() };
    assert_eq!(starts(&plan(&agents, &demand, &[], &context)), ["a-2", "a-3"], "it takes nobody's place");
    let warm = [PlannedAgent { may_warm: true, ..agent("Agent", json!({"minWorkers": 1})) }];
    let paused = HashSet::from([(key("a"), group("a"))]);
    assert_eq!(starts(&plan(&warm, &[], &[], &PlanContext { paused, ..PlanContext::default() })), [""; 0]);
}

#[test]
fn suspicion_stops_and_queues() {
    let suspected = Lease { suspected: true, ..busy("a") };
    let stopping = worker("a", LeasePhase::Draining);
    let workers = [suspected.clone(), stopping.clone()];
    let mut context = PlanContext { check_queues: true, ..PlanContext::default() };
    let agents = [agent("Agent", json!({"maxQueuedTurns": 7}))];
    let look = Action::Look { start_id: suspected.start_id, runtime_ref: "r".into() };
    let stop = Action::Stop { start_id: stopping.start_id, runtime_ref: "r".into() };
    let shed = Action::Shed { agent: key("a"), max_queued: 7 };
    assert_eq!(plan(&agents, &[], &workers, &context), [look.clone(), stop, shed.clone()]);
    context.stopped.insert(stopping.start_id);
    assert_eq!(plan(&agents, &[], &workers, &context), [look, shed.clone()]);
    context.looked.insert(suspected.start_id);
    assert_eq!(plan(&agents, &[], &workers, &context), std::slice::from_ref(&shed), "a moment ago");
    let zone: Vec<Lease> = (0..300).map(|_| Lease { suspected: true, ..busy("a") }).collect();
    let looks = plan(&[], &[], &zone, &context).into_iter().filter(|a| matches!(a, Action::Look { .. })).count();
    assert_eq!(looks, MAX_LOOKS, "a lost zone leaves room for starts");
    assert_eq!(plan(&agents, &[], &[], &context), [], "an Agent at rest costs nothing");
    context.check_queues = false;
    assert!(!plan(&agents, &[], &workers, &context).contains(&shed));
}

fn some_worker() -> impl Strategy<Value = Lease> {
    use LeasePhase::*;
    let phase = prop_oneof![Just(Starting), Just(Live), Just(Draining)];
    (0..4u8, phase, 1..3i64, 0..3u32, prop::option::of(0.0..30.0f64), 1..4u32, any::<bool>()).prop_map(
        |(worker_group, phase, config, held, idle_seconds, capacity, retiring)| Lease {
            config,
            retiring: retiring && config == 1 && phase == Live,
            held,
            capacity,
            idle_seconds,
            ..worker(&name(worker_group), phase)
        },
    )
}

fn name(worker_group: u8) -> String {
    if worker_group == 0 { "a".into() } else { format!("a-{worker_group}") }
}

proptest! {
    #[test]
    fn whatever_there_is_the_bounds_hold(
        shared in any::<bool>(), proven in any::<bool>(), min in 0..4u32, more in 0..5u32, per in 1..4u32,
        surge in 0..3u32, unavailable in 0..3u32,
        workers in prop::collection::vec(some_worker(), 0..12),
        queues in prop::collection::btree_map(0..6u8, 0..20u32, 0..6),
    ) {
        let max = (min + more).max(1);
        let limits = json!({"minWorkers": min, "maxWorkers": max, "turnsPerWorker": per});
        let mut agent = PlannedAgent { proven, ..agent(if shared { "Agent" } else { "Conversation" }, limits) };
        let rollout = json!({"maxSurge": surge, "maxUnavailable": unavailable});
        let spec = AgentSpec { rollout: serde_json::from_value(rollout).expect("reads"), ..(**agent.spec.as_ref().expect("a spec")).clone() };
        agent.spec = Some(Arc::new(spec));
        let demand: Vec<_> = queues.iter().map(|(d, n)| waits(&name(*d), *n)).collect();
        let actions = plan(&[agent], &demand, &workers, &PlanContext::default());
        let (started, drained) = (starts(&actions), drains(&actions));
        let older = workers.iter().any(|w| w.config < 2 && is_up(w));
        let places = max + if older { surge } else { 0 };
        prop_assert!(started.is_empty() || workers.len() + started.len() <= places as usize);
        let replaced = actions.iter().filter(|a| matches!(a, Action::Replace { .. })).count();
        prop_assert!(replaced == 0 || (!proven && replaced == 1 && workers.len() + started.len() < places as usize));
        for (at, (start, why)) in drained.iter().enumerate() {
            prop_assert!(drained[..at].iter().all(|(other, _)| other != start), "drained once");
            let worker = workers.iter().find(|w| w.start_id == *start).expect("one of them");
            prop_assert!(worker.phase != LeasePhase::Draining);
            prop_assert_eq!(*why == DrainCause::Changed, worker.config < 2 && worker.phase == LeasePhase::Starting);
            prop_assert!(*why != DrainCause::Replaced || (worker.held == 0 && worker.config < 2));
            let waiting = queues.iter().any(|(d, n)| group(&name(*d)) == worker.worker_group && *n > 0);
            let rolls = matches!(why, DrainCause::Changed | DrainCause::Replaced);
            let excess = *why == DrainCause::Excess && worker.held == 0;
            prop_assert!(rolls || excess || (worker.held == 0 && !waiting), "nobody needs it");
        }
        let kept = workers.iter().filter(|w| {
            w.worker_group == WorkerGroup::OfAgent && w.config == 2 && serves(w) && !drained.iter().any(|(id, _)| *id == w.start_id)
        });
        let current = workers.iter().filter(|w| w.worker_group == WorkerGroup::OfAgent && w.config == 2 && serves(w)).count();
        if shared {
            prop_assert!(kept.count() >= current.min(min as usize), "minWorkers stay");
        }
        for worker_group in 1..6u8 {
            let name = name(worker_group);
            let new = started.iter().filter(|d| **d == name).count();
            let have = workers.iter().any(|w| w.worker_group == group(&name) && w.config == 2 && serves(w));
            prop_assert!(new <= usize::from(!have), "a conversation has one worker");
        }
    }
}

/// A start that may be lost is made again: of the Agent's config alone, and not again at once.
#[test]
fn a_lost_start_is_made_again() {
    let lost = Lease { unmade: true, ..worker("a", LeasePhase::Starting) };
    let old = Lease { config: 1, unmade: true, ..worker("a", LeasePhase::Starting) };
    let remakes = |workers: &[Lease], context: &PlanContext| {
        let actions = plan(&[agent("Agent", json!({}))], &[], workers, context);
        actions.into_iter().filter(|a| matches!(a, Action::Remake { .. })).count()
    };
    assert_eq!(remakes(&[lost.clone(), worker("a", LeasePhase::Starting), old], &PlanContext::default()), 1);
    let context = PlanContext { remade: HashSet::from([lost.start_id]), ..PlanContext::default() };
    assert_eq!(remakes(&[lost], &context), 0);
}

/// What is done about workers of an older config, in short: `retire N`, `replace`, `restore`, `leave N` and `start N`.
fn rolled(agent: &PlannedAgent, workers: &[Lease]) -> String {
    let actions = plan(std::slice::from_ref(agent), &[], workers, &PlanContext::default());
    let count = |what: &str, is: &dyn Fn(&Action) -> bool| {
        let n = actions.iter().filter(|a| is(a)).count();
        if n == 0 { String::new() } else { format!("{what} {n} ") }
    };
    [
        count("retire", &|a| matches!(a, Action::Retire { .. })),
        count("replace", &|a| matches!(a, Action::Replace { .. })),
        count("restore", &|a| matches!(a, Action::Restore { .. })),
        count("leave", &|a| matches!(a, Action::Drain { cause: DrainCause::Replaced, .. })),
        count("start", &|a| matches!(a, Action::Start { .. })),
    ]
    .concat()
    .trim_end()
    .to_owned()
}

#[test]
fn workers_of_an_older_config_are_replaced_by_those_that_work() {
    use LeasePhase::*;
    let old = |group: &str| Lease { config: 1, ..busy(group) };
    let old_idle = |group: &str| Lease { config: 1, ..idle(group, 1.0) };
    let retires = |worker: Lease| Lease { retiring: true, ..worker };
    let (starting, new) = (|group: &str| worker(group, Starting), busy);
    let agent = |scope: &str, proven: bool, max: u32, (surge, unavailable): (u32, u32)| {
        let rollout = json!({"maxSurge": surge, "maxUnavailable": unavailable});
        let agent = agent(scope, json!({"maxWorkers": max}));
        let spec = (**agent.spec.as_ref().expect("a spec")).clone();
        let spec = AgentSpec { rollout: serde_json::from_value(rollout).expect("reads"), ..spec };
        PlannedAgent { proven, spec: Some(Arc::new(spec)), ..agent }
    };
    let usual = (1, 0);
    for (why, agent, workers, expected) in [
        ("nothing changed", agent("Agent", true, 3, usual), vec![new("a")], ""),
        ("a trial beside all", agent("Agent", false, 3, usual), vec![old("a"), old("a"), old("a")], "start 1"),
        ("one trial", agent("Agent", false, 9, (5, 5)), vec![old("a"), old("a"), starting("a")], ""),
        ("beyond maxSurge none", agent("Agent", false, 2, usual), vec![old("a"), old("a"), worker("a", Draining)], ""),
        ("the next, when one works", agent("Agent", true, 3, usual), vec![old("a"), old("a"), new("a")], "start 1"),
        ("several", agent("Agent", true, 9, (3, 0)), vec![old("a"), old("a"), old("a"), old("a"), new("a")], "start 3"),
        ("done with its turns", agent("Agent", true, 3, usual), vec![retires(old_idle("a")), new("a")], "leave 1"),
        ("not done", agent("Agent", true, 3, usual), vec![retires(old("a")), new("a")], ""),
        ("no place, and none is lent", agent("Agent", false, 2, (0, 1)), vec![old("a"), old_idle("a")], "retire 1"),
        ("one at a time", agent("Agent", false, 2, (0, 2)), vec![old("a"), retires(old("a"))], ""),
        (
            "within maxUnavailable",
            agent("Agent", true, 4, (0, 2)),
            vec![old("a"), old("a"), old("a"), new("a")],
            "retire 2",
        ),
        (
            "a trial for one of them",
            agent("Conversation", false, 9, usual),
            vec![old("a-1"), old_idle("a-2")],
            "replace 1",
        ),
        (
            "it is under way",
            agent("Conversation", false, 9, usual),
            vec![retires(old("a-1")), starting("a-1"), old("a-2")],
            "",
        ),
        ("it failed", agent("Conversation", false, 9, usual), vec![retires(old("a-1")), old("a-2")], "restore 1"),
        (
            "it works",
            agent("Conversation", true, 9, usual),
            vec![retires(old_idle("a-1")), new("a-1"), old("a-2")],
            "leave 1",
        ),
        ("the rest", agent("Conversation", true, 9, usual), vec![new("a-1"), old("a-2"), old_idle("a-3")], "retire 1"),
        ("the rest, faster", agent("Conversation", true, 9, (2, 3)), vec![old("a-2"), old_idle("a-3")], "retire 2"),
        ("no place", agent("Conversation", false, 2, (0, 1)), vec![old("a-1"), old_idle("a-2")], "leave 1"),
    ] {
        assert_eq!(rolled(&agent, &workers), expected, "{why}");
        let paused = PlannedAgent { may_warm: false, proven: false, ..agent };
        let lives_on = rolled(&paused, &workers);
        assert!(
            !lives_on.contains("start") && !lives_on.contains("replace") && !lives_on.contains("retire"),
            "{why}: {lives_on}"
        );
    }
}

#[test]
fn a_lowered_limit_lets_the_idle_go_and_the_busy_finish() {
    let agent = |max: u32| agent("Agent", json!({"maxWorkers": max}));
    let (busy_one, long, short) = (busy("a"), idle("a", 5.0), idle("a", 1.0));
    let workers = [busy_one.clone(), short.clone(), long.clone()];
    let planned = |max: u32, workers: &[Lease]| plan(&[agent(max)], &[], workers, &PlanContext::default());
    assert_eq!(planned(3, &workers), []);
    assert_eq!(drains(&planned(2, &workers)), [(long.start_id, DrainCause::Excess)], "the longest idle first");
    let both = drains(&planned(1, &workers));
    assert_eq!(both.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [long.start_id, short.start_id]);
    // Of two that are busy one retires; it leaves when it is done, or serves on if there is room again.
    let two = [busy_one.clone(), busy("a")];
    let retire = |worker: &Lease| Action::Retire { incarnation: worker.incarnation };
    assert_eq!(planned(1, &two), [retire(&two[0])]);
    let retiring = Lease { retiring: true, ..busy_one };
    assert_eq!(planned(1, &[retiring.clone(), two[1].clone()]), []);
    let restore = Action::Restore { incarnation: retiring.incarnation };
    assert_eq!(planned(2, &[retiring.clone(), two[1].clone()]), [restore]);
    let done = Lease { held: 0, ..retiring };
    assert_eq!(drains(&planned(1, &[done.clone(), two[1].clone()])), [(done.start_id, DrainCause::Excess)]);
}
