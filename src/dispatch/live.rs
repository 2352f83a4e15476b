//! Live logs: the output of turns whose worker this replica holds, ahead of the database.
//!
//! Frames are handed to sessions at once and become durable in batches, at most a row per turn per [`FLUSH_AFTER`]. A
//! short turn never flushes: its whole output goes with its terminal. What is not durable is kept by the worker too, so
//! this replica's death loses nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::feeds::Feeds;
use crate::store::{Append, AppendError, Store};
use crate::turn::frame::Span;
use crate::turn::keys::{ConversationId, Incarnation, TurnId};
use crate::wire::{Acked, MAX_LOG_BYTES, MAX_LOG_UNITS, Missing};

/// How long output gathers before it is written; at most a row per turn in this time.
pub const FLUSH_AFTER: Duration = Duration::from_millis(250);
/// Of a turn's durable log this much stays in memory for sessions that lag, in log units.
const KEPT_UNITS: u64 = 128 * 1024;
/// And at the most this much in bytes: a unit may be a large frame.
const KEPT_BYTES: usize = 4 * 1024 * 1024;
/// What is not durable of one turn may weigh this much; more is refused until some was flushed.
const MAX_PENDING_BYTES: usize = 8 * 1024 * 1024;

struct Log {
    conversation: ConversationId,
    incarnation: Incarnation,
    /// The worker's stream is here, so that what is said of the turn comes by.
    attached: bool,
    /// From some offset up to what was received.
    span: Span,
    /// What `span` weighs.
    kept_bytes: usize,
    /// What came by here.
    bytes: usize,
    end: u64,
    durable: u64,
    pending_bytes: usize,
    dirty_since: Option<Instant>,
    /// It comes from another replica, which makes it durable.
    followed: bool,
}

/// Why frames were not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Something before them is missing.
    Missing(Missing),
    /// The log is full: the turn must end.
    Full,
    /// Too much is waiting to become durable: later.
    Busy,
}

/// All live logs of this replica.
#[derive(Clone)]
pub struct LiveLogs {
    logs: Arc<Mutex<HashMap<TurnId, Log>>>,
    dirty: Arc<Notify>,
    feeds: Feeds,
}

impl LiveLogs {
    pub fn new(feeds: Feeds) -> Self {
        LiveLogs { logs: Arc::default(), dirty: Arc::new(Notify::new()), feeds }
    }

