//! The decision tables: what an election, a look at a runtime, and a view of demand lead to.
//!
//! Each is a plain function over what was just read. The store's transactions and the loops of `liveness` and `fleet`
//! read, ask here, and write what they are told.

use super::cause;
use super::keys::{Incarnation, TurnId};
use super::terminal::{Failure, Outcome};

/// Who wants to end a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// The worker that claims to hold it; `reply` names its reply, so that a repeat is recognised.
    Worker { incarnation: Incarnation, reply: String },
    /// A part of Lastword, with proof or by the clock: cancel, guard, sweep, runtime. Fenced by the marker alone.
    System,
}

/// A turn as the election sees it, read under the marker's lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// The marker is there; it names this incarnation, if any.
    Open { holder: Option<Incarnation> },
    /// The turn has its terminal, written by this reply of this incarnation (neither, if the system ended it).
    Ended { by: Option<Incarnation>, reply: Option<String> },
    /// No such turn.
    Unknown,
}

/// What becomes of one turn in an ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Election {
    /// Delete the marker, write the terminal.
    Win,
    /// The same word was written before; say so again and write nothing.
    Repeat,
    /// Somebody else had the last word; keep this one as superseded.
    Late,
    /// The turn never belonged to the caller: change nothing; keep the word as superseded if there is such a turn.
    Foreign,
}

/// The election's table.
pub fn elect(standing: &Standing, by: &By) -> Election {
    match (standing, by) {
        (Standing::Open { holder: Some(holder) }, By::Worker { incarnation, .. }) if holder == incarnation => {
            Election::Win
        }
        (Standing::Open { .. }, By::Worker { .. }) => Election::Foreign,
        (Standing::Open { .. }, By::System) => Election::Win,
        (Standing::Ended { by: Some(winner), reply: Some(written) }, By::Worker { incarnation, reply })
            if winner == incarnation && written == reply =>
        {
            Election::Repeat
        }
        (Standing::Ended { .. }, _) => Election::Late,
        (Standing::Unknown, _) => Election::Foreign,
    }
}

/// What an ending over several turns comes to, for the one who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// At least one turn ended by this word, now or by its first sending.
    Accepted,
    /// Every turn had another last word already.
    Superseded,
    /// None of the turns belongs to the caller.
    Foreign,
}

/// Sums up the elections of one ending.
pub fn verdict(elections: &[Election]) -> Verdict {
    if elections.iter().any(|e| matches!(e, Election::Win | Election::Repeat)) {
        Verdict::Accepted
    } else if elections.contains(&Election::Late) {
        Verdict::Superseded
    } else {
        Verdict::Foreign
    }
}

/// The outcome that is really written: a marker whose routing cannot be read ends with a fallback error, whatever the
/// word was, and the word goes into the detail for operators.
pub fn written(outcome: &Outcome, unreadable: Option<&super::routing::Unreadable>) -> Outcome {
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

/// What a runtime says of one incarnation when asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// Its container or process runs.
    Running,
    /// Its container terminated, its process was reaped: proof. The cause may still be unknown.
    Terminated { cause: Option<Failure> },
    /// The runtime has no such thing now; it proves nothing by itself.
    Absent,
    /// Nobody could be asked.
    Unknown,
}

/// What to do after a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AfterLook {
    /// Fail the worker now.
    Fail(Failure),
    /// It is dead; wait for the cause, at most `causeWindow`.
    AwaitCause,
    /// Nothing is proven; the lease decides.
    Nothing,
}

/// Only proof kills. A proof without a cause waits for one until `window_over`.
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
    /// Turns that could be claimed now: the first of each conversation, waiting.
    pub claimable: u32,
    /// Live workers, and turns that they still have room for.
    pub live: u32,
    pub room: u32,
    /// Starts under way.
    pub starting: u32,
    /// Starts under way and live workers of the whole Agent, over all its worker groups.
    pub agent_workers: u32,
}

/// What an Agent allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub min_workers: u32,
    pub max_workers: u32,
    pub turns_per_worker: u32,
    /// One worker group a conversation: it never has more than one worker.
    pub per_conversation: bool,
}

/// How many workers to start for a worker group now.
pub fn starts(demand: Demand, limits: Limits) -> u32 {
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

/// Which of the turns that a worker holds in hand it must stop, and which the database says it has and it lacks.
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
        let worker = By::Worker { incarnation: me, reply: "r1".into() };
        let open = |holder| Standing::Open { holder };
        let ended = |by, reply: &str| Standing::Ended { by, reply: Some(reply.to_string()) };
        for (standing, by, expected) in [
            (open(Some(me)), &worker, Election::Win),
            (open(Some(other)), &worker, Election::Foreign),
            (open(None), &worker, Election::Foreign),
            (open(Some(me)), &By::System, Election::Win),
            (open(None), &By::System, Election::Win),
            (ended(Some(me), "r1"), &worker, Election::Repeat),
            (ended(Some(me), "r2"), &worker, Election::Late),
            (ended(Some(other), "r1"), &worker, Election::Late),
            (Standing::Ended { by: None, reply: None }, &worker, Election::Late),
            (ended(Some(me), "r1"), &By::System, Election::Late),
            (Standing::Unknown, &worker, Election::Foreign),
            (Standing::Unknown, &By::System, Election::Foreign),
        ] {
            assert_eq!(elect(&standing, by), expected, "{standing:?} by {by:?}");
        }
    }

    #[test]
    fn one_win_is_enough() {
        use Election::*;
        assert_eq!(verdict(&[Late, Win, Late]), Verdict::Accepted);
        assert_eq!(verdict(&[Repeat, Late]), Verdict::Accepted);
        assert_eq!(verdict(&[Late, Foreign]), Verdict::Superseded);
        assert_eq!(verdict(&[Foreign]), Verdict::Foreign);
        assert_eq!(verdict(&[]), Verdict::Foreign);
    }

    #[test]
    fn an_unreadable_marker_ends_with_a_fallback() {
        let bad = Unreadable("not an object".into());
        let Outcome::Error(failure) = written(&Outcome::Reply, Some(&bad)) else { panic!("must be an error") };
        assert_eq!(failure.reason, Reason::Internal);
        assert!(!failure.message.contains("object"), "internals stay with operators");
        assert_eq!(written(&Outcome::Reply, None), Outcome::Reply);
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
        let agent = Limits { min_workers: 0, max_workers: 4, turns_per_worker: 2, per_conversation: false };
        let one = Limits { per_conversation: true, ..agent };
        let demand =
            |claimable, live, room, starting, agent_workers| Demand { claimable, live, room, starting, agent_workers };
        for (d, limits, expected, why) in [
            (demand(0, 0, 0, 0, 0), agent, 0, "nothing waits"),
            (demand(1, 0, 0, 0, 0), agent, 1, "one waits"),
            (demand(5, 0, 0, 0, 0), agent, 3, "two a worker"),
            (demand(5, 1, 0, 1, 2), agent, 2, "a start under way takes two"),
            (demand(9, 0, 0, 0, 3), agent, 1, "maxWorkers over all worker groups"),
            (demand(2, 1, 2, 0, 1), agent, 0, "there is room"),
            (demand(0, 0, 0, 0, 0), Limits { min_workers: 2, ..agent }, 2, "minWorkers"),
            (demand(0, 1, 2, 1, 2), Limits { min_workers: 2, ..agent }, 0, "minWorkers are coming"),
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
