//! The Response object, as OpenAI's libraries and Open Responses read it: every key is there, null where there is nothing.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::finish::{OpenAiEnd, sentence};
use crate::turn::keys::TurnId;

/// What a response's id begins with; the turn's id follows.
const RESPONSE: &str = "resp_";

/// The id of a turn's response.
pub(super) fn response_id(turn: TurnId) -> String {
    format!("{RESPONSE}{}", turn.0.simple())
}

/// The turn whose response has this id.
pub(super) fn turn_of(response_id: &str) -> Option<TurnId> {
    let turn = TurnId(Uuid::try_parse(response_id.strip_prefix(RESPONSE)?).ok()?);
    // One way to write it, no other.
    Some(turn).filter(|turn| self::response_id(*turn) == response_id)
}

/// A response, whatever became of it.
#[derive(Debug, Clone)]
pub(super) struct ResponseHead {
    pub turn_id: TurnId,
    /// When the turn was armed, in seconds since 1970.
    pub created_at: i64,
    pub model: String,
    /// See [`ResponsesBody::asked`](super::asked::ResponsesBody::asked).
    pub asked: Value,
}

/// How far a response is.
#[derive(Debug, Clone, Copy)]
pub(super) enum ResponseState<'a> {
    Queued,
    InProgress,
    /// It has ended, with this text, at this time where it is known.
    Ended {
        end: &'a OpenAiEnd,
        text: &'a str,
        at: Option<i64>,
    },
}

impl ResponseHead {
    pub fn id(&self) -> String {
        response_id(self.turn_id)
    }

    /// Whether it was asked for in the background.
    pub fn in_background(&self) -> bool {
        self.asked["background"] == true
    }

    /// The output item, in this state and with this content.
    pub fn item(&self, status: &str, content: Value) -> Value {
        json!({"id": self.item_id(), "type": "message", "role": "assistant", "status": status, "content": content})
    }

    pub fn item_id(&self) -> String {
        format!("msg_{}", self.turn_id.0.simple())
    }

    /// The whole object.
    pub fn object(&self, state: ResponseState<'_>) -> Value {
        let mut object = self.shown();
        let mut set = |name: &str, value: Value| object.insert(name.into(), value);
        match state {
            ResponseState::Queued => drop(set("status", json!("queued"))),
            ResponseState::InProgress => drop(set("status", json!("in_progress"))),
            ResponseState::Ended { end, text, at } => {
                let status = match end {
                    OpenAiEnd::Whole => "completed",
                    OpenAiEnd::TooLong | OpenAiEnd::Filtered => "incomplete",
                    OpenAiEnd::Cancelled(_) => "cancelled",
                    OpenAiEnd::Failed(_) => "failed",
                };
                set("status", json!(status));
                match end {
                    // What was said before is no reply, and not all of it may have been kept.
                    OpenAiEnd::Cancelled(_) | OpenAiEnd::Failed(_) => {}
                    OpenAiEnd::Whole | OpenAiEnd::TooLong | OpenAiEnd::Filtered => {
                        set("output", json!([self.item(status, json!([text_part(text)]))]));
                    }
                }
                match end {
                    OpenAiEnd::Whole => {
                        set("completed_at", json!(at));
                        set("usage", no_usage());
                    }
                    OpenAiEnd::TooLong => drop(set("incomplete_details", json!({"reason": "max_output_tokens"}))),
                    OpenAiEnd::Filtered => drop(set("incomplete_details", json!({"reason": "content_filter"}))),
                    OpenAiEnd::Cancelled(_) => {}
                    OpenAiEnd::Failed(failure) => {
                        set("error", json!({"code": "server_error", "message": sentence(failure)}));
                    }
                }
            }
        }
        Value::Object(object)
    }

    /// The object as a stream ends with it. The protocol has no event for a response that was cancelled, so there it is one
    /// that is incomplete.
    pub fn streamed_end(&self, end: &OpenAiEnd, text: &str) -> (&'static str, Value) {
        let mut object = self.object(ResponseState::Ended { end, text, at: None });
        let event = match end {
            OpenAiEnd::Whole => "response.completed",
            OpenAiEnd::TooLong | OpenAiEnd::Filtered => "response.incomplete",
            OpenAiEnd::Cancelled(_) => {
                object["status"] = json!("incomplete");
                object["incomplete_details"] = json!({"reason": "cancelled"});
                "response.incomplete"
            }
            OpenAiEnd::Failed(_) => "response.failed",
        };
        (event, object)
    }

