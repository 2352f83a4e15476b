//! A turn's log on the worker's side: the frames from the durable offset on, and what of them was sent.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;

use super::adapter::Stopped;
use crate::turn::cause::program;
use crate::turn::frame::{Frame, Span};
use crate::turn::terminal::Outcome;
use crate::wire::{Acked, MAX_LOG_UNITS};

/// Frames that are not yet durable, in bytes; beyond it the adapter waits.
const UNACKED_BYTES: usize = 1024 * 1024;
/// The most of one post, and of a tail, in bytes of text. JSON may make 6 bytes of one: it stays below
/// [`crate::wire::MAX_BODY_BYTES`].
const POST_BYTES: usize = 512 * 1024;
/// The longest text that is kept as one frame, in bytes.
const PIECE_BYTES: usize = 16 * 1024;
/// What a frame costs beside its content, in bytes: many small frames count too.
const FRAME_OVERHEAD: usize = 64;

/// What is to be told to the gateway next.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Nothing for now: wait for [`Log::changed`].
    Wait,
    /// Everything is sent, too little of it is durable, and the adapter waits: ask in a moment, by an empty post.
    Poll {
        offset: u64,
    },
    Post {
        offset: u64,
        frames: Vec<Frame>,
    },
    Finish {
        outcome: Outcome,
        end: u64,
        tail: Option<Span>,
    },
}

/// See the module.
#[derive(Default)]
pub(super) struct Log {
    state: Mutex<State>,
    changed: Notify,
    room: Notify,
}

#[derive(Default)]
struct State {
    /// Each with its weight; the first begins at `start`.
    frames: VecDeque<(Frame, usize)>,
    start: u64,
    end: u64,
    weight: usize,
    /// What this gateway has received.
    sent: u64,
    acked: u64,
    has_text: bool,
    too_long: bool,
    /// The gateway called our calls malformed; what is left to say is that.
    rejected: bool,
    outcome: Option<Outcome>,
}

impl Log {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A log that is durable up to `acked` already.
    pub(super) fn resumed(acked: u64) -> Self {
        let log = Log::default();
        {
            let mut state = log.state();
            (state.start, state.end, state.sent, state.acked) = (acked, acked, acked, acked);
        }
        log
    }

    /// Appends; waits for room.
    pub(super) async fn push(&self, frame: Frame) -> Result<(), Stopped> {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            {
                let mut state = self.state();
                if state.weight <= UNACKED_BYTES {
                    let pushed = state.push(frame);
                    drop(state);
                    self.changed.notify_one();
                    return pushed;
                }
            }
            // The poster asks for the durable offset as long as we wait.
            self.changed.notify_one();
            room.await;
        }
    }

    pub(super) fn has_text(&self) -> bool {
        self.state().has_text
    }

    /// The adapter's last word; only the first counts.
    pub(super) fn close(&self, outcome: Outcome) {
        {
            let mut state = self.state();
            let outcome = if state.too_long { Outcome::Error(program::too_long()) } else { outcome };
            state.outcome.get_or_insert(outcome);
        }
        self.changed.notify_one();
    }

    /// Whether the adapter's last word is here.
    pub(super) fn is_closed(&self) -> bool {
        self.state().outcome.is_some()
    }

    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) fn next(&self) -> Step {
        let state = self.state();
        let unsent = state.slice(state.sent, POST_BYTES);
        let all = unsent.end() >= state.end;
        match &state.outcome {
            Some(outcome) if all => {
                Step::Finish { outcome: outcome.clone(), end: state.end, tail: (!unsent.is_empty()).then_some(unsent) }
            }
            _ if !unsent.is_empty() => Step::Post { offset: unsent.start, frames: unsent.frames },
            _ if state.weight > UNACKED_BYTES => Step::Poll { offset: state.end },
            _ => Step::Wait,
        }
    }

    /// The gateway took a post. Says whether that was progress.
    pub(super) fn took(&self, answer: Acked) -> bool {
        let progress = {
            let mut state = self.state();
            let before = (state.acked, state.sent);
            state.forget(answer.acked);
            state.sent = answer.received.max(state.acked).min(state.end);
            state.acked > before.0 || state.sent > before.1
        };
        self.room.notify_waiters();
        progress
    }

    /// Another gateway, or the same after a break: what is not durable must be sent again.
    pub(super) fn rewind(&self) {
        let mut state = self.state();
        state.sent = state.acked;
    }

    /// The gateway lacks what is behind `acked`.
    pub(super) fn missing(&self, acked: u64) {
        {
            let mut state = self.state();
            if acked < state.start {
                // It once called this durable, and we forgot it: the log cannot be completed any more.
                let detail = format!("the gateway lost durable output: {acked} of {}", state.start);
                state.fail(detail, acked);
            } else {
                state.forget(acked);
                state.sent = acked.min(state.end);
            }
        }
        self.room.notify_waiters();
    }

    /// The gateway calls what we say malformed: the turn ends as an internal error. Says whether that is news; if it is
    /// not, there is no way to end the turn from here.
    pub(super) fn reject(&self, detail: String) -> bool {
        let mut state = self.state();
        let news = !state.rejected;
        let acked = state.acked;
        state.fail(detail, acked);
        news
    }
}

