//! Cursors: what a client has seen, in the client's own hands.
//!
//! A cursor is opaque to clients, understood by any replica, and never a database sequence. It says for a conversation
//! up to which turn everything was shown (`base`), and for each later turn of which something was shown: how far into
//! its log, and how many frames of its terminal. A turn's own stream uses the same form with that one turn.
//!
//! Text form: `1.<conversation>.<base>` and, for each turn, `.<number>-<offset>-<frames>` or `.<number>-d` (all shown).
//! `<conversation>` is 8 hex digits that tie the cursor to its conversation. Everything else is decimal.

use std::collections::BTreeMap;
use std::fmt;

use super::keys::{ConversationId, hex};

/// More turns than this a cursor never tracks one by one; the number of open turns of a conversation is limited to it.
pub const MAX_OPEN_TURNS: usize = 64;

/// How much of one turn was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// The log up to `offset`, and then `frames` frames of the terminal.
    Part { offset: u64, frames: u8 },
    /// All of it: nothing of this turn is shown again.
    Done,
}

impl Shown {
    /// Nothing yet.
    pub const NOTHING: Shown = Shown::Part { offset: 0, frames: 0 };
}

/// What a client has seen of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    tag: String,
    base: i64,
    turns: BTreeMap<i64, Shown>,
}

/// A cursor that is not one, or not this conversation's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    #[error("the cursor is malformed; start again without one")]
    Malformed,
    #[error("the cursor belongs to another conversation")]
    Foreign,
}

impl Cursor {
    /// A cursor for which every turn up to `base` has been shown.
    pub fn after(conversation: ConversationId, base: i64) -> Self {
        Cursor { tag: tag(conversation), base, turns: BTreeMap::new() }
    }

    /// Reads a cursor that came from a client.
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

    /// Everything up to this turn was shown.
    pub fn base(&self) -> i64 {
        self.base
    }

    /// Whether something up to this turn was not shown.
    pub fn lacks(&self, through: i64) -> bool {
        // Each pass but the last meets an entry of the map: the cursor's own length bounds the loop.
        (self.base.saturating_add(1)..=through).any(|number| self.shown(number) != Shown::Done)
    }

    /// What was shown of a turn.
    pub fn shown(&self, number: i64) -> Shown {
        if number <= self.base {
            return Shown::Done;
        }
        self.turns.get(&number).copied().unwrap_or(Shown::NOTHING)
    }

    /// Records what was just shown. Going back is ignored.
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

    /// Moves `base` over every turn up to `through` that is done or no longer exists. `exists` lists, in order, the
    /// numbers above `base` of which the conversation still has a turn, up to `through`.
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
    // The last bytes of a v7 UUID are random, the first are time.
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
