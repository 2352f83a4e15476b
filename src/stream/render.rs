//! What a turn still owes to a cursor, and the frames for it.
//!
//! Nothing here does IO: the caller reads the log. A terminal is one frame or a few; the cursor counts those that were
//! sent, so a client whose connection breaks between two of them is sent each once.

use bytes::Bytes;

use super::writer::{FrameSubject, ShownEnd, ShownOutcome, StreamWriter};
use crate::store::{GoneReply, Terminal, TurnView};
use crate::turn::cursor::{Cursor, Shown};
use crate::turn::frame::Span;
use crate::turn::keys::TurnId;

/// The part of a log that a turn still owes to the cursor. Offsets are in log units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owed {
    /// The turn that has the log: another one, if that holds this turn's reply.
    pub log: TurnId,
    pub from: u64,
    /// The end of the log; `None` while the turn runs.
    pub until: Option<u64>,
}

/// What to read of a log for this turn; `None` when all output before the terminal was shown.
pub fn owed(view: &TurnView, cursor: &Cursor) -> Option<Owed> {
    let Shown::Part { offset, frames: 0 } = cursor.shown(view.number) else { return None };
    match &view.terminal {
        None => Some(Owed { log: view.turn_id, from: offset, until: None }),
        Some(terminal) => {
            (offset < terminal.end).then_some(Owed { log: terminal.holder, from: offset, until: Some(terminal.end) })
        }
    }
}

/// Whether a reply whose log is gone can never be shown behind this cursor: the cursor lacks a part of the log.
pub fn is_out_of_reach(gone: &GoneReply, cursor: &Cursor) -> bool {
    match cursor.shown(gone.number) {
        Shown::Part { offset, frames: 0 } => offset < gone.end && !cursor.is_marked(gone.holder_number),
        _ => false,
    }
}

/// The frames for a piece of the log. Moves the cursor past them.
pub fn output(writer: &mut dyn StreamWriter, view: &TurnView, cursor: &mut Cursor, span: Span) -> Vec<Bytes> {
    let about = FrameSubject { turn_id: view.turn_id, message_id: &view.message_id };
    let mut at = span.start;
    let mut frames = Vec::with_capacity(span.frames.len());
    for frame in &span.frames {
        at += frame.units();
        cursor.advance(view.number, Shown::Part { offset: at, frames: 0 });
        frames.push(writer.output(cursor, about, at, frame));
    }
    frames
}

/// The frames of a terminal that are yet to be shown. Moves the cursor past them, and past all other turns that the reply
/// answers: whichever of them is shown first on a cursor, the others are not shown again. `answered` are these turns with their
/// message ids; empty if the reply answers this one alone.
pub fn terminal(
    writer: &mut dyn StreamWriter,
    view: &TurnView,
    terminal: &Terminal,
    cursor: &mut Cursor,
    answered: &[(TurnId, String)],
) -> Vec<Bytes> {
    let (offset, shown) = match cursor.shown(view.number) {
        Shown::Done => return Vec::new(),
        Shown::Part { offset, frames } => (offset.max(terminal.end), frames),
    };
    let about = FrameSubject { turn_id: view.turn_id, message_id: &view.message_id };
    let own = [(view.turn_id, view.message_id.clone())];
    let outcome = ShownOutcome::of(terminal.failure.as_ref());
    let answered = match outcome {
        ShownOutcome::Reply if !answered.is_empty() => answered,
        ShownOutcome::Reply | ShownOutcome::Cancelled(_) | ShownOutcome::Failed(_) => &own,
    };
    let end = ShownEnd { outcome, finish_reason: terminal.finish_reason.as_deref(), answered };
    let steps = writer.terminal_steps(&end);
    let mut frames = Vec::with_capacity(steps.into());
    for step in (1..=steps).filter(|&step| step > shown) {
        if step < steps {
            cursor.advance(view.number, Shown::Part { offset, frames: step });
        } else {
            cursor.advance(view.number, Shown::Done);
            terminal.answered.iter().for_each(|&number| cursor.advance(number, Shown::Done));
        }
        frames.push(writer.terminal(cursor, about, step, &end));
    }
    // Also behind a cursor that claims more frames than there are.
    cursor.advance(view.number, Shown::Done);
    frames
}

