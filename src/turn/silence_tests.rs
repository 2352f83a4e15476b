//! The clauses of a verdict of silence, tried on all that can happen.
//!
//! The model is a worker, the gateway `A` that it speaks to first, and the other gateways as one, `B`. A step is the period of
//! a tick. In each step it is open which of the gateways reach the database, how late a beat comes, whether the worker dies and
//! whether `A` stops; every combination is followed to every state that it can lead to. The numbers are small; what matters
//! is their order.

use std::collections::HashMap;

use super::*;

/// Times in steps.
#[derive(Debug, Clone, Copy)]
struct Rules {
    lease: i32,
    /// Of beats.
    period: i32,
    /// A gateway's row runs out so long after a tick.
    expiry: i32,
    /// More than this between two ticks is a gap.
    gap: i32,
    /// A beat comes up to so many steps late.
    late: i32,
}

/// As in life: the lease outlasts a gap and a gateway's row.
const USUAL: Rules = Rules { lease: 4, period: 2, expiry: 3, gap: 1, late: 2 };
/// A lease that is shorter than a gap.
const SHORT: Rules = Rules { lease: 2, period: 1, expiry: 3, gap: 3, late: 1 };

type Decide = fn(f64, &GateTicks, Option<CarrierTicks>) -> Option<f64>;

/// How everything stands. Numbers are ages in steps, and end where more of them makes no difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct World {
    gate_seen: i32,
    gate_steady: i32,
    /// Ticked since the last gap that followed a whole lease without one.
    counted: i32,
    /// The row of `A`.
    seen: i32,
    seen_before: i32,
    steady: i32,
    stopped: bool,
    /// How long ago the lease ran out.
    lapsed: i32,
    heard_by_a: bool,
    alive: bool,
    at_a: bool,
    /// Steps until the next beat, and by how many it is late already.
    due: i32,
    late: i32,
    acknowledged: i32,
    /// How long `A`, and all gateways, have been cut off; how long `A` has not been.
    cut: i32,
    all_cut: i32,
    up: i32,
}

/// What is open in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Move {
    a: bool,
    b: bool,
    late: bool,
    dies: bool,
    stops: bool,
}

impl World {
    fn steady(rules: Rules) -> World {
        World {
            gate_seen: 0,
            gate_steady: rules.lease,
            counted: 0,
            seen: 0,
            seen_before: 1,
            steady: rules.lease,
            stopped: false,
            lapsed: -rules.lease,
            heard_by_a: true,
            alive: true,
            at_a: true,
            due: rules.period,
            late: 0,
            acknowledged: 0,
            cut: 0,
            all_cut: 0,
            up: 100,
        }
    }

    /// What the worker does: beats; or, where it may, leaves a gateway that has not answered for half a lease. Answers whether its
    /// word comes to its gateway in this step. One that the gateway cannot write is said again.
    fn works(&mut self, now: Move, leaves: bool, rules: Rules) -> bool {
        let half = self.acknowledged * 2 >= rules.lease;
        if leaves && (half || (self.at_a && self.stopped)) {
            self.at_a = !self.at_a && !self.stopped;
            return true;
        }
        self.due -= 1;
        if self.due > 0 {
            return false;
        }
        if now.late && self.late < rules.late {
            self.late += 1;
            return false;
        }
        (self.late, self.due) = (0, 1);
        true
    }

    /// What `store/gate.rs` writes to the gate.
    fn tick(&mut self, rules: Rules) {
        let passed = std::mem::take(&mut self.gate_seen);
        if passed <= rules.gap {
            self.gate_steady += passed;
            self.counted += passed;
            return;
        }
        self.counted = if self.gate_steady >= rules.lease { 0 } else { self.counted + rules.gap };
        self.gate_steady = 0;
    }

    /// What `store/gate.rs` writes to the row of `A`.
    fn tick_of_a(&mut self, rules: Rules) {
        self.steady = if self.seen > rules.gap { 0 } else { self.steady + self.seen };
        (self.seen_before, self.seen) = (self.seen, 0);
        self.tick(rules);
    }

    fn step(mut self, now: Move, leaves: bool, rules: Rules) -> World {
        let most = 7 * rules.lease;
        for age in
            [&mut self.seen, &mut self.seen_before, &mut self.lapsed, &mut self.gate_seen, &mut self.acknowledged]
        {
            *age = (*age + 1).min(most);
        }
        self.stopped |= now.stops;
        self.alive &= !now.dies;
        (self.cut, self.up) = if now.a { (0, (self.up + 1).min(most)) } else { ((self.cut + 1).min(most), 0) };
        self.all_cut = if now.a || now.b { 0 } else { self.all_cut + 1 };
        let a_ticks = now.a && !self.stopped;
        if self.alive && self.works(now, leaves, rules) && if self.at_a { a_ticks } else { now.b } {
            (self.lapsed, self.heard_by_a) = (-rules.lease, self.at_a);
            (self.acknowledged, self.due) = (0, rules.period);
        }
        if a_ticks {
            self.tick_of_a(rules);
        }
        if now.b {
            self.tick(rules);
        }
        self.steady = self.steady.min(rules.lease);
        self.gate_steady = self.gate_steady.min(rules.lease);
        self.counted = self.counted.min(5 * rules.lease);
        self.acknowledged = self.acknowledged.min(rules.lease);
        self
    }

