//! One live log: what this replica has in memory of the output of one turn.

use std::time::{Duration, Instant};

use crate::turn::frame::Span;
use crate::turn::keys::{ConversationId, Incarnation};
use crate::wire::{Acked, MAX_LOG_BYTES, MAX_LOG_UNITS, Missing};

/// So much of a turn's log stays in memory after it became durable, in log units, for sessions that lag; what is older they
/// read from the store.
const KEPT_UNITS: u64 = 128 * 1024;
/// The same bound in bytes, since one log unit may be a large frame.
const KEPT_BYTES: usize = 4 * 1024 * 1024;
/// So much output of one turn may wait to become durable, in bytes; more is refused until some was flushed.
const MAX_PENDING_BYTES: usize = 8 * 1024 * 1024;

/// Why frames were not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputRefused {
    /// The turn is not in hand here.
    NotInHand,
    /// Something before the frames is missing.
    Missing(Missing),
    /// The log is full: the turn must end.
    Full,
    /// Too much output of the turn waits to become durable: the same frames may be sent again later.
    Busy,
}

/// The output of one turn. All offsets are in log units.
pub(super) struct LiveLog {
    pub conversation: ConversationId,
    /// The worker that produces it.
    pub incarnation: Incarnation,
    /// Its frames come from another replica, which makes them durable.
    pub followed: bool,
    /// The part in memory; it ends where the received output does.
    pub span: Span,
    /// The end of the received output.
    pub end: u64,
    /// Since when something waits to be flushed.
    pub dirty_since: Option<Instant>,
    durable: u64,
    kept_bytes: usize,
    pending_bytes: usize,
    /// Bytes received by this replica in all, for the log's limit.
    received_bytes: usize,
}

impl LiveLog {
    /// The log of a turn in hand here, which is durable up to `durable`.
    pub fn in_hand(conversation: ConversationId, incarnation: Incarnation, durable: u64) -> Self {
        LiveLog {
            conversation,
            incarnation,
            followed: false,
            span: Span::new(durable, Vec::new()),
            end: durable,
            dirty_since: None,
            durable,
            kept_bytes: 0,
            pending_bytes: 0,
            received_bytes: 0,
        }
    }

    /// The log of a turn that is followed from `offset` on.
    pub fn followed(conversation: ConversationId, incarnation: Incarnation, offset: u64) -> Self {
        LiveLog { followed: true, ..LiveLog::in_hand(conversation, incarnation, offset) }
    }

    /// Takes frames of the worker; those that are known already are passed over.
    pub fn accept(&mut self, span: &Span) -> Result<Acked, OutputRefused> {
        if span.start > self.end {
            return Err(OutputRefused::Missing(Missing { acked: self.end }));
        }
        if span.end() > MAX_LOG_UNITS || (self.received_bytes > MAX_LOG_BYTES && !span.is_empty()) {
            return Err(OutputRefused::Full);
        }
        if self.pending_bytes > MAX_PENDING_BYTES && !span.is_empty() {
            return Err(OutputRefused::Busy);
        }
        let new = span.clone().from(self.end);
        if !new.is_empty() {
            if new.start != self.end {
                return Err(OutputRefused::Missing(Missing { acked: self.durable }));
            }
            let weight = new.weight();
            self.pending_bytes += weight;
            self.received_bytes += weight;
            self.append(new);
            self.dirty_since.get_or_insert_with(Instant::now);
        }
        Ok(Acked { acked: self.durable, received: self.end })
    }

    /// Takes frames that another replica has passed on; false when some before them are missing.
    pub fn accept_followed(&mut self, span: Span) -> bool {
        if span.start > self.end {
            return false;
        }
        self.append(span.from(self.end));
        self.trim(self.end);
        true
    }

    fn append(&mut self, new: Span) {
        self.end = new.end().max(self.end);
        self.kept_bytes += new.weight();
        new.frames.into_iter().for_each(|frame| self.span.push(frame));
    }

    /// Where the part in memory begins.
    pub fn begin(&self) -> u64 {
        self.span.start
    }

    /// The output from `offset` on; `None` when that part is no longer in memory.
    pub fn read(&self, offset: u64) -> Option<Span> {
        if offset < self.span.start {
            return None;
        }
        Some(if offset >= self.end { Span::new(offset, Vec::new()) } else { self.span.clone().from(offset) })
    }

    /// The output that is not known to be durable.
    pub fn pending(&self) -> Span {
        self.span.clone().from(self.durable)
    }

    /// What is pending, if something has waited for a flush for this long; it counts as being flushed now.
    pub fn take_due(&mut self, age: Duration) -> Option<Span> {
        self.dirty_since.filter(|since| since.elapsed() >= age)?;
        self.dirty_since = None;
        Some(self.pending())
    }

    /// A flush has made the log durable up to here.
    pub fn made_durable(&mut self, durable: u64) {
        self.durable = self.durable.max(durable);
        let pending = self.pending();
        self.pending_bytes = pending.weight();
        if pending.is_empty() {
            self.dirty_since = None;
        } else {
            self.dirty_since.get_or_insert_with(Instant::now);
        }
    }

    /// Forgets what was received beyond `durable`: the worker sends it again.
    pub fn rewind(&mut self, durable: u64) {
        (self.span, self.kept_bytes) = (Span::new(durable, Vec::new()), 0);
        (self.end, self.durable, self.pending_bytes, self.dirty_since) = (durable, durable, 0, None);
    }

    /// Forgets the durable part, but for what lagging sessions may still read.
    pub fn trim_durable(&mut self) {
        self.trim(self.durable);
    }

    /// Forgets what lies far back, but nothing from `keep` on. It does so in large steps, since each one copies what stays.
    fn trim(&mut self, keep: u64) {
        let mut keep_from = self.end.saturating_sub(KEPT_UNITS).min(keep);
        if keep_from <= self.span.start + KEPT_UNITS / 4 {
            keep_from = self.span.start;
        }
        if self.kept_bytes > KEPT_BYTES {
            keep_from = keep_from.max(self.start_of_last(KEPT_BYTES / 2).min(keep));
        }
        if keep_from > self.span.start {
            self.span = std::mem::take(&mut self.span).from(keep_from);
            self.kept_bytes = self.span.weight();
        }
    }

    /// The offset of the earliest of the last frames that together weigh no more than `bytes`.
    fn start_of_last(&self, bytes: usize) -> u64 {
        let (mut at, mut left) = (self.end, bytes);
        for frame in self.span.frames.iter().rev() {
            match left.checked_sub(frame.weight()) {
                Some(rest) => (left, at) = (rest, at - frame.units()),
                None => break,
            }
        }
        at
    }
}