    fn with<T>(&self, f: impl FnOnce(&mut HashMap<TurnId, Log>) -> T) -> T {
        f(&mut self.logs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where its news go.
    pub fn feeds(&self) -> &Feeds {
        &self.feeds
    }

    /// A turn is in hand here; its log is durable up to `durable`. Known turns stay as they are.
    pub fn open(&self, turn: TurnId, conversation: ConversationId, incarnation: Incarnation, durable: u64) {
        self.with(|logs| {
            if logs.get(&turn).is_some_and(|l| l.followed) {
                logs.remove(&turn);
            }
            let log = logs.entry(turn).or_insert_with(|| Log::new(conversation, incarnation, durable));
            if log.end < durable {
                // The worker was with another replica meanwhile, which has written more than this one ever saw.
                *log = Log::new(conversation, incarnation, durable);
            }
            (log.incarnation, log.attached) = (incarnation, true);
        });
    }

    /// The worker's stream here is over: its turns are looked for in the store, and what is not durable of them goes
    /// there. Should the worker come back, it names them and they are opened again.
    pub fn detach(&self, incarnation: Incarnation) {
        self.with(|logs| {
            let its = |l: &Log| l.incarnation == incarnation && !l.followed;
            logs.values_mut().filter(|l| its(l)).for_each(|l| l.attached = false);
            logs.retain(|_, l| l.attached || l.dirty_since.is_some());
        });
    }

    /// Starts to follow a turn from `offset` on; false when it is here already.
    pub fn open_followed(&self, turn: TurnId, conversation: ConversationId, worker: Incarnation, offset: u64) -> bool {
        self.with(|logs| {
            if logs.contains_key(&turn) {
                return false;
            }
            logs.insert(turn, Log { followed: true, ..Log::new(conversation, worker, offset) });
            true
        })
    }

    /// Frames of a followed turn came; false when it is followed no more.
    pub fn accept_followed(&self, turn: TurnId, span: Span) -> bool {
        let conversation = self.with(|logs| {
            let log = logs.get_mut(&turn).filter(|l| l.followed && span.start <= l.end)?;
            let new = span.from(log.end);
            log.end = new.end().max(log.end);
            log.kept_bytes += new.weight();
            new.frames.into_iter().for_each(|frame| log.span.push(frame));
            log.trim(log.end);
            Some(log.conversation)
        });
        conversation.inspect(|c| self.feeds.frames_came(*c)).is_some()
    }

    /// The turn is followed no more.
    pub fn close_followed(&self, turn: TurnId) {
        self.with(|logs| {
            if logs.get(&turn).is_some_and(|l| l.followed) {
                logs.remove(&turn);
            }
        });
    }

    /// Turns in hand here, with whose they are.
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

    /// Whether something before `offset` of a turn in hand has not come by here.
    pub fn lacks(&self, turn: TurnId, offset: u64) -> bool {
        self.with(|logs| logs.get(&turn).is_some_and(|l| l.end < offset))
    }

    /// Whether the turn's output passes through this replica.
    pub fn holds(&self, turn: TurnId) -> bool {
        self.with(|logs| logs.get(&turn).is_some_and(|l| l.attached))
    }

    /// Takes frames of an open turn: what is known already is passed over, the rest is shown at once.
    pub fn accept(&self, turn: TurnId, span: Span) -> Option<Result<Acked, Refused>> {
        let (answer, conversation) = self.with(|logs| {
            let log = logs.get_mut(&turn).filter(|l| !l.followed)?;
            let answer = log.accept(span);
            Some((answer, log.conversation))
        })?;
        if answer.is_ok() {
            self.feeds.frames_came(conversation);
            self.dirty.notify_one();
        }
        Some(answer)
    }

    /// The live log from `offset` on; `None` when that part is not in memory here.
    pub fn read(&self, turn: TurnId, offset: u64) -> Option<Span> {
        self.with(|logs| {
            let log = logs.get(&turn)?;
            (offset >= log.span.start)
                .then(|| if offset >= log.end { Span::new(offset, Vec::new()) } else { log.span.clone().from(offset) })
        })
    }

    /// What is not known to be durable, for a finish.
    pub fn tail(&self, turn: TurnId) -> Option<Span> {
        self.with(|logs| logs.get(&turn).filter(|l| !l.followed).map(|log| log.span.clone().from(log.durable)))
    }

    /// The turn is over, or left this replica. Those who follow it from elsewhere find out.
    pub fn close(&self, turn: TurnId) {
        if let Some(log) = self.with(|logs| logs.remove(&turn)) {
            self.feeds.frames_came(log.conversation);
        }
    }

    /// Flushes until `shutdown`, then once more.
    pub async fn flush(self, store: Store, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = self.dirty.notified() => {}
                () = shutdown.cancelled() => {
                    self.flush_due(&store, Duration::ZERO).await;
                    return;
                }
            }
            while self.with(|logs| logs.values().any(|l| l.dirty_since.is_some())) && !shutdown.is_cancelled() {
                tokio::time::sleep(FLUSH_AFTER / 5).await;
                self.flush_due(&store, FLUSH_AFTER).await;
            }
        }
    }

    async fn flush_due(&self, store: &Store, age: Duration) {
        let due: Vec<Append> = self.with(|logs| {
            logs.iter_mut()
                .filter(|(_, l)| l.dirty_since.is_some_and(|since| since.elapsed() >= age))
                .map(|(&turn_id, l)| {
                    l.dirty_since = None;
                    Append { turn_id, incarnation: l.incarnation, span: l.span.clone().from(l.durable) }
                })
                .collect()
        });
        let turns: Vec<TurnId> = due.iter().map(|a| a.turn_id).collect();
        let answers = futures::future::join_all(due.into_iter().map(|append| store.append_output(append))).await;
        for (turn, answer) in turns.into_iter().zip(answers) {
            match answer {
                Ok(durable) => self.made_durable(turn, durable),
                // The turn ended elsewhere; the worker learns it with its next word.
                Err(AppendError::NotHeld) => self.close(turn),
                // Only possible when another replica wrote less than this one was told; the worker sends it again.
                Err(AppendError::Gap(durable)) => self.rewind(turn, durable),
                Err(AppendError::Store(error)) => {
                    tracing::warn!(%turn, %error, "output of turn {turn} was not flushed; trying again");
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
            log.durable = log.durable.max(durable);
            let pending = log.span.clone().from(log.durable);
            log.pending_bytes = pending.weight();
            if pending.is_empty() {
                log.dirty_since = None;
            } else {
                log.dirty_since.get_or_insert_with(Instant::now);
            }
            if !log.attached && log.dirty_since.is_none() {
                logs.remove(&turn);
                return;
            }
            log.trim(log.durable);
        });
    }

    fn rewind(&self, turn: TurnId, durable: u64) {
        self.with(|logs| {
            if let Some(log) = logs.get_mut(&turn) {
                (log.span, log.kept_bytes) = (Span::new(durable, Vec::new()), 0);
                (log.end, log.durable, log.pending_bytes, log.dirty_since) = (durable, durable, 0, None);
            }
        });
    }
}

impl Log {
    fn new(conversation: ConversationId, incarnation: Incarnation, at: u64) -> Self {
        Log {
            conversation,
            incarnation,
            span: Span::new(at, Vec::new()),
            kept_bytes: 0,
            bytes: 0,
            end: at,
            durable: at,
            pending_bytes: 0,
            dirty_since: None,
            attached: true,
            followed: false,
        }
    }

