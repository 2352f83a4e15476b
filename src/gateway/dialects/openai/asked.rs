//! What a client asks of Responses, and what of it is kept to be shown with the response.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::errors::OpenAiError;
use super::input::{NewInput, new_input, read_items};
use crate::turn::objects::objects_only;

/// The longest JSON of what is kept of a request, in bytes. Of a longer one the tools are left out.
const MAX_ASKED_BYTES: usize = 64 * 1024;
/// OpenAI's bounds on metadata: pairs, and the bytes of a key and a value.
const MAX_METADATA: (usize, usize, usize) = (16, 64, 512);

/// Body of a request for a response. What is only shown again is kept as it was written.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(remote = "Self")]
pub struct ResponsesBody {
    /// An agent's name; with `previous_response_id` it may be left out.
    pub model: Option<String>,
    /// A text, or items of which those of the user behind the assistant's last word are the message.
    #[schema(value_type = Value)]
    pub(super) input: Box<RawValue>,
    pub stream: Option<bool>,
    /// Answer at once; the response is retrieved later.
    pub background: Option<bool>,
    /// Whether the response may be retrieved; default true.
    pub store: Option<bool>,
    pub previous_response_id: Option<String>,
    /// The caller's name of a conversation, or its id, as text or as `{"id": …}`.
    #[schema(value_type = Option<Value>)]
    pub(super) conversation: Option<NamedConversation>,
    /// Passed on to the agent.
    pub instructions: Option<String>,
    /// Passed on to the agent.
    pub metadata: Option<BTreeMap<String, String>>,
    #[schema(ignore)]
    pub(super) max_output_tokens: Option<Box<RawValue>>,
    #[schema(ignore)]
    pub(super) max_tool_calls: Option<Box<RawValue>>,
    #[schema(ignore)]
    pub(super) temperature: Option<Box<RawValue>>,
    #[schema(ignore)]
    pub(super) top_p: Option<Box<RawValue>>,
    #[schema(ignore)]
    pub(super) top_logprobs: Option<Box<RawValue>>,
    #[schema(ignore)]
    pub(super) presence_penalty: Option<Box<RawValue>>,
    #[schema(ignore)]
    pub(super) frequency_penalty: Option<Box<RawValue>>,
    #[schema(ignore)]
    pub(super) parallel_tool_calls: Option<Box<RawValue>>,
    #[schema(ignore)]
    pub(super) reasoning: Option<Box<RawValue>>,
    #[schema(ignore)]
    pub(super) text: Option<Box<RawValue>>,
    #[schema(ignore)]
    pub(super) tool_choice: Option<Box<RawValue>>,
    #[schema(ignore)]
    pub(super) tools: Option<Box<RawValue>>,
    #[schema(ignore)]
    pub(super) truncation: Option<Box<RawValue>>,
    #[schema(ignore)]
    pub(super) user: Option<Box<RawValue>>,
    #[schema(ignore)]
    pub(super) safety_identifier: Option<Box<RawValue>>,
    #[schema(ignore)]
    pub(super) prompt_cache_key: Option<Box<RawValue>>,
    #[schema(ignore)]
    pub(super) service_tier: Option<Box<RawValue>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum NamedConversation {
    Name(String),
    Object(ConversationObject),
}

/// A conversation as OpenAI's libraries write it.
#[derive(Debug, Clone, Deserialize)]
#[serde(remote = "Self")]
pub(super) struct ConversationObject {
    pub id: String,
}

impl NamedConversation {
    pub fn name(&self) -> &str {
        match self {
            NamedConversation::Name(name) | NamedConversation::Object(ConversationObject { id: name }) => name,
        }
    }
}

impl ResponsesBody {
    /// Checks what is forbidden in itself.
    ///
    /// # Errors
    /// 400.
    pub(super) fn check(&self) -> Result<(), OpenAiError> {
        if self.previous_response_id.is_some() && self.conversation.is_some() {
            return Err(OpenAiError::bad_field(
                "conversation",
                "previous_response_id and conversation exclude each other: send one of them",
            ));
        }
        if self.background == Some(true) && self.store == Some(false) {
            return Err(OpenAiError::bad_field("background", "a response in the background has to be stored"));
        }
        check_metadata(self.metadata.as_ref())
    }

    /// What is new in the input.
    ///
    /// # Errors
    /// 400.
    pub(super) fn new_input(&self) -> Result<NewInput, OpenAiError> {
        let json = self.input.get();
        if let Ok(message) = serde_json::from_str::<String>(json) {
            if message.is_empty() {
                return Err(OpenAiError::bad_field("input", "input is empty"));
            }
            return Ok(NewInput { message, instructions: None, new: 1 });
        }
        let read = read_items(json).and_then(|items| new_input(&items));
        read.map_err(|problem| OpenAiError::from(problem).about("input"))
    }

    /// What is kept to be shown with the response.
    pub(super) fn asked(&self) -> Value {
        let asked = self.asked_with(true);
        if asked.to_string().len() > MAX_ASKED_BYTES { self.asked_with(false) } else { asked }
    }

