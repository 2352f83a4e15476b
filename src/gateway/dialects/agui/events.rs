//! A turn as AG-UI's events. Pure.
//!
//! Messages have ids made of the turn's and a count, so a replay has the same ones, and those of two turns differ. Text that comes
//! together is one message; a call of a tool ends it, and belongs to it. No optional field is ever `null`, which AG-UI's clients
//! do not accept.

use serde_json::{Value, json};

use crate::gateway::dialects::run::{BegunTurn, EventText, TurnWriter};
use crate::gateway::dialects::tools::{ShownCalls, arguments_text, result_text};
use crate::stream::writer::{ShownEnd, ShownOutcome};
use crate::turn::frame::Frame;
use crate::turn::keys::TurnId;

/// The version of AG-UI that is written.
const VERSION: &str = "1.0";
/// The type of the activity that notes of progress are shown as.
const PROGRESS: &str = "PROGRESS";

/// Writes one run.
pub(in crate::gateway::dialects) struct AgUiWriter {
    thread: String,
    run: String,
    turn: Option<TurnId>,
    /// How many messages there are so far.
    messages: u32,
    /// The message whose text is open.
    open: Option<String>,
    /// The message that calls of tools belong to, until a result comes.
    callers: Option<String>,
    calls: ShownCalls,
}

impl AgUiWriter {
    /// A run with the ids that its client gave it.
    pub fn new(thread: String, run: String) -> Self {
        let calls = ShownCalls::default();
        AgUiWriter { thread, run, turn: None, messages: 0, open: None, callers: None, calls }
    }

    fn new_message(&mut self) -> String {
        self.messages += 1;
        match self.turn {
            Some(turn) => format!("{turn}-{}", self.messages),
            None => self.messages.to_string(),
        }
    }

    fn close_text(&mut self, out: &mut EventText) {
        if let Some(message) = self.open.take() {
            out.data(&json!({"type": "TEXT_MESSAGE_END", "messageId": message}));
        }
    }

    fn text(&mut self, text: &str, out: &mut EventText) {
        let message = match &self.open {
            Some(message) => message.clone(),
            None => {
                let message = self.new_message();
                out.data(&json!({"type": "TEXT_MESSAGE_START", "messageId": message, "role": "assistant"}));
                self.open = Some(message.clone());
                self.callers = Some(message.clone());
                message
            }
        };
        out.data(&json!({"type": "TEXT_MESSAGE_CONTENT", "messageId": message, "delta": text}));
    }

    fn tool_call(&mut self, id: &str, name: &str, arguments: &Value, out: &mut EventText) {
        self.close_text(out);
        let parent = match &self.callers {
            Some(message) => message.clone(),
            None => self.new_message(),
        };
        self.callers = Some(parent.clone());
        let id = self.calls.called(id);
        out.data(&json!({
            "type": "TOOL_CALL_START", "toolCallId": id, "toolCallName": name, "parentMessageId": parent,
        }));
        out.data(&json!({"type": "TOOL_CALL_ARGS", "toolCallId": id, "delta": arguments_text(arguments)}));
        out.data(&json!({"type": "TOOL_CALL_END", "toolCallId": id}));
    }

    fn tool_result(&mut self, id: &str, result: &Value, out: &mut EventText) {
        self.close_text(out);
        self.callers = None;
        let id = self.calls.answered(id).unwrap_or_else(|| id.to_owned());
        let message = self.new_message();
        out.data(&json!({
            "type": "TOOL_CALL_RESULT", "messageId": message, "toolCallId": id, "content": result_text(result),
            "role": "tool",
        }));
    }

    /// The latest note of progress takes the place of the one before.
    fn progress(&mut self, note: &str, out: &mut EventText) {
        let message = self.turn.map_or_else(|| "progress".into(), |turn| format!("{turn}-progress"));
        out.data(&json!({
            "type": "ACTIVITY_SNAPSHOT", "messageId": message, "activityType": PROGRESS,
            "content": {"message": note}, "replace": true,
        }));
    }

    fn finished(&mut self, outcome: &str, end: &ShownEnd<'_>, out: &mut EventText) {
        self.close_text(out);
        let mut event = json!({
            "type": "RUN_FINISHED", "threadId": self.thread, "runId": self.run, "outcome": {"type": outcome},
        });
        if let Some(reason) = end.finish_reason {
            event["result"] = json!({"finishReason": reason});
        }
        out.data(&event);
    }
}

impl TurnWriter for AgUiWriter {
    fn begin(&mut self, turn: BegunTurn<'_>, out: &mut EventText) {
        self.turn = Some(turn.turn_id);
        out.data(&json!({
            "type": "RUN_STARTED", "threadId": self.thread, "runId": self.run, "protocolVersion": VERSION,
            "metadata": {"turnId": turn.turn_id, "conversation": turn.conversation},
        }));
    }

    fn output(&mut self, _offset: u64, frame: &Frame, out: &mut EventText) {
        match frame {
            Frame::Text { text } => self.text(text, out),
            Frame::ToolCall { id, name, arguments } => self.tool_call(id, name, arguments, out),
            Frame::ToolResult { id, result } => self.tool_result(id, result, out),
            Frame::Progress { message } => self.progress(message, out),
            Frame::Data { name, value } => out.data(&json!({"type": "CUSTOM", "name": name, "value": value})),
        }
    }

    fn end(&mut self, end: &ShownEnd<'_>, out: &mut EventText) {
        match end.outcome {
            ShownOutcome::Reply => self.finished("success", end, out),
            ShownOutcome::Cancelled(_) => self.finished("cancelled", end, out),
            // What is open may stay open before an error.
            ShownOutcome::Failed(failure) => {
                out.data(&json!({"type": "RUN_ERROR", "message": failure.message, "code": failure.reason}));
            }
        }
    }
}
