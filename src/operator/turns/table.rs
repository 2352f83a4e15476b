//! PURE: the AgentTurns that are not done with, and what is to be done for which next. No IO, no clock.
//!
//! Keyed by UID: one step at a time for an object; what is learned meanwhile is merged, and statuses that were overtaken are
//! never written.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use time::OffsetDateTime;

use super::act::{Done, Step};
use super::entry::{Entry, Now, Uid, is_done};
use super::object::Object;
use super::status::Word;
use crate::store::{AgentTurnProgress, AgentTurnState};
use crate::turn::keys::TurnId;

/// A terminal that the API server refused so often is put off: there is something to correct first.
const REFUSALS: u32 = 3;
/// A terminal that was tried so often for any reason is put off if others need its room: about 6 s.
const TRIES: u32 = 6;

/// All AgentTurns that need something.
#[derive(Debug, Default)]
pub struct Table {
    entries: HashMap<Uid, Entry>,
    queue: VecDeque<Uid>,
    timers: BTreeSet<(Instant, Uid)>,
    /// How many statuses owe a terminal.
    owed: usize,
    lists: HashMap<usize, u64>,
    /// Objects (namespace, UID) that are gone: their turns are to be cancelled.
    pub gone: Vec<(String, String)>,
    /// Turns whose terminals their objects show.
    pub settled: Vec<TurnId>,
    /// Turns whose terminals could not be shown: their deliveries come again later.
    pub put_off: Vec<TurnId>,
}

/// A turn to ask the store about, and its object.
pub type Question = (TurnId, Uid);

impl Table {
    /// A list of this watch begins.
    pub fn list_begins(&mut self, scope: usize) {
        *self.lists.entry(scope).or_default() += 1;
    }

    /// It is complete: what it did not show is gone.
    pub fn list_ends(&mut self, scope: usize) {
        let list = self.lists.get(&scope).copied().unwrap_or(0);
        let unseen = |entry: &&Entry| entry.scope == scope && entry.list < list;
        let missing: Vec<Uid> = self.entries.values().filter(unseen).map(|e| e.object.uid.clone()).collect();
        missing.into_iter().for_each(|uid| self.lose(&uid));
    }

    /// An object as the watch shows it.
    pub fn seen(&mut self, scope: usize, object: Object, now: Now) {
        let uid = object.uid.clone();
        let list = self.lists.get(&scope).copied().unwrap_or(0);
        if let Some(entry) = self.entries.get_mut(&uid) {
            (entry.scope, entry.list) = (scope, list);
            entry.seen_ended |= object.ended();
            // The watch lags behind what our own writes answered.
            if !entry.object.is_newer_than(&object) {
                entry.renew(object);
            }
        } else if !is_done(&object) {
            let entry = Entry { scope, list, ..Entry::new(object, now) };
            self.entries.insert(uid.clone(), entry);
        }
        self.proceed(&uid, now);
    }

    /// The watch says that an object is gone.
    pub fn deleted(&mut self, object: &Object) {
        if self.entries.contains_key(&object.uid) {
            self.lose(&object.uid);
        } else if !object.ended() {
            self.gone.push((object.namespace.to_string(), object.uid.to_string()));
        }
    }

    /// Terminals that are owed to objects; at what time they were read.
    pub fn due(&mut self, states: Vec<AgentTurnState>, at: OffsetDateTime, now: Now) {
        for state in states {
            let Some((namespace, object)) = state.object.clone() else {
                // There is nothing to show it on.
                self.settled.push(state.turn_id);
                continue;
            };
            let unseen = || Entry::new(Object::unseen(&namespace, &object.name, &object.uid, state.turn_id), now);
            let uid: Uid = object.uid.as_str().into();
            let entry = self.entries.entry(uid.clone()).or_insert_with(unseen);
            entry.belongs_to(state.turn_id);
            entry.owe(Some(state.turn_id), &mut self.owed);
            entry.hear(Word::Turn { state, at });
            self.proceed(&uid, now);
        }
    }

    /// What the store answered about the turns of these objects.
    pub fn told(&mut self, told: Vec<(Uid, AgentTurnState)>, at: OffsetDateTime, now: Now) {
        for (uid, state) in told {
            let Some(entry) = self.entries.get_mut(&uid) else { continue };
            entry.checked = true;
            if !matches!(state.standing, AgentTurnProgress::Waiting | AgentTurnProgress::Running) {
                entry.owe(Some(state.turn_id), &mut self.owed);
            }
            entry.hear(Word::Turn { state, at });
            self.proceed(&uid, now);
        }
    }

    /// Agents changed: those that wait for one are looked at again.
    pub fn agents_changed(&mut self, now: Now) {
        let waits = |e: &&mut Entry| e.object.spec.is_some() && !e.busy && e.not_before.is_some();
        let waiting: Vec<Uid> = self
            .entries
            .values_mut()
            .filter(waits)
            .map(|entry| {
                entry.not_before = None;
                entry.object.uid.clone()
            })
            .collect();
        waiting.iter().for_each(|uid| self.proceed(uid, now));
    }

