//! A turn as a stream of Responses.
//!
//! A client that comes back names the last `sequence_number` that it has, on whichever replica. So the numbers follow from the
//! turn's log and not from how its frames were cut: a delta has the offset behind it, moved by [`FIRST_DELTA`]; what comes before
//! the first delta has the numbers below, and what ends the response has those from [`END`] on, which no log reaches. Whoever
//! comes back is written the whole stream, from the log's beginning, and is shown what has a higher number.

use serde_json::{Value, json};

use super::finish::OpenAiEnd;
use super::response::{ResponseHead, ResponseState, text_part};
use crate::gateway::dialects::run::{BegunTurn, EventText, TurnWriter};
use crate::stream::writer::ShownEnd;
use crate::turn::frame::Frame;

/// What the offset of a delta is moved by, so that it has a higher number than what begins the response.
const FIRST_DELTA: u64 = 3;
/// The number of the first event behind the last delta. No log has as many units, and clients may count in 32 bits.
const END: u64 = 1_000_000_000;

/// Writes a response's events.
#[derive(Debug)]
pub(super) struct ResponseEvents {
    head: ResponseHead,
    /// The number of the last event that the client has; `None`: it has none.
    after: Option<u64>,
    /// All text so far. The events that end a response repeat it.
    text: String,
    /// The output item has begun.
    begun: bool,
}

impl ResponseEvents {
    /// The events with numbers above `after`.
    pub fn new(head: ResponseHead, after: Option<u64>) -> Self {
        ResponseEvents { head, after, text: String::new(), begun: false }
    }

    /// Writes an event, unless the client has it.
    fn say(&self, number: u64, event: &str, mut data: Value, out: &mut EventText) {
        if self.after.is_some_and(|after| number <= after) {
            return;
        }
        data["type"] = event.into();
        data["sequence_number"] = number.into();
        out.named(event, &data);
    }

    fn begin_item(&mut self, out: &mut EventText) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let item = self.head.item("in_progress", json!([]));
        self.say(2, "response.output_item.added", json!({"output_index": 0, "item": item}), out);
        let mut part = self.of_part();
        part["part"] = text_part("");
        self.say(3, "response.content_part.added", part, out);
    }

    /// What each event about the text's part has.
    fn of_part(&self) -> Value {
        json!({"item_id": self.head.item_id(), "output_index": 0, "content_index": 0})
    }

    fn delta(&mut self, offset: u64, text: &str, out: &mut EventText) {
        self.text.push_str(text);
        let number = offset.min(END - FIRST_DELTA - 1) + FIRST_DELTA;
        // Of a delta that the client has in part, the rest is new: frames are joined and cut anywhere.
        let missing = self.after.map_or(text.len(), |after| {
            usize::try_from(number.saturating_sub(after)).unwrap_or(usize::MAX).min(text.len())
        });
        let from = (0..=text.len() - missing).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let mut data = self.of_part();
        data["delta"] = text[from..].into();
        data["logprobs"] = json!([]);
        self.say(number, "response.output_text.delta", data, out);
    }

    fn end_item(&mut self, end: &OpenAiEnd, out: &mut EventText) {
        let status = match end {
            OpenAiEnd::Whole => "completed",
            OpenAiEnd::TooLong | OpenAiEnd::Filtered => "incomplete",
            // What was said before is no reply: its item stays open, and the end of the response says why.
            OpenAiEnd::Cancelled(_) | OpenAiEnd::Failed(_) => return,
        };
        self.begin_item(out);
        let mut done = self.of_part();
        done["text"] = self.text.as_str().into();
        done["logprobs"] = json!([]);
        self.say(END, "response.output_text.done", done, out);
        let mut done = self.of_part();
        done["part"] = text_part(&self.text);
        self.say(END + 1, "response.content_part.done", done, out);
        let item = self.head.item(status, json!([text_part(&self.text)]));
        self.say(END + 2, "response.output_item.done", json!({"output_index": 0, "item": item}), out);
    }
}

impl TurnWriter for ResponseEvents {
    fn begin(&mut self, _: BegunTurn<'_>, out: &mut EventText) {
        let state = if self.head.in_background() { ResponseState::Queued } else { ResponseState::InProgress };
        self.say(0, "response.created", json!({"response": self.head.object(state)}), out);
        let object = self.head.object(ResponseState::InProgress);
        self.say(1, "response.in_progress", json!({"response": object}), out);
    }

    fn output(&mut self, offset: u64, frame: &Frame, out: &mut EventText) {
        match frame {
            Frame::Text { text } if !text.is_empty() => {
                self.begin_item(out);
                self.delta(offset, text, out);
            }
            // A client runs the tools that a response calls. The agent's own are no business of its.
            Frame::Text { .. }
            | Frame::ToolCall { .. }
            | Frame::ToolResult { .. }
            | Frame::Progress { .. }
            | Frame::Data { .. } => {}
        }
    }

    fn end(&mut self, end: &ShownEnd<'_>, out: &mut EventText) {
        let end = OpenAiEnd::of(end);
        self.end_item(&end, out);
        let (event, object) = self.head.streamed_end(&end, &self.text);
        self.say(END + 3, event, json!({"response": object}), out);
        out.done();
    }
}

#[cfg(test)]
mod tests;
