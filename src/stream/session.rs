//! A client's stream: on a conversation (a session), or on one turn.
//!
//! The stream pulls. It waits for news of its conversation, reads what its cursor has not seen (live logs for output,
//! the store for turns and terminals), writes it, and waits again; so nothing is queued for a slow client, and a lost
//! wake-up costs a poll's time. It ends cleanly only when no turn on it lacks its terminal; otherwise it is aborted,
//! since every client library takes a clean end for success.

use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::Stream;
use tokio_util::sync::CancellationToken;

use super::delivery::Shown as ShownTurns;
use super::render::{self, Owed, Scope};
use super::sse;
use crate::dispatch::feeds::{Feed, Feeds};
use crate::dispatch::follow::Follower;
use crate::dispatch::live::LiveLogs;
use crate::store::{Store, StoreError, TurnView};
use crate::turn::cursor::{Cursor, Shown};
use crate::turn::frame::Span;
use crate::turn::keys::{ConversationId, GatewayId, SessionId, TurnId};

/// Comments on an idle stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How often a log is read from the store while it cannot be followed: its worker's replica is not known, or not reached.
const REMOTE_LOG_EVERY: Duration = Duration::from_millis(500);
/// Stored pieces of a log that are read at once.
const LOG_ROWS: u32 = 64;
/// The pause after the store failed.
const RETRY: Duration = Duration::from_millis(500);

/// What a stream needs of its replica.
#[derive(Clone)]
pub struct Streams {
    pub gateway: GatewayId,
    pub store: Store,
    pub live: LiveLogs,
    pub feeds: Feeds,
    pub follower: Follower,
    pub shown: ShownTurns,
    pub shutdown: CancellationToken,
}

/// Whose stream it is, on what.
pub struct Viewer {
    pub conversation_id: ConversationId,
    pub conversation: String,
    /// The one turn, for a turn's own stream.
    pub turn: Option<(TurnId, String)>,
    pub cursor: Cursor,
    /// Whether the viewer owns the conversation: what it has seen is delivered.
    pub owner: bool,
}

impl Streams {
    /// Takes charge of a session's row: it goes when this value does.
    pub fn registered(&self, id: SessionId) -> Registered {
        Registered { id, store: self.store.clone() }
    }

    /// The stream's bytes. A session must have been registered before.
    pub fn open(
        self,
        viewer: Viewer,
        session: Option<Registered>,
    ) -> impl Stream<Item = Result<Bytes, io::Error>> + Send {
        async_stream::try_stream! {
            let _registered = session;
            // Subscribed before the first look: what comes after the look is news.
            let feed = self.feeds.subscribe(viewer.conversation_id);
            let about = viewer.turn.as_ref().map(|(id, message)| sse::About { turn_id: *id, message_id: message });
            yield sse::connected(&viewer.cursor, &viewer.conversation, about);
            let mut tail = Tail::new(self, viewer, feed);
            loop {
                while let Some(step) = tail.next().await {
                    for frame in step.frames {
                        yield frame;
                    }
                    // The client's side took the frames over: whoever is asked for more has passed on what it had.
                    tail.was_shown(&step.ended);
                    tail.last_sent = Instant::now();
                }
                if tail.over {
                    return;
                }
                match tail.wait().await {
                    Woken::News => {}
                    Woken::KeepAlive => yield sse::keep_alive(),
                    Woken::Shutdown => {
                        if tail.owes_nothing().await {
                            return;
                        }
                        Err(io::Error::other("the gateway stops before the turn's terminal"))?;
                    }
                    Woken::Erased => Err(io::Error::other("the conversation was erased"))?,
                }
            }
        }
    }
}

/// Takes a session off the registry when its stream is dropped.
pub struct Registered {
    id: SessionId,
    store: Store,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let (store, id) = (self.store.clone(), self.id);
        tokio::spawn(async move {
            // A row that stays is cleared with its gateway.
            let _ = store.forget_sessions(&[id]).await;
        });
    }
}

/// Some frames to write together, and the turns whose terminals are complete with them.
struct Step {
    frames: Vec<Bytes>,
    ended: Vec<TurnId>,
}

enum Woken {
    News,
    KeepAlive,
    Shutdown,
    Erased,
}

