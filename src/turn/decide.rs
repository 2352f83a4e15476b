//! Decisions over what was just read: who wins an election, and which turns a worker holds by mistake.
//!
//! Each decision is a plain function, so that its table is a plain test. The store's transactions and the worker port
//! read, ask here, and write what they are told.

use super::keys::{Incarnation, TurnId};
use super::reason::Reason;
use super::terminal::{Failure, Outcome};

/// Who asks to end a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// A worker that says that it holds the turn. `reply` is the worker's own name for its answer: when the worker
    /// sends the answer again because the acknowledgement was lost, the repeat is recognised by it.
    Worker { incarnation: Incarnation, reply: String },
    /// A part of Lastword, on proof of a death or by the clock: cancel, guardrail, sweep, runtime. Whether the marker is
    /// still there is the only condition.
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
pub fn elect(standing: &TurnState, by: &By) -> Election {
    match (standing, by) {
        (TurnState::Open { holder: Some(holder) }, By::Worker { incarnation, .. }) if holder == incarnation => {
            Election::Win
        }
        (TurnState::Open { .. }, By::Worker { .. }) => Election::Foreign,
        (TurnState::Open { .. }, By::System) => Election::Win,
        (TurnState::Ended { by: Some(winner), reply: Some(written) }, By::Worker { incarnation, reply })
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
pub fn written(outcome: &Outcome, unreadable: Option<&super::routing::Unreadable>) -> Outcome {
    match unreadable {
        None => outcome.clone(),
        Some(why) => {
            let was = match outcome {
                Outcome::Reply => "a reply".to_string(),
                Outcome::Error(failure) => failure.reason.to_string(),
            };
            Outcome::Error(Failure::detailed(Reason::Internal, format!("{why}; the outcome was {was}")))
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
    use crate::turn::routing::Unreadable;

    #[test]
    fn the_election_table() {
        let (me, other) = (Incarnation::new(), Incarnation::new());
        let worker = By::Worker { incarnation: me, reply: "r1".into() };
        let open = |holder| TurnState::Open { holder };
        let ended = |by, reply: &str| TurnState::Ended { by, reply: Some(reply.to_string()) };
        for (standing, by, expected) in [
            (open(Some(me)), &worker, Election::Win),
            (open(Some(other)), &worker, Election::Foreign),
            (open(None), &worker, Election::Foreign),
            (open(Some(me)), &By::System, Election::Win),
            (open(None), &By::System, Election::Win),
            (ended(Some(me), "r1"), &worker, Election::Repeat),
            (ended(Some(me), "r2"), &worker, Election::Late),
            (ended(Some(other), "r1"), &worker, Election::Late),
            (TurnState::Ended { by: None, reply: None }, &worker, Election::Late),
            (ended(Some(me), "r1"), &By::System, Election::Late),
            (TurnState::Unknown, &worker, Election::Foreign),
            (TurnState::Unknown, &By::System, Election::Foreign),
        ] {
            assert_eq!(elect(&standing, by), expected, "{standing:?} by {by:?}");
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
    fn an_unreadable_marker_ends_with_a_fallback() {
        let bad = Unreadable("not an object".into());
        let Outcome::Error(failure) = written(&Outcome::Reply, Some(&bad)) else { panic!("must be an error") };
        assert_eq!(failure.reason, Reason::Internal);
        assert!(!failure.message.contains("object"), "internals stay with operators");
        assert_eq!(written(&Outcome::Reply, None), Outcome::Reply);
    }

    #[test]
    fn a_worker_and_the_markers_are_reconciled() {
        let (a, b, c) = (TurnId::new(), TurnId::new(), TurnId::new());
        assert_eq!(reconcile(&[a, b], &[b, c]), (vec![a], vec![c]));
    }
}
