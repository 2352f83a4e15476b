//! Halves of characters. JSON writes a character beyond U+FFFF as two escapes, a high and a low surrogate, and servers that
//! cut text by UTF-16 units send the two in different chunks. A Rust string holds no half, and `serde_json` refuses one. So a
//! lone escape is replaced by two characters that stand for it, and the halves are joined when both are here. Pure.

use std::borrow::Cow;

use serde_json::Value;

/// The first of the two characters: a noncharacter, which no text means.
const MARK: char = '\u{fdd0}';
/// The second is this one, of a range for private use, plus the surrogate's distance from the first surrogate.
const STAND_INS: u32 = 0xf_0000;
const FIRST: u32 = 0xd800;
const FIRST_LOW: u32 = 0xdc00;
const LAST: u32 = 0xdfff;

/// JSON text whose escapes are all of whole characters.
pub(super) fn mended(json: &str) -> Cow<'_, str> {
    let mut mended = String::new();
    let (mut copied, mut at) = (0, 0);
    while let Some(backslash) = json[at..].find('\\').map(|found| at + found) {
        // Whatever is escaped, its first character is part of the escape: a backslash there begins no other.
        let escaped = json[backslash + 1..].chars().next().map_or(0, char::len_utf8);
        at = backslash + 1 + escaped;
        let Some(unit) = unit(&json[backslash..]) else { continue };
        at = backslash + 6;
        if !(FIRST..=LAST).contains(&unit) {
            continue;
        }
        let low = json.get(at..).and_then(self::unit).filter(|low| (FIRST_LOW..=LAST).contains(low));
        if unit < FIRST_LOW && low.is_some() {
            at += 6;
            continue;
        }
        mended.push_str(&json[copied..backslash]);
        mended.extend([MARK].into_iter().chain(char::from_u32(STAND_INS + unit - FIRST)));
        copied = at;
    }
    if copied == 0 {
        return Cow::Borrowed(json);
    }
    mended.push_str(&json[copied..]);
    Cow::Owned(mended)
}

/// The UTF-16 unit that the escape at the beginning of this text stands for.
fn unit(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    digits.chars().all(|c| c.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

/// The text with halves that follow each other joined; a half without its other one becomes U+FFFD.
pub(super) fn settled(text: &str) -> String {
    let mut settled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(MARK) {
        settled.push_str(&rest[..at]);
        rest = &rest[at..];
        let Some((half, behind)) = half(rest) else {
            settled.push(MARK);
            rest = &rest[MARK.len_utf8()..];
            continue;
        };
        rest = behind;
        match self::half(rest) {
            Some((low, behind)) if half < FIRST_LOW && low >= FIRST_LOW => {
                let whole = 0x1_0000 + ((half - FIRST) << 10) + (low - FIRST_LOW);
                settled.push(char::from_u32(whole).unwrap_or(char::REPLACEMENT_CHARACTER));
                rest = behind;
            }
            _ => settled.push(char::REPLACEMENT_CHARACTER),
        }
    }
    settled + rest
}

/// [`settled`] for every string in a JSON value.
pub(super) fn settled_json(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(settled(&text)),
        Value::Array(items) => items.into_iter().map(settled_json).collect(),
        Value::Object(map) => map.into_iter().map(|(name, value)| (settled(&name), settled_json(value))).collect(),
        other => other,
    }
}

/// The half that this text begins with, and what follows it.
fn half(text: &str) -> Option<(u32, &str)> {
    let rest = text.strip_prefix(MARK)?;
    let stand_in = rest.chars().next()?;
    let half = (stand_in as u32).checked_sub(STAND_INS)? + FIRST;
    (half <= LAST).then(|| (half, &rest[stand_in.len_utf8()..]))
}

/// Joins text that arrives in pieces.
#[derive(Debug, Default)]
pub(super) struct TextJoiner {
    /// The first half of a character, whose second may be in the next piece.
    held: String,
}

impl TextJoiner {
    /// The text of this piece, as far as its characters are whole.
    pub(super) fn push(&mut self, piece: &str) -> String {
        let text = std::mem::take(&mut self.held) + piece;
        let last = text
            .rfind(MARK)
            .filter(|&at| half(&text[at..]).is_some_and(|(half, rest)| half < FIRST_LOW && rest.is_empty()));
        let at = last.unwrap_or(text.len());
        self.held = text[at..].to_owned();
        settled(&text[..at])
    }

    /// What is left when no more pieces come.
    pub(super) fn finish(&mut self) -> String {
        settled(&std::mem::take(&mut self.held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> String {
        serde_json::from_str(&mended(json)).unwrap_or_else(|error| panic!("{json}: {error}"))
    }

    #[test]
    fn halves_are_joined_wherever_they_come() {
        for (pieces, expected) in [
            (vec![r#""hi \ud83d""#, r#""\ude00!""#], "hi 😀!"),
            (vec![r#""\ud83d\ude00""#], "😀"),
            (vec![r#""\uD83D""#, r#""""#, r#""\uDE00""#], "😀"),
            (vec![r#""a\ud83d""#, r#""b""#], "a\u{fffd}b"),
            (vec![r#""a\ude00b""#], "a\u{fffd}b"),
            (vec![r#""\ud83d\ud83d\ude00\ude00""#], "\u{fffd}😀\u{fffd}"),
            (vec![r#""a\ud83d""#], "a\u{fffd}"),
            (vec![r#""\\ud83d \u00e9 \n \" \\""#], "\\ud83d é \n \" \\"),
            (vec!["\"\u{fdd0} \u{fdd0}\u{fdd0}x\""], "\u{fdd0} \u{fdd0}\u{fdd0}x"),
        ] {
            let mut joiner = TextJoiner::default();
            let text: String = pieces.iter().map(|piece| joiner.push(&read(piece))).collect();
            assert_eq!(text + &joiner.finish(), expected, "{pieces:?}");
        }
    }

    #[test]
    fn what_is_no_json_is_left_to_the_parser() {
        for text in ["\\", "\\u", "\\ud83", "\\ud83d", "\"\\ud83d\\", "\\ü", "\"\\u00g0\""] {
            assert!(serde_json::from_str::<Value>(&mended(text)).is_err(), "{text}");
        }
        assert!(matches!(mended(r#"{"a": "b\u00e9"}"#), Cow::Borrowed(_)), "nothing is copied without need");
    }

    #[test]
    fn halves_in_keys_and_items_become_replacements() {
        let value: Value = serde_json::from_str(&mended(r#"{"a\ud83d": ["\ude00", 1]}"#)).expect("JSON");
        assert_eq!(settled_json(value), serde_json::json!({"a\u{fffd}": ["\u{fffd}", 1]}));
    }
}
