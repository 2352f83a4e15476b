//! Reads a streamed chat completion (Server-Sent Events) line by line. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::turn::frame::Frame;

/// The most tool calls of one completion, and the longest arguments of one call, in bytes.
const MAX_TOOL_CALLS: usize = 128;
const MAX_ARGUMENT_BYTES: usize = 256 * 1024;

/// What a line of the stream means.
#[derive(Debug, PartialEq)]
pub(super) enum CompletionEvent {
    /// This output; often none.
    Frames(Vec<Frame>),
    /// `[DONE]`: the stream is complete.
    Done,
}

/// What is known of a completion so far.
#[derive(Debug, Default)]
pub(super) struct Completion {
    finish_reason: Option<String>,
    done: bool,
    /// Tool calls whose pieces are still arriving, by their index in the completion.
    calls: BTreeMap<u64, ToolCall>,
    has_output: bool,
}

#[derive(Debug, Default)]
struct ToolCall {
    id: String,
    name: String,
    arguments: String,
}

impl Completion {
    /// Takes one line of the stream. An error ends the turn; its text is for operators.
    pub(super) fn line(&mut self, line: &[u8]) -> Result<CompletionEvent, String> {
        let line = String::from_utf8_lossy(line);
        // Comments, event names and empty lines carry no data. SSE allows data of several lines, but the known servers send each
        // chunk as one line.
        let Some(data) = line.strip_prefix("data:").map(str::trim) else { return self.other(line.trim()) };
        if data == "[DONE]" {
            self.done = true;
            return Ok(CompletionEvent::Done);
        }
        let chunk: Value = serde_json::from_str(data).map_err(|e| format!("a chunk that is no JSON ({e}): {data}"))?;
        if let Some(error) = chunk.get("error").filter(|error| !error.is_null()) {
            return Err(format!("an error in the model's stream: {error}"));
        }
        let Some(choice) = chunk["choices"].get(0) else { return Ok(CompletionEvent::Frames(Vec::new())) };
        let mut frames = Vec::new();
        if let Some(text) = choice["delta"]["content"].as_str().filter(|text| !text.is_empty()) {
            self.has_output = true;
            frames.push(Frame::text(text));
        }
        for delta in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            self.call(delta)?;
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.finish_reason = Some(reason.to_string());
            frames.extend(self.tool_calls());
        }
        Ok(CompletionEvent::Frames(frames))
    }

    /// A line without data. Some servers answer 200 and then send an error as plain JSON; that is an error here, too.
    fn other(&self, line: &str) -> Result<CompletionEvent, String> {
        if line.starts_with('{') {
            return Err(format!("no event stream: {line}"));
        }
        Ok(CompletionEvent::Frames(Vec::new()))
    }

    /// Takes a piece of a tool call.
    fn call(&mut self, delta: &Value) -> Result<(), String> {
        let index = delta["index"].as_u64().unwrap_or(self.calls.len() as u64);
        let call = self.calls.entry(index).or_default();
        if let Some(id) = delta["id"].as_str() {
            call.id = id.to_string();
        }
        if let Some(name) = delta["function"]["name"].as_str() {
            call.name.push_str(name);
        }
        if let Some(arguments) = delta["function"]["arguments"].as_str() {
            call.arguments.push_str(arguments);
        }
        if call.arguments.len() > MAX_ARGUMENT_BYTES || self.calls.len() > MAX_TOOL_CALLS {
            return Err("the model's tool calls are too long".into());
        }
        Ok(())
    }

    /// Takes out the tool calls, as frames. They are complete once the model has finished.
    pub(super) fn tool_calls(&mut self) -> Vec<Frame> {
        let calls = std::mem::take(&mut self.calls);
        self.has_output |= !calls.is_empty();
        let frame = |(index, call): (u64, ToolCall)| Frame::ToolCall {
            id: if call.id.is_empty() { format!("call-{index}") } else { call.id },
            name: call.name,
            arguments: match serde_json::from_str(&call.arguments) {
                Ok(arguments) => arguments,
                Err(_) if call.arguments.is_empty() => Value::Null,
                Err(_) => Value::String(call.arguments),
            },
        };
        calls.into_iter().map(frame).collect()
    }

    /// Whether the model said that it has finished. Only then is the end of the stream the end of the completion.
    pub(super) fn is_finished(&self) -> bool {
        self.done || self.finish_reason.is_some()
    }

    /// Whether there was neither text nor a tool call.
    pub(super) fn is_empty(&self) -> bool {
        !self.has_output
    }

    /// The model's `finish_reason`, for operators.
    pub(super) fn why_finished(&self) -> &str {
        self.finish_reason.as_deref().unwrap_or("no finish_reason")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(completion: &mut Completion, chunk: Value) -> Result<CompletionEvent, String> {
        completion.line(format!("data: {chunk}\r").as_bytes())
    }

    #[test]
    fn text_then_the_end() {
        let mut completion = Completion::default();
        assert_eq!(completion.line(b": ping"), Ok(CompletionEvent::Frames(vec![])));
        assert_eq!(completion.line(b""), Ok(CompletionEvent::Frames(vec![])));
        let got = line(&mut completion, json!({"choices": [{"delta": {"role": "assistant", "content": "hi"}}]}));
        assert_eq!(got, Ok(CompletionEvent::Frames(vec![Frame::text("hi")])));
        assert!(!completion.is_finished());
        line(&mut completion, json!({"choices": [{"delta": {}, "finish_reason": "stop"}]})).expect("understood");
        line(&mut completion, json!({"choices": [], "usage": {"total_tokens": 3}})).expect("understood");
        assert!(completion.is_finished() && !completion.is_empty());
        assert_eq!(completion.line(b"data: [DONE]"), Ok(CompletionEvent::Done));
    }

    #[test]
    fn tool_calls_are_told_when_complete() {
        let mut completion = Completion::default();
        let delta = |calls: Value| json!({"choices": [{"delta": {"tool_calls": calls}}]});
        let begin = delta(json!([{"index": 0, "id": "c1", "function": {"name": "add", "arguments": "{\"a\""}}]));
        assert_eq!(line(&mut completion, begin), Ok(CompletionEvent::Frames(vec![])));
        line(&mut completion, delta(json!([{"index": 0, "function": {"arguments": ":1}"}}]))).expect("understood");
        line(&mut completion, delta(json!([{"index": 1, "id": "c2", "function": {"name": "f", "arguments": "x"}}])))
            .expect("understood");
        let end = line(&mut completion, json!({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}));
        let call = |id: &str, name: &str, arguments| Frame::ToolCall { id: id.into(), name: name.into(), arguments };
        assert_eq!(
            end,
            Ok(CompletionEvent::Frames(vec![call("c1", "add", json!({"a": 1})), call("c2", "f", json!("x"))]))
        );
        assert!(!completion.is_empty());
    }

    #[test]
    fn an_error_in_the_stream_is_the_turns() {
        let mut completion = Completion::default();
        assert!(
            line(&mut completion, json!({"error": {"message": "overloaded"}}))
                .expect_err("an error")
                .contains("overloaded")
        );
        assert!(completion.line(b"{\"error\": 1}").is_err());
        assert!(completion.line(b"data: {oops").is_err());
        assert!(completion.is_empty());
    }
}
