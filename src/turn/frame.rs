//! Output frames, and how positions in a turn's log are counted.
//!
//! A turn's log is a sequence of frames. A position in it is an **offset**, counted in *log units*: a text frame is as
//! many units long as its text has UTF-8 bytes, and every other frame is one unit long. So text frames that follow each
//! other may be joined, or cut between any two characters, and no offset changes its meaning: the live stream, a replay
//! from the database and the copy on another replica all count alike.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::turn::objects::objects_only;

/// Text frames are not joined beyond this many bytes. A longer one that a worker sent stays as it is.
pub const MAX_TEXT_BYTES: usize = 64 * 1024;

/// One piece of an agent's output, as a worker sends it, as the log stores it, and as the `data` of an SSE frame
/// carries it (there with `turnId` and `messageId` beside it).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "camelCase")]
#[serde(remote = "Self")]
pub enum Frame {
    /// A piece of the reply's text. The concatenation of all of them is the reply.
    Text { text: String },
    /// The agent calls a tool.
    ToolCall {
        id: String,
        name: String,
        #[serde(default)]
        arguments: Value,
    },
    /// What the tool answered.
    ToolResult {
        id: String,
        #[serde(default)]
        result: Value,
    },
    /// A note about work in progress, which is no part of the reply.
    Progress { message: String },
    /// Data of a kind that the agent and its client have agreed on.
    Data {
        name: String,
        #[serde(default)]
        value: Value,
    },
}

impl Frame {
    pub fn text(text: impl Into<String>) -> Self {
        Frame::Text { text: text.into() }
    }

    /// The SSE event's name; the same word as the frame's `type`.
    pub fn event(&self) -> &'static str {
        match self {
            Frame::Text { .. } => "text",
            Frame::ToolCall { .. } => "tool-call",
            Frame::ToolResult { .. } => "tool-result",
            Frame::Progress { .. } => "progress",
            Frame::Data { .. } => "data",
        }
    }

    /// The frame's length in log units.
    pub fn units(&self) -> u64 {
        match self {
            Frame::Text { text } => text.len() as u64,
            _ => 1,
        }
    }

    /// How many bytes the frame's text has, or its JSON where it is no text: roughly what it takes in memory and in the log.
    /// Limits are counted in it.
    pub fn weight(&self) -> usize {
        match self {
            Frame::Text { text } => text.len(),
            other => serde_json::to_string(other).map_or(0, |s| s.len()),
        }
    }

    /// Makes every string of the frame storable: Postgres has no NUL in text.
    pub fn storable(self) -> Self {
        match self {
            Frame::Text { text } => Frame::Text { text: storable(text) },
            Frame::Progress { message } => Frame::Progress { message: storable(message) },
            Frame::ToolCall { id, name, arguments } => {
                Frame::ToolCall { id: storable(id), name: storable(name), arguments: storable_json(arguments) }
            }
            Frame::ToolResult { id, result } => Frame::ToolResult { id: storable(id), result: storable_json(result) },
            Frame::Data { name, value } => Frame::Data { name: storable(name), value: storable_json(value) },
        }
    }
}

/// Replaces NUL, which no Postgres text can hold, by U+FFFD. Everything else in a `String` is storable.
pub fn storable(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

/// [`storable`] for every string and key inside a JSON value.
pub fn storable_json(value: Value) -> Value {
    match value {
        Value::String(s) => Value::String(storable(s)),
        Value::Array(items) => Value::Array(items.into_iter().map(storable_json).collect()),
        Value::Object(map) => Value::Object(map.into_iter().map(|(k, v)| (storable(k), storable_json(v))).collect()),
        other => other,
    }
}

/// A piece of a log: frames, and the offset at which the first of them begins.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Span {
    pub start: u64,
    pub frames: Vec<Frame>,
}

impl Span {
    pub fn new(start: u64, frames: Vec<Frame>) -> Self {
        Span { start, frames }
    }

    /// The offset behind the last frame.
    pub fn end(&self) -> u64 {
        self.start + self.frames.iter().map(Frame::units).sum::<u64>()
    }