    /// All keys, without what became of the response.
    fn shown(&self) -> Map<String, Value> {
        let asked = |name: &str| self.asked.get(name).cloned().unwrap_or(Value::Null);
        let or = |name: &str, otherwise: Value| match asked(name) {
            Value::Null => otherwise,
            value => value,
        };
        let object = json!({
            "id": self.id(),
            "object": "response",
            "created_at": self.created_at,
            "completed_at": null,
            "status": null,
            "background": self.in_background(),
            "error": null,
            "incomplete_details": null,
            "instructions": asked("instructions"),
            "max_output_tokens": asked("max_output_tokens"),
            "max_tool_calls": asked("max_tool_calls"),
            "model": self.model,
            "output": [],
            "parallel_tool_calls": or("parallel_tool_calls", json!(true)),
            "previous_response_id": asked("previous_response_id"),
            "conversation": asked("conversation"),
            "reasoning": or("reasoning", json!({"effort": null, "summary": null})),
            "store": or("store", json!(true)),
            "temperature": or("temperature", json!(1.0)),
            "text": or("text", json!({"format": {"type": "text"}})),
            "tool_choice": or("tool_choice", json!("auto")),
            "tools": or("tools", json!([])),
            "top_p": or("top_p", json!(1.0)),
            "top_logprobs": or("top_logprobs", json!(0)),
            "presence_penalty": or("presence_penalty", json!(0.0)),
            "frequency_penalty": or("frequency_penalty", json!(0.0)),
            "truncation": or("truncation", json!("disabled")),
            "usage": null,
            "user": asked("user"),
            "metadata": or("metadata", json!({})),
            "safety_identifier": asked("safety_identifier"),
            "prompt_cache_key": asked("prompt_cache_key"),
            "service_tier": or("service_tier", json!("default")),
        });
        match object {
            Value::Object(object) => object,
            _ => Map::new(),
        }
    }
}

/// A part of text.
pub(super) fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// Tokens are not counted here; strict readers want numbers.
fn no_usage() -> Value {
    json!({
        "input_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::reason::Reason;
    use crate::turn::terminal::Failure;

    fn head() -> ResponseHead {
        let asked = json!({"background": true, "metadata": {"a": "b"}});
        ResponseHead { turn_id: TurnId::new(), created_at: 7, model: "bot".into(), asked }
    }

    #[test]
    fn an_id_names_one_turn_and_is_written_one_way() {
        let turn = TurnId::new();
        let id = response_id(turn);
        assert_eq!((id.len(), turn_of(&id)), (37, Some(turn)));
        for no in [&id[5..], "resp_", "resp_1", &id.to_uppercase(), &format!("resp_{turn}"), &format!("{id} ")] {
            assert_eq!(turn_of(no), None, "{no}");
        }
    }

    #[test]
    fn each_end_has_its_status() {
        let head = head();
        let cancelled = OpenAiEnd::Cancelled(Failure::new(Reason::Cancelled));
        let failed = OpenAiEnd::Failed(Failure::new(Reason::OutOfMemory));
        for (end, status, event) in [
            (OpenAiEnd::Whole, "completed", "response.completed"),
            (OpenAiEnd::TooLong, "incomplete", "response.incomplete"),
            (OpenAiEnd::Filtered, "incomplete", "response.incomplete"),
            (cancelled, "cancelled", "response.incomplete"),
            (failed.clone(), "failed", "response.failed"),
        ] {
            let object = head.object(ResponseState::Ended { end: &end, text: "x", at: Some(9) });
            let said = if matches!(status, "completed" | "incomplete") { json!("x") } else { Value::Null };
            assert_eq!((&object["status"], &object["output"][0]["content"][0]["text"]), (&json!(status), &said));
            let (streamed, object) = head.streamed_end(&end, "x");
            assert_eq!(streamed, event);
            assert_eq!(object["status"], event.strip_prefix("response.").expect("an event"));
            assert_eq!(object["incomplete_details"].is_null(), event != "response.incomplete", "{object}");
        }
        let object = head.object(ResponseState::Ended { end: &failed, text: "", at: None });
        assert_eq!((&object["error"]["code"], &object["output"]), (&json!("server_error"), &json!([])));
        assert!(object["error"]["message"].as_str().is_some_and(|m| m.starts_with("OutOfMemory: ")), "{object}");
        let whole = head.object(ResponseState::Ended { end: &OpenAiEnd::Whole, text: "", at: Some(9) });
        assert_eq!((&whole["completed_at"], &whole["usage"]["total_tokens"]), (&json!(9), &json!(0)));
        assert_eq!(whole["output"][0]["content"][0]["text"], "");
    }
}
