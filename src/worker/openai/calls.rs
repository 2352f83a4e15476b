//! Puts the tool calls of a completion together from their pieces. Pure.
//!
//! Each piece should name its call by an index, and only the first one the call's id and name. Servers send all calls under
//! one index, or no index, or the name in every piece; so what a piece continues is told by what it holds.

use serde_json::{Value, json};

use super::surrogates::{mended, settled, settled_json};
use crate::turn::frame::Frame;

/// The most tool calls of one completion, and the longest arguments of one call, in bytes.
const MAX_TOOL_CALLS: usize = 128;
const MAX_ARGUMENT_BYTES: usize = 256 * 1024;
/// The index of a call in the older form `function_call`, of which there is one at most.
const OLDER_FORM: u64 = u64::MAX;

/// The tool calls of a completion so far.
#[derive(Debug, Default)]
pub(super) struct ToolCalls {
    calls: Vec<ToolCall>,
    /// How many of them were given out.
    told: usize,
}

#[derive(Debug, Default)]
struct ToolCall {
    index: Option<u64>,
    id: String,
    name: String,
    arguments: String,
}

/// What one chunk says of a call; a string is empty where it says nothing.
struct CallPiece<'a> {
    index: Option<u64>,
    id: &'a str,
    name: &'a str,
    arguments: String,
    /// Another call's piece stands before it in the same chunk.
    follows: bool,
}

impl ToolCalls {
    /// Takes what `delta`, or a whole message, says of tool calls. An error's text is for operators.
    pub(super) fn take(&mut self, delta: &Value) -> Result<(), String> {
        let older = delta["function_call"]
            .is_object()
            .then(|| json!({"index": OLDER_FORM, "function": delta["function_call"]}));
        let pieces: Vec<&Value> = match &delta["tool_calls"] {
            Value::Array(pieces) => pieces.iter().collect(),
            Value::Object(_) => vec![&delta["tool_calls"]],
            _ => Vec::new(),
        };
        for (position, piece) in pieces.into_iter().chain(&older).enumerate() {
            self.piece(CallPiece {
                index: piece["index"].as_u64(),
                id: piece["id"].as_str().unwrap_or_default(),
                name: piece["function"]["name"].as_str().unwrap_or_default(),
                arguments: match &piece["function"]["arguments"] {
                    Value::Null => String::new(),
                    Value::String(text) => text.clone(),
                    whole => whole.to_string(),
                },
                follows: position > 0,
            })?;
        }
        Ok(())
    }

    fn piece(&mut self, piece: CallPiece) -> Result<(), String> {
        let at = self.continued(&piece).unwrap_or_else(|| {
            self.calls.push(ToolCall { index: piece.index, ..ToolCall::default() });
            self.calls.len() - 1
        });
        let call = &mut self.calls[at];
        call.add(&piece);
        if call.arguments.len() > MAX_ARGUMENT_BYTES || self.calls.len() > MAX_TOOL_CALLS {
            return Err(format!(
                "more than {MAX_TOOL_CALLS} tool calls, or more than {MAX_ARGUMENT_BYTES} bytes of arguments of one"
            ));
        }
        Ok(())
    }

    /// The place of the call that a piece continues; `None` if it begins one.
    fn continued(&self, piece: &CallPiece) -> Option<usize> {
        let of_id = |call: &ToolCall| !piece.id.is_empty() && call.id == piece.id;
        let place = match piece.index {
            Some(_) => self.calls.iter().rposition(|call| call.index == piece.index)?,
            None => match self.calls.iter().rposition(of_id) {
                Some(place) => place,
                None if piece.follows => return None,
                None => self.calls.len().checked_sub(1)?,
            },
        };
        (!self.calls[place].is_followed_by(piece)).then_some(place)
    }

    /// The calls that were not given out before, as frames. Pieces without name and arguments make no call.
    pub(super) fn frames(&mut self) -> Vec<Frame> {
        let begin = std::mem::replace(&mut self.told, self.calls.len());
        let new = self.calls.iter().enumerate().skip(begin);
        new.filter(|(_, call)| !(call.name.is_empty() && call.arguments.is_empty()))
            .map(|(number, call)| call.frame(number))
            .collect()
    }
}

