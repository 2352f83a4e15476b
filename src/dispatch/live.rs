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
#[derive(Clone)]
pub struct LiveLogs {
    logs: Arc<Mutex<HashMap<TurnId, LiveLog>>>,
    dirty: Arc<Notify>,
    subscriptions: Subscriptions,
}

impl LiveLogs {
    /// No logs yet. Subscribers of a conversation are woken when its turns have new frames.
    pub fn new(subscriptions: Subscriptions) -> Self {
        LiveLogs { logs: Arc::default(), dirty: Arc::new(Notify::new()), subscriptions }
    }

    fn with<T>(&self, f: impl FnOnce(&mut HashMap<TurnId, LiveLog>) -> T) -> T {
        f(&mut self.logs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where changes of these logs are made known.
    pub fn subscriptions(&self) -> &Subscriptions {
        &self.subscriptions
    }

    /// A turn is in hand here; its log is durable up to `durable`. What is in memory of it stays, unless the database has
    /// more.
    pub fn open(&self, turn: TurnId, conversation: ConversationId, incarnation: Incarnation, durable: u64) {
        self.with(|logs| {
            if logs.get(&turn).is_some_and(|l| l.followed) {
                logs.remove(&turn);
            }
            let log = logs.entry(turn).or_insert_with(|| LiveLog::in_hand(conversation, incarnation, durable));
            if log.end < durable {
                // The worker was with another replica meanwhile, which has written more than this one ever saw.
                *log = LiveLog::in_hand(conversation, incarnation, durable);
            }
            (log.incarnation, log.attached) = (incarnation, true);
        });
    }

    /// The worker's stream here is over. Sessions read its turns from the store from now on, and what is not durable of
    /// them is still flushed. Should the worker come back, it names its turns and they are opened again.
    pub fn detach(&self, incarnation: Incarnation) {
        self.with(|logs| {
            let its = |l: &LiveLog| l.incarnation == incarnation && !l.followed;
            logs.values_mut().filter(|l| its(l)).for_each(|l| l.attached = false);
            logs.retain(|_, l| l.attached || l.dirty_since.is_some());
        });
    }

    /// Starts to follow a turn from `offset` on; false when there is a log of the turn already.
    pub fn open_followed(&self, turn: TurnId, conversation: ConversationId, worker: Incarnation, offset: u64) -> bool {
        self.with(|logs| {
            if logs.contains_key(&turn) {
                return false;
            }
            logs.insert(turn, LiveLog::followed(conversation, worker, offset));
            true
        })
    }

    /// Takes frames of a followed turn; false when it is no longer followed, or some before them are missing.
    pub fn accept_followed(&self, turn: TurnId, span: Span) -> bool {
        let conversation = self.with(|logs| {
            let log = logs.get_mut(&turn).filter(|l| l.followed)?;
            log.accept_followed(span).then_some(log.conversation)
        });
        conversation.inspect(|c| self.subscriptions.frames_came(*c)).is_some()
    }

    /// Ends the following of a turn.
    pub fn close_followed(&self, turn: TurnId) {
        self.with(|logs| {
            if logs.get(&turn).is_some_and(|l| l.followed) {
                logs.remove(&turn);
            }
        });
    }

    /// The turns in hand here, each with its worker.
    pub fn in_hand(&self) -> Vec<(TurnId, Incarnation)> {
        self.with(|logs| logs.iter().filter(|(_, l)| !l.followed).map(|(&t, l)| (t, l.incarnation)).collect())
    }

    /// The conversation of a turn in hand here.
    pub fn conversation_of(&self, turn: TurnId) -> Option<ConversationId> {
        self.with(|logs| logs.get(&turn).filter(|l| !l.followed).map(|l| l.conversation))
    }

    /// Whether the turn is in hand here, for this incarnation.
    pub fn is_open(&self, turn: TurnId, incarnation: Incarnation) -> bool {
        self.with(|logs| logs.get(&turn).is_some_and(|l| !l.followed && l.incarnation == incarnation && l.attached))
    }

    /// Whether this replica has not received all output before `offset` of a turn whose log is here.
    pub fn lacks(&self, turn: TurnId, offset: u64) -> bool {
        self.with(|logs| logs.get(&turn).is_some_and(|l| l.end < offset))
    }

    /// Whether the turn's output passes through this replica, from its worker or from another replica.
    pub fn holds(&self, turn: TurnId) -> bool {
        self.with(|logs| logs.get(&turn).is_some_and(|l| l.attached))
    }

    /// Takes frames of a turn in hand and wakes its sessions. Frames that are known already are passed over.
    ///
    /// # Errors
    /// Why none of them was taken.
    pub fn accept(&self, turn: TurnId, span: Span) -> Result<Acked, OutputRefused> {
        let (acked, conversation) = self.with(|logs| {
            let log = logs.get_mut(&turn).filter(|l| !l.followed).ok_or(OutputRefused::NotInHand)?;
            Ok((log.accept(span)?, log.conversation))
        })?;
        self.subscriptions.frames_came(conversation);
        self.dirty.notify_one();
        Ok(acked)
    }

    /// The live log from `offset` on; `None` when that part is not in memory here.
    pub fn read(&self, turn: TurnId, offset: u64) -> Option<Span> {
        self.with(|logs| logs.get(&turn)?.read(offset))
    }

    /// What is not known to be durable of a turn in hand: it becomes so with the turn's terminal.
    pub fn tail(&self, turn: TurnId) -> Option<Span> {
        self.with(|logs| logs.get(&turn).filter(|l| !l.followed).map(LiveLog::pending))
    }

    /// The turn is over, or its worker left this replica. Replicas that follow it are woken, and find that out.
    pub fn close(&self, turn: TurnId) {
        if let Some(log) = self.with(|logs| logs.remove(&turn)) {
            self.subscriptions.frames_came(log.conversation);
        }
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
            while self.with(|logs| logs.values().any(|l| l.dirty_since.is_some())) && !shutdown.is_cancelled() {
                tokio::time::sleep(LOOK_EVERY).await;
                self.flush_due(&store, FLUSH_AFTER, &mut outage).await;
            }
        }
    }

    /// Appends, to the stored logs, output that has waited for `age` or longer.
    async fn flush_due(&self, store: &Store, age: Duration, outage: &mut Outage) {
        let due: Vec<Append> = self.with(|logs| {
            let due = |(&turn_id, log): (&TurnId, &mut LiveLog)| {
                let span = log.take_due(age)?;
                Some(Append { turn_id, incarnation: log.incarnation, span })
            };
            logs.iter_mut().filter_map(due).collect()
        });
        let turns: Vec<TurnId> = due.iter().map(|a| a.turn_id).collect();
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
        for (turn, answer) in turns.into_iter().zip(answers) {
            match answer {
                Ok(durable) => self.made_durable(turn, durable),
                // The turn ended elsewhere; the worker learns it with its next word.
                Err(AppendError::NotHeld) => self.close(turn),
                // Only possible when another replica wrote less than this one was told; the worker sends it again.
                Err(AppendError::Gap(durable)) => self.rewind(turn, durable),
                Err(AppendError::Store(error)) => {
                    tracing::debug!(%turn, %error, "output of turn {turn} was not flushed; trying again");
                    self.with(|logs| {
                        if let Some(log) = logs.get_mut(&turn) {
                            log.dirty_since.get_or_insert_with(Instant::now);
                        }
                    });
                }
            }
        }
    }

    fn made_durable(&self, turn: TurnId, durable: u64) {
        self.with(|logs| {
            let Some(log) = logs.get_mut(&turn) else { return };
            log.made_durable(durable);
            if !log.attached && log.dirty_since.is_none() {
                logs.remove(&turn);
            } else {
                log.trim_durable();
            }
        });
    }

    fn rewind(&self, turn: TurnId, durable: u64) {
        self.with(|logs| {
            if let Some(log) = logs.get_mut(&turn) {
                log.rewind(durable);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::frame::Frame;
    use crate::wire::Missing;

    #[test]
    fn frames_are_taken_once_and_in_order() {
        let subscriptions = Subscriptions::default();
        let logs = LiveLogs::new(subscriptions);
        let turn = TurnId::new();
        let text = |at, t: &str| Span::new(at, vec![Frame::text(t)]);
        assert_eq!(logs.accept(turn, text(0, "a")), Err(OutputRefused::NotInHand));
        logs.open(turn, ConversationId::new(), Incarnation::new(), 0);
        assert_eq!(logs.accept(turn, text(0, "abc")), Ok(Acked { acked: 0, received: 3 }));
        assert_eq!(logs.accept(turn, text(1, "bcd")), Ok(Acked { acked: 0, received: 4 }));
        assert_eq!(logs.accept(turn, text(9, "x")), Err(OutputRefused::Missing(Missing { acked: 4 })));
        assert_eq!(logs.read(turn, 2).map(|s| s.text()), Some("cd".into()));
        logs.made_durable(turn, 3);
        assert_eq!(logs.tail(turn), Some(text(3, "d")));
    }

    #[test]
    fn large_frames_are_neither_kept_nor_taken_for_ever() {
        let logs = LiveLogs::new(Subscriptions::default());
        let turn = TurnId::new();
        logs.open(turn, ConversationId::new(), Incarnation::new(), 0);
        let large = || Frame::Data { name: "d".into(), value: "x".repeat(1024 * 1024).into() };
        let kept = || logs.with(|logs| logs[&turn].span.frames.len());
        let taken = (0..200).take_while(|&at| {
            let taken = logs.accept(turn, Span::new(at, vec![large()]));
            assert!(matches!(taken, Ok(_) | Err(OutputRefused::Full)), "{taken:?}");
            logs.made_durable(turn, at + 1);
            assert!(kept() <= 4, "{} MiB are kept", kept());
            taken.is_ok()
        });
        assert_eq!(taken.count(), 64);
        assert_eq!(logs.read(turn, 0), None, "it is read from the store");
        assert_eq!(logs.read(turn, 63).map(|s| s.frames.len()), Some(1));
    }
}
