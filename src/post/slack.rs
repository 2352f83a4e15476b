//! What is posted to the platform `slack`: a terminal as a message to an incoming webhook of Slack.

use serde_json::json;

use crate::store::Record;
use crate::turn::cause::rule;

/// The longest text that Slack takes, in characters. Slack would cut a longer one itself, but in the middle of an escape.
const MAX_CHARACTERS: usize = 40_000;

/// The body that posts a terminal: the reply's text, or `Error: …`.
pub fn payload(record: &Record) -> Vec<u8> {
    let text = match (&record.reply, &record.failure) {
        (Some(reply), _) => escaped(reply.text.as_deref().unwrap_or(rule::TEXT_GONE)),
        (None, Some(failure)) => escaped(&format!("Error: {}", failure.message)),
        (None, None) => String::new(),
    };
    // Slack would fetch the URLs in a text to show what is behind them: an agent could so send what it knows to any host.
    json!({ "text": text, "unfurl_links": false, "unfurl_media": false }).to_string().into_bytes()
}

/// Text that Slack shows literally, without reading its markup (mrkdwn): an agent must not be able to mention `<!channel>`.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut room = MAX_CHARACTERS;
    let mut one = [0; 4];
    for character in text.chars() {
        let piece = match character {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            other => &*other.encode_utf8(&mut one),
        };
        let Some(left) = room.checked_sub(piece.chars().count()) else { break };
        room = left;
        escaped.push_str(piece);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_literal_and_cut_between_characters_and_escapes() {
        assert_eq!(escaped("a & <!channel>"), "a &amp; &lt;!channel&gt;");
        assert_eq!(escaped(&"ä".repeat(50_000)), "ä".repeat(40_000));
        let ampersands = escaped(&"&".repeat(50_000));
        assert_eq!((ampersands.chars().count(), ampersands.ends_with("&amp;")), (40_000, true));
        let cut = escaped(&format!("{}<b", "x".repeat(39_998)));
        assert_eq!(cut, "x".repeat(39_998), "no half escape");
    }
}