/// The stream's place, and what is known of the turns behind it.
struct Tail {
    streams: Streams,
    viewer: Viewer,
    scope: Scope,
    feed: Feed,
    /// Turns that owe something, in order.
    open: Vec<TurnView>,
    /// Every turn of the last look at the store, shown or not.
    listed: HashSet<TurnId>,
    /// Read the store before the next step.
    stale: bool,
    /// The last look at the store was cut at its limit.
    more: bool,
    /// Turns to look at before the next wait.
    todo: Vec<TurnView>,
    store_news: u64,
    over: bool,
    failed: bool,
    erased: bool,
    /// When the client was last sent anything.
    last_sent: Instant,
}

impl Tail {
    fn new(streams: Streams, viewer: Viewer, mut feed: Feed) -> Self {
        let scope = if viewer.turn.is_some() { Scope::Turn } else { Scope::Session };
        let store_news = feed.seen().store;
        Tail {
            streams,
            viewer,
            scope,
            feed,
            open: Vec::new(),
            listed: HashSet::new(),
            stale: true,
            more: false,
            todo: Vec::new(),
            store_news,
            over: false,
            failed: false,
            erased: false,
            last_sent: Instant::now(),
        }
    }

    /// The next frames, if there are any now.
    async fn next(&mut self) -> Option<Step> {
        if self.stale || (self.more && self.todo.is_empty()) {
            match self.read_store().await {
                Ok(()) => (self.stale, self.failed) = (false, false),
                Err(error) => {
                    if !std::mem::replace(&mut self.failed, true) {
                        tracing::debug!(%error, "a session waits for the database");
                    }
                    return None;
                }
            }
        }
        while let Some(view) = self.todo.first().cloned() {
            match self.step(&view).await {
                Ok(Some(step)) => return Some(step),
                Ok(None) => drop(self.todo.remove(0)),
                Err(error) => {
                    tracing::debug!(%error, "a session waits for the database");
                    (self.stale, self.failed) = (true, true);
                    return None;
                }
            }
        }
        None
    }

    async fn read_store(&mut self) -> Result<(), StoreError> {
        let store = &self.streams.store;
        let before: Vec<TurnId> = self.open.iter().map(|v| v.turn_id).collect();
        self.open = match &self.viewer.turn {
            Some((turn, _)) => store.turn_view(*turn).await?.into_iter().collect(),
            None => store.turn_views_after(&[(self.viewer.conversation_id, self.viewer.cursor.base())]).await?,
        };
        let base = self.viewer.cursor.base();
        let cut = self.open.len() as i64 >= crate::store::MAX_VIEWED;
        // Turns of a conversation go one by one only after their terminals, by the retention.
        let gone = before.iter().any(|t| !self.open.iter().any(|v| v.turn_id == *t));
        let nothing = self.open.is_empty();
        self.erased = match self.scope {
            Scope::Turn => nothing,
            Scope::Session => gone || (nothing && !self.exists().await?),
        };
        self.listed = self.open.iter().map(|v| v.turn_id).collect();
        if self.scope == Scope::Session {
            let all: Vec<i64> = self.open.iter().map(|v| v.number).collect();
            if let Some(&last) = all.last() {
                self.viewer.cursor.compact(&all, last);
            }
        }
        let moved = self.viewer.cursor.base() > base;
        self.open.retain(|v| self.viewer.cursor.shown(v.number) != Shown::Done);
        // The rest is read when what can be shown of this part was: that moves the base.
        self.more = cut && (moved || self.open.iter().any(|v| v.terminal.is_some()));
        self.todo = self.open.clone();
        // Whoever comes back behind a turn's terminal finds the end of its stream.
        self.over |= self.scope == Scope::Turn && !nothing && self.open.is_empty();
        Ok(())
    }

    async fn exists(&self) -> Result<bool, StoreError> {
        Ok(!self.streams.store.conversation_states(&[self.viewer.conversation_id]).await?.is_empty())
    }

    /// Whether the stream may end cleanly now: a turn that nobody told it of counts too.
    async fn owes_nothing(&mut self) -> bool {
        self.read_store().await.is_ok() && self.open.is_empty() && !self.more && !self.erased
    }

