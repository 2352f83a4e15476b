//! Text for a terminal: without escape sequences of others, cut to the width, durations in short form.

use std::borrow::Cow;
use std::time::Duration;

use time::OffsetDateTime;

/// Removes from somebody else's text what a terminal would obey: escape sequences, and characters that are
/// [`obeyed`].
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(console::strip_ansi_codes(text).replace(obeyed, ""))
}

/// JSON text in which every character that a terminal would obey is written as an escape (`\u202e`), so that it means the same
/// to a program, and nothing to a terminal.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    if !json.contains(obeyed) {
        return Cow::Borrowed(json);
    }
    // Outside of strings, JSON has no such character.
    let mut escaped = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if obeyed(c) {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| escaped.push_str(&format!("\\u{unit:04x}")));
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Whether a terminal obeys a character in place of showing it: control characters (but newlines and tabs), those that change
/// the direction of writing, by which a text looks like another, and those that are never seen.
fn obeyed(c: char) -> bool {
    match c {
        '\n' | '\t' => false,
        // The Arabic letter mark, and the marks, embeddings, overrides and isolates of direction.
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{206f}' => true,
        // Separators of lines and paragraphs, the byte order mark, annotations, tags.
        '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}' => true,
        _ => c.is_control(),
    }
}

/// [`printable`] text in one line of at most `width` columns.
pub fn one_line(text: &str, width: usize) -> String {
    // A long text is cut here already, so that whitespace is not collapsed in what is cut off below anyway.
    let head: String = text.chars().take(width.saturating_mul(4).max(64)).collect();
    let words: Vec<_> = head.split_whitespace().collect();
    let line = printable(&words.join(" ")).into_owned();
    console::truncate_str(&line, width, "\u{2026}").into_owned()
}

/// How many columns the terminal has.
pub fn width(term: &console::Term) -> usize {
    usize::from(term.size().1).max(20)
}

/// A duration as kubectl shows an age: in its largest unit, and below ten of that unit also in the next smaller one.
pub fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |big: u64, unit: &str, small: u64, below: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{below}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..36_000 => two(hours, "h", minutes % 60, "m"),
        36_000..172_800 => format!("{hours}h"),
        172_800..864_000 => two(days, "d", hours % 24, "h"),
        _ => format!("{days}d"),
    }
}

/// The time between two instants. It is zero where the second is before the first, since they may come from the clocks of
/// two machines.
pub fn between(from: OffsetDateTime, to: OffsetDateTime) -> Duration {
    (to - from).try_into().unwrap_or_default()
}

/// A duration with tenths of a second below a minute (`0.8s`, `12.3s`), else as [`age`] shows it.
pub fn took(duration: Duration) -> String {
    if duration < Duration::from_secs(60) { format!("{:.1}s", duration.as_secs_f64()) } else { age(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_told_nothing_but_text() {
        assert_eq!(printable("a\tb\n\u{e4}"), "a\tb\n\u{e4}");
        assert_eq!(printable("\u{1b}[31mred\u{1b}[0m\r\n\u{7}\u{1b}]0;title\u{7}x\u{9b}2Jy"), "red\nxy");
        assert_eq!(printable("a\u{202e}b\u{2066}c\u{200f}d\u{feff}e\u{e0041}f\u{7f}\u{85}\u{2028}g"), "abcdefg");
        assert_eq!(printable("\u{1f469}\u{200d}\u{1f4bb} \u{5d0}\u{5d1}"), "\u{1f469}\u{200d}\u{1f4bb} \u{5d0}\u{5d1}");
        assert_eq!(one_line("  a\n\n b\u{1b}[2J ", 40), "a b");
        assert_eq!(one_line("abcdef", 4), "abc\u{2026}");
    }

    #[test]
    fn json_means_the_same_and_is_nothing_but_text() {
        let value = serde_json::json!({"a\u{202e}": "\u{1b}]0;t\u{7}\u{9b}2J\u{7f}\u{e0041}\n", "b": "\u{e4}"});
        for json in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let text = printable_json(&json);
            assert!(!text.contains(obeyed) && text.contains("\\u202e") && text.contains('\u{e4}'), "{text}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
        }
    }

    #[test]
    fn ages() {
        let of = |seconds| age(Duration::from_secs(seconds));
        assert_eq!([of(0), of(119), of(120), of(125)], ["0s", "119s", "2m", "2m5s"]);
        assert_eq!([of(600), of(7200), of(10_860), of(40_000)], ["10m", "120m", "3h1m", "11h"]);
        assert_eq!([of(180_000), of(900_000)], ["2d2h", "10d"]);
    }
}
