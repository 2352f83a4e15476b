//! What the events of an AG-UI run mean: frames of output, and at last how the run ended. Pure.
//!
//! Servers of AG-UI 1.0 are read, and of what came before it: events of types that are not known say nothing.

use std::collections::{HashMap, HashSet};
use std::mem::take;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::turn::cause;
use crate::turn::frame::Frame;
use crate::turn::objects::objects_only;
use crate::turn::terminal::{Failure, cut};
use crate::worker::upstream::fault::WORDS_BYTES;

/// The longest that calls of tools, and thoughts, may be before they are whole, in bytes together.
const HELD_BYTES: usize = 1024 * 1024;
/// The type of activity in which Lastword's own servers tell notes of progress.
const PROGRESS: &str = "PROGRESS";

/// An event, as much of it as is read.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[serde(remote = "Self")]
struct AgUiEvent {
    #[serde(rename = "type")]
    kind: String,
    message_id: Option<String>,
    role: Option<String>,
    delta: Value,
    tool_call_id: Option<String>,
    tool_call_name: Option<String>,
    content: Value,
    step_name: Option<String>,
    activity_type: Option<String>,
    patch: Value,
    name: Option<String>,
    value: Value,
    snapshot: Value,
    messages: Value,
    outcome: Option<RunOutcome>,
    message: Option<String>,
    code: Option<String>,
}

/// The outcome of a run that finished. Without one it is a success.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[serde(remote = "Self")]
struct RunOutcome {
    #[serde(rename = "type")]
    kind: String,
}

/// What an event comes to.
#[derive(Debug, PartialEq)]
pub(super) enum RunStep {
    /// Output, which may be none.
    Frames(Vec<Frame>),
    /// The run is over, behind this output: with a reply, or for this cause without.
    Over(Vec<Frame>, Result<(), Failure>),
}

/// Reads one run.
#[derive(Debug, Default)]
pub(super) struct RunReader {
    /// The message that text was last from.
    message: Option<String>,
    /// Messages that are not the assistant's.
    foreign: HashSet<String>,
    /// The text so far ends with a blank, or there is none.
    blank: bool,
    said: bool,
    called: bool,
    /// Calls of tools that are not whole yet: their names and arguments.
    calls: HashMap<String, (String, String)>,
    /// The call that came last in chunks, which no event ends.
    chunked: Option<String>,
    thought: String,
    held: usize,
    /// What the assistant said behind the user's last message, by the newest snapshot.
    snapshot: String,
}

impl RunReader {
    /// Takes the data of an event.
    ///
    /// # Errors
    /// What is no event: the run cannot be understood any more.
    pub fn take(&mut self, data: &str) -> Result<RunStep, Failure> {
        let event: AgUiEvent = serde_json::from_str(data).map_err(|error| {
            let said = cut(data.to_owned(), WORDS_BYTES);
            cause::model::broken_off(format!("an event of the AG-UI server is malformed ({error}): {said}"))
        })?;
        let mut frames = Vec::new();
        if event.kind != "TOOL_CALL_CHUNK"
            && let Some(id) = self.chunked.take()
        {
            frames.extend(self.call(&id));
        }
        match event.kind.as_str() {
            "RUN_FINISHED" => return Ok(self.finished(frames, event.outcome)),
            "RUN_ERROR" => {
                let code = event.code.map(|code| format!("{code}: ")).unwrap_or_default();
                let words = event.message.unwrap_or_default();
                let detail = format!("the AG-UI run ended with an error: {code}{words}");
                return Ok(RunStep::Over(frames, Err(cause::model::broken_off(cut(detail, WORDS_BYTES)))));
            }
            _ => frames.extend(self.frames(event)?),
        }
        Ok(RunStep::Frames(frames))
    }