    /// The sum of the frames' weights (see [`Frame::weight`]).
    pub fn weight(&self) -> usize {
        self.frames.iter().map(Frame::weight).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The part from `offset` on. An offset inside a character moves back to the character's first byte, so that no
    /// byte is lost. An offset beyond the end leaves no frames.
    pub fn from(self, offset: u64) -> Self {
        let mut at = self.start;
        let mut kept = Span { start: offset.max(self.start), frames: Vec::new() };
        for frame in self.frames {
            let (begin, end) = (at, at + frame.units());
            at = end;
            if end <= offset {
                continue;
            }
            if begin >= offset {
                if kept.frames.is_empty() {
                    kept.start = begin;
                }
                kept.frames.push(frame);
            } else if let Frame::Text { text } = frame {
                let cut = floor_char_boundary(&text, (offset - begin) as usize);
                kept.start = begin + cut as u64;
                kept.frames.push(Frame::text(&text[cut..]));
            }
        }
        if kept.frames.is_empty() {
            kept.start = at.max(self.start);
        }
        kept
    }

    /// The part before `offset`. An offset inside a character drops that character.
    pub fn until(self, offset: u64) -> Self {
        let mut at = self.start;
        let mut kept = Vec::new();
        for frame in self.frames {
            let begin = at;
            at += frame.units();
            if at <= offset {
                kept.push(frame);
            } else if let (true, Frame::Text { text }) = (begin < offset, frame) {
                let cut = floor_char_boundary(&text, (offset - begin) as usize);
                if cut > 0 {
                    kept.push(Frame::text(&text[..cut]));
                }
                break;
            } else {
                break;
            }
        }
        Span { start: self.start, frames: kept }
    }

    /// Appends a frame. Text is joined to text before it, up to [`MAX_TEXT_BYTES`]; empty text is left out.
    pub fn push(&mut self, frame: Frame) {
        if let Frame::Text { text } = &frame {
            if text.is_empty() {
                return;
            }
            if let Some(Frame::Text { text: last }) = self.frames.last_mut()
                && last.len() + text.len() <= MAX_TEXT_BYTES
            {
                last.push_str(text);
                return;
            }
        }
        self.frames.push(frame);
    }

    /// The same piece of the log, with text frames that follow each other joined.
    pub fn coalesced(self) -> Self {
        let mut out = Span { start: self.start, frames: Vec::with_capacity(self.frames.len()) };
        for frame in self.frames {
            out.push(frame);
        }
        out
    }

    /// The text of all text frames, joined.
    pub fn text(&self) -> String {
        self.frames
            .iter()
            .filter_map(|f| match f {
                Frame::Text { text } => Some(text.as_str()),
                _ => None,
            })
            .collect()
    }
}

fn floor_char_boundary(text: &str, index: usize) -> usize {
    let mut index = index.min(text.len());
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    index
}

objects_only!(both Frame);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame() -> impl Strategy<Value = Frame> {
        prop_oneof![
            4 => "[a-z\u{e4}\u{20ac}\u{1f600}]{1,6}".prop_map(Frame::text),
            1 => "[a-z]{1,3}".prop_map(|message| Frame::Progress { message }),
        ]
    }

    /// The log as characters and single frames, so that two spans compare equal however their text is split.
    fn atoms(span: &Span) -> Vec<(u64, String)> {
        let mut at = span.start;
        let mut out = Vec::new();
        for frame in &span.frames {
            match frame {
                Frame::Text { text } => {
                    for (i, c) in text.char_indices() {
                        out.push((at + i as u64, c.to_string()));
                    }
                }
                other => out.push((at, format!("{other:?}"))),
            }
            at += frame.units();
        }
        out
    }

    proptest! {
        #[test]
        fn coalescing_moves_no_offset(start in 0u64..100, frames in prop::collection::vec(frame(), 0..12)) {
            let span = Span::new(start, frames);
            let joined = span.clone().coalesced();
            prop_assert_eq!(joined.end(), span.end());
            prop_assert_eq!(atoms(&joined), atoms(&span));
        }

        #[test]
        fn a_cut_loses_and_repeats_nothing(frames in prop::collection::vec(frame(), 0..12), at in 0u64..80) {
            let span = Span::new(7, frames);
            let rest = span.clone().from(at);
            let head = span.clone().until(rest.start);
            let mut both = atoms(&head);
            both.extend(atoms(&rest));
            prop_assert_eq!(both, atoms(&span));
            prop_assert!(rest.start <= at.max(7).min(span.end()) || rest.is_empty());
        }
    }

    #[test]
    fn text_is_cut_only_between_characters() {
        let span = Span::new(0, vec![Frame::text("a\u{20ac}b")]);
        assert_eq!(span.clone().from(2), Span::new(1, vec![Frame::text("\u{20ac}b")]));
        assert_eq!(span.until(2), Span::new(0, vec![Frame::text("a")]));
    }

    #[test]
    fn a_nul_is_made_storable_everywhere() {
        let frame = Frame::Data { name: "a\0".into(), value: serde_json::json!({"k\0": ["x\0"]}) }.storable();
        assert_eq!(
            frame,
            Frame::Data { name: "a\u{fffd}".into(), value: serde_json::json!({"k\u{fffd}": ["x\u{fffd}"]}) }
        );
    }
}