    /// How a turn is shown here: with its holder's on a session, unless that lies before the session's beginning.
    fn scope_of(&self, view: &TurnView) -> Scope {
        match &view.terminal {
            Some(terminal) if !self.listed.contains(&terminal.holder) => Scope::Turn,
            _ => self.scope,
        }
    }

    /// Shows a part of a turn; `None` when it owes nothing more now.
    async fn step(&mut self, view: &TurnView) -> Result<Option<Step>, StoreError> {
        let scope = self.scope_of(view);
        if let Some(owed) = render::owed(view, &self.viewer.cursor, scope) {
            let span = match self.read_log(view, owed).await {
                // What cannot be read (a newer version's frame, say) must not keep the terminal back.
                Err(StoreError::Refused(why)) => {
                    tracing::error!(turn = %owed.log, %why, "the log of turn {} cannot be shown", owed.log);
                    Span::default()
                }
                read => read?,
            };
            if !span.is_empty() {
                let frames = render::output(view, &mut self.viewer.cursor, span);
                return Ok(Some(Step { frames, ended: Vec::new() }));
            }
        }
        let Some(terminal) = &view.terminal else { return Ok(None) };
        let answered = match terminal.answers {
            0 | 1 => Vec::new(),
            _ => self.streams.store.turns_answered_by(terminal.holder).await?,
        };
        let frames = render::terminal(view, terminal, &mut self.viewer.cursor, scope, &answered);
        self.open.retain(|v| v.turn_id != view.turn_id);
        self.over |= self.scope == Scope::Turn;
        self.todo.remove(0);
        // A turn that is shown with another's reply is delivered by that.
        let mut ended: Vec<TurnId> = answered.into_iter().map(|a| a.0).collect();
        ended.push(view.turn_id);
        Ok(Some(Step { frames, ended }))
    }

    /// What a log holds from `from` on: live, if it is in memory here; otherwise as stored.
    async fn read_log(&self, view: &TurnView, owed: Owed) -> Result<Span, StoreError> {
        let span = match self.streams.live.read(owed.log, owed.from) {
            // Nobody runs it yet: there is no log.
            None if owed.until.is_none() && view.worker.is_none() => return Ok(Span::default()),
            // What is in memory of a turn whose worker went to another replica may be all that it said here.
            Some(span) if owed.until.is_none() && (!span.is_empty() || self.streams.live.holds(owed.log)) => span,
            Some(span) if owed.until.is_some_and(|until| span.end() >= until) => span,
            _ => self.streams.store.read_log(owed.log, owed.from, LOG_ROWS).await?,
        };
        Ok(match owed.until {
            Some(until) => span.until(until),
            None => span,
        })
    }

    fn was_shown(&self, ended: &[TurnId]) {
        if self.viewer.owner {
            ended.iter().for_each(|&turn| self.streams.shown.note(turn));
        }
    }

    async fn wait(&mut self) -> Woken {
        if self.erased {
            return Woken::Erased;
        }
        let mut remote = false;
        for view in &self.open {
            if let (Some(worker), false) = (view.worker, self.streams.live.holds(view.turn_id)) {
                remote = true;
                let Shown::Part { offset, .. } = self.viewer.cursor.shown(view.number) else { continue };
                self.streams.follower.follow(view.turn_id, view.conversation_id, worker, offset);
            }
        }
        let silence = KEEP_ALIVE.saturating_sub(self.last_sent.elapsed());
        let pause = match (self.failed, remote) {
            (true, _) => RETRY.min(silence),
            (_, true) => REMOTE_LOG_EVERY.min(silence),
            _ => silence,
        };
        tokio::select! {
            news = self.feed.changed() => {
                if news.store != self.store_news {
                    self.store_news = news.store;
                    self.stale = true;
                } else {
                    self.todo = self.open.clone();
                }
                Woken::News
            }
            () = tokio::time::sleep(pause) => {
                if pause == silence {
                    self.last_sent = Instant::now();
                    return Woken::KeepAlive;
                }
                self.todo = self.open.clone();
                Woken::News
            }
            () = self.streams.shutdown.cancelled() => Woken::Shutdown,
        }
    }
}
