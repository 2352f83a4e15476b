//! How far a stream has come: the turns that owe something to its cursor, and what is to be done next about them.
//!
//! Nothing here does IO. Whoever drives it asks [`StreamProgress::next`], reads what that names, and hands it in.
//!
//! **What was shown stands in the cursor alone.** A reply may answer several turns, and a session shows it once: with the turn
//! that holds its text, or, if the session began behind that turn, with the first of the others. The frame that ends the
//! reply marks all of these turns on the cursor, so neither a page's end, nor a failing store, nor a reconnect brings any of
//! them back.
//!
//! **A log below its known end.** A turn that has ended says how long its log is. If the log reads shorter, its turn is read
//! again, since an erased conversation has neither. If turn and terminal are still there, and the log is as short, it is gone:
//! a reply is not shown then, and an error is shown without the missing part.

use std::collections::VecDeque;

use bytes::Bytes;

use super::render::{self, Owed};
use super::writer::{FrameSubject, StreamWriter};
use crate::store::TurnView;
use crate::turn::cursor::{Cursor, Shown};
use crate::turn::frame::Span;
use crate::turn::keys::TurnId;

/// What a stream shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamKind {
    /// All turns of a conversation. A reply that answers several turns is shown once, with all their ids.
    Session,
    /// One turn in full, with the reply's text though another turn may hold it.
    Turn(TurnId),
}

/// What is to be done next.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// Read the turns behind this number (of a turn's stream: the turn), for [`StreamProgress::took_page`].
    Page(i64),
    /// Read the turn `holder`, which holds the reply to `of`, for [`StreamProgress::took_holder`].
    Holder { of: TurnId, holder: TurnId },
    /// Read a part of a log, for [`StreamProgress::took_log`].
    Log(TurnView, Owed),
    /// Show a turn's terminal by [`StreamProgress::shows_terminal`].
    Terminal(TurnView),
    /// The log of a reply is gone, which is to be noted unless that was done: the stream is over.
    Gone { holder: TurnId, noted: bool },
    /// Nothing, until something changes.
    Wait,
}

/// See the module. All numbers are those of turns in their conversation.
pub(super) struct StreamProgress {
    writer: Box<dyn StreamWriter>,
    cursor: Cursor,
    kind: StreamKind,
    /// Turns that owe something to the cursor, in order.
    owing: Vec<TurnView>,
    /// What owed something before the last look at the store, and is yet to be met by it.
    before: Vec<(TurnId, i64)>,
    /// Turns to go through before the next wait.
    todo: VecDeque<TurnId>,
    /// The number of the last turn that the look at the store has listed.
    listed_through: i64,
    /// The store must be looked at anew before the next step.
    stale: bool,
    /// The look at the store goes on behind `listed_through`: the page was full.
    more: bool,
    /// A log that read shorter than it is.
    short: Option<ShortLog>,
    erased: bool,
    over: bool,
}

/// The log of a turn that has ended, where it was missing.
#[derive(Debug, Clone, Copy)]
struct ShortLog {
    turn: TurnId,
    from: u64,
    readings: u32,
}

impl StreamProgress {
    pub fn new(kind: StreamKind, cursor: Cursor, writer: Box<dyn StreamWriter>) -> Self {
        StreamProgress {
            writer,
            cursor,
            kind,
            owing: Vec::new(),
            before: Vec::new(),
            todo: VecDeque::new(),
            listed_through: 0,
            stale: true,
            more: false,
            short: None,
            erased: false,
            over: false,
        }
    }

    /// The bytes that open the stream.
    pub fn connected(&mut self, conversation: &str, about: Option<FrameSubject<'_>>) -> Bytes {
        self.writer.connected(&self.cursor, conversation, about)
    }

    /// The bytes that keep an idle stream open.
    pub fn keep_alive(&self) -> Bytes {
        self.writer.keep_alive()
    }

    pub fn kind(&self) -> StreamKind {
        self.kind
    }

    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// The turns that owe something to the cursor, as far as the last look at the store has listed them, in order.
    pub fn owing(&self) -> &[TurnView] {
        &self.owing
    }

    /// The conversation, or the stream's turn, is no more.
    pub fn is_erased(&self) -> bool {
        self.erased
    }

