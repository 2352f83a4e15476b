//! What a client of OpenAI sends as messages, and which of it is new. The agent has the history of its conversation already, so
//! the message of a turn is what the user said behind the last word of the assistant.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};

use crate::problem::Problem;
use crate::turn::objects::objects_only;

/// The most messages, and parts of one, that a request may have. Each takes many times its length once it is read.
const MAX_ITEMS: usize = 10_000;

/// A message of Chat Completions, or an item of Responses' `input`. Items that are no messages have no role.
#[derive(Debug, Clone, Deserialize)]
#[serde(remote = "Self")]
pub(super) struct InputItem {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub role: Option<String>,
    pub content: Option<InputContent>,
}

/// A message's content.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum InputContent {
    Text(String),
    #[serde(deserialize_with = "few")]
    Parts(Vec<InputPart>),
}

/// Reads a list of at most [`MAX_ITEMS`].
pub(super) fn few<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    struct Few<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Few<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX_ITEMS}")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut read = Vec::new();
            while let Some(item) = list.next_element()? {
                if read.len() == MAX_ITEMS {
                    return Err(A::Error::invalid_length(MAX_ITEMS + 1, &self));
                }
                read.push(item);
            }
            Ok(read)
        }
    }

    from.deserialize_seq(Few(PhantomData))
}

/// Reads a list of messages from its JSON.
///
/// # Errors
/// 400, with what is wrong and where.
pub(super) fn read_items(json: &str) -> Result<Vec<InputItem>, Problem> {
    let mut from = serde_json::Deserializer::from_str(json);
    few(&mut from).map_err(|e| Problem::bad_request(format!("the input is malformed: {e}")))
}

/// A part of a message's content.
#[derive(Debug, Clone, Deserialize)]
#[serde(remote = "Self")]
pub(super) struct InputPart {
    #[serde(rename = "type")]
    pub kind: String,
    pub text: Option<String>,
    pub refusal: Option<String>,
}

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaker {
    User,
    /// `system` and `developer`.
    Instructor,
    /// The assistant, or its tools: what was said before it is no new input.
    Assistant,
    /// An item that is no message: a reference, what a model thought.
    Nobody,
}

/// What a request's messages come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NewInput {
    /// What the user said behind the last word of the assistant.
    pub message: String,
    /// What `system` and `developer` said, wherever they did.
    pub instructions: Option<String>,
    /// How many of the messages are behind the assistant's last word.
    pub new: usize,
}

impl InputItem {
    fn speaker(&self) -> Result<Speaker, Problem> {
        match (self.kind.as_deref(), self.role.as_deref()) {
            (None | Some("message"), Some("user")) => Ok(Speaker::User),
            (None | Some("message"), Some("system" | "developer")) => Ok(Speaker::Instructor),
            (None | Some("message"), Some("assistant" | "tool" | "function")) => Ok(Speaker::Assistant),
            (Some("function_call" | "function_call_output"), _) => Ok(Speaker::Assistant),
            (None | Some("message"), Some(role)) => {
                Err(Problem::bad_request(format!("a message has the role {role:?}")))
            }
            (None | Some("message"), None) => Err(Problem::bad_request("a message has no role")),
            _ => Ok(Speaker::Nobody),
        }
    }

    /// The text of the message.
    ///
    /// # Errors
    /// 400 for a part that is no text.
    fn text(&self) -> Result<String, Problem> {
        match &self.content {
            None => Ok(String::new()),
            Some(InputContent::Text(text)) => Ok(text.clone()),
            Some(InputContent::Parts(parts)) => {
                let texts: Result<Vec<&str>, Problem> = parts.iter().map(InputPart::text).collect();
                Ok(texts?.join("\n"))
            }
        }
    }
}

impl InputPart {
    fn text(&self) -> Result<&str, Problem> {
        match (self.kind.as_str(), &self.text, &self.refusal) {
            ("text" | "input_text" | "output_text", Some(text), _) => Ok(text),
            ("refusal", _, Some(refusal)) => Ok(refusal),
            ("text" | "input_text" | "output_text" | "refusal", ..) => {
                Err(Problem::bad_request(format!("a part of the type {:?} has no text", self.kind)))
            }
            (other, ..) => Err(Problem::bad_request(format!(
                "a part has the type {other:?}; agents are sent text, and nothing else"
            ))),
        }
    }
}

/// Reads which of the messages are new.
///
/// # Errors
/// 400 where nothing is new, and for new content that is no text.
pub(super) fn new_input(items: &[InputItem]) -> Result<NewInput, Problem> {
    let speakers: Vec<Speaker> = items.iter().map(InputItem::speaker).collect::<Result<_, _>>()?;
    let begin = speakers.iter().rposition(|s| *s == Speaker::Assistant).map_or(0, |at| at + 1);
    let said = |speaker: Speaker, from: usize| -> Result<Vec<String>, Problem> {
        let by = items.iter().zip(&speakers).skip(from).filter(|(_, s)| **s == speaker);
        let texts: Result<Vec<String>, Problem> = by.map(|(item, _)| item.text()).collect();
        Ok(texts?.into_iter().filter(|text| !text.is_empty()).collect())
    };
    let message = said(Speaker::User, begin)?.join("\n\n");
    if message.is_empty() {
        return Err(Problem::bad_request("there is no message of the user behind the last one of the assistant"));
    }
    let instructions = said(Speaker::Instructor, 0)?.join("\n\n");
    let instructions = (!instructions.is_empty()).then_some(instructions);
    Ok(NewInput { message, instructions, new: items.len() - begin })
}