    fn asked_with(&self, tools: bool) -> Value {
        let mut asked = Map::new();
        let mut keep = |name: &str, value: &Option<Box<RawValue>>| {
            let value = value.as_ref().and_then(|raw| serde_json::from_str::<Value>(raw.get()).ok());
            if let Some(value) = value.filter(|v| !v.is_null()) {
                asked.insert(name.into(), value);
            }
        };
        keep("max_output_tokens", &self.max_output_tokens);
        keep("max_tool_calls", &self.max_tool_calls);
        keep("temperature", &self.temperature);
        keep("top_p", &self.top_p);
        keep("top_logprobs", &self.top_logprobs);
        keep("presence_penalty", &self.presence_penalty);
        keep("frequency_penalty", &self.frequency_penalty);
        keep("parallel_tool_calls", &self.parallel_tool_calls);
        keep("reasoning", &self.reasoning);
        keep("truncation", &self.truncation);
        keep("user", &self.user);
        keep("safety_identifier", &self.safety_identifier);
        keep("prompt_cache_key", &self.prompt_cache_key);
        keep("service_tier", &self.service_tier);
        if tools {
            keep("text", &self.text);
            keep("tools", &self.tools);
            keep("tool_choice", &self.tool_choice);
        }
        let mut say = |name: &str, value: Value| asked.insert(name.into(), value);
        if let Some(model) = &self.model {
            say("model", json!(model));
        }
        if let Some(id) = &self.previous_response_id {
            say("previous_response_id", json!(id));
        }
        if let Some(conversation) = &self.conversation {
            say("conversation", json!({"id": conversation.name()}));
        }
        if let Some(instructions) = self.instructions.as_ref().filter(|_| tools) {
            say("instructions", json!(instructions));
        }
        if let Some(metadata) = &self.metadata {
            say("metadata", json!(metadata));
        }
        say("background", json!(self.background == Some(true)));
        say("store", json!(self.store != Some(false)));
        Value::Object(asked)
    }
}

/// Holds metadata against OpenAI's bounds.
///
/// # Errors
/// 400.
pub(super) fn check_metadata(metadata: Option<&BTreeMap<String, String>>) -> Result<(), OpenAiError> {
    let (pairs, key_bytes, value_bytes) = MAX_METADATA;
    let Some(metadata) = metadata else { return Ok(()) };
    if metadata.len() > pairs || metadata.iter().any(|(k, v)| k.len() > key_bytes || v.len() > value_bytes) {
        let said =
            format!("metadata has at most {pairs} pairs, with keys of {key_bytes} bytes and values of {value_bytes}");
        return Err(OpenAiError::bad_field("metadata", said));
    }
    Ok(())
}

/// What an agent is told beside the message; null where there is nothing.
pub(super) fn told_agent(instructions: Option<&str>, metadata: Option<&BTreeMap<String, String>>) -> Value {
    let mut told = Map::new();
    if let Some(instructions) = instructions.filter(|i| !i.is_empty()) {
        told.insert("instructions".into(), json!(instructions));
    }
    if let Some(metadata) = metadata.filter(|m| !m.is_empty()) {
        told.insert("metadata".into(), json!(metadata));
    }
    if told.is_empty() { Value::Null } else { Value::Object(told) }
}

objects_only!(read ResponsesBody, ConversationObject);

#[cfg(test)]
mod tests {
    use super::*;

    fn body(body: Value) -> ResponsesBody {
        serde_json::from_str(&body.to_string()).expect("a body")
    }

    #[test]
    fn what_was_asked_is_kept_as_it_was_written() {
        let asked =
            body(json!({"model": "bot", "input": "hi", "temperature": 0.5, "tools": [{"type": "x"}], "unknown": [1],
            "conversation": "c", "metadata": {"a": "b"}, "instructions": "be brief", "max_output_tokens": null}));
        asked.check().expect("allowed");
        assert_eq!(
            asked.asked(),
            json!({"model": "bot", "temperature": 0.5, "tools": [{"type": "x"}], "conversation": {"id": "c"},
                   "metadata": {"a": "b"}, "instructions": "be brief", "background": false, "store": true})
        );
        let long = body(json!({"model": "bot", "input": "hi", "tools": ["x".repeat(MAX_ASKED_BYTES)]}));
        assert!(long.asked().to_string().len() < 1024);
    }

    #[test]
    fn what_excludes_each_other_is_refused() {
        for refused in [
            json!({"input": "hi", "conversation": {"id": "c"}, "previous_response_id": "resp_1"}),
            json!({"input": "hi", "background": true, "store": false}),
            json!({"input": "hi", "metadata": {"a": "x".repeat(513)}}),
        ] {
            assert!(body(refused.clone()).check().is_err(), "{refused}");
        }
        assert!(body(json!({"input": ""})).new_input().is_err());
        assert!(serde_json::from_str::<ResponsesBody>(r#"["bot","hi"]"#).is_err());
    }
}
