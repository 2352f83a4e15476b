//! A turn's output on the worker's side: the frames that the gateway has not yet acknowledged as durable, how far they were
//! sent, and what is to be reported next.
//!
//! The adapter appends frames at the one end; `job.rs` reports them from the other. After a change of gateway all that is
//! not durable is reported again.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::turn::cause::program;
use crate::turn::frame::{Frame, Span};
use crate::turn::terminal::{Failure, Outcome, finish_reason};
use crate::wire::{Acked, MAX_LOG_UNITS, check_frame};

/// How much may wait to become durable, in bytes; beyond it, the adapter has to wait.
const UNACKED_BYTES: usize = 1024 * 1024;
/// The most output that one call carries, in bytes of text, or else one frame. JSON writes up to six bytes for one of text
/// (`\u0001`), and no frame other than text has more than [`crate::wire::MAX_FRAME_BYTES`] of JSON, so a body stays below
/// [`crate::wire::MAX_BODY_BYTES`].
const POST_BYTES: usize = 512 * 1024;
/// The longest text that is kept as one frame, in bytes; short texts that follow each other are joined up to this length.
const PIECE_BYTES: usize = 16 * 1024;
/// What a frame takes in memory beside its content, in bytes, so that many small frames count too.
const FRAME_OVERHEAD: usize = 64;

/// The turn takes no more output: it was cancelled, or its output is too long. The adapter stops the agent program and
/// returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the turn takes no more output; stop the agent program")]
pub struct Stopped;

/// What is to be reported to the gateway next.
#[derive(Debug, PartialEq)]
pub(super) enum ReportStep {
    /// There is nothing to report until [`OutputLog::changed`].
    Wait,
    /// Everything is sent, but too little of it is durable, so the adapter has to wait: ask for the durable offset in a
    /// moment, by an empty post at `offset`.
    Poll { offset: u64 },
    /// Post these frames; the first begins at `offset`.
    Post { offset: u64, frames: Vec<Frame> },
    /// Say the last word. `end` is the length of the whole log, `tail` what no post has brought.
    Finish { outcome: Outcome, end: u64, tail: Option<Span> },
}

/// The output of one turn, shared by the adapter that appends to it and the task that reports it.
#[derive(Default)]
pub(super) struct OutputLog {
    state: Mutex<LogState>,
    /// There may be something new to report.
    changed: Notify,
    /// Something became durable, so there may be room for more.
    room: Notify,
}

#[derive(Default)]
struct LogState {
    /// The frames that are not wholly durable, each with its weight in bytes.
    frames: VecDeque<(Frame, usize)>,
    /// Where the first of `frames` begins, in log units, as are the other offsets here.
    start: u64,
    /// The length of the whole log.
    end: u64,
    /// The weights of `frames` together, in bytes.
    weight: usize,
    /// How far the present gateway has received the log.
    sent: u64,
    /// How far the log is durable.
    acked: u64,
    has_text: bool,
    /// Set when the adapter said more than a turn may: why the turn fails, whatever the adapter says of its end.
    refused: Option<Failure>,
    /// The log cannot be completed any more, and `outcome` says why.
    rejected: bool,
    outcome: Option<Outcome>,
    finish_reason: Option<String>,
}

impl OutputLog {
    fn state(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A log that is durable up to `acked` already: see [`crate::wire::TurnPush::acked`].
    pub(super) fn resumed(acked: u64) -> Self {
        let log = OutputLog::default();
        {
            let mut state = log.state();
            (state.start, state.end, state.sent, state.acked) = (acked, acked, acked, acked);
        }
        log
    }

    /// Appends a frame. Waits while there is no room.
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
            // The task that reports asks for the durable offset now and then while there is no room.
            self.changed.notify_one();
            room.await;
        }
    }

    /// Whether any text was appended.
    pub(super) fn has_text(&self) -> bool {
        self.state().has_text
    }

    /// Lets the turn fail with this, whatever its last word is going to be. Only the first failure counts.
    pub(super) fn refuse(&self, failure: Failure) -> Stopped {
        self.state().refused.get_or_insert(failure);
        Stopped
    }

    /// Takes the turn's last word. Only the first one counts.
    pub(super) fn close(&self, outcome: Outcome) {
        {
            let mut state = self.state();
            let outcome = state.refused.take().map_or(outcome, Outcome::Error);
            state.outcome.get_or_insert(outcome);
        }
        self.changed.notify_one();
    }

    /// Keeps why the model stopped.
    pub(super) fn note_finish_reason(&self, reason: &str) {
        self.state().finish_reason = finish_reason(Some(reason.to_owned()));
    }

    /// Why the model stopped, if the adapter said so.
    pub(super) fn finish_reason(&self) -> Option<String> {
        self.state().finish_reason.clone()
    }

    /// Whether the turn's last word is here.
    pub(super) fn is_closed(&self) -> bool {
        self.state().outcome.is_some()
    }

    /// Returns when there may be something new to report.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What is to be reported next.
    pub(super) fn next(&self) -> ReportStep {
        let state = self.state();
        let unsent = state.slice(state.sent, POST_BYTES);
        let all = unsent.end() >= state.end;
        match &state.outcome {
            Some(outcome) if all => ReportStep::Finish {
                outcome: outcome.clone(),
                end: state.end,
                tail: (!unsent.is_empty()).then_some(unsent),
            },
            _ if !unsent.is_empty() => ReportStep::Post { offset: unsent.start, frames: unsent.frames },
            _ if state.weight > UNACKED_BYTES => ReportStep::Poll { offset: state.end },
            _ => ReportStep::Wait,
        }
    }

    /// The gateway answered a post. Returns whether it has more of the log than before.
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

    /// The worker has a new connection. The gateway may lack all that is not durable, so it is sent again.
    pub(super) fn rewind(&self) {
        let mut state = self.state();
        state.sent = state.acked;
    }

    /// The gateway answered 409: it has the log up to `acked` only.
    pub(super) fn missing(&self, acked: u64) {
        {
            let mut state = self.state();
            if acked < state.start {
                // A gateway had acknowledged this as durable, so it was dropped here: the log cannot be completed any more.
                let detail = format!("the gateway lost durable output: {acked} of {}", state.start);
                state.fail(detail, acked);
            } else {
                state.forget(acked);
                state.sent = acked.min(state.end);
            }
        }
        self.room.notify_waiters();
    }

    /// The gateway answered that a call is malformed: from now on the turn's last word is an internal error. Returns whether
    /// that is new; if it is not, then even that word was rejected, and the worker has no way to end the turn.
    pub(super) fn reject(&self, detail: String) -> bool {
        let mut state = self.state();
        let news = !state.rejected;
        let acked = state.acked;
        state.fail(detail, acked);
        news
    }
}