    /// Whether the sweep ends the lease.
    fn ends(&self, decide: Decide, rules: Rules) -> bool {
        let f = |steps: i32| f64::from(steps);
        let gate = GateTicks { steady: f(self.gate_steady), ticked: f(self.counted), gaps: Vec::new() };
        let of_a = CarrierTicks {
            steady: f(self.steady),
            last_but_one: f(self.seen_before - self.gate_seen),
            ran_out: f(self.seen - rules.expiry - self.gate_seen),
        };
        let of_b = CarrierTicks { steady: f(rules.lease), last_but_one: 1.0, ran_out: f(-rules.expiry) };
        let carrier = match (self.heard_by_a, self.stopped) {
            (true, true) => None,
            (true, false) => Some(of_a),
            (false, _) => Some(of_b),
        };
        let ago = self.lapsed - self.gate_seen;
        ago >= 0 && decide(f(rules.lease), &gate, carrier).is_some_and(|from| f(ago) >= from)
    }
}

/// What may happen, and what must not.
struct Play {
    rules: Rules,
    /// The worker leaves a gateway that does not answer; one of the previous version, behind one address, does not.
    leaves: bool,
    may: fn(&World, Move, Rules) -> bool,
    /// How long ago the lease of a dead worker may have run out without being ended.
    dead_for: i32,
}

/// Follows every move from every state. An error is a way to a living worker that is ended, or to a dead one that is not.
fn all_that_can_happen(play: &Play, decide: Decide) -> Result<usize, String> {
    let Play { rules, .. } = *play;
    let begin = World::steady(rules);
    let mut came_from: HashMap<World, Option<(World, Move)>> = HashMap::from([(begin, None)]);
    let mut open = vec![begin];
    while let Some(world) = open.pop() {
        for bits in 0..32 {
            let bit = |n: u32| bits >> n & 1 == 1;
            let now = Move { a: bit(0), b: bit(1), late: bit(2), dies: bit(3), stops: bit(4) };
            let again = (now.dies && !world.alive) || (now.stops && world.stopped) || (now.late && !world.alive);
            if again || !(play.may)(&world, now, rules) {
                continue;
            }
            let next = world.step(now, play.leaves, rules);
            let ended = next.ends(decide, rules);
            let wrong = match (ended, next.alive) {
                (true, true) => "a living worker is ended",
                (false, false) if next.lapsed > play.dead_for => "a dead worker is not ended",
                _ => {
                    if !ended && !came_from.contains_key(&next) {
                        came_from.insert(next, Some((world, now)));
                        open.push(next);
                    }
                    continue;
                }
            };
            let mut way = vec![format!("{now:?} {next:?}")];
            let mut at = world;
            while let Some(Some((before, by))) = came_from.get(&at) {
                way.push(format!("{by:?} {at:?}"));
                at = *before;
            }
            way.reverse();
            return Err(format!("{wrong}\n{}", way.join("\n")));
        }
    }
    Ok(came_from.len())
}

/// An outage of everything lasts a lease and some at the most.
fn outage(world: &World, rules: Rules) -> bool {
    world.all_cut < rules.lease + 2
}

/// A worker of the previous version, pinned to `A`. Each cut of `A` lasts a lease and a step at the most, and lasts again only
/// when a beat could come through; the others do as they like.
fn pinned(rules: Rules) -> Play {
    let may = |world: &World, now: Move, rules: Rules| {
        let cut_ends = now.a || world.cut < rules.lease + 1;
        let up_lasts = now.a || world.cut > 0 || world.up > rules.late + rules.period + 1;
        !now.dies && !now.stops && cut_ends && up_lasts && (now.a || now.b || outage(world, rules))
    };
    Play { rules, leaves: false, may, dead_for: 0 }
}

/// All gateways are cut off together, for longer than anybody waits for one.
fn cut_off_together(rules: Rules) -> Play {
    let may = |world: &World, now: Move, rules: Rules| {
        let cut_ends = now.a || world.all_cut < 6 * rules.lease;
        let up_lasts = now.a || world.cut > 0 || world.up > rules.late + rules.period + 1;
        !now.dies && !now.stops && now.a == now.b && cut_ends && up_lasts
    };
    Play { rules, leaves: false, may, dead_for: 0 }
}

/// A worker that leaves `A`, which may be cut off at any time for any time, and may stop. It finds the others.
fn leaving(rules: Rules) -> Play {
    Play { rules, leaves: true, may: |_, now, _| !now.dies && now.b, dead_for: 0 }
}

/// A worker that dies at any time, while `A` does what it likes.
fn dying(rules: Rules) -> Play {
    Play { rules, leaves: true, may: |_, now, _| now.b && !now.stops, dead_for: 5 * rules.lease }
}

