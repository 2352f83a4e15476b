//! Cursors: how much of a conversation a client has been shown. The client keeps the cursor, as the `id` of an SSE frame,
//! and sends it back when it reconnects; no replica keeps anything.
//!
//! A cursor is opaque to clients, and any replica understands it. It names turns by their numbers in the conversation,
//! never by a database sequence. Its `base` is the number of the turn up to which everything was shown. For later turns of
//! which something was shown, it says how far into the turn's log, and how many frames of its terminal; turns that were
//! shown whole are written as ranges. A turn's own stream uses the same form for its one turn.
//!
//! The text form is `1.<conversation>.<base>`, followed for each later turn by `.<number>-<offset>-<frames>`, or by
//! `.<number>-d` where the whole turn was shown, or by `.<first>~<last>-d` where all turns of a range were. `1` is the form's
//! version; `<conversation>` is 8 hex digits that tie the cursor to its conversation; everything else is decimal.
//!
//! What is between two ranges was not shown: an open turn, or one that has just ended. So the open turns bound the length of
//! the text, however many turns have ended behind the first of them.

use std::collections::BTreeMap;
use std::fmt;

use super::keys::{ConversationId, hex};

/// The most turns that a conversation may have open at once.
pub const MAX_OPEN_TURNS: usize = 64;
/// The longest cursor, in bytes. Each open turn adds itself and a range before it, some 50 bytes with numbers of ten digits.
pub const MAX_CURSOR_BYTES: usize = 128 * MAX_OPEN_TURNS;

/// How much of one turn a client has been shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// The log up to `offset`, in log units (see [`frame`](super::frame)), and behind it `frames` SSE frames of the
    /// terminal.
    Part { offset: u64, frames: u8 },
    /// The whole turn, its terminal included: nothing of it is shown again.
    Done,
}

impl Shown {
    /// Nothing of the turn has been shown.
    pub const NOTHING: Shown = Shown::Part { offset: 0, frames: 0 };
}

/// How much of a conversation a client has been shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    tag: String,
    base: i64,
    /// The turns above `base` that were shown in part: offset and frames.
    parts: BTreeMap<i64, (u64, u8)>,
    /// The turns above `base` that were shown whole, as ranges: the first number and the last. No two of them touch.
    done: BTreeMap<i64, i64>,
}

/// Why a text is no cursor of this conversation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    #[error("the cursor is malformed; start again without one")]
    Malformed,
    #[error("the cursor belongs to another conversation")]
    Foreign,
}

impl Cursor {
    /// The cursor of a client that was shown every turn up to the number `base`, and nothing after it.
    pub fn after(conversation: ConversationId, base: i64) -> Self {
        Cursor { tag: tag(conversation), base, parts: BTreeMap::new(), done: BTreeMap::new() }
    }

    /// Reads a cursor that a client sent.
    ///
    /// # Errors
    /// If the text is no cursor, or is one of another conversation.
    pub fn parse(text: &str, conversation: ConversationId) -> Result<Self, CursorError> {
        use CursorError::{Foreign, Malformed};
        if text.len() > MAX_CURSOR_BYTES {
            return Err(Malformed);
        }
        let mut parts = text.split('.');
        if parts.next() != Some("1") {
            return Err(Malformed);
        }
        let found = parts.next().ok_or(Malformed)?;
        let mut cursor = Cursor {
            tag: found.to_string(),
            base: number(parts.next().ok_or(Malformed)?)?,
            parts: BTreeMap::new(),
            done: BTreeMap::new(),
        };
        parts.try_for_each(|part| cursor.parse_turns(part))?;
        if found != tag(conversation) {
            return Err(if found.len() == 8 { Foreign } else { Malformed });
        }
        Ok(cursor)
    }

