//! Decisions over what was just read: who wins an election, what follows from a look at a worker, how many workers to
//! start, which turns a worker holds by mistake.
//!
//! Each decision is a plain function, so that its table is a plain test. The store's transactions, the fleet's loops and
//! the worker port read, ask here, and write what they are told.

use super::cause;
use super::keys::{Incarnation, TurnId};
use super::terminal::{Failure, Outcome};

/// Who asks to end a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TurnEnder {
    /// A worker that says that it holds the turn. `reply` is the worker's own name for its answer: when the worker
    /// sends the answer again because the acknowledgement was lost, the repeat is recognised by it.
    Worker { incarnation: Incarnation, reply: String },
    /// A part of Lastword itself: the sweep, a runtime that has proof of a death, a guardrail, a person's cancellation.
    /// That the marker is still there is the only condition. Only the test's table names this: the store ends turns for
    /// these parts by `elect::fail_open`, which is to do what [`elect`] says for it.
    System,
}

/// A turn as the election finds it, read under its marker's lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TurnState {
    /// The marker is there: the turn owes its terminal. `holder` is the incarnation that claimed the turn, if any.
    Open { holder: Option<Incarnation> },
    /// The turn has its terminal. Where a worker wrote it, this is the worker's incarnation and its reply's name.
    Ended { by: Option<Incarnation>, reply: Option<String> },
    /// There is no such turn.
    Unknown,
}

/// What an attempt to end one turn comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Election {
    /// The caller wins: the marker is deleted and the caller's terminal is written.
    Win,
    /// The caller won before, with this same reply: the caller is told so again, and nothing is written.
    Repeat,
    /// Somebody else won before: the caller's answer is kept as superseded, for operators.
    Late,
    /// The caller never held the turn: nothing changes, and the answer is kept as superseded where the turn exists.
    Foreign,
}

/// Decides an attempt to end one turn.
pub fn elect(state: &TurnState, by: &TurnEnder) -> Election {
    match (state, by) {
        (TurnState::Open { holder: Some(holder) }, TurnEnder::Worker { incarnation, .. }) if holder == incarnation => {
            Election::Win
        }
        (TurnState::Open { .. }, TurnEnder::Worker { .. }) => Election::Foreign,
        (TurnState::Open { .. }, TurnEnder::System) => Election::Win,
        (TurnState::Ended { by: Some(winner), reply: Some(written) }, TurnEnder::Worker { incarnation, reply })
            if winner == incarnation && written == reply =>
        {
            Election::Repeat
        }
        (TurnState::Ended { .. }, _) => Election::Late,
        (TurnState::Unknown, _) => Election::Foreign,
    }
}

/// What an answer to several turns comes to, for the worker that sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElectionSummary {
    /// The answer is the terminal of at least one of the turns, written now or when it was first sent.
    Accepted,
    /// The answer is no turn's terminal, and at least one of the turns had ended before by another word.
    Superseded,
    /// The caller never held any of the turns.
    Foreign,
}

/// Sums up the elections over the turns that one answer names.
pub fn summary(elections: &[Election]) -> ElectionSummary {
    if elections.iter().any(|e| matches!(e, Election::Win | Election::Repeat)) {
        ElectionSummary::Accepted
    } else if elections.contains(&Election::Late) {
        ElectionSummary::Superseded
    } else {
        ElectionSummary::Foreign
    }
}

/// The outcome that the terminal gets. A turn whose routing cannot be read has nowhere to show a reply, so it ends with
/// an `Internal` error whatever its outcome was; the error's detail says for operators what the outcome was.
pub fn outcome_to_write(outcome: &Outcome, unreadable: Option<&super::routing::Unreadable>) -> Outcome {
    match unreadable {
        None => outcome.clone(),
        Some(why) => {
            let was = match outcome {
                Outcome::Reply => "a reply".to_string(),
                Outcome::Error(failure) => failure.reason.to_string(),
            };
            Outcome::Error(cause::rule::unreadable(why, was))
        }
    }
}

