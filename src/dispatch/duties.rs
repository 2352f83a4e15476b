//! What a worker owes, as the replica with its stream knows it.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::turn::keys::{ConversationId, TurnId};

/// A turn is pushed again so many times to a worker that does not name it in its heartbeats; then the worker has lost it.
const MAX_LACKING: u32 = 3;
/// For so long it is remembered that a worker let go of a turn: longer than the database may take to answer what was asked
/// before.
const LET_GO_KEPT: Duration = Duration::from_secs(60);

/// What a worker owes, as this replica knows it. What the database answers is older than what was learnt here after it was
/// asked: a turn that was claimed since is in hand though the answer lacks it, and one that was let go since is not though the
/// answer names it.
#[derive(Default)]
pub(super) struct WorkerDuties {
    /// Turns that the worker was pushed, or that markers name as its own.
    pub in_hand: HashMap<TurnId, InHand>,
    /// Turns that the worker no longer owes, and when this replica learnt of it.
    let_go: HashMap<TurnId, Instant>,
    /// Turns that a marker names as the worker's own and the worker did not name, and how often in a row.
    lacking: HashMap<TurnId, u32>,
    pub draining: bool,
    pub said_goodbye: bool,
}

/// A turn in a worker's hand.
pub(super) struct InHand {
    conversation: ConversationId,
    /// When this replica learnt of it.
    since: Instant,
}

impl WorkerDuties {
    pub fn new(draining: bool) -> Self {
        WorkerDuties { draining, ..WorkerDuties::default() }
    }

    pub fn take_in_hand(&mut self, turn: TurnId, conversation: ConversationId) {
        self.in_hand.entry(turn).or_insert_with(|| InHand { conversation, since: Instant::now() });
    }

    pub fn let_go(&mut self, turns: &[TurnId]) {
        let now = Instant::now();
        self.in_hand.retain(|t, _| !turns.contains(t));
        self.let_go.retain(|_, at| now - *at < LET_GO_KEPT);
        self.let_go.extend(turns.iter().map(|&t| (t, now)));
    }

    /// The database, asked at this moment, says that these turns are held, and no others.
    pub fn correct(&mut self, held: &[(TurnId, ConversationId)], asked: Instant) {
        let (in_hand, let_go) = (&mut self.in_hand, &self.let_go);
        in_hand.retain(|turn, known| known.since >= asked || held.iter().any(|(t, _)| t == turn));
        let still = held.iter().filter(|(turn, _)| let_go.get(turn).is_none_or(|at| *at < asked));
        let still: Vec<_> = still.copied().collect();
        still.into_iter().for_each(|(turn, conversation)| self.take_in_hand(turn, conversation));
    }

    /// Counts how often in a row the worker did not name each of these turns; answers those that it has lost.
    pub fn count_lacking(&mut self, lacking: &[TurnId]) -> Vec<TurnId> {
        self.lacking.retain(|t, _| lacking.contains(t));
        let counted = lacking.iter().map(|&t| (t, *self.lacking.entry(t).and_modify(|n| *n += 1).or_insert(1)));
        counted.filter(|(_, n)| *n > MAX_LACKING).map(|(t, _)| t).collect()
    }

    /// How many more turns a worker of this capacity may be pushed; conversations, if it takes what waits in one together.
    pub fn room(&self, capacity: u32, together: bool) -> u32 {
        let taken = match together {
            true => self.in_hand.values().map(|h| h.conversation).collect::<HashSet<_>>().len(),
            false => self.in_hand.len(),
        };
        if self.draining { 0 } else { capacity.saturating_sub(taken as u32) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A question that was asked before or behind a claim and an end, and answered by what was so before or behind them.
    #[test]
    fn what_was_learnt_since_the_question_counts() {
        let (begun, claimed, ended) = (TurnId::new(), TurnId::new(), TurnId::new());
        let conversation = ConversationId::new();
        let before: Vec<_> = [begun, ended].map(|t| (t, conversation)).into();
        let behind: Vec<_> = [begun, claimed].map(|t| (t, conversation)).into();
        for (asked_early, answer, expected) in [
            (true, &before, [begun, claimed]),
            (true, &behind, [begun, claimed]),
            (false, &behind, [begun, claimed]),
            // What was asked later is the truth, whatever is known here.
            (false, &before, [begun, ended]),
        ] {
            let mut duties = WorkerDuties::default();
            [begun, ended].iter().for_each(|&t| duties.take_in_hand(t, conversation));
            let early = Instant::now();
            duties.take_in_hand(claimed, conversation);
            duties.let_go(&[ended]);
            let late = Instant::now() + Duration::from_nanos(1);
            duties.correct(answer, if asked_early { early } else { late });
            let mut known: Vec<TurnId> = duties.in_hand.keys().copied().collect();
            let mut expected = expected.to_vec();
            (known.sort(), expected.sort());
            assert_eq!(known, expected, "asked early: {asked_early}");
        }
    }
}