    /// Forgets what lies far back, but nothing behind `keep`; in large steps, since each copies what stays.
    fn trim(&mut self, keep: u64) {
        let mut keep_from = self.end.saturating_sub(KEPT_UNITS).min(keep);
        if keep_from <= self.span.start + KEPT_UNITS / 4 {
            keep_from = self.span.start;
        }
        if self.kept_bytes > KEPT_BYTES {
            keep_from = keep_from.max(self.last(KEPT_BYTES / 2).min(keep));
        }
        if keep_from > self.span.start {
            self.span = std::mem::take(&mut self.span).from(keep_from);
            self.kept_bytes = self.span.weight();
        }
    }

    /// Where the last frames begin that weigh no more than this together.
    fn last(&self, bytes: usize) -> u64 {
        let (mut at, mut left) = (self.end, bytes);
        for frame in self.span.frames.iter().rev() {
            match left.checked_sub(frame.weight()) {
                Some(rest) => (left, at) = (rest, at - frame.units()),
                None => break,
            }
        }
        at
    }

    fn accept(&mut self, span: Span) -> Result<Acked, Refused> {
        if span.start > self.end {
            return Err(Refused::Missing(Missing { acked: self.end }));
        }
        if span.end() > MAX_LOG_UNITS || (self.bytes > MAX_LOG_BYTES && !span.is_empty()) {
            return Err(Refused::Full);
        }
        if self.pending_bytes > MAX_PENDING_BYTES && !span.is_empty() {
            return Err(Refused::Busy);
        }
        let new = span.from(self.end);
        if !new.is_empty() {
            if new.start != self.end {
                return Err(Refused::Missing(Missing { acked: self.durable }));
            }
            let weight = new.weight();
            self.pending_bytes += weight;
            self.kept_bytes += weight;
            self.bytes += weight;
            self.end = new.end();
            new.frames.into_iter().for_each(|frame| self.span.push(frame));
            self.dirty_since.get_or_insert_with(Instant::now);
        }
        Ok(Acked { acked: self.durable, received: self.end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::frame::Frame;

    #[test]
    fn frames_are_taken_once_and_in_order() {
        let feeds = Feeds::default();
        let logs = LiveLogs::new(feeds);
        let turn = TurnId::new();
        let text = |at, t: &str| Span::new(at, vec![Frame::text(t)]);
        assert!(logs.accept(turn, text(0, "a")).is_none(), "not in hand");
        logs.open(turn, ConversationId::new(), Incarnation::new(), 0);
        assert_eq!(logs.accept(turn, text(0, "abc")), Some(Ok(Acked { acked: 0, received: 3 })));
        assert_eq!(logs.accept(turn, text(1, "bcd")), Some(Ok(Acked { acked: 0, received: 4 })));
        assert_eq!(logs.accept(turn, text(9, "x")), Some(Err(Refused::Missing(Missing { acked: 4 }))));
        assert_eq!(logs.read(turn, 2).map(|s| s.text()), Some("cd".into()));
        logs.made_durable(turn, 3);
        assert_eq!(logs.tail(turn), Some(text(3, "d")));
    }

    #[test]
    fn large_frames_are_neither_kept_nor_taken_for_ever() {
        let logs = LiveLogs::new(Feeds::default());
        let turn = TurnId::new();
        logs.open(turn, ConversationId::new(), Incarnation::new(), 0);
        let large = || Frame::Data { name: "d".into(), value: "x".repeat(1024 * 1024).into() };
        let kept = || logs.with(|logs| logs[&turn].span.frames.len());
        let taken = (0..200).take_while(|&at| {
            let taken = logs.accept(turn, Span::new(at, vec![large()])).expect("in hand");
            assert!(matches!(taken, Ok(_) | Err(Refused::Full)), "{taken:?}");
            logs.made_durable(turn, at + 1);
            assert!(kept() <= 4, "{} MiB are kept", kept());
            taken.is_ok()
        });
        assert_eq!(taken.count(), 64);
        assert_eq!(logs.read(turn, 0), None, "it is read from the store");
        assert_eq!(logs.read(turn, 63).map(|s| s.frames.len()), Some(1));
    }
}