    /// The turns to ask the store about: `(never asked, armed and not known to run)`.
    pub fn questions(&self) -> (Vec<Question>, Vec<Question>) {
        let (mut unchecked, mut armed) = (Vec::new(), Vec::new());
        for entry in self.entries.values().filter(|e| e.owes.is_none() && !e.gone && !e.object.ended()) {
            let Some(turn) = entry.object.turn_id else { continue };
            if !entry.checked {
                unchecked.push((turn, entry.object.uid.clone()));
            } else if entry.word.is_none() && entry.object.rank() < 3 {
                armed.push((turn, entry.object.uid.clone()));
            }
        }
        (unchecked, armed)
    }

    /// Asks about every turn once more.
    pub fn doubt(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.checked = false);
    }

    /// How many statuses owe a terminal.
    pub fn owed(&self) -> usize {
        self.owed
    }

    /// Puts off what was tried often: others need its room.
    pub fn make_room(&mut self) {
        let stuck = |entry: &&Entry| entry.owes.is_some() && !entry.busy && entry.tries >= TRIES;
        let stuck: Vec<Uid> = self.entries.values().filter(stuck).map(|e| e.object.uid.clone()).collect();
        stuck.iter().for_each(|uid| self.put_off(uid));
    }

    /// Lets go of a terminal that cannot be shown now, and of its text.
    fn put_off(&mut self, uid: &Uid) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let Some(turn) = entry.owe(None, &mut self.owed) else { return };
        entry.word = None;
        self.put_off.push(turn);
        if entry.scope == usize::MAX {
            self.forget(uid);
        }
    }

    fn forget(&mut self, uid: &Uid) {
        let Some(mut entry) = self.entries.remove(uid) else { return };
        entry.owe(None, &mut self.owed);
        if let Some(timer) = entry.timer {
            self.timers.remove(&(timer, uid.clone()));
        }
    }

    /// Takes the next step that may be done now; its object is busy until [`Table::done`].
    pub fn next(&mut self, now: Now) -> Option<(Object, Step)> {
        while let Some(uid) = self.queue.pop_front() {
            let Some(entry) = self.entries.get_mut(&uid) else { continue };
            entry.queued = false;
            if entry.busy {
                continue;
            }
            if let Some(step) = entry.step(now) {
                entry.busy = true;
                return Some((entry.object.clone(), step));
            }
        }
        None
    }

    /// When something is to be looked at though nothing happens.
    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|timer| timer.0)
    }

    /// Looks at what it is time for.
    pub fn fire(&mut self, now: Now) {
        while self.timers.first().is_some_and(|timer| timer.0 <= now.instant) {
            let Some((_, uid)) = self.timers.pop_first() else { return };
            if let Some(entry) = self.entries.get_mut(&uid) {
                entry.timer = None;
            }
            self.proceed(&uid, now);
        }
    }

    /// What came of a step.
    pub fn done(&mut self, uid: &Uid, done: Done, now: Now) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.busy = false;
        if entry.gone || matches!(done, Done::Gone) {
            return self.lose(uid);
        }
        entry.not_before = None;
        match done {
            Done::Again(why) => entry.pause(&why, now),
            Done::Unwritable(why) => {
                entry.pause(&why, now);
                if entry.tries >= REFUSALS {
                    self.put_off(uid);
                }
            }
            Done::AgentNotReady => entry.await_agent("its Agent exists, but cannot be used yet: see its status", now),
            Done::NoAgent(at) => entry.miss_agent(at, now),
            done => entry.learn(done),
        }
        self.proceed(uid, now);
    }

    /// An object is gone: its turn is cancelled, once nothing is under way for it.
    fn lose(&mut self, uid: &Uid) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        if entry.busy {
            entry.gone = true;
            return;
        }
        if !entry.object.ended() || entry.owes.is_some() {
            self.gone.push((entry.object.namespace.to_string(), uid.to_string()));
        }
        self.forget(uid);
    }

    /// Queues an object that has something to do, or sets its timer, or is done with it.
    fn proceed(&mut self, uid: &Uid, now: Now) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        if entry.busy {
            return;
        }
        if entry.object.ended()
            && let Some(turn) = entry.owe(None, &mut self.owed)
        {
            self.settled.push(turn);
        }
        if is_done(&entry.object) && (entry.seen_ended || entry.scope == usize::MAX) {
            self.forget(uid);
        } else if entry.step(now).is_some() {
            if !std::mem::replace(&mut entry.queued, true) {
                self.queue.push_back(uid.clone());
            }
        } else if let Some(at) = entry.wake_at(now) {
            if let Some(before) = entry.timer.replace(at) {
                self.timers.remove(&(before, uid.clone()));
            }
            self.timers.insert((at, uid.clone()));
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