impl State {
    fn push(&mut self, frame: Frame) -> Result<(), Stopped> {
        let too_heavy = !matches!(frame, Frame::Text { .. }) && frame.weight() > POST_BYTES;
        if self.too_long || too_heavy || self.end + frame.units() > MAX_LOG_UNITS {
            self.too_long = true;
            return Err(Stopped);
        }
        if self.rejected {
            return Err(Stopped);
        }
        match frame {
            Frame::Text { text } => self.push_text(&text),
            other => self.push_whole(other),
        }
        Ok(())
    }

    fn push_text(&mut self, mut text: &str) {
        self.has_text |= !text.is_empty();
        if let Some((Frame::Text { text: last }, weight)) = self.frames.back_mut()
            && last.len() + text.len() <= PIECE_BYTES
        {
            last.push_str(text);
            *weight += text.len();
            self.weight += text.len();
            self.end += text.len() as u64;
            return;
        }
        while !text.is_empty() {
            let (piece, rest) = text.split_at(text.floor_char_boundary(PIECE_BYTES));
            self.push_whole(Frame::text(piece));
            text = rest;
        }
    }

    fn push_whole(&mut self, frame: Frame) {
        let weight = frame.weight() + FRAME_OVERHEAD;
        self.end += frame.units();
        self.weight += weight;
        self.frames.push_back((frame, weight));
    }

    /// Drops the frames that are wholly durable.
    fn forget(&mut self, acked: u64) {
        self.acked = self.acked.max(acked.min(self.end));
        while let Some((frame, weight)) = self.frames.front()
            && self.start + frame.units() <= self.acked
        {
            self.start += frame.units();
            self.weight -= weight;
            self.frames.pop_front();
        }
    }

    /// About `max` bytes of frames from `offset` on.
    fn slice(&self, offset: u64, max: usize) -> Span {
        let mut at = self.start;
        let mut taken = Span::new(self.end, Vec::new());
        let mut weight = 0;
        for (frame, frame_weight) in &self.frames {
            let begin = at;
            at += frame.units();
            if at <= offset {
                continue;
            }
            if !taken.is_empty() && weight + frame_weight > max {
                break;
            }
            weight += frame_weight;
            if taken.is_empty() {
                taken = Span::new(begin, vec![frame.clone()]).from(offset);
            } else {
                taken.frames.push(frame.clone());
            }
        }
        taken
    }

    fn fail(&mut self, detail: String, end: u64) {
        self.frames.clear();
        self.weight = 0;
        (self.start, self.sent, self.acked, self.end) = (end, end, end, end);
        self.rejected = true;
        self.outcome = Some(Outcome::Error(program::output_refused(detail)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(log: &Log, frame: Frame) -> Result<(), Stopped> {
        log.state().push(frame)
    }

    #[test]
    fn what_gathers_is_one_post_and_what_is_durable_is_forgotten() {
        let log = Log::default();
        assert_eq!(log.next(), Step::Wait);
        push(&log, Frame::text("a\u{20ac}")).expect("room");
        push(&log, Frame::text("b")).expect("room");
        assert_eq!(log.next(), Step::Post { offset: 0, frames: vec![Frame::text("a\u{20ac}b")] });
        assert!(log.took(Acked { acked: 0, received: 5 }));
        assert_eq!(log.next(), Step::Wait);
        push(&log, Frame::text("c")).expect("room");
        assert_eq!(log.next(), Step::Post { offset: 5, frames: vec![Frame::text("c")] });
        log.rewind();
        assert_eq!(log.next(), Step::Post { offset: 0, frames: vec![Frame::text("a\u{20ac}bc")] });
        log.took(Acked { acked: 6, received: 6 });
        assert!(log.state().frames.is_empty());
        assert_eq!(log.state().weight, 0);
        push(&log, Frame::text("d")).expect("room");
        log.close(Outcome::Reply);
        let tail = Some(Span::new(6, vec![Frame::text("d")]));
        assert_eq!(log.next(), Step::Finish { outcome: Outcome::Reply, end: 7, tail });
    }

    #[test]
    fn a_long_rest_is_posted_before_the_finish() {
        let log = Log::default();
        push(&log, Frame::text("x".repeat(POST_BYTES * 2))).expect("room");
        log.close(Outcome::Reply);
        let Step::Post { offset: 0, frames } = log.next() else { panic!("posted first") };
        let units = frames.iter().map(Frame::units).sum();
        assert!(units <= POST_BYTES as u64);
        log.took(Acked { acked: 0, received: units });
        let Step::Post { offset, .. } = log.next() else { panic!("still too long") };
        assert_eq!(offset, units);
    }

    #[test]
    fn too_long_a_log_ends_as_an_error() {
        let log = Log::resumed(MAX_LOG_UNITS - 1);
        push(&log, Frame::text("a")).expect("room");
        assert_eq!(push(&log, Frame::text("b")), Err(Stopped));
        log.close(Outcome::Reply);
        let Step::Finish { outcome: Outcome::Error(failure), end: MAX_LOG_UNITS, .. } = log.next() else { panic!() };
        assert_eq!(failure.message, "the agent's output is too long");
    }

    #[test]
    fn a_gateway_that_lost_durable_output_ends_the_turn() {
        let log = Log::default();
        push(&log, Frame::text("abc")).expect("room");
        log.took(Acked { acked: 3, received: 3 });
        log.missing(1);
        assert!(matches!(log.next(), Step::Finish { outcome: Outcome::Error(_), end: 1, tail: None }));
    }
}