    fn frames(&mut self, event: AgUiEvent) -> Result<Vec<Frame>, Failure> {
        let data = |name: &str, value: Value| vec![Frame::Data { name: name.into(), value }];
        Ok(match event.kind.as_str() {
            "TEXT_MESSAGE_START" | "TEXT_MESSAGE_CONTENT" | "TEXT_MESSAGE_CHUNK" => self.text(&event),
            "TOOL_CALL_START" | "TOOL_CALL_ARGS" | "TOOL_CALL_CHUNK" => self.calling(&event)?,
            "TOOL_CALL_END" => event.tool_call_id.and_then(|id| self.call(&id)).into_iter().collect(),
            "TOOL_CALL_RESULT" => {
                let id = event.tool_call_id.unwrap_or_default();
                vec![Frame::ToolResult { id, result: event.content }]
            }
            "STEP_STARTED" => event.step_name.map(|message| Frame::Progress { message }).into_iter().collect(),
            "REASONING_MESSAGE_CONTENT" | "REASONING_MESSAGE_CHUNK" | "THINKING_TEXT_MESSAGE_CONTENT" => {
                let delta = event.delta.as_str().unwrap_or_default();
                self.hold(delta.len())?;
                self.thought.push_str(delta);
                Vec::new()
            }
            "REASONING_MESSAGE_END" | "REASONING_END" | "THINKING_TEXT_MESSAGE_END" | "THINKING_END" => {
                let message = take(&mut self.thought);
                if message.is_empty() { Vec::new() } else { vec![Frame::Progress { message }] }
            }
            "ACTIVITY_SNAPSHOT" => match (event.activity_type.as_deref(), event.content["message"].as_str()) {
                (Some(PROGRESS), Some(message)) => vec![Frame::Progress { message: message.into() }],
                (kind, _) => data("activity", json!({"id": event.message_id, "type": kind, "content": event.content})),
            },
            "ACTIVITY_DELTA" => {
                let kind = event.activity_type;
                data("activity-delta", json!({"id": event.message_id, "type": kind, "patch": event.patch}))
            }
            "CUSTOM" => data(&event.name.unwrap_or_default(), event.value),
            "STATE_SNAPSHOT" => data("state", event.snapshot),
            "STATE_DELTA" => data("state-delta", event.delta),
            "MESSAGES_SNAPSHOT" => {
                self.snapshot = said_last(&event.messages);
                Vec::new()
            }
            _ => Vec::new(),
        })
    }

    /// Text of the assistant. Where another message begins, a blank line parts the two.
    fn text(&mut self, event: &AgUiEvent) -> Vec<Frame> {
        let message = event.message_id.clone().or_else(|| self.message.clone()).unwrap_or_default();
        if event.role.as_deref().is_some_and(|role| role != "assistant") {
            self.foreign.insert(message.clone());
        }
        let delta = event.delta.as_str().unwrap_or_default();
        if delta.is_empty() || self.foreign.contains(&message) {
            if event.kind == "TEXT_MESSAGE_CHUNK" {
                self.message = Some(message);
            }
            return Vec::new();
        }
        let parts = self.said && !self.blank && self.message.as_ref() != Some(&message);
        self.message = Some(message);
        (self.said, self.blank) = (true, delta.ends_with(char::is_whitespace));
        if parts { vec![Frame::text("\n\n"), Frame::text(delta)] } else { vec![Frame::text(delta)] }
    }

    /// A part of a call.
    fn calling(&mut self, event: &AgUiEvent) -> Result<Vec<Frame>, Failure> {
        let chunk = event.kind == "TOOL_CALL_CHUNK";
        let Some(id) = event.tool_call_id.clone().or_else(|| self.chunked.clone().filter(|_| chunk)) else {
            return Ok(Vec::new());
        };
        let mut frames = Vec::new();
        if chunk
            && let Some(before) = self.chunked.replace(id.clone())
            && before != id
        {
            frames.extend(self.call(&before));
        }
        let delta = event.delta.as_str().unwrap_or_default();
        let name = event.tool_call_name.clone().unwrap_or_default();
        self.hold(delta.len() + name.len() + id.len())?;
        let (known, arguments) = self.calls.entry(id).or_default();
        if !name.is_empty() {
            *known = name;
        }
        arguments.push_str(delta);
        Ok(frames)
    }

    /// A call that is whole.
    fn call(&mut self, id: &str) -> Option<Frame> {
        let (name, arguments) = self.calls.remove(id)?;
        self.called = true;
        let arguments = match arguments.trim() {
            "" => json!({}),
            // What a model wrote need not be JSON.
            text => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        };
        Some(Frame::ToolCall { id: id.to_owned(), name, arguments })
    }

    fn hold(&mut self, bytes: usize) -> Result<(), Failure> {
        self.held += bytes;
        if self.held > HELD_BYTES {
            let detail = format!("calls of tools and thoughts of an AG-UI run have more than {HELD_BYTES} bytes");
            return Err(cause::model::broken_off(detail));
        }
        Ok(())
    }

