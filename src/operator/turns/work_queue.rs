//! The AgentTurns that may still need something, and the order in which they get it: a work queue as Kubernetes controllers
//! have one, with timers. Pure: no IO, and the time is an argument.
//!
//! AgentTurns are keyed by UID. There is one operation at a time for an object. While it is under way, new readings and
//! desired statuses replace the older ones, and an older status is never written.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use time::OffsetDateTime;

use super::object::{Progress, TurnObject};
use super::status::DesiredStatus;
use super::tracked::{TrackedTurn, TurnOperation, TurnReconciled, Uid, is_done};
use crate::operator::clock::Now;
use crate::store::{AgentTurnProgress, AgentTurnState};
use crate::turn::keys::TurnId;

/// A terminal whose patch the API server refused this often in a row is postponed, since somebody has to correct
/// something first.
const MAX_REFUSALS: u32 = 3;
/// A terminal whose patch failed this often in a row, for whatever reason, is postponed when the number of AgentTurns
/// that owe a terminal has reached its limit. Six failures take about 6 s.
const MAX_FAILURES: u32 = 6;

/// The work queue of AgentTurns.
#[derive(Debug, Default)]
pub struct WorkQueue {
    turns: HashMap<Uid, TrackedTurn>,
    /// AgentTurns for which there is something to do now, in order.
    queue: VecDeque<Uid>,
    /// AgentTurns to look at later, by time.
    timers: BTreeSet<(Instant, Uid)>,
    /// How many AgentTurns have a status that does not show their turn's terminal yet.
    owed: usize,
    /// For each watch, the number of its latest list.
    lists: HashMap<usize, u64>,
    /// Objects (namespace, UID) that were deleted. Their turns are to be cancelled, and their rows of `agent_turn`
    /// removed.
    pub deleted: Vec<(String, String)>,
    /// Turns whose terminals are in their objects' statuses. Their delivery rows are to be removed.
    pub shown: Vec<TurnId>,
    /// Turns whose terminals cannot be written to a status now. Their delivery rows are to become due again later.
    pub postponed: Vec<TurnId>,
}

/// A turn whose state is to be read from the store, and the UID of its object.
pub type TurnOfObject = (TurnId, Uid);

impl WorkQueue {
    /// A watch begins a list of its objects. `scope` is the number of the watch.
    pub fn list_begins(&mut self, scope: usize) {
        *self.lists.entry(scope).or_default() += 1;
    }

    /// The list of this watch is complete: objects of the watch that it did not show are deleted.
    pub fn list_ends(&mut self, scope: usize) {
        let list = self.lists.get(&scope).copied().unwrap_or(0);
        let unseen = |tracked: &&TrackedTurn| tracked.scope == Some(scope) && tracked.list < list;
        let missing: Vec<Uid> = self.turns.values().filter(unseen).map(|e| e.object.uid.clone()).collect();
        missing.into_iter().for_each(|uid| self.object_is_gone(&uid));
    }

    /// Takes in an object as the watch shows it.
    pub fn apply(&mut self, scope: usize, object: TurnObject, now: Now) {
        let uid = object.uid.clone();
        let list = self.lists.get(&scope).copied().unwrap_or(0);
        if let Some(tracked) = self.turns.get_mut(&uid) {
            (tracked.scope, tracked.list) = (Some(scope), list);
            tracked.seen_ended |= object.has_ended();
            // The watch may lag behind the answers to our own writes.
            if !tracked.object.is_newer_than(&object) {
                tracked.update(object);
            }
        } else if !is_done(&object) {
            let tracked = TrackedTurn { scope: Some(scope), list, ..TrackedTurn::new(object, now) };
            self.turns.insert(uid.clone(), tracked);
        }
        self.look_at(&uid, now);
    }

    /// The watch says that an object was deleted.
    pub fn object_deleted(&mut self, object: &TurnObject) {
        if self.turns.contains_key(&object.uid) {
            self.object_is_gone(&object.uid);
        } else if !object.has_ended() {
            self.deleted.push((object.namespace.to_string(), object.uid.to_string()));
        }
    }