/// What a runtime (Kubernetes, or the process runtime of `dev`) says of one worker when it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// The worker's container or process runs.
    Running,
    /// The worker's container has terminated, or its process was reaped. This, and nothing else, proves that the worker
    /// is dead; the cause may not be known yet.
    Terminated { cause: Option<Failure> },
    /// The runtime knows no such worker now. This proves nothing: a list may be stale.
    Absent,
    /// The runtime could not be asked.
    Unknown,
}

/// What follows from a look at a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AfterLook {
    /// The worker is dead: fail its turns now, with this cause.
    Fail(Failure),
    /// The worker is dead, but why is not known yet: wait for the cause, for the cause window at most.
    AwaitCause,
    /// Nothing is proven. The lease decides whether the worker lives.
    Nothing,
}

/// What follows from a look at a worker: only proof kills. `window_over` says that the cause window, the time in which the
/// cause of a proven death is waited for, has passed.
pub fn after_look(look: Look, window_over: bool) -> AfterLook {
    match look {
        Look::Terminated { cause: Some(cause) } => AfterLook::Fail(cause),
        Look::Terminated { cause: None } if window_over => AfterLook::Fail(cause::lease::unexplained()),
        Look::Terminated { cause: None } => AfterLook::AwaitCause,
        Look::Running | Look::Absent | Look::Unknown => AfterLook::Nothing,
    }
}

/// The workers and the queue of one worker group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Demand {
    /// How many turns could be claimed now: the first waiting turn of each conversation.
    pub claimable: u32,
    /// How many workers are live.
    pub live: u32,
    /// How many more turns the live workers could take.
    pub room: u32,
    /// How many starts are under way.
    pub starting: u32,
    /// How many workers the whole Agent has, live or starting, over all its worker groups.
    pub agent_workers: u32,
}

/// How many workers an Agent is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartLimits {
    pub min_workers: u32,
    pub max_workers: u32,
    pub turns_per_worker: u32,
    /// Each conversation has a worker group of its own, which never has more than one worker.
    pub per_conversation: bool,
}

/// How many workers to start for a worker group now.
pub fn starts(demand: Demand, limits: StartLimits) -> u32 {
    let Demand { claimable, live, room, starting, agent_workers } = demand;
    let budget = limits.max_workers.saturating_sub(agent_workers);
    let wanted = if limits.per_conversation {
        u32::from(claimable > 0 && live + starting == 0)
    } else {
        let coming = starting * limits.turns_per_worker.max(1);
        let uncovered = claimable.saturating_sub(room + coming).div_ceil(limits.turns_per_worker.max(1));
        uncovered.max(limits.min_workers.saturating_sub(live + starting))
    };
    wanted.min(budget)
}

