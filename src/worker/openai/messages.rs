//! The messages that are sent to a model, made valid where they are built: servers differ in what they refuse, and what one
//! refuses would be in every later request of the conversation, too. Pure.

use serde_json::{Value, json};

use crate::wire::Exchange;

/// The exchanges of a conversation that a model may be sent. One with a blank message or reply is left out: a reply that was
/// tool calls alone has no text, and strict servers refuse empty content.
pub(super) fn usable(history: &[Exchange]) -> Vec<&Exchange> {
    let is_blank = |text: &str| text.trim().is_empty();
    history.iter().filter(|exchange| !is_blank(&exchange.message) && !is_blank(&exchange.reply)).collect()
}

/// The same without its older half, of an odd number without the larger one.
pub(super) fn newer_half<'a>(history: &[&'a Exchange]) -> Vec<&'a Exchange> {
    history[history.len().div_ceil(2)..].to_vec()
}

/// The messages: the system prompt, the exchanges, and what the person says now.
pub(super) fn messages(system_prompt: Option<&str>, history: &[&Exchange], message: &str) -> Vec<Value> {
    let said = |role: &str, content: &str| json!({"role": role, "content": content});
    let system = system_prompt.filter(|prompt| !prompt.trim().is_empty()).map(|prompt| said("system", prompt));
    let past = history.iter().flat_map(|e| [said("user", &e.message), said("assistant", &e.reply)]);
    system.into_iter().chain(past).chain([said("user", message)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_valid_whatever_the_conversation_was() {
        let exchange = |message: &str, reply: &str| Exchange { message: message.into(), reply: reply.into() };
        let history =
            [exchange("a", "b"), exchange("call", ""), exchange("c", " \n"), exchange(" ", "d"), exchange("e", "f")];
        let sent = messages(Some("be nice"), &usable(&history), "now");
        let told: Vec<_> = sent.iter().map(|m| (m["role"].as_str().unwrap(), m["content"].as_str().unwrap())).collect();
        let user = |text| ("user", text);
        let assistant = |text| ("assistant", text);
        assert_eq!(told, [("system", "be nice"), user("a"), assistant("b"), user("e"), assistant("f"), user("now")]);
        assert_eq!(messages(Some("  "), &[], "now").len(), 1);
        for (count, left) in [(5, 2), (4, 2), (1, 0), (0, 0)] {
            let history: Vec<Exchange> = (0..count).map(|n| exchange(&n.to_string(), "r")).collect();
            let newer = newer_half(&usable(&history));
            assert_eq!(newer.len(), left, "{count}");
            assert_eq!(newer.last().map(|e| e.message.clone()), (left > 0).then(|| (count - 1).to_string()));
        }
    }
}
