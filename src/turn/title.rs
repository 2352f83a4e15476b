//! What a conversation is called in a list: the first words of its first message.

/// The most characters of a title.
const MAX_CHARACTERS: usize = 80;
/// The characters of a message that a title may be made of: whatever is read of a message for it need be no longer.
pub const TITLE_SOURCE: usize = 4 * MAX_CHARACTERS;

/// The first words of a message on one line, cut between words, or between characters where a word is too long by itself. What is
/// cut off is told by an ellipsis. A message of blanks alone has the title `…`.
pub fn title(message: &str) -> String {
    let mut title = String::new();
    let mut length = 0;
    for word in message.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        let characters = word.chars().count();
        let blank = usize::from(length > 0);
        if length + blank + characters <= MAX_CHARACTERS {
            if blank > 0 {
                title.push(' ');
            }
            title.push_str(word);
            length += blank + characters;
            continue;
        }
        if length < MAX_CHARACTERS / 2 {
            if blank > 0 {
                title.push(' ');
            }
            title.extend(word.chars().take(MAX_CHARACTERS - length - blank));
        }
        title.push('\u{2026}');
        return title;
    }
    if title.is_empty() { "\u{2026}".into() } else { title }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_words_on_one_line() {
        for (message, wanted) in [
            ("6*7", "6*7".to_owned()),
            ("  What\n is\tthis? ", "What is this?".into()),
            (" \n ", "\u{2026}".into()),
            (&"word ".repeat(40), format!("{}\u{2026}", ["word"; 16].join(" "))),
            (&"\u{e4}".repeat(90), format!("{}\u{2026}", "\u{e4}".repeat(80))),
            (&format!("hi {}", "\u{1f980}".repeat(90)), format!("hi {}\u{2026}", "\u{1f980}".repeat(77))),
        ] {
            assert_eq!(title(message), wanted);
        }
    }
}