    fn finished(&mut self, mut frames: Vec<Frame>, outcome: Option<RunOutcome>) -> RunStep {
        let outcome = outcome.map_or_else(String::new, |outcome| outcome.kind);
        let end = match outcome.as_str() {
            "" | "success" => {
                // Some servers stream nothing, and say in a snapshot what they have to say.
                if !self.said && !self.snapshot.trim().is_empty() {
                    frames.push(Frame::text(take(&mut self.snapshot)));
                    self.said = true;
                }
                match self.said || self.called {
                    true => Ok(()),
                    false => {
                        Err(cause::model::empty("the AG-UI run finished without text and without a call of a tool"))
                    }
                }
            }
            "cancelled" => Err(cause::rule::cancelled()),
            "interrupt" => Err(cause::model::broken_off(
                "the AG-UI run ended with an interrupt, which waits for an answer; interrupts are not supported",
            )),
            other => {
                let other = cut(other.to_owned(), WORDS_BYTES);
                Err(cause::model::broken_off(format!("the AG-UI run finished with the unknown outcome {other:?}")))
            }
        };
        RunStep::Over(frames, end)
    }
}

/// What the assistant says in these messages behind the last one of the user.
fn said_last(messages: &Value) -> String {
    let messages = messages.as_array().map_or(&[][..], Vec::as_slice);
    let begin = messages.iter().rposition(|message| message["role"] == "user").map_or(0, |at| at + 1);
    let said = messages[begin..].iter().filter(|message| message["role"] == "assistant");
    let texts: Vec<&str> = said.filter_map(|message| message["content"].as_str()).filter(|t| !t.is_empty()).collect();
    texts.join("\n\n")
}