/// A worker that dies together with its gateway.
fn dying_with_its_gateway(rules: Rules) -> Play {
    let may = |world: &World, now: Move, _: Rules| now.b && !now.stops && now.a == (world.alive && !now.dies);
    // The last beat may have come a period before the last tick, and late.
    Play { rules, leaves: true, may, dead_for: rules.expiry + rules.period + rules.late }
}

/// A worker that dies, and no gateway is ever cut off.
fn dying_alone(rules: Rules) -> Play {
    Play { rules, leaves: true, may: |_, now, _| now.a && now.b, dead_for: 2 }
}

fn plays(rules: Rules) -> [(&'static str, Play); 6] {
    [
        ("pinned", pinned(rules)),
        ("cut off together", cut_off_together(rules)),
        ("leaving", leaving(rules)),
        ("dying", dying(rules)),
        ("dying with its gateway", dying_with_its_gateway(rules)),
        ("dying alone", dying_alone(rules)),
    ]
}

#[test]
fn the_living_are_spared_and_the_dead_are_ended_in_time() {
    for (rules, (name, play)) in [USUAL, SHORT].into_iter().flat_map(|rules| plays(rules).map(|play| (rules, play))) {
        match all_that_can_happen(&play, counts_from) {
            Ok(states) => println!("{name}, {rules:?}: {states} states"),
            Err(way) => panic!("{name}, {rules:?}: {way}"),
        }
    }
}

/// Each clause has a counterexample without it.
#[test]
fn no_clause_can_be_left_out() {
    fn gate_alone(lease: f64, gate: &GateTicks, _: Option<CarrierTicks>) -> Option<f64> {
        counts_from(lease, gate, None)
    }
    fn until_its_row_runs_out(lease: f64, gate: &GateTicks, carrier: Option<CarrierTicks>) -> Option<f64> {
        let carrier = carrier.map(|c| CarrierTicks { ran_out: if c.ran_out >= 0.0 { lease } else { -1.0 }, ..c });
        counts_from(lease, gate, carrier)
    }
    fn never_for_a_lost_one(lease: f64, gate: &GateTicks, carrier: Option<CarrierTicks>) -> Option<f64> {
        counts_from(lease, gate, carrier.map(|c| CarrierTicks { ran_out: -1.0, ..c }))
    }
    fn steady_for_no_time(lease: f64, gate: &GateTicks, carrier: Option<CarrierTicks>) -> Option<f64> {
        counts_from(lease, gate, carrier.map(|c| CarrierTicks { steady: lease, ..c }))
    }
    fn after_one_tick(lease: f64, gate: &GateTicks, carrier: Option<CarrierTicks>) -> Option<f64> {
        counts_from(lease, gate, carrier.map(|c| CarrierTicks { last_but_one: 0.0, ..c }))
    }
    fn for_ever(lease: f64, gate: &GateTicks, carrier: Option<CarrierTicks>) -> Option<f64> {
        counts_from(lease, gate, carrier).filter(|from| *from < LEASES_AT_MOST * lease)
    }
    fn unsettled(lease: f64, _: &GateTicks, carrier: Option<CarrierTicks>) -> Option<f64> {
        counts_from(lease, &GateTicks { steady: lease, ticked: 0.0, gaps: Vec::new() }, carrier)
    }
    for (name, decide, play) in [
        ("the gate alone", gate_alone as Decide, pinned(USUAL)),
        ("until its row runs out", until_its_row_runs_out, pinned(USUAL)),
        ("never for a lost gateway", never_for_a_lost_one, dying_with_its_gateway(USUAL)),
        ("without a steady lease", steady_for_no_time, pinned(USUAL)),
        ("after one tick", after_one_tick, pinned(SHORT)),
        ("for ever", for_ever, dying(USUAL)),
        ("unsettled", unsettled, cut_off_together(USUAL)),
    ] {
        let way = all_that_can_happen(&play, decide).expect_err(name);
        println!("{name}: {}", way.lines().next().unwrap_or_default());
    }
}

#[test]
fn leases_of_every_length_have_a_count_of_their_own() {
    // The database was steady for an hour, for a minute, and then for ten seconds again and again.
    let gaps = vec![
        Gap { steady: 3600.0, ticked: 100.0 },
        Gap { steady: 60.0, ticked: 160.0 },
        Gap { steady: 10.0, ticked: 400.0 },
    ];
    let gate = |ticked| GateTicks { steady: 1.0, ticked, gaps: gaps.clone() };
    for (lease, until) in
        [(10.0, 450.0), (5.0, 425.0), (30.0, 310.0), (60.0, 460.0), (600.0, 3100.0), (7200.0, 36000.0)]
    {
        assert!(!gate(until - 0.1).settled(lease), "a lease of {lease} at {until}");
        assert!(gate(until).settled(lease), "a lease of {lease} at {until}");
    }
    assert!(GateTicks { steady: 30.0, ..gate(400.0) }.settled(30.0), "settled without a count");
}
