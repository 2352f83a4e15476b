//! A turn as Chat Completions: a stream of chunks, or one object.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::errors;
use super::finish::{OpenAiEnd, sentence};
use super::input::{InputItem, few};
use crate::gateway::dialects::run::{BegunTurn, EventText, TurnWriter};
use crate::stream::writer::ShownEnd;
use crate::turn::frame::Frame;
use crate::turn::keys::TurnId;
use crate::turn::objects::objects_only;
use crate::turn::terminal::Failure;

/// Body of a request for a completion. What stands here is read; everything else is accepted and ignored.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(remote = "Self")]
pub struct ChatBody {
    /// An agent's name.
    pub model: String,
    /// Those of the user behind the assistant's last word are the message.
    #[schema(value_type = Vec<Value>)]
    #[serde(deserialize_with = "few")]
    pub(super) messages: Vec<InputItem>,
    pub stream: Option<bool>,
    #[schema(value_type = Option<Value>)]
    pub(super) stream_options: Option<ChatStreamOptions>,
    /// One completion is made, so this is 1.
    pub n: Option<u32>,
    /// `conversation` names the caller's conversation; all of it is passed on to the agent.
    pub metadata: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
pub(super) struct ChatStreamOptions {
    pub include_usage: Option<bool>,
}

/// A completion, whatever becomes of it.
#[derive(Debug, Clone)]
pub(super) struct CompletionHead {
    pub turn_id: TurnId,
    /// When the turn was armed, in seconds since 1970.
    pub created: i64,
    pub model: String,
}

impl CompletionHead {
    fn id(&self) -> String {
        format!("chatcmpl-{}", self.turn_id.0.simple())
    }

    /// The whole completion, of a turn that has a reply.
    ///
    /// # Errors
    /// The failure of a turn that has none.
    pub fn object(&self, end: &OpenAiEnd, text: &str) -> Result<Value, Failure> {
        let finish_reason = finish_reason(end)?;
        Ok(json!({
            "id": self.id(),
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": null, "annotations": []},
                "finish_reason": finish_reason,
                "logprobs": null,
            }],
            "usage": no_usage(),
            "service_tier": null,
            "system_fingerprint": null,
        }))
    }
}

/// Why the model stopped, in the words of this protocol.
fn finish_reason(end: &OpenAiEnd) -> Result<&'static str, Failure> {
    match end {
        OpenAiEnd::Whole => Ok("stop"),
        OpenAiEnd::TooLong => Ok("length"),
        OpenAiEnd::Filtered => Ok("content_filter"),
        // The protocol cannot say that somebody stopped it: whoever reads `stop` takes the text for the reply.
        OpenAiEnd::Cancelled(failure) | OpenAiEnd::Failed(failure) => Err(failure.clone()),
    }
}