/// Those messages that were sent before the assistant's last word, and that word: what the turn before was asked, and what it
/// replied. `None` where the assistant did not speak last before the new input, or in words that are no text.
pub(super) fn behind(items: &[InputItem], new: usize) -> Option<(&[InputItem], String)> {
    let (reply, before) = items.get(..items.len().checked_sub(new)?)?.split_last()?;
    let is_reply = reply.role.as_deref() == Some("assistant");
    Some((before, reply.text().ok()?)).filter(|_| is_reply)
}

/// The messages as one text in which no two lists of messages are the same.
pub(super) fn canonical(items: &[InputItem]) -> Option<String> {
    let mut all = String::new();
    for item in items {
        let text = item.text().ok()?;
        let role = item.role.as_deref().unwrap_or_default();
        all.push_str(&format!("{}:{role}{}:{text}", role.len(), text.len()));
    }
    Some(all)
}

objects_only!(read InputItem, InputPart);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn items(messages: Value) -> Vec<InputItem> {
        serde_json::from_value(messages).expect("messages")
    }

    fn new(messages: Value) -> Result<NewInput, String> {
        new_input(&items(messages)).map_err(|problem| format!("{problem:?}"))
    }

    #[test]
    fn new_is_what_the_user_said_behind_the_assistants_last_word() {
        let said = |role: &str, text: &str| json!({"role": role, "content": text});
        let all = json!([said("system", "be brief"), said("user", "a"), said("assistant", "b"), said("user", "c"),
                         {"role": "user", "content": [{"type": "text", "text": "d"}, {"type": "input_text", "text": "e"}]}]);
        let read = new(all).expect("input");
        assert_eq!((read.message.as_str(), read.instructions.as_deref(), read.new), ("c\n\nd\ne", Some("be brief"), 2));
        assert_eq!(new(json!([said("user", "a")])).expect("input").message, "a");
        assert!(new(json!([said("user", "a"), said("assistant", "b")])).is_err());
        assert!(new(json!([said("system", "a")])).is_err());
        assert!(new(json!([])).is_err());
        assert!(new(json!([said("user", "")])).is_err());
        assert!(new(json!([said("nobody", "a")])).is_err());
    }

    #[test]
    fn new_content_that_is_no_text_is_refused_and_old_is_not_looked_at() {
        let image = json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]});
        let refused = new(json!([image])).expect_err("an image");
        assert!(refused.contains("image_url") && refused.contains("400"), "{refused}");
        let old = new(json!([image, {"role": "assistant", "content": "a cat"}, {"role": "user", "content": "sure?"}]));
        assert_eq!(old.expect("input").message, "sure?");
    }

    #[test]
    fn items_of_responses_that_are_no_messages_are_passed_over() {
        let read =
            new(json!([{"type": "message", "role": "user", "content": "a"}, {"type": "reasoning", "summary": []},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "item_reference", "id": "msg_1"}, {"type": "message", "role": "user", "content": "b"}]));
        assert_eq!(read.expect("input").message, "b");
    }

    #[test]
    fn what_a_reply_answered_is_told_apart() {
        let all = items(json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                               {"role": "user", "content": "c"}]));
        let (before, reply) = behind(&all, 1).expect("a reply");
        assert_eq!((canonical(before), reply.as_str()), (canonical(&all[..1]), "b"));
        assert!(behind(&all[..1], 1).is_none());
        assert_ne!(
            canonical(&items(json!([{"role": "user", "content": "a4:userb"}]))),
            canonical(&items(json!([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])))
        );
    }

    #[test]
    fn a_list_has_a_bound() {
        let list = |count: usize| format!("[{}]", vec!["{}"; count].join(","));
        assert_eq!(read_items(&list(MAX_ITEMS)).map(|items| items.len()).expect("allowed"), MAX_ITEMS);
        let refused = format!("{:?}", read_items(&list(MAX_ITEMS + 1)).expect_err("too many"));
        assert!(refused.contains("at most 10000"), "{refused}");
        assert!(read_items("{}").is_err() && read_items("[").is_err());
    }

    #[test]
    fn arrays_are_no_messages() {
        assert!(serde_json::from_value::<Vec<InputItem>>(json!([["message", "user", "a"]])).is_err());
        assert!(serde_json::from_value::<InputItem>(json!({"role": "user", "content": [["text", "a"]]})).is_err());
    }
}
