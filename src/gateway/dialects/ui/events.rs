//! A turn as the parts of a UI message stream, version 1. Pure.
//!
//! An agent calls its tools itself, and no page knows their types: so each call is `providerExecuted` and `dynamic`.

use serde_json::{Value, json};

use crate::gateway::dialects::run::{BegunTurn, EventText, TurnWriter};
use crate::gateway::dialects::tools::ShownCalls;
use crate::stream::writer::{ShownEnd, ShownOutcome};
use crate::turn::frame::Frame;

/// Writes one message of the assistant.
#[derive(Default)]
pub(in crate::gateway::dialects) struct UiMessageWriter {
    /// How many texts there are so far.
    texts: u32,
    /// The text that is open.
    open: Option<String>,
    calls: ShownCalls,
}

impl UiMessageWriter {
    fn close_text(&mut self, out: &mut EventText) {
        if let Some(id) = self.open.take() {
            out.data(&json!({"type": "text-end", "id": id}));
        }
    }

    fn text(&mut self, text: &str, out: &mut EventText) {
        let id = match &self.open {
            Some(id) => id.clone(),
            None => {
                self.texts += 1;
                let id = format!("text-{}", self.texts);
                out.data(&json!({"type": "text-start", "id": id}));
                self.open.insert(id).clone()
            }
        };
        out.data(&json!({"type": "text-delta", "id": id, "delta": text}));
    }

    /// Data of this name, of which a page is told.
    fn told(name: &str, data: Value, out: &mut EventText) {
        out.data(&json!({"type": format!("data-{name}"), "data": data, "transient": true}));
    }
}

impl TurnWriter for UiMessageWriter {
    fn begin(&mut self, turn: BegunTurn<'_>, out: &mut EventText) {
        let metadata = json!({"turnId": turn.turn_id, "messageId": turn.message_id, "conversation": turn.conversation});
        out.data(&json!({"type": "start", "messageId": turn.turn_id, "messageMetadata": metadata}));
        out.data(&json!({"type": "start-step"}));
    }

    fn output(&mut self, _offset: u64, frame: &Frame, out: &mut EventText) {
        match frame {
            Frame::Text { text } => self.text(text, out),
            Frame::ToolCall { id, name, arguments } => {
                self.close_text(out);
                let id = self.calls.called(id);
                out.data(&json!({
                    "type": "tool-input-available", "toolCallId": id, "toolName": name, "input": arguments,
                    "dynamic": true, "providerExecuted": true,
                }));
            }
            Frame::ToolResult { id, result } => match self.calls.answered(id) {
                Some(id) => out.data(&json!({
                    "type": "tool-output-available", "toolCallId": id, "output": result,
                    "dynamic": true, "providerExecuted": true,
                })),
                // A page that is told the result of a call that it does not know gives up.
                None => Self::told("tool-result", json!({"id": id, "result": result}), out),
            },
            Frame::Progress { message } => Self::told("progress", json!({"message": message}), out),
            Frame::Data { name, value } => out.data(&json!({"type": format!("data-{name}"), "data": value})),
        }
    }

    fn end(&mut self, end: &ShownEnd<'_>, out: &mut EventText) {
        match end.outcome {
            ShownOutcome::Reply => {
                self.close_text(out);
                out.data(&json!({"type": "finish-step"}));
                out.data(&json!({"type": "finish", "finishReason": finish_reason(end.finish_reason)}));
            }
            ShownOutcome::Cancelled(failure) => {
                self.close_text(out);
                out.data(&json!({"type": "abort", "reason": failure.message}));
            }
            ShownOutcome::Failed(failure) => {
                // An error has no field for its reason, so that goes before it.
                let (reason, retryable) = (failure.reason, failure.retryable());
                let told = json!({"reason": reason, "message": failure.message, "retryable": retryable});
                Self::told("error", told, out);
                out.data(&json!({"type": "error", "errorText": failure.message}));
            }
        }
        out.done();
    }
}

/// Why the model stopped, in the words of this protocol. Model servers write them in two ways.
fn finish_reason(said: Option<&str>) -> &'static str {
    match said {
        None | Some("stop" | "end_turn" | "eos") => "stop",
        Some("length" | "max_tokens") => "length",
        Some("content_filter" | "content-filter") => "content-filter",
        Some("tool_calls" | "tool-calls") => "tool-calls",
        Some(_) => "other",
    }
}