    /// A turn's stream has shown the turn's terminal.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The store has changed, or could not be read: it is looked at anew.
    pub fn look_anew(&mut self) {
        self.stale = true;
    }

    /// Whether the next page begins a look at the store.
    pub fn begins_look(&self) -> bool {
        self.stale
    }

    /// Whether the look at the store has listed all turns.
    pub fn has_looked(&self) -> bool {
        !self.stale && !self.more
    }

    /// The logs may have something new: all turns that owe something are gone through again.
    pub fn go_through(&mut self) {
        self.todo = self.owing.iter().map(|v| v.turn_id).collect();
    }

    /// What is to be done next.
    pub fn next(&mut self) -> Next {
        if self.stale {
            return Next::Page(self.cursor.base());
        }
        while let Some(&turn) = self.todo.front() {
            let Some(view) = self.view(turn) else {
                self.todo.pop_front();
                continue;
            };
            let owed = render::owed(view, &self.cursor);
            let Some(terminal) = &view.terminal else {
                match owed {
                    Some(owed) => return Next::Log(view.clone(), owed),
                    None => drop(self.todo.pop_front()),
                }
                continue;
            };
            if self.is_gone(turn) {
                return Next::Gone { holder: terminal.holder, noted: false };
            }
            // What was streamed of the reply was streamed with its holder, so it is shown with that one where the cursor has
            // not passed it.
            if terminal.holder != turn && self.kind == StreamKind::Session && self.is_to_come(terminal.holder_number) {
                let holder = terminal.holder;
                match self.view(holder).map(|v| v.terminal.as_ref().map(|t| t.holder)) {
                    Some(Some(own)) if own == holder => {
                        self.todo.push_front(holder);
                        continue;
                    }
                    // A holder that is none: the turn is shown by itself.
                    Some(Some(_)) => {}
                    Some(None) | None => return Next::Holder { of: turn, holder },
                }
            }
            return match owed {
                Some(_) if terminal.log_gone => Next::Gone { holder: terminal.holder, noted: true },
                Some(owed) => Next::Log(view.clone(), owed),
                None => Next::Terminal(view.clone()),
            };
        }
        if self.more && !self.over { Next::Page(self.listed_through) } else { Next::Wait }
    }

    /// Takes a page of turns. `full`: it has as many as a page may have, so there may be more. `exists`: the conversation, or
    /// the stream's turn, is there. Pages go on behind the last turn that was listed and not behind the cursor's base, which
    /// an open turn may keep far behind.
    pub fn took_page(&mut self, page: Vec<TurnView>, full: bool, exists: bool) {
        if std::mem::replace(&mut self.stale, false) {
            // Behind what a look that failed on its way has not met.
            self.before.extend(self.owing.drain(..).map(|v| (v.turn_id, v.number)));
            self.listed_through = self.cursor.base();
            self.erased = false;
        }
        let session = self.kind == StreamKind::Session;
        self.more = session && full;
        self.listed_through = page.last().map_or(self.listed_through, |v| v.number);
        // A turn that still owes something and is not there any more was erased, or removed by the retention: either way
        // its terminal cannot be shown.
        let (more, through) = (self.more, self.listed_through);
        let met: Vec<_> = self.before.extract_if(.., |(_, number)| !more || *number <= through).collect();
        let is_lost = |(turn, number): &(TurnId, i64)| {
            self.cursor.shown(*number) != Shown::Done && !page.iter().any(|v| v.turn_id == *turn)
        };
        self.erased |= !exists || (session && met.iter().any(is_lost));
        for terminal in page.iter().filter_map(|v| v.terminal.as_ref()) {
            // The cursor says that this very reply was shown, maybe on the stream of its holder.
            if self.cursor.is_marked(terminal.holder_number) {
                terminal.answered.iter().for_each(|&number| self.cursor.advance(number, Shown::Done));
            }
        }
        self.owing.retain(|v| !page.iter().any(|p| p.turn_id == v.turn_id));
        let unseen = page.into_iter().filter(|v| self.cursor.shown(v.number) != Shown::Done);
        let unseen: Vec<TurnView> = unseen.collect();
        self.todo = unseen.iter().map(|v| v.turn_id).collect();
        self.owing.extend(unseen);
        self.settle();
        // A client that comes back to a turn's stream with the terminal on its cursor finds the end of the stream.
        self.over |= !session && exists && self.owing.is_empty();
    }