    /// Takes in turns that have ended and whose delivery rows this replica has claimed: their objects' statuses are to
    /// show the ends. `at` is the database's time of the reading.
    pub fn deliveries_due(&mut self, states: Vec<AgentTurnState>, at: OffsetDateTime, now: Now) {
        for state in states {
            let Some((namespace, object)) = state.object.clone() else {
                // The turn has no object any more, so there is nothing to show.
                self.shown.push(state.turn_id);
                continue;
            };
            let unseen = || {
                TrackedTurn::new(TurnObject::known_to_store(&namespace, &object.name, &object.uid, state.turn_id), now)
            };
            let uid: Uid = object.uid.as_str().into();
            let tracked = self.turns.entry(uid.clone()).or_insert_with(unseen);
            tracked.belongs_to(state.turn_id);
            tracked.owe(Some(state.turn_id), &mut self.owed);
            tracked.desire(DesiredStatus::OfTurn { state, at });
            self.look_at(&uid, now);
        }
    }

    /// Takes in the states of turns that were read from the store. `at` is the database's time of the reading.
    pub fn states_read(&mut self, states: Vec<(Uid, AgentTurnState)>, at: OffsetDateTime, now: Now) {
        for (uid, state) in states {
            let Some(tracked) = self.turns.get_mut(&uid) else { continue };
            tracked.checked = true;
            if !matches!(state.progress, AgentTurnProgress::Waiting | AgentTurnProgress::Running) {
                tracked.owe(Some(state.turn_id), &mut self.owed);
            }
            tracked.desire(DesiredStatus::OfTurn { state, at });
            self.look_at(&uid, now);
        }
    }

    /// Agents changed: AgentTurns that wait for one are looked at again.
    pub fn agents_changed(&mut self, now: Now) {
        let waits = |e: &&mut TrackedTurn| e.object.spec.is_some() && !e.busy && e.not_before.is_some();
        let waiting: Vec<Uid> = self
            .turns
            .values_mut()
            .filter(waits)
            .map(|tracked| {
                tracked.not_before = None;
                tracked.object.uid.clone()
            })
            .collect();
        waiting.iter().for_each(|uid| self.look_at(uid, now));
    }

    /// Two lists of turns whose states are to be read from the store: turns that were not read since their object
    /// became known, and armed turns that may have been claimed since.
    pub fn to_ask_for(&self) -> (Vec<TurnOfObject>, Vec<TurnOfObject>) {
        let (mut unchecked, mut armed) = (Vec::new(), Vec::new());
        for tracked in self.turns.values().filter(|e| e.owes.is_none() && !e.gone && !e.object.has_ended()) {
            let Some(turn) = tracked.object.turn_id else { continue };
            if !tracked.checked {
                unchecked.push((turn, tracked.object.uid.clone()));
            } else if tracked.desired.is_none() && tracked.object.progress() < Progress::Running {
                armed.push((turn, tracked.object.uid.clone()));
            }
        }
        (unchecked, armed)
    }

    /// Has the state of every turn read from the store once more.
    pub fn recheck_all(&mut self) {
        self.turns.values_mut().for_each(|tracked| tracked.checked = false);
    }

    /// How many AgentTurns have a status that does not show their turn's terminal yet.
    pub fn owed(&self) -> usize {
        self.owed
    }

    /// Postpones the terminals whose patch failed [`MAX_FAILURES`] times in a row, so that fewer AgentTurns owe one.
    pub fn make_room(&mut self) {
        let stuck =
            |tracked: &&TrackedTurn| tracked.owes.is_some() && !tracked.busy && tracked.failures >= MAX_FAILURES;
        let stuck: Vec<Uid> = self.turns.values().filter(stuck).map(|e| e.object.uid.clone()).collect();
        stuck.iter().for_each(|uid| self.postpone(uid));
    }

    /// Drops a terminal that cannot be written to its status now, whose text takes memory, and has its delivery row put
    /// off. The row becomes due again later.
    fn postpone(&mut self, uid: &Uid) {
        let Some(tracked) = self.turns.get_mut(uid) else { return };
        let Some(turn) = tracked.owe(None, &mut self.owed) else { return };
        tracked.desired = None;
        self.postponed.push(turn);
        if tracked.scope.is_none() {
            self.forget(uid);
        }
    }