    /// Reads what a cursor's text says of a turn or of a range of them. Nothing is said twice.
    fn parse_turns(&mut self, part: &str) -> Result<(), CursorError> {
        use CursorError::Malformed;
        let mut fields = part.split('-');
        let turns = fields.next().ok_or(Malformed)?;
        let (first, last) = match turns.split_once('~') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(turns)?, number(turns)?),
        };
        // A number that cannot be counted on from is no turn's.
        if first <= self.base || first > last || last == i64::MAX || self.says_anything_of(first, last) {
            return Err(Malformed);
        }
        match (fields.next(), fields.next(), fields.next()) {
            (Some("d"), None, None) => self.mark(first, last),
            (Some(offset), Some(frames), None) if first == last => {
                let shown = (number(offset)? as u64, frames.parse().map_err(|_| Malformed)?);
                self.parts.insert(first, shown);
            }
            _ => return Err(Malformed),
        }
        Ok(())
    }

    /// Whether a turn of this range was shown whole or in part.
    fn says_anything_of(&self, first: i64, last: i64) -> bool {
        let done = self.done.range(..=last).next_back().is_some_and(|(_, &end)| end >= first);
        done || self.parts.range(first..=last).next().is_some()
    }

    /// The number of the turn up to which everything was shown.
    pub fn base(&self) -> i64 {
        self.base
    }

    /// Whether anything of the turns up to number `through` has not been shown.
    pub fn lacks(&self, through: i64) -> bool {
        // Ranges do not touch: behind the first one is a turn that was not shown.
        let shown = self.done.get(&self.base.saturating_add(1)).copied().unwrap_or(self.base);
        shown < through
    }

    /// How much of the turn of this number was shown.
    pub fn shown(&self, number: i64) -> Shown {
        if number <= self.base || self.is_marked(number) {
            return Shown::Done;
        }
        self.parts.get(&number).map_or(Shown::NOTHING, |&(offset, frames)| Shown::Part { offset, frames })
    }

    /// Whether the cursor says of this very turn that it was shown whole. Of the turns up to `base` it does not: a client's
    /// first cursor begins behind turns that the client was never shown.
    pub fn is_marked(&self, number: i64) -> bool {
        self.done.range(..=number).next_back().is_some_and(|(_, &last)| last >= number)
    }

    /// Records what was just shown of a turn. A position before the recorded one changes nothing.
    pub fn advance(&mut self, number: i64, to: Shown) {
        match (self.shown(number), to) {
            (Shown::Done, _) => {}
            (_, Shown::Done) => self.mark(number, number),
            (Shown::Part { offset: o, frames: f }, Shown::Part { offset, frames }) => {
                if (frames, offset) > (f, o) {
                    self.parts.insert(number, (offset, frames));
                }
            }
        }
    }

    /// Records that all turns of this range were shown whole.
    fn mark(&mut self, first: i64, last: i64) {
        let (mut from, mut to) = (first, last);
        while let Some((&begin, &end)) = self.done.range(..=to.saturating_add(1)).next_back() {
            if end < from.saturating_sub(1) {
                break;
            }
            self.done.remove(&begin);
            (from, to) = (from.min(begin), to.max(end));
        }
        self.done.insert(from, to);
        self.parts.retain(|&number, _| number < from || number > to);
    }

    /// Moves `base` over all turns that are done or no longer exist, up to number `through`, and joins ranges with nothing
    /// but such turns between them. `undone` lists the numbers above `base`, up to `through`, of the turns that the
    /// conversation still has and that were not shown whole; others in it change nothing.
    pub fn compact(&mut self, undone: &[i64], through: i64) {
        let owes = |n: &i64| *n > self.base && *n <= through && self.shown(*n) != Shown::Done;
        let mut undone: Vec<i64> = undone.iter().copied().filter(owes).collect();
        undone.sort_unstable();
        let base = undone.first().map_or(through, |n| n - 1);
        if base > self.base {
            self.base = base;
            self.parts = self.parts.split_off(&(base + 1));
            // A range that begins before the base and ends behind it moves the base on.
            let behind = self.done.split_off(&(base + 1));
            let reaches = self.done.last_key_value().map_or(base, |(_, &last)| last);
            (self.done, self.base) = (behind, reaches.max(base));
            if let Some(last) = self.done.remove(&(self.base.saturating_add(1))) {
                self.base = last;
            }
            self.parts = self.parts.split_off(&(self.base.saturating_add(1)));
        }
        let ranges: Vec<(i64, i64)> = self.done.iter().map(|(&first, &last)| (first, last)).collect();
        for pair in ranges.windows(2) {
            let [(_, end), (begin, _)] = pair else { continue };
            let next = undone.partition_point(|n| n <= end);
            if *begin <= through && undone.get(next).is_none_or(|n| n > begin) {
                self.mark(*end + 1, *begin - 1);
            }
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1.{}.{}", self.tag, self.base)?;
        let mut ranges = self.done.iter().peekable();
        let mut write_ranges = |f: &mut fmt::Formatter<'_>, before: i64| {
            while let Some((first, last)) = ranges.next_if(|(first, _)| **first < before) {
                if first == last { write!(f, ".{first}-d")? } else { write!(f, ".{first}~{last}-d")? }
            }
            Ok(())
        };
        for (&number, (offset, frames)) in &self.parts {
            write_ranges(f, number)?;
            write!(f, ".{number}-{offset}-{frames}")?;
        }
        write_ranges(f, i64::MAX)
    }
}