/// Tokens are not counted here; strict readers want numbers.
fn no_usage() -> Value {
    json!({
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "total_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    })
}

/// Writes a completion's chunks.
#[derive(Debug)]
pub(super) struct CompletionChunks {
    pub head: CompletionHead,
    pub include_usage: bool,
}

impl CompletionChunks {
    fn chunk(&self, choices: Value, usage: Value, out: &mut EventText) {
        let mut chunk = json!({
            "id": self.head.id(),
            "object": "chat.completion.chunk",
            "created": self.head.created,
            "model": self.head.model,
            "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = usage;
        }
        out.data(&chunk);
    }

    fn choice(&self, delta: Value, finish_reason: Option<&str>, out: &mut EventText) {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": null});
        self.chunk(json!([choice]), Value::Null, out);
    }
}

impl TurnWriter for CompletionChunks {
    fn begin(&mut self, _: BegunTurn<'_>, out: &mut EventText) {
        self.choice(json!({"role": "assistant", "content": ""}), None, out);
    }

    fn output(&mut self, _: u64, frame: &Frame, out: &mut EventText) {
        match frame {
            Frame::Text { text } if !text.is_empty() => self.choice(json!({"content": text}), None, out),
            Frame::Progress { message } => out.comment(message),
            // A client runs the tools that a completion calls. The agent's own are no business of its.
            Frame::Text { .. } | Frame::ToolCall { .. } | Frame::ToolResult { .. } | Frame::Data { .. } => {}
        }
    }

    fn end(&mut self, end: &ShownEnd<'_>, out: &mut EventText) {
        match finish_reason(&OpenAiEnd::of(end)) {
            Ok(reason) => {
                self.choice(json!({}), Some(reason), out);
                if self.include_usage {
                    self.chunk(json!([]), no_usage(), out);
                }
                out.done();
            }
            // This alone makes both libraries raise.
            Err(failure) => {
                out.data(&errors::body(&sentence(&failure), "server_error", None, Some(failure.reason.as_str())));
            }
        }
    }
}

objects_only!(read ChatBody, ChatStreamOptions);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::writer::ShownOutcome;
    use crate::turn::reason::Reason;

    fn written(include_usage: bool, outcome: ShownOutcome<'_>, finish_reason: Option<&str>) -> Vec<Value> {
        let head = CompletionHead { turn_id: TurnId::new(), created: 7, model: "bot".into() };
        let mut chunks = CompletionChunks { head, include_usage };
        let mut out = EventText::default();
        chunks.begin(BegunTurn { turn_id: chunks.head.turn_id, message_id: "m", conversation: "c" }, &mut out);
        chunks.output(1, &Frame::Progress { message: "a\nb".into() }, &mut out);
        chunks.output(3, &Frame::text("42"), &mut out);
        chunks.output(4, &Frame::ToolResult { id: "1".into(), result: Value::Null }, &mut out);
        chunks.end(&ShownEnd { outcome, finish_reason, answered: &[] }, &mut out);
        let events = out.text().split_terminator("\n\n").filter(|e| !e.starts_with(':'));
        let data = |e: &str| e.strip_prefix("data: ").map(|d| serde_json::from_str(d).unwrap_or_else(|_| json!(d)));
        events.map(|e| data(e).expect("data")).collect()
    }

    #[test]
    fn a_reply_ends_with_its_reason_its_usage_and_the_mark() {
        let chunks = written(true, ShownOutcome::Reply, Some("length"));
        let deltas: Vec<&Value> = chunks[..3].iter().map(|c| &c["choices"][0]["delta"]).collect();
        assert_eq!(deltas, [&json!({"role": "assistant", "content": ""}), &json!({"content": "42"}), &json!({})]);
        assert_eq!(chunks[2]["choices"][0]["finish_reason"], "length");
        assert_eq!((&chunks[3]["choices"], &chunks[3]["usage"]["total_tokens"]), (&json!([]), &json!(0)));
        assert!(chunks[..3].iter().all(|c| c["usage"].is_null() && c.get("usage").is_some()));
        assert_eq!((&chunks[4], chunks.len()), (&json!("[DONE]"), 5));
        let chunks = written(false, ShownOutcome::Reply, Some("stop"));
        assert!(chunks.len() == 4 && chunks.iter().all(|c| c.get("usage").is_none()), "{chunks:?}");
    }

    #[test]
    fn a_failure_is_an_error_and_nothing_follows_it() {
        for (outcome, code) in [
            (ShownOutcome::Failed(&Failure::new(Reason::OutOfMemory)), "OutOfMemory"),
            (ShownOutcome::Cancelled(&Failure::new(Reason::Cancelled)), "Cancelled"),
        ] {
            let chunks = written(true, outcome, None);
            assert_eq!((chunks.len(), &chunks[2]["error"]["code"]), (3, &json!(code)), "{chunks:?}");
            let end = OpenAiEnd::of(&ShownEnd { outcome, finish_reason: None, answered: &[] });
            let head = CompletionHead { turn_id: TurnId::new(), created: 7, model: "bot".into() };
            assert!(head.object(&end, "42").is_err());
        }
    }

    #[test]
    fn what_is_not_known_is_ignored() {
        let body = r#"{"model":"bot","messages":[{"role":"user","content":"hi"}],"logit_bias":{},"stream":null}"#;
        let body: ChatBody = serde_json::from_str(body).expect("a body");
        assert_eq!((body.stream, body.messages.len()), (None, 1));
        assert!(serde_json::from_str::<ChatBody>(r#"["bot",[]]"#).is_err());
    }
}
