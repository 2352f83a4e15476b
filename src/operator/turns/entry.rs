//! PURE: what is known of one AgentTurn, and what is to be done for it next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use time::OffsetDateTime;

use super::act::{AGENT_WAIT, Done, Step};
use super::object::{ENDED, Object};
use super::status::{Word, stamp};
use crate::store::{AgentTurnProgress, AgentTurnState, Armed};
use crate::turn::keys::TurnId;
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// An Agent that is applied together with its turns is not called missing before this.
const SAME_APPLY: Duration = Duration::from_secs(1);
/// The pause before a missing Agent is looked for again at first, and later: news of Agents come besides.
const LOOK_SOON: Duration = Duration::from_millis(150);
pub const LOOK_LATER: Duration = Duration::from_secs(5);
/// The pause after a step that was not done doubles up to this.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The time that a decision is made at.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub instant: Instant,
    pub wall: Timestamp,
}

/// An object's UID.
pub type Uid = Arc<str>;

/// An AgentTurn that is not done with.
#[derive(Debug)]
pub struct Entry {
    pub object: Object,
    /// The watch that it came from, and the last list of it that showed it.
    pub scope: usize,
    pub list: u64,
    pub since: Instant,
    pub busy: bool,
    pub queued: bool,
    pub gone: bool,
    /// Its end was asked for.
    pub cancelled: bool,
    /// What the store says of its turn was asked for since it is here.
    pub checked: bool,
    /// The watch has shown its end: no older event of it can come any more.
    pub seen_ended: bool,
    /// What its status is to say.
    pub word: Option<Box<Word>>,
    /// The turn whose terminal its status still owes.
    pub owes: Option<TurnId>,
    pub tries: u32,
    pub not_before: Option<Instant>,
    /// Its timer.
    pub timer: Option<Instant>,
}

/// Nothing is left to do for it, unless its spec changes.
pub fn is_done(object: &Object) -> bool {
    object.ended() && object.ttl_seconds.is_none() && object.observed_generation >= object.generation
}

impl Entry {
    pub fn new(object: Object, now: Now) -> Entry {
        Entry {
            object,
            scope: usize::MAX,
            list: 0,
            since: now.instant,
            busy: false,
            queued: false,
            gone: false,
            cancelled: false,
            checked: false,
            seen_ended: false,
            word: None,
            owes: None,
            tries: 0,
            not_before: None,
            timer: None,
        }
    }

    /// Sets the turn that it owes, and the count of those that do; answers with the one before.
    pub fn owe(&mut self, turn: Option<TurnId>, owed: &mut usize) -> Option<TurnId> {
        let before = std::mem::replace(&mut self.owes, turn);
        *owed = *owed + usize::from(turn.is_some()) - usize::from(before.is_some());
        before
    }

    /// What is to be done for it now.
    pub fn step(&self, now: Now) -> Option<Step> {
        if self.not_before.is_some_and(|at| now.instant < at) {
            return None;
        }
        let object = &self.object;
        if object.ended() {
            return match self.expires() {
                Some(at) if at <= now.wall => Some(Step::Delete),
                _ => (object.observed_generation < object.generation).then_some(Step::Observe),
            };
        }
        let word = self.word.as_ref().filter(|word| word.rank() > object.rank());
        if object.cancel && !self.cancelled && word.is_none_or(|word| word.rank() < ENDED) {
            return Some(Step::Cancel);
        }
        if let Some(word) = word {
            return Some(Step::Write(word.clone()));
        }
        object.spec.clone().map(Step::Arm)
    }

    /// When it is to be looked at again.
    pub fn wake_at(&self, now: Now) -> Option<Instant> {
        if let Some(at) = self.not_before.filter(|at| *at > now.instant) {
            return Some(at);
        }
        let left = self.expires()?.duration_since(now.wall);
        Some(now.instant + Duration::try_from(left).unwrap_or(Duration::ZERO) + Duration::from_millis(1))
    }

