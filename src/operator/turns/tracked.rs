//! What the controller knows of one AgentTurn, and what it is to do for it next. Pure: no IO, and the time is an argument.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use time::OffsetDateTime;

use super::object::{Progress, TurnObject};
use super::status::DesiredStatus;
use crate::backoff::doubled;
use crate::crd::AgentTurnSpec;
use crate::operator::clock::{Now, timestamp};
use crate::store::{AgentTurnProgress, AgentTurnState, Armed};
use crate::turn::cause;
use crate::turn::keys::TurnId;
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// How long an AgentTurn waits for an Agent that does not exist, from the AgentTurn's creation. For an Agent that exists and
/// cannot be used yet it waits longer.
const AGENT_WAIT: Duration = Duration::from_secs(60);
/// A missing Agent is not shown in the status before this: it may be applied together with its turns, right behind them.
const SAME_APPLY: Duration = Duration::from_secs(1);
/// The pause before an Agent is looked for again: during [`SAME_APPLY`], and later. A notice that Agents changed ends it.
const AGENT_RETRY_SOON: Duration = Duration::from_millis(150);
pub const AGENT_RETRY: Duration = Duration::from_secs(5);
/// The pauses before an operation that failed is requeued: the first one, doubled after each failure up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
pub const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What is to be done for an AgentTurn next: one reconciliation of it.
#[derive(Debug, Clone)]
pub enum TurnOperation {
    /// Arm its turn. `Err`: the spec cannot be read, so the turn is refused with this text.
    Arm(Result<Arc<AgentTurnSpec>, String>),
    /// Cancel its turn, if it has one.
    Cancel,
    /// Write its status.
    PatchStatus(Box<DesiredStatus>),
    /// Write the new `observedGeneration` to a status that is final otherwise.
    ObserveGeneration,
    /// Delete the object, whose time to live after its end is over.
    Delete,
}

/// What an operation came to.
#[derive(Debug)]
pub enum TurnReconciled {
    /// The turn was armed now, or an equal one was found.
    Armed(Armed),
    /// This turn was armed for the object before, though it would be refused now.
    AlreadyArmed(TurnId),
    /// The Agent does not exist, at this time of the database.
    AgentMissing(OffsetDateTime),
    /// The Agent exists, but the database has no usable spec of it yet.
    AgentNotReady,
    /// The turn is refused for this reason, at this time of the database.
    Refused(Failure, OffsetDateTime),
    /// The turn was cancelled, or had ended.
    Cancelled,
    /// There was no turn to cancel, at this time of the database.
    NeverArmed(OffsetDateTime),
    /// The status was written. The object as it is now.
    StatusPatched(Box<TurnObject>),
    /// Somebody else wrote the object meanwhile, so the status was not written. The object as it is now.
    Changed(Box<TurnObject>),
    /// The object no longer exists.
    Deleted,
    /// The API server refuses the status of this object, and will refuse it again until something is corrected.
    PatchRefused(String),
    /// The database or the API server did not do it now, for this reason. It is to be tried again after a pause.
    Requeue(String),
}

/// Whether an object that was created at this time may still wait for its Agent.
pub fn may_wait(created: Timestamp, now: OffsetDateTime) -> bool {
    timestamp(now).as_second() - created.as_second() < AGENT_WAIT.as_secs() as i64
}

/// An object's UID.
pub type Uid = Arc<str>;