    /// Takes the turn that holds the reply to `of`; `None`: it is not there.
    pub fn took_holder(&mut self, of: TurnId, holder: Option<TurnView>) {
        match holder.filter(|v| v.terminal.is_some()) {
            Some(holder) => {
                self.todo.push_front(holder.turn_id);
                self.owing.retain(|v| v.turn_id != holder.turn_id);
                self.owing.push(holder);
                self.settle();
            }
            None => self.reads_short(of, 0),
        }
    }

    /// Takes what was read of the log that the turn owes; answers the frames to show of it.
    pub fn took_log(&mut self, turn: TurnId, span: Span) -> Vec<Bytes> {
        let Some(view) = self.owing.iter().find(|v| v.turn_id == turn) else { return Vec::new() };
        if !span.is_empty() {
            self.short = None;
            return render::output(&mut *self.writer, view, &mut self.cursor, span);
        }
        match (&view.terminal, self.cursor.shown(view.number)) {
            (Some(_), Shown::Part { offset, .. }) => self.reads_short(turn, offset),
            _ => self.todo.retain(|&t| t != turn),
        }
        Vec::new()
    }

    /// Shows a turn's terminal: its frames, and the turns that end with it. `answered` are those that the reply answers, if it
    /// answers more than one.
    pub fn shows_terminal(&mut self, turn: TurnId, answered: &[(TurnId, String)]) -> (Vec<Bytes>, Vec<TurnId>) {
        let view = self.owing.iter().find(|v| v.turn_id == turn);
        let Some((view, terminal)) = view.and_then(|v| Some((v, v.terminal.as_ref()?))) else {
            return (Vec::new(), Vec::new());
        };
        let frames = render::terminal(&mut *self.writer, view, terminal, &mut self.cursor, answered);
        self.settle();
        self.over |= self.kind != StreamKind::Session;
        // All turns that the reply answers are delivered by it.
        (frames, answered.iter().map(|a| a.0).chain([turn]).collect())
    }

    fn view(&self, turn: TurnId) -> Option<&TurnView> {
        self.owing.iter().find(|v| v.turn_id == turn)
    }

    /// Whether the turn of this number is still to be shown on this cursor.
    fn is_to_come(&self, number: i64) -> bool {
        self.cursor.shown(number) != Shown::Done
    }

    /// The log of a turn that has ended is missing from here on. The first time everything is read again; the second time it
    /// is gone, and an error is shown without it.
    fn reads_short(&mut self, turn: TurnId, from: u64) {
        let before = self.short.filter(|s| s.turn == turn && s.from == from);
        let readings = before.map_or(0, |s| s.readings) + 1;
        self.short = Some(ShortLog { turn, from, readings });
        if readings < 2 {
            self.stale = true;
            return;
        }
        let view = self.owing.iter().find(|v| v.turn_id == turn);
        if let Some((view, terminal)) = view.and_then(|v| Some((v, v.terminal.as_ref()?)))
            && terminal.failure.is_some()
        {
            self.cursor.advance(view.number, Shown::Part { offset: terminal.end, frames: 0 });
            self.short = None;
        }
    }

    /// Whether the log that this turn's reply lies in was read a second time, and was missing again.
    fn is_gone(&self, turn: TurnId) -> bool {
        self.short.is_some_and(|s| s.turn == turn && s.readings > 1)
    }

    /// Puts in order what has changed: forgets the turns that owe nothing any more, and makes the cursor short.
    fn settle(&mut self) {
        self.owing.retain(|v| self.cursor.shown(v.number) != Shown::Done);
        self.owing.sort_by_key(|v| v.number);
        self.todo.retain(|turn| self.owing.iter().any(|v| v.turn_id == *turn));
        if self.kind == StreamKind::Session {
            let undone: Vec<i64> = self.owing.iter().map(|v| v.number).collect();
            self.cursor.compact(&undone, self.listed_through);
        }
    }
}

#[cfg(test)]
mod tests;