    /// When the time after its end is over.
    fn expires(&self) -> Option<Timestamp> {
        let ttl = Duration::from_secs(self.object.ttl_seconds?.into());
        self.object.completed?.checked_add(ttl).ok()
    }

    /// The object as it is now; what is known of its turn stays.
    pub fn renew(&mut self, object: Object) {
        let before = std::mem::replace(&mut self.object, object);
        if before.turn_id.is_some() {
            self.object.turn_id = before.turn_id;
            self.object.spec = None;
        }
    }

    /// A word that is further than what is known replaces it.
    pub fn hear(&mut self, word: Word) {
        if word.rank() > self.object.rank() && self.word.as_ref().is_none_or(|known| word.rank() >= known.rank()) {
            self.word = Some(Box::new(word));
        }
    }

    pub fn learn(&mut self, done: Done) {
        self.tries = 0;
        match done {
            Done::Armed(armed) => {
                self.belongs_to(armed.turn_id);
                // Another may have armed it before: then it may be further.
                self.checked = armed.fresh;
                self.hear(armed_now(&armed));
            }
            Done::Known(turn) => {
                self.belongs_to(turn);
                self.checked = false;
            }
            Done::Refused(failure, at) => self.hear(Word::Refused { failure, at }),
            Done::NotArmed(at) if self.object.spec.is_some() => {
                self.hear(Word::Refused { failure: Failure::new(Reason::Cancelled), at });
            }
            // What the store does not know is found out by asking it.
            Done::NotArmed(_) | Done::Cancelled => self.cancelled = true,
            Done::Written(object) | Done::Stale(object) => {
                // The watch may have shown a newer one meanwhile, which may say more: an end that is asked for.
                if !self.object.is_newer_than(&object) {
                    self.renew(*object);
                }
                if self.word.as_ref().is_some_and(|word| word.rank() <= self.object.rank()) {
                    self.word = None;
                }
            }
            Done::NoAgent(_) | Done::AgentNotReady | Done::Unwritable(_) | Done::Gone | Done::Again(_) => {}
        }
    }

    pub fn belongs_to(&mut self, turn: TurnId) {
        self.object.turn_id = Some(turn);
        self.object.spec = None;
    }

    pub fn miss_agent(&mut self, at: OffsetDateTime, now: Now) {
        let waited = now.instant - self.since;
        let pause = if waited < SAME_APPLY { LOOK_SOON } else { LOOK_LATER };
        if waited >= SAME_APPLY {
            let message = format!("there is no such Agent yet; it is waited for {} s", AGENT_WAIT.as_secs());
            self.hear(Word::Pending { reason: Reason::AgentNotFound, message });
        }
        let left = self.object.created.as_second() + AGENT_WAIT.as_secs() as i64 - stamp(at).as_second();
        let left = Duration::from_secs(left.max(1) as u64);
        // The word is written at once all the same.
        self.not_before = self.word.is_none().then(|| now.instant + pause.min(left));
        self.tries = 0;
    }

    /// Its Agent is there; news of Agents come, and it is looked again besides.
    pub fn await_agent(&mut self, message: &str, now: Now) {
        self.hear(Word::Pending { reason: Reason::AgentNotFound, message: message.into() });
        self.not_before = self.word.is_none().then(|| now.instant + LOOK_LATER);
        self.tries = 0;
    }

    pub fn pause(&mut self, why: &str, now: Now) {
        tracing::debug!(uid = %self.object.uid, "AgentTurn {} waits: {why}", self.object.name);
        let pause = FIRST_PAUSE * 2u32.pow(self.tries.min(6));
        self.tries = self.tries.saturating_add(1);
        self.not_before = Some(now.instant + pause.min(LONGEST_PAUSE));
    }
}

/// The word on a turn that was armed just now.
fn armed_now(armed: &Armed) -> Word {
    let state = AgentTurnState {
        turn_id: armed.turn_id,
        object: None,
        armed_at: Some(armed.armed_at),
        claimed_at: None,
        worker: None,
        standing: AgentTurnProgress::Waiting,
    };
    Word::Turn { state, at: armed.armed_at }
}