/// An AgentTurn that may still need something.
#[derive(Debug)]
pub struct TrackedTurn {
    pub object: TurnObject,
    /// The watch that showed the object; `None` if it is known from the store alone.
    pub scope: Option<usize>,
    /// The number of that watch's list that showed the object last.
    pub list: u64,
    /// When the object became known here.
    pub since: Instant,
    /// Whether an operation is under way for it.
    pub busy: bool,
    /// Whether it is in the queue.
    pub queued: bool,
    /// Whether the object was deleted while an operation was under way.
    pub gone: bool,
    /// Whether its turn was cancelled here.
    pub cancelled: bool,
    /// Whether the store was asked for the state of its turn since the object is known here.
    pub checked: bool,
    /// Whether the watch has shown the status of its end. After that no older event of the object can come.
    pub seen_ended: bool,
    /// What its status is to say and does not say yet.
    pub desired: Option<Box<DesiredStatus>>,
    /// The turn whose terminal the status still has to show, with a delivery row claimed.
    pub owes: Option<TurnId>,
    /// How many operations failed in a row.
    pub failures: u32,
    /// The end of a pause; nothing is done before.
    pub not_before: Option<Instant>,
    /// When the work queue's timer looks at it.
    pub timer: Option<Instant>,
}

/// Whether an object needs nothing more, unless its spec changes.
pub fn is_done(object: &TurnObject) -> bool {
    object.has_ended() && object.ttl_seconds.is_none() && object.observed_generation >= object.generation
}

impl TrackedTurn {
    pub fn new(object: TurnObject, now: Now) -> TrackedTurn {
        TrackedTurn {
            object,
            scope: None,
            list: 0,
            since: now.instant,
            busy: false,
            queued: false,
            gone: false,
            cancelled: false,
            checked: false,
            seen_ended: false,
            desired: None,
            owes: None,
            failures: 0,
            not_before: None,
            timer: None,
        }
    }

    /// Sets the turn whose terminal the status owes, and adapts `owed`, the number of AgentTurns that owe one. Answers with
    /// the turn that was owed before.
    pub fn owe(&mut self, turn: Option<TurnId>, owed: &mut usize) -> Option<TurnId> {
        let before = std::mem::replace(&mut self.owes, turn);
        *owed = *owed + usize::from(turn.is_some()) - usize::from(before.is_some());
        before
    }

    /// What is to be done for the AgentTurn now, if anything.
    pub fn next(&self, now: Now) -> Option<TurnOperation> {
        if self.not_before.is_some_and(|at| now.instant < at) {
            return None;
        }
        let object = &self.object;
        if object.has_ended() {
            return match self.expires() {
                Some(at) if at <= now.wall => Some(TurnOperation::Delete),
                _ => (object.observed_generation < object.generation).then_some(TurnOperation::ObserveGeneration),
            };
        }
        let desired = self.desired.as_ref().filter(|desired| desired.progress() > object.progress());
        if object.cancel && !self.cancelled && desired.is_none_or(|desired| desired.progress() < Progress::Ended) {
            return Some(TurnOperation::Cancel);
        }
        if let Some(desired) = desired {
            return Some(TurnOperation::PatchStatus(desired.clone()));
        }
        object.spec.clone().map(TurnOperation::Arm)
    }

    /// When the AgentTurn is to be looked at again, if nothing is to be done for it now.
    pub fn requeue_at(&self, now: Now) -> Option<Instant> {
        if let Some(at) = self.not_before.filter(|at| *at > now.instant) {
            return Some(at);
        }
        let left = self.expires()?.duration_since(now.wall);
        Some(now.instant + Duration::try_from(left).unwrap_or(Duration::ZERO) + Duration::from_millis(1))
    }

    /// When the object's time to live after its end is over.
    fn expires(&self) -> Option<Timestamp> {
        let ttl = Duration::from_secs(self.object.ttl_seconds?.into());
        self.object.completed?.checked_add(ttl).ok()
    }

    /// Takes in a newer reading of the object. What is known of its turn stays.
    pub fn update(&mut self, object: TurnObject) {
        let before = std::mem::replace(&mut self.object, object);
        if before.turn_id.is_some() {
            self.object.turn_id = before.turn_id;
            self.object.spec = None;
        }
    }

    /// Sets what the status is to say, unless the object, or what is to be said already, is further.
    pub fn desire(&mut self, desired: DesiredStatus) {
        let is_further = |known: &DesiredStatus| desired.progress() >= known.progress();
        if desired.progress() > self.object.progress() && self.desired.as_deref().is_none_or(is_further) {
            self.desired = Some(Box::new(desired));
        }
    }