impl LogState {
    fn push(&mut self, frame: Frame) -> Result<(), Stopped> {
        if self.rejected || self.refused.is_some() {
            return Err(Stopped);
        }
        let too_large = check_frame(&frame).err().map(program::output_too_large);
        let too_long = || (self.end + frame.units() > MAX_LOG_UNITS).then(|| program::too_long(MAX_LOG_UNITS));
        self.refused = too_large.or_else(too_long);
        if self.refused.is_some() {
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

    /// The log is durable up to `acked`: drops the frames that are wholly durable.
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

    /// The frames from `offset` on, up to `max` bytes of them; at least one frame if there is any.
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

    /// Ends the turn with an internal error, and its log at `end`.
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
    use crate::wire::MAX_FRAME_BYTES;

    fn push(log: &OutputLog, frame: Frame) -> Result<(), Stopped> {
        log.state().push(frame)
    }

    #[test]
    fn what_gathers_is_one_post_and_what_is_durable_is_forgotten() {
        let log = OutputLog::default();
        assert_eq!(log.next(), ReportStep::Wait);
        push(&log, Frame::text("a\u{20ac}")).expect("room");
        push(&log, Frame::text("b")).expect("room");
        assert_eq!(log.next(), ReportStep::Post { offset: 0, frames: vec![Frame::text("a\u{20ac}b")] });
        assert!(log.took(Acked { acked: 0, received: 5 }));
        assert_eq!(log.next(), ReportStep::Wait);
        push(&log, Frame::text("c")).expect("room");
        assert_eq!(log.next(), ReportStep::Post { offset: 5, frames: vec![Frame::text("c")] });
        log.rewind();
        assert_eq!(log.next(), ReportStep::Post { offset: 0, frames: vec![Frame::text("a\u{20ac}bc")] });
        log.took(Acked { acked: 6, received: 6 });
        assert!(log.state().frames.is_empty());
        assert_eq!(log.state().weight, 0);
        push(&log, Frame::text("d")).expect("room");
        log.close(Outcome::Reply);
        let tail = Some(Span::new(6, vec![Frame::text("d")]));
        assert_eq!(log.next(), ReportStep::Finish { outcome: Outcome::Reply, end: 7, tail });
    }

    #[test]
    fn a_long_rest_is_posted_before_the_finish() {
        let log = OutputLog::default();
        push(&log, Frame::text("x".repeat(POST_BYTES * 2))).expect("room");
        log.close(Outcome::Reply);
        let ReportStep::Post { offset: 0, frames } = log.next() else { panic!("posted first") };
        let units = frames.iter().map(Frame::units).sum();
        assert!(units <= POST_BYTES as u64);
        log.took(Acked { acked: 0, received: units });
        let ReportStep::Post { offset, .. } = log.next() else { panic!("still too long") };
        assert_eq!(offset, units);
    }

    #[test]
    fn too_long_a_log_ends_as_an_error() {
        let log = OutputLog::resumed(MAX_LOG_UNITS - 1);
        push(&log, Frame::text("a")).expect("room");
        assert_eq!(push(&log, Frame::text("b")), Err(Stopped));
        log.close(Outcome::Reply);
        let ReportStep::Finish { outcome: Outcome::Error(failure), end: MAX_LOG_UNITS, .. } = log.next() else {
            panic!()
        };
        assert_eq!(failure.message, "the agent's output is too long");
    }

    #[test]
    fn a_frame_is_taken_up_to_the_limit_that_its_failure_names() {
        let frame = |bytes: usize| {
            let empty = Frame::ToolResult { id: "1".into(), result: "".into() };
            Frame::ToolResult { id: "1".into(), result: "x".repeat(bytes - empty.weight()).into() }
        };
        let log = OutputLog::default();
        push(&log, Frame::text("a")).expect("room");
        push(&log, frame(MAX_FRAME_BYTES)).expect("within the limit");
        assert_eq!(push(&log, frame(MAX_FRAME_BYTES + 1)), Err(Stopped));
        log.took(Acked { acked: 2, received: 2 });
        log.close(Outcome::Reply);
        let ReportStep::Finish { outcome: Outcome::Error(failure), end: 2, .. } = log.next() else { panic!() };
        let detail = failure.detail.expect("a detail");
        assert!(detail.contains("1048577 bytes") && detail.contains("at most 1048576"), "{detail}");
    }

    #[test]
    fn a_gateway_that_lost_durable_output_ends_the_turn() {
        let log = OutputLog::default();
        push(&log, Frame::text("abc")).expect("room");
        log.took(Acked { acked: 3, received: 3 });
        log.missing(1);
        assert!(matches!(log.next(), ReportStep::Finish { outcome: Outcome::Error(_), end: 1, tail: None }));
    }
}
