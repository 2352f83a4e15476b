//! What of a turn is yet to be shown on a cursor.
//!
//! Pure but for the log, which the caller reads. A terminal is a few frames; the cursor counts them, so a connection that
//! breaks between two of them shows each once.

use bytes::Bytes;

use super::sse::{self, About};
use crate::store::{Terminal, TurnView};
use crate::turn::cursor::{Cursor, Shown};
use crate::turn::frame::Span;
use crate::turn::keys::TurnId;

/// Which of a conversation's turns a stream shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of them, a reply to several once.
    Session,
    /// One, in full, whoever holds its reply.
    Turn,
}

/// The part of the log that a turn still owes the cursor: which turn's log, from where, up to where (open: no end).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owed {
    pub log: TurnId,
    pub from: u64,
    pub until: Option<u64>,
}

/// What to read for this turn; `None` when its output was shown up to the terminal.
pub fn owed(view: &TurnView, cursor: &Cursor, scope: Scope) -> Option<Owed> {
    let Shown::Part { offset, frames: 0 } = cursor.shown(view.number) else { return None };
    match &view.terminal {
        None => Some(Owed { log: view.turn_id, from: offset, until: None }),
        Some(terminal) if scope == Scope::Session && terminal.holder != view.turn_id => None,
        Some(terminal) => {
            (offset < terminal.end).then_some(Owed { log: terminal.holder, from: offset, until: Some(terminal.end) })
        }
    }
}

/// The frames for a piece of the log, and the cursor moved over them.
pub fn output(view: &TurnView, cursor: &mut Cursor, span: Span) -> Vec<Bytes> {
    let about = About { turn_id: view.turn_id, message_id: &view.message_id };
    let mut at = span.start;
    let mut frames = Vec::with_capacity(span.frames.len());
    for frame in &span.frames {
        at += frame.units();
        cursor.advance(view.number, Shown::Part { offset: at, frames: 0 });
        frames.push(sse::output(cursor, about, frame));
    }
    frames
}

/// The frames of a terminal that are yet to be shown, and the cursor moved over them. `answered`: the turns that a reply
/// answers, with their message ids.
pub fn terminal(
    view: &TurnView,
    terminal: &Terminal,
    cursor: &mut Cursor,
    scope: Scope,
    answered: &[(TurnId, String)],
) -> Vec<Bytes> {
    let (offset, shown) = match cursor.shown(view.number) {
        Shown::Done => return Vec::new(),
        Shown::Part { offset, frames } => (offset.max(terminal.end), frames),
    };
    if scope == Scope::Session && terminal.holder != view.turn_id {
        // Its reply is shown with the turn that holds it.
        cursor.advance(view.number, Shown::Done);
        return Vec::new();
    }
    let about = About { turn_id: view.turn_id, message_id: &view.message_id };
    let own = [(view.turn_id, view.message_id.clone())];
    let mut frames = Vec::with_capacity(3);
    let mut say = |cursor: &mut Cursor, nth: u8, last: bool, make: &dyn Fn(&Cursor) -> Bytes| {
        if nth > shown {
            let to = if last { Shown::Done } else { Shown::Part { offset, frames: nth } };
            cursor.advance(view.number, to);
            frames.push(make(cursor));
        }
    };
    match &terminal.failure {
        None => say(cursor, 1, true, &|c| {
            sse::complete(c, about, "reply", if answered.is_empty() { &own } else { answered })
        }),
        Some(failure) => {
            say(cursor, 1, false, &|c| sse::error(c, "error", about, failure));
            say(cursor, 2, false, &|c| sse::error(c, "agent-error", about, failure));
            say(cursor, 3, true, &|c| sse::complete(c, about, "error", &own));
        }
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::frame::Frame;
    use crate::turn::keys::ConversationId;
    use crate::turn::reason::Reason;
    use crate::turn::terminal::Failure;

    fn events(frames: &[Bytes]) -> Vec<String> {
        frames
            .iter()
            .map(|f| String::from_utf8_lossy(f).lines().next().unwrap_or_default().replace("event: ", ""))
            .collect()
    }

    fn view(number: i64, terminal: Option<Terminal>) -> TurnView {
        let conversation_id = ConversationId::new();
        TurnView { turn_id: TurnId::new(), conversation_id, number, message_id: "m".into(), worker: None, terminal }
    }

    fn failed() -> (TurnView, Terminal) {
        let mut view = view(1, None);
        let terminal =
            Terminal { failure: Some(Failure::new(Reason::WorkerExited)), holder: view.turn_id, end: 3, answers: 1 };
        view.terminal = Some(terminal.clone());
        (view, terminal)
    }

    #[test]
    fn a_terminal_broken_off_after_any_frame_goes_on_behind_it() {
        let (view, end) = failed();
        for broken_after in 0..=3 {
            let mut cursor = Cursor::after(view.conversation_id, 0);
            let all = terminal(&view, &end, &mut cursor.clone(), Scope::Session, &[]);
            let mut seen = all[..broken_after].to_vec();
            if let Some(last) = seen.last() {
                let text = String::from_utf8_lossy(last).to_string();
                let id = text.lines().find_map(|l| l.strip_prefix("id: ")).expect("an id").to_string();
                cursor = Cursor::parse(&id, view.conversation_id).expect("our own cursor");
            }
            seen.extend(terminal(&view, &end, &mut cursor, Scope::Session, &[]));
            assert_eq!(events(&seen), ["error", "agent-error", "complete"], "broken after {broken_after}");
        }
    }

    #[test]
    fn live_bytes_beyond_the_end_are_preview() {
        let (view, end) = failed();
        let mut cursor = Cursor::after(view.conversation_id, 0);
        output(&view, &mut cursor, Span::new(0, vec![Frame::text("hello")]));
        assert_eq!(owed(&view, &cursor, Scope::Session), None);
        assert_eq!(terminal(&view, &end, &mut cursor, Scope::Session, &[]).len(), 3);
        assert_eq!(cursor.shown(1), Shown::Done);
    }

    #[test]
    fn a_reply_to_several_is_shown_once_on_a_session_and_in_full_on_each_turns_stream() {
        let holder = view(1, None);
        let end = Terminal { failure: None, holder: holder.turn_id, end: 2, answers: 2 };
        let other = TurnView { terminal: Some(end.clone()), number: 2, ..view(2, None) };
        let mut cursor = Cursor::after(other.conversation_id, 0);
        assert_eq!(owed(&other, &cursor, Scope::Session), None);
        assert!(terminal(&other, &end, &mut cursor, Scope::Session, &[]).is_empty());
        assert_eq!(cursor.shown(2), Shown::Done);
        let mut cursor = Cursor::after(other.conversation_id, 1);
        let owes = owed(&other, &cursor, Scope::Turn).expect("the whole log");
        assert_eq!((owes.log, owes.from, owes.until), (holder.turn_id, 0, Some(2)));
        assert_eq!(events(&terminal(&other, &end, &mut cursor, Scope::Turn, &[])), ["complete"]);
    }
}
