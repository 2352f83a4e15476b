//! Live logs: the output of turns whose worker this replica holds, ahead of the database.
//!
//! Frames are handed to sessions at once and become durable in batches, at most a row per turn per [`FLUSH_AFTER`]. A
//! short turn never flushes: its whole output goes with its terminal. The worker keeps what is not durable too, so this
//! replica's death loses nothing.
//!
//! Turns that this replica follows (see [`follow`](super::follow)) have logs here as well; another replica flushes those.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::log::LiveLog;
use super::subscriptions::Subscriptions;
use crate::every::Outage;
use crate::store::{Append, AppendError, Store};
use crate::turn::frame::Span;
use crate::turn::keys::{ConversationId, Incarnation, TurnId};
use crate::wire::Acked;

pub use super::log::OutputRefused;

/// How long output gathers before it is written; at most a row per turn in this time.
pub const FLUSH_AFTER: Duration = Duration::from_millis(250);
/// The pause between two looks for output that is due, while there is any.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// All live logs of this replica, by turn. Cheap to clone.
///
/// A turn is *held* here while its worker's stream is here, or while the turn is followed: then all of its output passes
/// through this replica, and whoever waits for it needs to ask nobody else. That is no property of a log but follows from
/// the streams, and every change of it wakes the conversation's subscribers, who look elsewhere then.
#[derive(Clone)]
pub struct LiveLogs {
    held: Arc<Mutex<HeldLogs>>,
    dirty: Arc<Notify>,
    subscriptions: Subscriptions,
}

#[derive(Default)]
struct HeldLogs {
    logs: HashMap<TurnId, LiveLog>,
    /// The workers whose streams are here, each with its stream's name.
    streams: HashMap<Incarnation, Uuid>,
}

impl HeldLogs {
    /// Whether all output of the log's turn passes through this replica.
    fn holds(&self, log: &LiveLog) -> bool {
        log.followed || self.streams.contains_key(&log.incarnation)
    }

    /// The log of a turn whose output this replica makes durable, if that is in this worker's hand.
    fn in_hand(&self, turn: TurnId, incarnation: Incarnation) -> Option<&LiveLog> {
        self.logs.get(&turn).filter(|l| !l.followed && l.incarnation == incarnation)
    }

    /// Forgets the logs that nothing keeps here: their worker's stream is elsewhere, and all of them is durable. Answers whose
    /// conversations they are.
    fn forget_durable(&mut self, incarnation: Incarnation) -> Vec<ConversationId> {
        let idle = |l: &LiveLog| l.incarnation == incarnation && !l.followed && l.dirty_since.is_none();
        self.logs.extract_if(|_, l| idle(l)).map(|(_, l)| l.conversation).collect()
    }
}

impl LiveLogs {
    /// No logs yet. Subscribers of a conversation are woken when its turns have new frames, or are no longer held here.
    pub fn new(subscriptions: Subscriptions) -> Self {
        LiveLogs { held: Arc::default(), dirty: Arc::new(Notify::new()), subscriptions }
    }