/// Compares the turns that a worker says it holds with those whose markers name it. Gives the turns that it must stop,
/// since no marker names it for them, and the turns to push to it again, since it lacks them.
pub fn reconcile(in_hand: &[TurnId], marked: &[TurnId]) -> (Vec<TurnId>, Vec<TurnId>) {
    let stop = in_hand.iter().filter(|t| !marked.contains(t)).copied().collect();
    let push = marked.iter().filter(|t| !in_hand.contains(t)).copied().collect();
    (stop, push)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::reason::Reason;
    use crate::turn::routing::Unreadable;

    #[test]
    fn the_election_table() {
        let (me, other) = (Incarnation::new(), Incarnation::new());
        let worker = TurnEnder::Worker { incarnation: me, reply: "r1".into() };
        let open = |holder| TurnState::Open { holder };
        let ended = |by, reply: &str| TurnState::Ended { by, reply: Some(reply.to_string()) };
        for (state, by, expected) in [
            (open(Some(me)), &worker, Election::Win),
            (open(Some(other)), &worker, Election::Foreign),
            (open(None), &worker, Election::Foreign),
            (open(Some(me)), &TurnEnder::System, Election::Win),
            (open(None), &TurnEnder::System, Election::Win),
            (ended(Some(me), "r1"), &worker, Election::Repeat),
            (ended(Some(me), "r2"), &worker, Election::Late),
            (ended(Some(other), "r1"), &worker, Election::Late),
            (TurnState::Ended { by: None, reply: None }, &worker, Election::Late),
            (ended(Some(me), "r1"), &TurnEnder::System, Election::Late),
            (TurnState::Unknown, &worker, Election::Foreign),
            (TurnState::Unknown, &TurnEnder::System, Election::Foreign),
        ] {
            assert_eq!(elect(&state, by), expected, "{state:?} by {by:?}");
        }
    }

    #[test]
    fn one_win_is_enough() {
        use Election::*;
        assert_eq!(summary(&[Late, Win, Late]), ElectionSummary::Accepted);
        assert_eq!(summary(&[Repeat, Late]), ElectionSummary::Accepted);
        assert_eq!(summary(&[Late, Foreign]), ElectionSummary::Superseded);
        assert_eq!(summary(&[Foreign]), ElectionSummary::Foreign);
        assert_eq!(summary(&[]), ElectionSummary::Foreign);
    }

    #[test]
    fn a_turn_with_unreadable_routing_ends_with_an_error() {
        let bad = Unreadable("not an object".into());
        let Outcome::Error(failure) = outcome_to_write(&Outcome::Reply, Some(&bad)) else { panic!("must be an error") };
        assert_eq!(failure.reason, Reason::Internal);
        assert!(!failure.message.contains("object"), "internals stay with operators");
        assert_eq!(outcome_to_write(&Outcome::Reply, None), Outcome::Reply);
    }

    #[test]
    fn only_proof_kills() {
        let cause = Failure::new(Reason::OutOfMemory);
        let dead = |cause| Look::Terminated { cause };
        for over in [false, true] {
            for look in [Look::Running, Look::Absent, Look::Unknown] {
                assert_eq!(after_look(look, over), AfterLook::Nothing);
            }
            assert_eq!(after_look(dead(Some(cause.clone())), over), AfterLook::Fail(cause.clone()));
        }
        assert_eq!(after_look(dead(None), false), AfterLook::AwaitCause);
        assert!(matches!(after_look(dead(None), true), AfterLook::Fail(f) if f.reason == Reason::WorkerExited));
    }

    #[test]
    fn demand_becomes_starts() {
        let agent = StartLimits { min_workers: 0, max_workers: 4, turns_per_worker: 2, per_conversation: false };
        let one = StartLimits { per_conversation: true, ..agent };
        let demand =
            |claimable, live, room, starting, agent_workers| Demand { claimable, live, room, starting, agent_workers };
        for (d, limits, expected, why) in [
            (demand(0, 0, 0, 0, 0), agent, 0, "nothing waits"),
            (demand(1, 0, 0, 0, 0), agent, 1, "one waits"),
            (demand(5, 0, 0, 0, 0), agent, 3, "two a worker"),
            (demand(5, 1, 0, 1, 2), agent, 2, "a start under way takes two"),
            (demand(9, 0, 0, 0, 3), agent, 1, "maxWorkers over all worker groups"),
            (demand(2, 1, 2, 0, 1), agent, 0, "there is room"),
            (demand(0, 0, 0, 0, 0), StartLimits { min_workers: 2, ..agent }, 2, "minWorkers"),
            (demand(0, 1, 2, 1, 2), StartLimits { min_workers: 2, ..agent }, 0, "minWorkers are coming"),
            (demand(1, 0, 0, 0, 0), one, 1, "a conversation's worker"),
            (demand(1, 1, 0, 0, 1), one, 0, "waiting behind a busy worker is no demand"),
            (demand(1, 0, 0, 1, 1), one, 0, "it is starting"),
            (demand(1, 0, 0, 0, 4), one, 0, "the Agent is at its limit"),
        ] {
            assert_eq!(starts(d, limits), expected, "{why}");
        }
    }

    #[test]
    fn a_worker_and_the_markers_are_reconciled() {
        let (a, b, c) = (TurnId::new(), TurnId::new(), TurnId::new());
        assert_eq!(reconcile(&[a, b], &[b, c]), (vec![a], vec![c]));
    }
}
