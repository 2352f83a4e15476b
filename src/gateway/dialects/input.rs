//! What those dialects have in common whose clients send the whole conversation as they see it. Lastword keeps the conversation
//! itself, so of all that only the newest message of the user is read. Pure.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::problem::Problem;
use crate::turn::keys::{NameError, check_name};
use crate::turn::objects::objects_only;

/// As much of a message as tells whose it is.
#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
struct MessageRole {
    #[serde(default)]
    role: String,
}

/// A part of a message's content.
#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
struct ContentPart {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: Option<String>,
}

/// The newest message of the user, and whether it is the last of all.
///
/// # Errors
/// 400 where there is none, or where a message is no object.
pub(super) fn last_of_user(messages: &[Box<RawValue>]) -> Result<(&RawValue, bool), Problem> {
    for (back, message) in messages.iter().rev().enumerate() {
        let read: MessageRole = serde_json::from_str(message.get()).map_err(|e| malformed(&e))?;
        if read.role == "user" {
            return Ok((message, back == 0));
        }
    }
    Err(Problem::bad_request("messages has no message of the user"))
}

/// A message in one dialect's form.
pub(super) fn message_as<'a, T: Deserialize<'a>>(message: &'a RawValue) -> Result<T, Problem> {
    serde_json::from_str(message.get()).map_err(|e| malformed(&e))
}

fn malformed(error: &serde_json::Error) -> Problem {
    Problem::bad_request(format!("a message is malformed: {error}"))
}

/// The text of a content that is a string, or a list of parts of the type `text`, which are joined by line ends.
///
/// # Errors
/// 400 for parts of other types: agents are sent text.
pub(super) fn text_of(content: &Value) -> Result<String, Problem> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        _ => return Err(Problem::bad_request("the content of a message is neither a string nor a list of parts")),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for part in parts {
        let part = <ContentPart as Deserialize>::deserialize(part).map_err(|e| malformed(&e))?;
        match (part.kind.as_str(), part.text) {
            ("text", Some(text)) => texts.push(text),
            (kind, _) => {
                let kind: String = kind.chars().filter(|c| !c.is_control()).take(64).collect();
                return Err(Problem::bad_request(format!(
                    "a message has a part of the type {kind:?}; agents are sent text, so send parts of the type \"text\" alone"
                )));
            }
        }
    }
    Ok(texts.join("\n"))
}

/// Checks an id that a client chose, and that becomes a name: 1 to 256 bytes without control characters.
pub(super) fn checked(what: &'static str, id: &str) -> Result<(), Problem> {
    check_name(what, id).map_err(|e: NameError| Problem::bad_request(e.to_string()))
}

objects_only!(read MessageRole, ContentPart);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn raw(value: &Value) -> Box<RawValue> {
        RawValue::from_string(value.to_string()).expect("JSON")
    }

    #[test]
    fn the_newest_message_of_the_user_is_found_behind_whatever_others_said() {
        let messages = [
            raw(&json!({"role": "user", "content": "one"})),
            raw(&json!({"role": "assistant", "content": null, "toolCalls": []})),
            raw(&json!({"role": "user", "content": "two"})),
            raw(&json!({"role": "tool", "content": "4"})),
        ];
        let (found, last) = last_of_user(&messages).expect("one");
        assert!(found.get().contains("two") && !last);
        assert!(last_of_user(&messages[..3]).expect("one").1);
        assert!(last_of_user(&messages[1..2]).is_err());
        assert!(last_of_user(&[raw(&json!([1]))]).is_err());
    }

    #[test]
    fn a_content_is_text_or_parts_of_text() {
        assert_eq!(text_of(&json!("a")).expect("text"), "a");
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b", "state": "done"}]);
        assert_eq!(text_of(&parts).expect("text"), "a\nb");
        for refused in [
            json!(null),
            json!({"type": "text", "text": "a"}),
            json!([{"type": "image", "source": {}}]),
            json!([{"type": "text"}]),
            json!(["a"]),
            json!([["text", "a"]]),
        ] {
            assert!(text_of(&refused).is_err(), "{refused}");
        }
    }
}
