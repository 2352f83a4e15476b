//! Cursors: how much of a conversation a client has been shown. The client keeps the cursor, as the `id` of an SSE frame,
//! and sends it back when it reconnects; no replica keeps anything.
//!
//! A cursor is opaque to clients, and any replica understands it. It names turns by their numbers in the conversation,
//! never by a database sequence. Its `base` is the number of the turn up to which everything was shown. For each later
//! turn of which something was shown, it says how far into the turn's log, and how many frames of its terminal. A
//! turn's own stream uses the same form for its one turn.
//!
//! The text form is `1.<conversation>.<base>`, followed for each later turn by `.<number>-<offset>-<frames>`, or by
//! `.<number>-d` where the whole turn was shown. `1` is the form's version; `<conversation>` is 8 hex digits that tie the
//! cursor to its conversation; everything else is decimal.

use std::collections::BTreeMap;
use std::fmt;

use super::keys::{ConversationId, hex};

/// The most turns that a conversation may have open at once. A cursor tracks at most these one by one, which bounds its
/// length.
pub const MAX_OPEN_TURNS: usize = 64;

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
    turns: BTreeMap<i64, Shown>,
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
        Cursor { tag: tag(conversation), base, turns: BTreeMap::new() }
    }

    /// Reads a cursor that a client sent.
    ///
    /// # Errors
    /// If the text is no cursor, or is one of another conversation.
    pub fn parse(text: &str, conversation: ConversationId) -> Result<Self, CursorError> {
        use CursorError::{Foreign, Malformed};
        if text.len() > 64 * MAX_OPEN_TURNS {
            return Err(Malformed);
        }
        let mut parts = text.split('.');
        if parts.next() != Some("1") {
            return Err(Malformed);
        }
        let found = parts.next().ok_or(Malformed)?;
        let base: i64 = number(parts.next().ok_or(Malformed)?)?;
        let mut turns = BTreeMap::new();
        for part in parts {
            let mut fields = part.split('-');
            let turn: i64 = number(fields.next().ok_or(Malformed)?)?;
            let shown = match (fields.next(), fields.next(), fields.next()) {
                (Some("d"), None, None) => Shown::Done,
                (Some(offset), Some(frames), None) => {
                    Shown::Part { offset: number(offset)? as u64, frames: frames.parse().map_err(|_| Malformed)? }
                }
                _ => return Err(Malformed),
            };
            if turn <= base || turns.insert(turn, shown).is_some() {
                return Err(Malformed);
            }
        }
        if found != tag(conversation) {
            return Err(if found.len() == 8 { Foreign } else { Malformed });
        }
        Ok(Cursor { tag: found.to_string(), base, turns })
    }

    /// The number of the turn up to which everything was shown.
    pub fn base(&self) -> i64 {
        self.base
    }

    /// Whether anything of the turns up to number `through` has not been shown.
    pub fn lacks(&self, through: i64) -> bool {
        // The loop stops at the first number that the map lacks, so the cursor's own length bounds it.
        (self.base.saturating_add(1)..=through).any(|number| self.shown(number) != Shown::Done)
    }

    /// How much of the turn of this number was shown.
    pub fn shown(&self, number: i64) -> Shown {
        if number <= self.base {
            return Shown::Done;
        }
        self.turns.get(&number).copied().unwrap_or(Shown::NOTHING)
    }

    /// Records what was just shown of a turn. A position before the recorded one changes nothing.
    pub fn advance(&mut self, number: i64, to: Shown) {
        if number <= self.base {
            return;
        }
        let forward = match (self.shown(number), to) {
            (Shown::Done, _) => false,
            (_, Shown::Done) => true,
            (Shown::Part { offset: o, frames: f }, Shown::Part { offset, frames }) => (frames, offset) > (f, o),
        };
        if forward {
            self.turns.insert(number, to);
        }
    }

    /// Moves `base` over all turns that are done or no longer exist, up to number `through`. `exists` lists in ascending
    /// order the numbers above `base`, up to `through`, that the conversation still has turns for.
    pub fn compact(&mut self, exists: &[i64], through: i64) {
        let undone = exists.iter().copied().find(|&n| n > self.base && self.shown(n) != Shown::Done);
        let base = undone.map_or(through, |n| n - 1);
        if base > self.base {
            self.base = base;
            self.turns = self.turns.split_off(&(base + 1));
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1.{}.{}", self.tag, self.base)?;
        for (number, shown) in &self.turns {
            match shown {
                Shown::Done => write!(f, ".{number}-d")?,
                Shown::Part { offset, frames } => write!(f, ".{number}-{offset}-{frames}")?,
            }
        }
        Ok(())
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
        fn nothing_shown_is_ever_forgotten(steps in prop::collection::vec((1i64..8, shown()), 0..30)) {
            let mut cursor = Cursor::after(ConversationId::new(), 0);
            let all: Vec<i64> = (1..8).collect();
            for (number, to) in steps {
                let before = cursor.shown(number);
                cursor.advance(number, to);
                cursor.compact(&all, 7);
                if before == Shown::Done || to == Shown::Done {
                    prop_assert_eq!(cursor.shown(number), Shown::Done);
                }
            }
        }
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
        let cursor = Cursor::after(ConversationId::new(), 3).to_string();
        assert_eq!(Cursor::parse(&cursor, ConversationId::new()), Err(CursorError::Foreign));
        assert_eq!(Cursor::parse("hello", ConversationId::new()), Err(CursorError::Malformed));
    }
}