objects_only!(read AgUiEvent, RunOutcome);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::reason::Reason;

    /// The frames of these events, and how the run ended.
    fn read(events: &[Value]) -> (Vec<Frame>, Option<Result<(), Failure>>) {
        let mut reader = RunReader::default();
        let mut all = Vec::new();
        for event in events {
            match reader.take(&event.to_string()) {
                Ok(RunStep::Frames(frames)) => all.extend(frames),
                Ok(RunStep::Over(frames, end)) => {
                    all.extend(frames);
                    return (all, Some(end));
                }
                Err(failure) => return (all, Some(Err(failure))),
            }
        }
        (all, None)
    }

    fn content(message: &str, delta: &str) -> Value {
        json!({"type": "TEXT_MESSAGE_CONTENT", "messageId": message, "delta": delta})
    }

    #[test]
    fn a_run_is_frames_and_a_reply() {
        let (frames, end) = read(&[
            json!({"type": "RUN_STARTED", "threadId": "t", "runId": "r", "unknown": [1]}),
            json!({"type": "STEP_STARTED", "stepName": "think"}),
            json!({"type": "REASONING_MESSAGE_CONTENT", "messageId": "0", "delta": "so "}),
            json!({"type": "REASONING_MESSAGE_CONTENT", "messageId": "0", "delta": "what"}),
            json!({"type": "REASONING_MESSAGE_END", "messageId": "0"}),
            json!({"type": "TEXT_MESSAGE_START", "messageId": "1", "role": "assistant"}),
            content("1", "see"),
            content("1", " it"),
            json!({"type": "TEXT_MESSAGE_END", "messageId": "1"}),
            json!({"type": "TOOL_CALL_START", "toolCallId": "c", "toolCallName": "sum"}),
            json!({"type": "TOOL_CALL_ARGS", "toolCallId": "c", "delta": "{\"a\""}),
            json!({"type": "TOOL_CALL_ARGS", "toolCallId": "c", "delta": ":1}"}),
            json!({"type": "TOOL_CALL_END", "toolCallId": "c"}),
            json!({"type": "TOOL_CALL_RESULT", "messageId": "m", "toolCallId": "c", "content": "1"}),
            json!({"type": "ACTIVITY_SNAPSHOT", "messageId": "a", "activityType": "PROGRESS", "content": {"message": "half"}}),
            json!({"type": "ACTIVITY_SNAPSHOT", "messageId": "a", "activityType": "PLAN", "content": {"x": 1}}),
            json!({"type": "CUSTOM", "name": "chart", "value": null}),
            json!({"type": "STATE_SNAPSHOT", "snapshot": {"n": 1}}),
            json!({"type": "STATE_DELTA", "delta": [{"op": "remove", "path": "/n"}]}),
            json!({"type": "SOMETHING_NEW", "delta": 7}),
            content("2", "1"),
            json!({"type": "RUN_FINISHED", "threadId": "t", "runId": "r", "outcome": {"type": "success"}}),
        ]);
        let data = |name: &str, value| Frame::Data { name: name.into(), value };
        let expected = [
            Frame::Progress { message: "think".into() },
            Frame::Progress { message: "so what".into() },
            Frame::text("see"),
            Frame::text(" it"),
            Frame::ToolCall { id: "c".into(), name: "sum".into(), arguments: json!({"a": 1}) },
            Frame::ToolResult { id: "c".into(), result: json!("1") },
            Frame::Progress { message: "half".into() },
            data("activity", json!({"id": "a", "type": "PLAN", "content": {"x": 1}})),
            data("chart", Value::Null),
            data("state", json!({"n": 1})),
            data("state-delta", json!([{"op": "remove", "path": "/n"}])),
            Frame::text("\n\n"),
            Frame::text("1"),
        ];
        assert_eq!(frames, expected);
        assert_eq!(end, Some(Ok(())));
    }

    #[test]
    fn chunks_open_and_end_by_themselves() {
        let chunk = |id: Option<&str>, delta: &str| {
            let mut event = json!({"type": "TOOL_CALL_CHUNK", "delta": delta});
            if let Some(id) = id {
                (event["toolCallId"], event["toolCallName"]) = (id.into(), "sum".into());
            }
            event
        };
        let (frames, end) = read(&[
            json!({"type": "TEXT_MESSAGE_CHUNK", "messageId": "1", "role": "assistant", "delta": "a"}),
            json!({"type": "TEXT_MESSAGE_CHUNK", "delta": "b"}),
            chunk(Some("c"), "[1"),
            chunk(None, "]"),
            chunk(Some("d"), ""),
            json!({"type": "TEXT_MESSAGE_CHUNK", "messageId": "2", "role": "user", "delta": "not ours"}),
            json!({"type": "RUN_FINISHED"}),
        ]);
        let call = |id: &str, arguments| Frame::ToolCall { id: id.into(), name: "sum".into(), arguments };
        assert_eq!(frames, [Frame::text("a"), Frame::text("b"), call("c", json!([1])), call("d", json!({}))]);
        assert_eq!(end, Some(Ok(())));
    }

    #[test]
    fn a_reply_that_is_a_snapshot_alone_is_a_reply() {
        let messages = json!([
            {"role": "assistant", "content": "before"},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "one"},
            {"role": "assistant", "content": "two"},
        ]);
        let snapshot = json!({"type": "MESSAGES_SNAPSHOT", "messages": messages});
        let finished = json!({"type": "RUN_FINISHED"});
        assert_eq!(read(&[snapshot.clone(), finished.clone()]), (vec![Frame::text("one\n\ntwo")], Some(Ok(()))));
        let (frames, _) = read(&[content("1", "one"), snapshot, finished]);
        assert_eq!(frames, [Frame::text("one")], "what was streamed is not said twice");
    }

    #[test]
    fn what_is_no_success_is_no_reply() {
        let finished = |outcome: Value| json!({"type": "RUN_FINISHED", "outcome": outcome});
        for (event, reason, words) in [
            (finished(json!({"type": "cancelled"})), Reason::Cancelled, ""),
            (
                finished(json!({"type": "interrupt", "interrupts": [{}]})),
                Reason::AgentError,
                "interrupts are not supported",
            ),
            (finished(json!({"type": "new"})), Reason::AgentError, "unknown outcome \"new\""),
            (json!({"type": "RUN_ERROR", "message": "on fire", "code": "E1"}), Reason::AgentError, "E1: on fire"),
            (json!({"type": "RUN_ERROR"}), Reason::AgentError, "ended with an error"),
            (json!(["RUN_FINISHED"]), Reason::AgentError, "malformed"),
            (json!({"type": "RUN_FINISHED", "outcome": "success"}), Reason::AgentError, "malformed"),
        ] {
            let (_, end) = read(&[content("1", "half"), event.clone()]);
            let failure = end.expect("an end").expect_err("no reply");
            assert_eq!(failure.reason, reason, "{event}");
            assert!(failure.detail.unwrap_or_default().contains(words), "{event}");
        }
        let (_, end) = read(&[json!({"type": "RUN_FINISHED"})]);
        assert_eq!(end.expect("an end").expect_err("no answer").message, "The agent gave no answer.");
        assert_eq!(read(&[content("1", "half")]).1, None, "only the run's own end is an end");
    }

    #[test]
    fn what_never_becomes_whole_does_not_fill_the_memory() {
        let mut reader = RunReader::default();
        let part = json!({"type": "TOOL_CALL_ARGS", "toolCallId": "c", "delta": "x".repeat(100_000)}).to_string();
        let refused = (0..20).find_map(|_| reader.take(&part).err()).expect("an end");
        assert!(refused.detail.unwrap_or_default().contains("more than"));
    }
}