#[cfg(test)]
mod tests {
    use super::super::sse::NativeWriter;
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
        let (turn_id, message_id) = (TurnId::new(), "m".into());
        TurnView { turn_id, conversation_id, number, message_id, worker: None, lease_seconds: None, terminal }
    }

    fn failed() -> (TurnView, Terminal) {
        let mut view = view(1, None);
        let terminal = Terminal { failure: Some(Failure::new(Reason::WorkerExited)), ..reply(&view, 3, &[1]) };
        view.terminal = Some(terminal.clone());
        (view, terminal)
    }

    /// A reply of this length in the log of `holder`, to the turns of these numbers.
    fn reply(holder: &TurnView, end: u64, answered: &[i64]) -> Terminal {
        Terminal {
            failure: None,
            finish_reason: None,
            holder: holder.turn_id,
            holder_number: holder.number,
            end,
            answered: answered.to_vec(),
            log_gone: false,
        }
    }

    #[test]
    fn a_terminal_broken_off_after_any_frame_goes_on_behind_it() {
        let (view, end) = failed();
        for broken_after in 0..=3 {
            let mut cursor = Cursor::after(view.conversation_id, 0);
            let all = terminal(&mut NativeWriter, &view, &end, &mut cursor.clone(), &[]);
            let mut seen = all[..broken_after].to_vec();
            if let Some(last) = seen.last() {
                let text = String::from_utf8_lossy(last).to_string();
                let id = text.lines().find_map(|l| l.strip_prefix("id: ")).expect("an id").to_string();
                cursor = Cursor::parse(&id, view.conversation_id).expect("our own cursor");
            }
            seen.extend(terminal(&mut NativeWriter, &view, &end, &mut cursor, &[]));
            assert_eq!(events(&seen), ["error", "agent-error", "complete"], "broken after {broken_after}");
        }
    }

    #[test]
    fn live_bytes_beyond_the_end_are_preview() {
        let (view, end) = failed();
        let mut cursor = Cursor::after(view.conversation_id, 0);
        output(&mut NativeWriter, &view, &mut cursor, Span::new(0, vec![Frame::text("hello")]));
        assert_eq!(owed(&view, &cursor), None);
        assert_eq!(terminal(&mut NativeWriter, &view, &end, &mut cursor, &[]).len(), 3);
        assert_eq!(cursor.shown(1), Shown::Done);
    }

    #[test]
    fn whichever_turn_of_a_reply_is_shown_marks_all_of_them_in_that_frame() {
        let holder = view(1, None);
        let end = reply(&holder, 2, &[1, 2, 4]);
        let other = TurnView { terminal: Some(end.clone()), number: 2, ..view(2, None) };
        let mut cursor = Cursor::after(other.conversation_id, 1);
        let owes = owed(&other, &cursor).expect("the whole log");
        assert_eq!((owes.log, owes.from, owes.until), (holder.turn_id, 0, Some(2)));
        let frames = terminal(&mut NativeWriter, &other, &end, &mut cursor, &[]);
        assert_eq!(events(&frames), ["complete"]);
        assert!(String::from_utf8_lossy(&frames[0]).contains(".1.2-d.4-d\n"), "{frames:?}");
    }

    #[test]
    fn a_reply_without_its_log_is_out_of_reach_until_all_of_it_was_shown() {
        let conversation = ConversationId::new();
        let gone = GoneReply { number: 5, holder_number: 4, end: 9 };
        for (shown, lost) in
            [("3", true), ("4", true), ("5", false), ("3.5-8-0", true), ("3.5-9-0", false), ("3.4-d", false)]
        {
            let text = format!("{}{shown}", Cursor::after(conversation, 0).to_string().strip_suffix('0').expect("0"));
            let cursor = Cursor::parse(&text, conversation).expect("a cursor");
            assert_eq!(is_out_of_reach(&gone, &cursor), lost, "{shown}");
        }
    }
}