    fn with<T>(&self, f: impl FnOnce(&mut HeldLogs) -> T) -> T {
        f(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn tell(&self, changed: impl IntoIterator<Item = ConversationId>) {
        changed.into_iter().for_each(|conversation| self.subscriptions.frames_came(conversation));
    }

    /// Where changes of these logs are made known.
    pub fn subscriptions(&self) -> &Subscriptions {
        &self.subscriptions
    }

    /// The worker has opened this stream here; another one of the same worker here is over.
    pub fn attach(&self, incarnation: Incarnation, stream: Uuid) {
        self.with(|held| held.streams.insert(incarnation, stream));
    }

    /// The worker's stream here is over, if it is still this one. Sessions read its turns elsewhere from now on, and what is not
    /// durable of them is still flushed. Should the worker come back, it names its turns and they are opened again.
    pub fn detach(&self, incarnation: Incarnation, stream: Uuid) {
        let changed = self.with(|held| {
            if held.streams.get(&incarnation) != Some(&stream) {
                return Vec::new();
            }
            held.streams.remove(&incarnation);
            let mut changed = held.forget_durable(incarnation);
            changed.extend(held.logs.values().filter(|l| l.incarnation == incarnation).map(|l| l.conversation));
            changed
        });
        self.tell(changed);
    }

    /// A turn is in this worker's hand; its log is durable up to `durable`. What is in memory of it stays, unless the database
    /// has more.
    pub fn open(&self, turn: TurnId, conversation: ConversationId, incarnation: Incarnation, durable: u64) {
        let replaced = self.with(|held| {
            if let Some(log) = held.logs.get_mut(&turn).filter(|l| !l.followed && l.end >= durable) {
                log.incarnation = incarnation;
                return None;
            }
            // Followed until now; or the worker was with another replica meanwhile, which has written more than this one ever
            // saw.
            held.logs.insert(turn, LiveLog::in_hand(conversation, incarnation, durable))
        });
        self.tell(replaced.map(|l| l.conversation));
    }

    /// Starts to follow a turn from `offset` on; false when there is a log of the turn that this replica needs.
    pub fn open_followed(&self, turn: TurnId, conversation: ConversationId, worker: Incarnation, offset: u64) -> bool {
        self.with(|held| {
            if held.logs.get(&turn).is_some_and(|l| held.holds(l) || l.dirty_since.is_some()) {
                return false;
            }
            held.logs.insert(turn, LiveLog::followed(conversation, worker, offset));
            true
        })
    }

    /// Takes frames of a followed turn; false when it is no longer followed, or some before them are missing.
    pub fn accept_followed(&self, turn: TurnId, span: Span) -> bool {
        let conversation = self.with(|held| {
            let log = held.logs.get_mut(&turn).filter(|l| l.followed)?;
            log.accept_followed(span).then_some(log.conversation)
        });
        conversation.inspect(|c| self.subscriptions.frames_came(*c)).is_some()
    }

    /// Ends the following of a turn.
    pub fn close_followed(&self, turn: TurnId) {
        let closed = self.with(|held| {
            held.logs.get(&turn).filter(|l| l.followed)?;
            held.logs.remove(&turn)
        });
        self.tell(closed.map(|l| l.conversation));
    }

    /// The turns whose output this replica makes durable, each with its worker.
    pub fn in_hand(&self) -> Vec<(TurnId, Incarnation)> {
        self.with(|held| held.logs.iter().filter(|(_, l)| !l.followed).map(|(&t, l)| (t, l.incarnation)).collect())
    }

    /// The conversation of a turn in this worker's hand, if its log is here.
    pub fn conversation_of(&self, turn: TurnId, incarnation: Incarnation) -> Option<ConversationId> {
        self.with(|held| held.in_hand(turn, incarnation).map(|l| l.conversation))
    }

    /// Whether the turn is in this worker's hand, and its log is here.
    pub fn is_open(&self, turn: TurnId, incarnation: Incarnation) -> bool {
        self.conversation_of(turn, incarnation).is_some()
    }

    /// Whether all output of a turn from `offset` on passes through this replica, from its worker or from another replica, so
    /// that its subscribers are woken when there is some.
    pub fn passes(&self, turn: TurnId, offset: u64) -> bool {
        self.with(|held| held.logs.get(&turn).is_some_and(|l| held.holds(l) && l.begin() <= offset))
    }

    /// Takes frames of a turn in this worker's hand and wakes its sessions. Frames that are known already are passed over.
    ///
    /// # Errors
    /// Why none of them was taken.
    pub fn accept(&self, turn: TurnId, incarnation: Incarnation, span: &Span) -> Result<Acked, OutputRefused> {
        let (acked, conversation) = self.with(|held| {
            let log = held.logs.get_mut(&turn).filter(|l| !l.followed && l.incarnation == incarnation);
            let log = log.ok_or(OutputRefused::NotInHand)?;
            Ok((log.accept(span)?, log.conversation))
        })?;
        self.subscriptions.frames_came(conversation);
        self.dirty.notify_one();
        Ok(acked)
    }

    /// What another replica is served that follows a turn from `offset` on: the conversation, and where its copy is to begin.
    /// An offset that lies beyond the log, or before what is in memory of it, is moved into it. `None`: the worker's stream is
    /// not here.
    pub fn serve(&self, turn: TurnId, offset: u64) -> Option<(ConversationId, u64)> {
        self.with(|held| {
            let log = held.logs.get(&turn).filter(|l| !l.followed && held.holds(l))?;
            Some((log.conversation, offset.clamp(log.begin(), log.end)))
        })
    }

    /// The log from `offset` on for another replica; `None` when the worker's stream is not here any more, or that part is no
    /// longer in memory.
    pub fn read_served(&self, turn: TurnId, offset: u64) -> Option<Span> {
        self.with(|held| held.logs.get(&turn).filter(|l| !l.followed && held.holds(l))?.read(offset))
    }

    /// The live log from `offset` on; `None` when that part is not in memory here.
    pub fn read(&self, turn: TurnId, offset: u64) -> Option<Span> {
        self.with(|held| held.logs.get(&turn)?.read(offset))
    }

    /// What is not known to be durable of a turn in this worker's hand: it becomes so with the turn's terminal.
    pub fn tail(&self, turn: TurnId, incarnation: Incarnation) -> Option<Span> {
        self.with(|held| held.in_hand(turn, incarnation).map(LiveLog::pending))
    }

    /// The turn is not in this worker's hand any more. Replicas that follow it are woken, and find that out.
    pub fn close(&self, turn: TurnId, incarnation: Incarnation) {
        let closed = self.with(|held| {
            held.in_hand(turn, incarnation)?;
            held.logs.remove(&turn)
        });
        self.tell(closed.map(|l| l.conversation));
    }

    /// Flushes until `shutdown`, then once more.
    pub async fn flush(self, store: Store, shutdown: CancellationToken) {
        let mut outage = Outage::new("the flush of output");
        loop {
            tokio::select! {
                () = self.dirty.notified() => {}
                () = shutdown.cancelled() => {
                    self.flush_due(&store, Duration::ZERO, &mut outage).await;
                    return;
                }
            }
            while self.with(|held| held.logs.values().any(|l| l.dirty_since.is_some())) && !shutdown.is_cancelled() {
                tokio::time::sleep(LOOK_EVERY).await;
                self.flush_due(&store, FLUSH_AFTER, &mut outage).await;
            }
        }
    }

    /// Appends, to the stored logs, output that has waited for `age` or longer.
    async fn flush_due(&self, store: &Store, age: Duration, outage: &mut Outage) {
        let due: Vec<Append> = self.with(|held| {
            let due = |(&turn_id, log): (&TurnId, &mut LiveLog)| {
                let span = log.take_due(age)?;
                Some(Append { turn_id, incarnation: log.incarnation, span })
            };
            held.logs.iter_mut().filter_map(due).collect()
        });
        let turns: Vec<(TurnId, Incarnation)> = due.iter().map(|a| (a.turn_id, a.incarnation)).collect();
        let answers = futures::future::join_all(due.into_iter().map(|append| store.append_output(append))).await;
        let failed = |answer: &Result<u64, AppendError>| match answer {
            Err(AppendError::Store(error)) => Some(error.clone()),
            _ => None,
        };
        match answers.iter().find_map(failed) {
            Some(error) => outage.goes_on(&error),
            None if !answers.is_empty() => outage.is_over(),
            None => {}
        }
        for ((turn, incarnation), answer) in turns.into_iter().zip(answers) {
            match answer {
                Ok(durable) => self.made_durable(turn, durable),
                // The turn ended elsewhere; the worker learns it with its next word.
                Err(AppendError::NotHeld) => self.close(turn, incarnation),
                // Only possible when another replica wrote less than this one was told; the worker sends it again.
                Err(AppendError::Gap(durable)) => self.change(turn, |log| log.rewind(durable)),
                Err(AppendError::Store(error)) => {
                    tracing::debug!(%turn, %error, "output of turn {turn} was not flushed; trying again");
                    self.change(turn, |log| log.dirty_since = log.dirty_since.or_else(|| Some(Instant::now())));
                }
            }
        }
    }

    fn made_durable(&self, turn: TurnId, durable: u64) {
        let forgotten = self.with(|held| {
            let log = held.logs.get_mut(&turn).filter(|l| !l.followed)?;
            log.made_durable(durable);
            log.trim_durable();
            let incarnation = log.incarnation;
            // It has waited here for this alone.
            (!held.streams.contains_key(&incarnation)).then(|| held.forget_durable(incarnation))
        });
        self.tell(forgotten.into_iter().flatten());
    }

    fn change(&self, turn: TurnId, change: impl FnOnce(&mut LiveLog)) {
        self.with(|held| held.logs.get_mut(&turn).filter(|l| !l.followed).map(change));
    }
}

#[cfg(test)]
mod tests;