impl ToolCall {
    fn has_whole_arguments(&self) -> bool {
        serde_json::from_str::<Value>(&mended(&self.arguments)).is_ok()
    }

    /// Whether a piece at this call's place begins another call.
    fn is_followed_by(&self, piece: &CallPiece) -> bool {
        if piece.name.is_empty() || (!piece.id.is_empty() && self.id == piece.id) {
            return false;
        }
        let repeats_name = self.name == piece.name;
        match !self.id.is_empty() && !piece.id.is_empty() {
            // Some servers make a new id for each piece.
            true => !(repeats_name && !self.arguments.is_empty() && !self.has_whole_arguments()),
            false => self.has_whole_arguments() && !(repeats_name && piece.arguments.is_empty()),
        }
    }

    fn add(&mut self, piece: &CallPiece) {
        if self.id.is_empty() {
            self.id = piece.id.to_owned();
        }
        // The name comes whole, again in each piece, or in pieces of its own.
        if piece.name.starts_with(&self.name) {
            self.name = piece.name.to_owned();
        } else if self.arguments.is_empty() {
            self.name.push_str(piece.name);
        }
        // Arguments that are repeated as a whole are no more arguments.
        if self.arguments != piece.arguments || !self.has_whole_arguments() {
            self.arguments.push_str(&piece.arguments);
        }
    }