fn number(text: &str) -> Result<i64, CursorError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(CursorError::Malformed);
    }
    text.parse().map_err(|_| CursorError::Malformed)
}

fn tag(conversation: ConversationId) -> String {
    // The last bytes of a UUID v7 are random; its first bytes are a time, which neighbouring conversations share.
    hex(&conversation.0.as_bytes()[12..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown() -> impl Strategy<Value = Shown> {
        prop_oneof![
            Just(Shown::Done),
            (0u64..1_000_000, 0u8..4).prop_map(|(offset, frames)| Shown::Part { offset, frames })
        ]
    }

    proptest! {
        #[test]
        fn a_cursor_survives_its_text(base in 0i64..1000, steps in prop::collection::vec((1i64..40, shown()), 0..20)) {
            let conversation = ConversationId::new();
            let mut cursor = Cursor::after(conversation, base);
            for (ahead, to) in steps {
                cursor.advance(base + ahead, to);
            }
            prop_assert_eq!(Cursor::parse(&cursor.to_string(), conversation), Ok(cursor));
        }

        #[test]
        fn garbage_is_an_error_not_a_panic(text in "\\PC{0,40}") {
            let _ = Cursor::parse(&text, ConversationId::new());
        }

        #[test]
        fn a_forged_cursor_is_no_panic(rest in "(\\.[0-9]{1,3}(~[0-9]{1,19})?-(d|[0-9]{1,3}-[0-9])){0,6}", through in any::<i64>()) {
            let conversation = ConversationId::new();
            if let Ok(mut cursor) = Cursor::parse(&format!("{}{rest}", Cursor::after(conversation, 7)), conversation) {
                let _ = cursor.lacks(through);
                cursor.advance(9, Shown::Done);
                cursor.compact(&[8, 30], through.clamp(0, 1000));
                let text = cursor.to_string();
                prop_assert_eq!(Cursor::parse(&text, conversation), Ok(cursor));
            }
        }

        /// Against a map with an entry for every turn, over turns of which some never existed.
        #[test]
        fn nothing_shown_is_ever_forgotten_and_nothing_else_is_taken_for_shown(
            exists in prop::collection::vec(any::<bool>(), 12),
            steps in prop::collection::vec((0i64..12, shown(), prop::option::of(0i64..12)), 0..40),
        ) {
            let all: Vec<i64> = (0..12).filter(|&n| n > 0 && exists[n as usize]).collect();
            let mut cursor = Cursor::after(ConversationId::new(), 0);
            let mut plain: BTreeMap<i64, Shown> = BTreeMap::new();
            for (at, to, compacted) in steps {
                if let Some(&number) = all.get(at as usize) {
                    cursor.advance(number, to);
                    let known = plain.entry(number).or_insert(Shown::NOTHING);
                    *known = match (*known, to) {
                        (Shown::Part { offset: o, frames: f }, Shown::Part { offset, frames })
                            if (frames, offset) > (f, o) => to,
                        (Shown::Part { .. }, Shown::Done) => to,
                        (known, _) => known,
                    };
                }
                if let Some(through) = compacted {
                    cursor.compact(&all, through);
                }
                for &number in &all {
                    prop_assert_eq!(cursor.shown(number), plain.get(&number).copied().unwrap_or(Shown::NOTHING));
                }
            }
        }

        /// The worst that can be: every open turn shown in part, and between any two of them turns that have ended.
        #[test]
        fn the_open_turns_alone_bound_the_length(gaps in prop::collection::vec(0i64..40, MAX_OPEN_TURNS), first in 1i64..1_000_000_000) {
            let conversation = ConversationId::new();
            let mut cursor = Cursor::after(conversation, first - 1);
            let (mut at, mut open) = (first, Vec::new());
            for gap in gaps {
                open.push(at);
                cursor.advance(at, Shown::Part { offset: 16 * 1024 * 1024, frames: 2 });
                // Every other number was skipped.
                (1..=gap).for_each(|n| cursor.advance(at + 2 * n, Shown::Done));
                at += 2 * gap + 2;
            }
            cursor.compact(&open, at);
            let text = cursor.to_string();
            prop_assert!(text.len() <= 50 * MAX_OPEN_TURNS && text.len() < MAX_CURSOR_BYTES, "{} bytes", text.len());
            prop_assert_eq!(Cursor::parse(&text, conversation), Ok(cursor));
        }
    }

    #[test]
    fn thousands_of_ended_turns_behind_an_open_one_are_one_range() {
        let conversation = ConversationId::new();
        let mut cursor = Cursor::after(conversation, 0);
        cursor.advance(1, Shown::Part { offset: 7, frames: 0 });
        (2..5000).for_each(|number| cursor.advance(number, Shown::Done));
        assert!(cursor.to_string().ends_with(".0.1-7-0.2~4999-d"), "{cursor}");
        assert!(cursor.is_marked(4999) && !cursor.is_marked(5000) && cursor.lacks(1));
        cursor.advance(1, Shown::Done);
        assert!(!cursor.lacks(4999) && cursor.lacks(5000));
        cursor.compact(&[], 4000);
        assert_eq!(cursor, Cursor::after(conversation, 4999));
    }

    #[test]
    fn the_base_moves_over_what_is_done_or_gone() {
        let mut cursor = Cursor::after(ConversationId::new(), 0);
        cursor.advance(2, Shown::Done);
        cursor.compact(&[1, 2, 4], 4);
        assert_eq!(cursor.base(), 0);
        cursor.advance(1, Shown::Done);
        cursor.compact(&[1, 2, 4], 4);
        assert_eq!(cursor.base(), 3);
        cursor.advance(4, Shown::Part { offset: 3, frames: 0 });
        cursor.compact(&[4], 4);
        assert_eq!((cursor.base(), cursor.shown(4)), (3, Shown::Part { offset: 3, frames: 0 }));
    }

    #[test]
    fn a_foreign_cursor_is_told_apart() {
        let conversation = ConversationId::new();
        let cursor = Cursor::after(conversation, 3).to_string();
        assert_eq!(Cursor::parse(&cursor, ConversationId::new()), Err(CursorError::Foreign));
        for malformed in ["hello", "", "1", "2.00000000.3"] {
            assert_eq!(Cursor::parse(malformed, conversation), Err(CursorError::Malformed), "{malformed:?}");
        }
        for malformed in
            [".3-d", ".5~4-d", ".4~5-1-1", ".4-d.4-1-0", ".4-1-0.4~6-d", ".4~6-d.5-d", ".4~9223372036854775807-d"]
        {
            assert_eq!(
                Cursor::parse(&format!("{cursor}{malformed}"), conversation),
                Err(CursorError::Malformed),
                "{malformed}"
            );
        }
        assert!(Cursor::parse(&format!("{cursor}.4~5-d.6-1-0.7-d"), conversation).is_ok());
    }
}
