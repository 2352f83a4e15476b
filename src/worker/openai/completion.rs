//! Reads a chat completion, from its chunks or from one document. Pure.
//!
//! A completion is *whole* by proof alone: the server gave a finish reason that is known here, or ended the stream with
//! `[DONE]` after text without having given any. Whatever is not understood before that is a failure, whose words are kept.
//! Once whole, nothing makes a completion a failure; unless it holds neither text nor a tool call.

use serde_json::Value;

use super::calls::ToolCalls;
use super::surrogates::{TextJoiner, mended};
use crate::turn::frame::Frame;
use crate::turn::terminal::cut;
use crate::worker::upstream::fault::WORDS_BYTES;

/// The finish reasons that prove that the server ended the completion by itself: those of OpenAI, and those of other servers
/// that pass on their own. The API's clients are told the reason as the server wrote it.
const FINISHES: [&str; 13] = [
    "stop",
    "length",
    "tool_calls",
    "function_call",
    "content_filter",
    "stop_sequence",
    "eos",
    "eos_token",
    "end_turn",
    "max_tokens",
    "model_length",
    "tool_use",
    "refusal",
];
/// Names of events that say nothing but that the connection lives.
const PINGS: [&str; 6] = ["ping", "heartbeat", "keep-alive", "keepalive", "keep_alive", "comment"];
/// What ends a stream.
const DONE: &str = "[DONE]";

/// What an event of the stream means.
#[derive(Debug, PartialEq)]
pub(super) enum CompletionEvent {
    /// This output; often none.
    Frames(Vec<Frame>),
    /// `[DONE]`: nothing that belongs to the completion follows.
    Done,
}

/// Why a completion goes no further: what the server said in place of the rest.
#[derive(Debug, PartialEq)]
pub(super) struct ServerWords {
    /// The code in the error, mostly an HTTP status.
    pub code: Option<u16>,
    pub words: String,
}

/// What is known of a completion so far.
#[derive(Debug, Default)]
pub(super) struct Completion {
    /// The first known finish reason.
    finish_reason: Option<String>,
    /// The last finish reason that says nothing: `""`, or `null` as a word.
    void_reason: Option<String>,
    done: bool,
    text: TextJoiner,
    calls: ToolCalls,
    began: bool,
    has_text: bool,
    has_calls: bool,
}

impl Completion {
    /// Takes an event of a stream.
    pub(super) fn event(&mut self, name: &str, data: &str) -> Result<CompletionEvent, ServerWords> {
        let data = data.trim();
        if data == DONE {
            self.done = true;
            return Ok(CompletionEvent::Done);
        }
        if name == "error" {
            return Err(ServerWords::of(data, serde_json::from_str(&mended(data)).ok().as_ref()));
        }
        let is_ping = PINGS.contains(&name);
        if data.is_empty() {
            return Ok(CompletionEvent::Frames(Vec::new()));
        }
        match serde_json::from_str(&mended(data)) {
            Ok(chunk) if is_ping && !is_chunk(&chunk) => Ok(CompletionEvent::Frames(Vec::new())),
            Ok(chunk) => self.chunk(&chunk, data).map(CompletionEvent::Frames),
            Err(_) if is_ping => Ok(CompletionEvent::Frames(Vec::new())),
            Err(_) => Err(ServerWords::not_understood(data)),
        }
    }

    /// Takes a whole completion, sent as one JSON document.
    pub(super) fn document(&mut self, document: &str) -> Result<Vec<Frame>, ServerWords> {
        match serde_json::from_str(&mended(document)) {
            // Some servers wrap their errors in a list.
            Ok(Value::Array(items)) if items.len() == 1 => self.chunk(&items[0], document),
            Ok(value) => self.chunk(&value, document),
            Err(_) => Err(ServerWords::not_understood(document)),
        }
    }

    /// Takes a chunk; `said` is its text.
    fn chunk(&mut self, chunk: &Value, said: &str) -> Result<Vec<Frame>, ServerWords> {
        if is_error(chunk) {
            return Err(ServerWords::of(said, Some(chunk)));
        }
        let choices = match &chunk["choices"] {
            Value::Array(choices) => choices,
            Value::Null if says_nothing(chunk) => return Ok(Vec::new()),
            _ => return Err(ServerWords::not_understood(said)),
        };
        let first = choices.iter().find(|choice| choice["index"].as_u64().unwrap_or(0) == 0);
        let Some(choice) = first else { return Ok(Vec::new()) };
        if is_error(choice) {
            return Err(ServerWords::of(said, Some(choice)));
        }
        self.began = true;
        let delta = match &choice["delta"] {
            Value::Object(_) => &choice["delta"],
            // A whole message is all of the text: in a stream, it comes behind the text's pieces.
            _ if !self.has_text => &choice["message"],
            _ => &Value::Null,
        };
        let mut text = text_of(&delta["content"]).ok_or_else(|| ServerWords::not_understood(said))?;
        text.push_str(delta["refusal"].as_str().unwrap_or_default());
        let mut frames = self.text_frames(&text);
        self.calls.take(delta).map_err(|words| ServerWords { code: None, words })?;
        self.finish(&choice["finish_reason"], said)?;
        if self.finish_reason.is_some() {
            frames.extend(self.call_frames());
        }
        Ok(frames)
    }