    fn frame(&self, number: usize) -> Frame {
        Frame::ToolCall {
            id: if self.id.is_empty() { format!("call-{number}") } else { settled(&self.id) },
            name: settled(&self.name),
            arguments: match serde_json::from_str(&mended(&self.arguments)) {
                Ok(arguments) => settled_json(arguments),
                Err(_) if self.arguments.trim().is_empty() => json!({}),
                Err(_) => Value::String(settled(&self.arguments)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The calls of these chunks, each an array of pieces `[index, id, name, arguments]`.
    fn calls(chunks: Value) -> Vec<(String, String, Value)> {
        let mut calls = ToolCalls::default();
        for chunk in chunks.as_array().expect("chunks") {
            let piece = |p: &Value| json!({"index": p[0], "id": p[1], "function": {"name": p[2], "arguments": p[3]}});
            let pieces: Vec<Value> = chunk.as_array().expect("pieces").iter().map(piece).collect();
            calls.take(&json!({"tool_calls": pieces})).expect("short");
        }
        told(&mut calls)
    }

    fn told(calls: &mut ToolCalls) -> Vec<(String, String, Value)> {
        let told = |frame| match frame {
            Frame::ToolCall { id, name, arguments } => (id, name, arguments),
            other => panic!("{other:?}"),
        };
        calls.frames().into_iter().map(told).collect()
    }

    fn call(id: &str, name: &str, arguments: Value) -> (String, String, Value) {
        (id.into(), name.into(), arguments)
    }

    #[test]
    fn calls_are_told_apart_however_their_pieces_are_named() {
        let (a, b) = (call("c1", "f", json!({"a": 1})), call("c2", "g", json!({"b": 2})));
        for (what, chunks) in [
            (
                "as it should be",
                json!([[[0, "c1", "f", "{\"a\""]], [[0, null, null, ":1}"]], [[1, "c2", "g", "{\"b\":2}"]]]),
            ),
            (
                "interleaved",
                json!([
                    [[0, "c1", "f", ""], [1, "c2", "g", ""]],
                    [[1, null, null, "{\"b\":2}"], [0, null, null, "{\"a\":1}"]]
                ]),
            ),
            ("gaps", json!([[[3, "c1", "f", "{\"a\":1}"]], [[7, "c2", "g", "{\"b\":2}"]]])),
            ("one index", json!([[[0, "c1", "f", "{\"a\":1}"]], [[0, "c2", "g", "{\"b\":2}"]]])),
            (
                "one index, in pieces",
                json!([
                    [[0, "c1", "f", "{\"a\""]],
                    [[0, "", "", ":1}"]],
                    [[0, "c2", "g", ""]],
                    [[0, null, null, "{\"b\":2}"]]
                ]),
            ),
            (
                "no index",
                json!([[[null, "c1", "f", "{\"a\""]], [[null, null, null, ":1}"]], [[null, "c2", "g", "{\"b\":2}"]]]),
            ),
            ("no index, one chunk", json!([[[null, "c1", "f", "{\"a\":1}"], [null, "c2", "g", "{\"b\":2}"]]])),
            (
                "no index, by id",
                json!([
                    [[null, "c1", "f", "{\"a\""], [null, "c2", "g", ""]],
                    [[null, "c1", null, ":1}"]],
                    [[null, "c2", null, "{\"b\":2}"]]
                ]),
            ),
            (
                "name in each piece",
                json!([
                    [[0, "c1", "f", "{\"a\""]],
                    [[0, "c1", "f", ":1}"]],
                    [[1, "c2", "g", "{\"b\":2}"]],
                    [[1, "c2", "g", ""]]
                ]),
            ),
            (
                "a new id in each piece",
                json!([
                    [[0, "c1", "f", "{\"a\""]],
                    [[0, "x", "f", ":1}"]],
                    [[1, "c2", "g", "{\"b\""]],
                    [[1, "y", null, ":2}"]]
                ]),
            ),
            ("arguments as an object", json!([[[0, "c1", "f", {"a": 1}]], [[1, "c2", "g", {"b": 2}]]])),
            (
                "the same object again",
                json!([[[0, "c1", "f", {"a": 1}]], [[0, "c1", "f", {"a": 1}]], [[1, "c2", "g", {"b": 2}]]]),
            ),
        ] {
            assert_eq!(calls(chunks), [a.clone(), b.clone()], "{what}");
        }
    }

    #[test]
    fn calls_without_ids_get_some() {
        let both = [call("call-0", "f", json!({})), call("call-1", "f", json!({"b": 2}))];
        assert_eq!(calls(json!([[[null, "", "f", "{}"]], [[null, "", "f", "{\"b\":2}"]]])), both);
        assert_eq!(calls(json!([[[null, null, "f", null], [null, null, "f", {"b": 2}]]])), both);
        assert_eq!(calls(json!([[[0, null, "f", "{}"]], [[0, null, "f", "{\"b\":2}"]]])), both);
    }

    #[test]
    fn names_and_arguments_are_what_their_pieces_make() {
        let weather = call("c", "weather", json!({"c": "😀"}));
        assert_eq!(
            calls(json!([[[0, "c", "wea", null]], [[0, null, "ther", null]], [[0, null, null, "{\"c\":\"😀\"}"]]])),
            std::slice::from_ref(&weather)
        );
        assert_eq!(
            calls(json!([[[0, "c", "weather", "{\"c\":\"\\ud83d"]], [[0, null, null, "\\ude00\"}"]]])),
            [weather]
        );
        assert_eq!(calls(json!([[[0, "c", "f", "{oops"]]])), [call("c", "f", json!("{oops"))]);
        assert_eq!(calls(json!([[[0, "c", null, null]]])), []);
    }

    #[test]
    fn the_older_form_is_a_call_and_what_was_told_is_not_told_again() {
        let mut calls = ToolCalls::default();
        calls.take(&json!({"function_call": {"name": "f", "arguments": "{\"a\""}})).expect("short");
        calls.take(&json!({"function_call": {"arguments": ":1}"}})).expect("short");
        assert_eq!(told(&mut calls), [call("call-0", "f", json!({"a": 1}))]);
        calls.take(&json!({"tool_calls": [{"index": 0, "id": "c2", "function": {"name": "g"}}]})).expect("short");
        assert_eq!(told(&mut calls), [call("c2", "g", json!({}))]);
        assert_eq!(told(&mut calls), []);
    }

    #[test]
    fn calls_have_limits() {
        let many: Vec<Value> = (0..=MAX_TOOL_CALLS).map(|i| json!({"index": i, "function": {"name": "f"}})).collect();
        assert!(ToolCalls::default().take(&json!({"tool_calls": many})).is_err());
        let long =
            json!({"tool_calls": [{"function": {"name": "f", "arguments": "x".repeat(MAX_ARGUMENT_BYTES + 1)}}]});
        assert!(ToolCalls::default().take(&long).is_err());
    }
}
