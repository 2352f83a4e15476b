//! Calls of tools, as those dialects need them in which a call's id is unique. Agents choose ids as they like, and some use one id
//! for each call. Pure.

use std::collections::HashMap;

use serde_json::Value;

/// The calls of one turn.
#[derive(Debug, Default)]
pub(super) struct ShownCalls {
    /// How many calls had this id.
    by_id: HashMap<String, u32>,
}

impl ShownCalls {
    /// The id under which a call is shown: the agent's own; if it was used in this turn before, with a number behind it.
    pub fn called(&mut self, id: &str) -> String {
        let count = self.by_id.entry(id.to_owned()).or_default();
        *count += 1;
        shown(id, *count)
    }

    /// The id under which the call was shown that this result belongs to, the latest of this id; `None`: there is none.
    pub fn answered(&self, id: &str) -> Option<String> {
        self.by_id.get(id).map(|&count| shown(id, count))
    }
}

fn shown(id: &str, count: u32) -> String {
    if count > 1 { format!("{id}#{count}") } else { id.to_owned() }
}

/// A call's arguments as the text of a JSON object, where they are one. Agents that pass on a model's words give that text
/// itself.
pub(super) fn arguments_text(arguments: &Value) -> String {
    match arguments {
        Value::Null => "{}".into(),
        Value::String(text) if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() => text.clone(),
        other => other.to_string(),
    }
}

/// A result as text: a string as it is, anything else as JSON.
pub(super) fn result_text(result: &Value) -> String {
    match result {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_id_that_is_used_again_is_told_apart() {
        let mut calls = ShownCalls::default();
        assert_eq!(calls.answered("1"), None);
        assert_eq!(calls.called("1"), "1");
        assert_eq!(calls.answered("1").as_deref(), Some("1"));
        assert_eq!(calls.called("1"), "1#2");
        assert_eq!(calls.answered("1").as_deref(), Some("1#2"));
        assert_eq!(calls.called("2"), "2");
    }

    #[test]
    fn arguments_are_the_text_of_json() {
        for (arguments, text) in [
            (json!(null), "{}"),
            (json!({"a": 1}), r#"{"a":1}"#),
            (json!(r#"{"a": 1}"#), r#"{"a": 1}"#),
            (json!("words"), r#""words""#),
        ] {
            assert_eq!(arguments_text(&arguments), text);
        }
        assert_eq!(result_text(&json!("words")), "words");
        assert_eq!(result_text(&json!([1])), "[1]");
    }
}