    fn forget(&mut self, uid: &Uid) {
        let Some(mut tracked) = self.turns.remove(uid) else { return };
        tracked.owe(None, &mut self.owed);
        if let Some(timer) = tracked.timer {
            self.timers.remove(&(timer, uid.clone()));
        }
    }

    /// Takes the next operation that may be done now. Its object is busy until [`WorkQueue::reconciled`].
    pub fn pop(&mut self, now: Now) -> Option<(TurnObject, TurnOperation)> {
        while let Some(uid) = self.queue.pop_front() {
            let Some(tracked) = self.turns.get_mut(&uid) else { continue };
            tracked.queued = false;
            if tracked.busy {
                continue;
            }
            if let Some(operation) = tracked.next(now) {
                tracked.busy = true;
                return Some((tracked.object.clone(), operation));
            }
        }
        None
    }

    /// When the first timer runs out.
    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|timer| timer.0)
    }

    /// Looks at the AgentTurns whose timers have run out.
    pub fn run_timers(&mut self, now: Now) {
        while self.timers.first().is_some_and(|timer| timer.0 <= now.instant) {
            let Some((_, uid)) = self.timers.pop_first() else { return };
            if let Some(tracked) = self.turns.get_mut(&uid) {
                tracked.timer = None;
            }
            self.look_at(&uid, now);
        }
    }

    /// Takes in what an operation came to.
    pub fn reconciled(&mut self, uid: &Uid, result: TurnReconciled, now: Now) {
        let Some(tracked) = self.turns.get_mut(uid) else { return };
        tracked.busy = false;
        if tracked.gone || matches!(result, TurnReconciled::Deleted) {
            return self.object_is_gone(uid);
        }
        tracked.not_before = None;
        match result {
            TurnReconciled::Requeue(why) => tracked.back_off(&why, now),
            TurnReconciled::PatchRefused(why) => {
                tracked.back_off(&why, now);
                if tracked.failures >= MAX_REFUSALS {
                    self.postpone(uid);
                }
            }
            TurnReconciled::AgentNotReady => {
                tracked.await_agent("its Agent exists, but cannot be used yet: see its status", now)
            }
            TurnReconciled::AgentMissing(at) => tracked.miss_agent(at, now),
            result => tracked.reconciled(result),
        }
        self.look_at(uid, now);
    }

    /// Has the turn of a deleted object cancelled, and forgets the object. An operation that is under way for the
    /// object ends first.
    fn object_is_gone(&mut self, uid: &Uid) {
        let Some(tracked) = self.turns.get_mut(uid) else { return };
        if tracked.busy {
            tracked.gone = true;
            return;
        }
        if !tracked.object.has_ended() || tracked.owes.is_some() {
            self.deleted.push((tracked.object.namespace.to_string(), uid.to_string()));
        }
        self.forget(uid);
    }

    /// Looks at an AgentTurn: queues it if there is something to do for it, else sets its timer, or forgets it if it needs
    /// nothing more.
    fn look_at(&mut self, uid: &Uid, now: Now) {
        let Some(tracked) = self.turns.get_mut(uid) else { return };
        if tracked.busy {
            return;
        }
        if tracked.object.has_ended()
            && let Some(turn) = tracked.owe(None, &mut self.owed)
        {
            self.shown.push(turn);
        }
        if is_done(&tracked.object) && (tracked.seen_ended || tracked.scope.is_none()) {
            self.forget(uid);
        } else if tracked.next(now).is_some() {
            if !std::mem::replace(&mut tracked.queued, true) {
                self.queue.push_back(uid.clone());
            }
        } else if let Some(at) = tracked.requeue_at(now) {
            if let Some(before) = tracked.timer.replace(at) {
                self.timers.remove(&(before, uid.clone()));
            }
            self.timers.insert((at, uid.clone()));
        }
    }
}

#[cfg(test)]
#[path = "work_queue_tests.rs"]
mod tests;