    /// Takes in the result of an operation that succeeded.
    pub fn reconciled(&mut self, result: TurnReconciled) {
        self.failures = 0;
        match result {
            TurnReconciled::Armed(armed) => {
                self.belongs_to(armed.turn_id);
                // A turn that was armed before may have gone further since, so the store is asked.
                self.checked = armed.fresh;
                self.desire(armed_status(&armed));
            }
            TurnReconciled::AlreadyArmed(turn) => {
                self.belongs_to(turn);
                self.checked = false;
            }
            TurnReconciled::Refused(failure, at) => self.desire(DesiredStatus::Refused { failure, at }),
            TurnReconciled::NeverArmed(at) if self.object.spec.is_some() => {
                self.desire(DesiredStatus::Refused { failure: cause::rule::cancelled(), at });
            }
            // An object whose status says that a turn was armed, and whose turn the store does not know: its state is asked
            // for, and shown, like that of every other turn.
            TurnReconciled::NeverArmed(_) | TurnReconciled::Cancelled => self.cancelled = true,
            TurnReconciled::StatusPatched(object) | TurnReconciled::Changed(object) => {
                // The watch may have shown a newer object meanwhile, and that one may ask for a cancellation.
                if !self.object.is_newer_than(&object) {
                    self.update(*object);
                }
                if self.desired.as_ref().is_some_and(|desired| desired.progress() <= self.object.progress()) {
                    self.desired = None;
                }
            }
            TurnReconciled::AgentMissing(_)
            | TurnReconciled::AgentNotReady
            | TurnReconciled::PatchRefused(_)
            | TurnReconciled::Deleted
            | TurnReconciled::Requeue(_) => {}
        }
    }

    /// Notes the turn that was armed for the object, and drops the spec, which is not needed any more.
    pub fn belongs_to(&mut self, turn: TurnId) {
        self.object.turn_id = Some(turn);
        self.object.spec = None;
    }

    /// The Agent does not exist, at this time of the database: it is looked for again until [`AGENT_WAIT`] is over.
    pub fn miss_agent(&mut self, at: OffsetDateTime, now: Now) {
        let waited = now.instant - self.since;
        let pause = if waited < SAME_APPLY { AGENT_RETRY_SOON } else { AGENT_RETRY };
        if waited >= SAME_APPLY {
            let message = format!("there is no such Agent yet; it is waited for {} s", AGENT_WAIT.as_secs());
            self.desire(DesiredStatus::Pending { reason: Reason::AgentNotFound, message });
        }
        let left = self.object.created.as_second() + AGENT_WAIT.as_secs() as i64 - timestamp(at).as_second();
        let left = Duration::from_secs(left.max(1) as u64);
        // There is no pause before the status that says so is written.
        self.not_before = self.desired.is_none().then(|| now.instant + pause.min(left));
        self.failures = 0;
    }

    /// The Agent exists and cannot be used yet: it is looked at again after a pause, and when Agents change.
    pub fn await_agent(&mut self, message: &str, now: Now) {
        self.desire(DesiredStatus::Pending { reason: Reason::AgentNotFound, message: message.into() });
        self.not_before = self.desired.is_none().then(|| now.instant + AGENT_RETRY);
        self.failures = 0;
    }

    /// An operation failed: the next one comes after a pause.
    pub fn back_off(&mut self, why: &str, now: Now) {
        tracing::debug!(uid = %self.object.uid, "AgentTurn {} waits: {why}", self.object.name);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now.instant + doubled(FIRST_PAUSE, LONGEST_PAUSE, self.failures));
    }
}

/// The status of a turn that was armed just now.
fn armed_status(armed: &Armed) -> DesiredStatus {
    let state = AgentTurnState {
        turn_id: armed.turn_id,
        object: None,
        armed_at: Some(armed.armed_at),
        claimed_at: None,
        worker: None,
        progress: AgentTurnProgress::Waiting,
    };
    DesiredStatus::OfTurn { state, at: armed.armed_at }
}