    /// Takes a finish reason.
    fn finish(&mut self, reason: &Value, said: &str) -> Result<(), ServerWords> {
        let Some(reason) = reason.as_str() else { return Ok(()) };
        let known = reason.trim().to_ascii_lowercase();
        if FINISHES.contains(&known.as_str()) {
            self.finish_reason.get_or_insert_with(|| reason.trim().to_owned());
        } else if matches!(known.as_str(), "" | "null" | "none") {
            self.void_reason = Some(reason.to_owned());
        } else {
            let words = format!("the completion ended with finish_reason {reason:?}: {said}");
            return Err(ServerWords { code: None, words: cut(words, WORDS_BYTES) });
        }
        Ok(())
    }

    /// What is left when the completion is over: tool calls, and half a character.
    pub(super) fn rest(&mut self) -> Vec<Frame> {
        let text = self.text.finish();
        let mut frames = self.text_frames(&text);
        frames.extend(self.call_frames());
        frames
    }

    fn text_frames(&mut self, text: &str) -> Vec<Frame> {
        let text = self.text.push(text);
        self.has_text |= !text.is_empty();
        if text.is_empty() { Vec::new() } else { vec![Frame::text(text)] }
    }

    fn call_frames(&mut self) -> Vec<Frame> {
        let frames = self.calls.frames();
        self.has_calls |= !frames.is_empty();
        frames
    }

    /// Whether the model has begun its answer.
    pub(super) fn has_begun(&self) -> bool {
        self.began
    }

    /// Whether there is proof that the completion is whole.
    pub(super) fn is_whole(&self) -> bool {
        self.finish_reason.is_some() || (self.done && self.has_text && self.void_reason.is_none())
    }

    /// Whether there was neither text nor a tool call.
    pub(super) fn is_empty(&self) -> bool {
        !self.has_text && !self.has_calls
    }

    /// The server's finish reason, if it is a known one.
    pub(super) fn finish_reason(&self) -> Option<&str> {
        self.finish_reason.as_deref()
    }

    /// How the completion ended, for operators.
    pub(super) fn how_it_ended(&self) -> String {
        match (&self.finish_reason, &self.void_reason) {
            (Some(reason), _) => format!("finish_reason {reason:?}"),
            (None, Some(void)) => format!("no finish_reason but {void:?}"),
            (None, None) => "no finish_reason".into(),
        }
    }
}

impl ServerWords {
    /// An error, with the code that it bears.
    fn of(said: &str, error: Option<&Value>) -> Self {
        let words = if said.is_empty() { "an error without words" } else { said };
        ServerWords { code: error.and_then(code_of), words: cut(words.to_owned(), WORDS_BYTES) }
    }

    /// Something that is no chunk of a completion.
    fn not_understood(said: &str) -> Self {
        let words = format!("what the model server sent is not understood: {said}");
        ServerWords { code: None, words: cut(words, WORDS_BYTES) }
    }
}

/// Whether a chunk may be part of a completion, whatever its event is named.
fn is_chunk(chunk: &Value) -> bool {
    chunk["choices"].is_array() || is_error(chunk)
}

/// Whether a chunk, or one choice of it, is an error. Some servers send an empty field `error` where there is none.
fn is_error(chunk: &Value) -> bool {
    let is_set = |value: &Value| match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    };
    is_set(&chunk["error"]) || is_set(&chunk["errors"]) || chunk["object"] == "error" || chunk["type"] == "error"
}

/// Whether a chunk without choices is known to say nothing of the completion itself.
fn says_nothing(chunk: &Value) -> bool {
    match chunk {
        Value::Null => true,
        Value::Object(fields) => {
            fields.is_empty()
                || fields.contains_key("usage")
                || chunk["object"] == "chat.completion.chunk"
                || chunk["type"].as_str().is_some_and(|kind| PINGS.contains(&kind))
        }
        _ => false,
    }
}

/// The code in an error, as a number or as digits: in the error itself, or beside it.
fn code_of(error: &Value) -> Option<u16> {
    let places = [&error["error"], error, &error["errors"][0]];
    let names = ["code", "status", "status_code", "http_status"];
    let number = |value: &Value| match value {
        Value::Number(number) => number.as_u64().and_then(|n| u16::try_from(n).ok()),
        Value::String(digits) => digits.trim().parse().ok(),
        _ => None,
    };
    let all = places.into_iter().flat_map(|place| names.map(|name| number(&place[name])));
    all.flatten().find(|code| (300..600).contains(code))
}

/// The text of a message's or a delta's content: a string, or parts. Parts that are no text, such as what the model thought,
/// are left out. `None`: it is nothing of this kind.
fn text_of(content: &Value) -> Option<String> {
    match content {
        Value::Null => Some(String::new()),
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts.iter().map(text_of).collect(),
        Value::Object(part) => {
            let is_text =
                matches!(part.get("type").and_then(Value::as_str), None | Some("text" | "output_text" | "refusal"));
            let text = part.get("text").or(part.get("refusal")).and_then(Value::as_str).filter(|_| is_text);
            Some(text.unwrap_or_default().to_owned())
        }
        Value::Bool(_) | Value::Number(_) => None,
    }
}

#[cfg(test)]
#[path = "completion_tests.rs"]
mod tests;
