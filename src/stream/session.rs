//! A client's stream: on a conversation (a session), or on one turn.
//!
//! The stream pulls: it waits for a change of its conversation, reads what its cursor has not seen (output from the live
//! logs, turns and terminals from the store), writes it, and waits again. So nothing queues up for a slow client, and a
//! wake-up that is lost costs the time until the next poll, never a frame.
//!
//! A gateway that is cut off from the database cannot know what ends elsewhere. After half a lease it aborts its streams, so that
//! clients go on at another gateway, by their cursors.
//!
//! A stream ends cleanly only when no turn on it lacks its terminal. Otherwise it is aborted, since every client library
//! takes a clean end for success.

use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::Stream;
use tokio_util::sync::CancellationToken;

use super::delivery::ShownTerminals;
use super::render::{self, Owed, StreamKind};
use super::sse;
use crate::dispatch::follow::Follower;
use crate::dispatch::live::LiveLogs;
use crate::dispatch::subscriptions::{Subscription, Subscriptions};
use crate::heartbeat::{Ticks, half_a_lease};
use crate::store::{Store, StoreError, TurnView};
use crate::turn::cursor::{Cursor, Shown};
use crate::turn::defaults::LEASE_SECONDS;
use crate::turn::frame::Span;
use crate::turn::keys::{ConversationId, GatewayId, SessionId, TurnId};

/// A client that is sent nothing for this long is sent a comment, so that proxies do not close its connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How often a log is read from the store while it cannot be followed: the replica that holds its worker is not known, or
/// cannot be reached.
const REMOTE_LOG_EVERY: Duration = Duration::from_millis(500);
/// The most stored rows of a log that are read at once.
const LOG_ROWS: u32 = 64;
/// The pause before the store is read again after it failed.
const RETRY: Duration = Duration::from_millis(500);

/// What a stream needs of its replica. Cheap to clone.
#[derive(Clone)]
pub struct Streams {
    pub gateway: GatewayId,
    pub store: Store,
    pub live: LiveLogs,
    pub subscriptions: Subscriptions,
    pub follower: Follower,
    pub shown: ShownTerminals,
    pub ticks: Ticks,
    pub shutdown: CancellationToken,
}

/// What a client asked to see, and who it is.
pub struct Viewer {
    pub conversation_id: ConversationId,
    /// The conversation's name.
    pub conversation: String,
    /// The turn and its message id, if the client asked for a turn's own stream; `None` for a session.
    pub turn: Option<(TurnId, String)>,
    /// What the client has seen already.
    pub cursor: Cursor,
    /// Whether the client's user owns the conversation: a terminal that the owner was shown counts as delivered.
    pub owner: bool,
}

impl Streams {
    /// Takes charge of a session that was registered in the database: it is taken off when this value is dropped.
    pub fn registered(&self, id: SessionId) -> SessionRegistration {
        SessionRegistration { id, store: self.store.clone() }
    }

    /// The bytes of the stream. A session must have been registered before this is called, else the delivery of a terminal
    /// that is written meanwhile would be put aside for want of a session.
    pub fn open(
        self,
        viewer: Viewer,
        session: Option<SessionRegistration>,
    ) -> impl Stream<Item = Result<Bytes, io::Error>> + Send {
        async_stream::try_stream! {
            let _registered = session;
            // Subscribed before the first look at the store, so that no change falls between the two.
            let changes = self.subscriptions.subscribe(viewer.conversation_id);
            let about = viewer.turn.as_ref().map(|(id, message)| sse::FrameSubject { turn_id: *id, message_id: message });
            yield sse::connected(&viewer.cursor, &viewer.conversation, about);
            let mut stream = ClientStream::new(self, viewer, changes);
            loop {
                while let Some(step) = stream.next().await {
                    for frame in step.frames {
                        yield frame;
                    }
                    // To be asked for more means that the frames so far were passed on to the client's connection.
                    stream.was_shown(&step.ended);
                    stream.last_sent = Instant::now();
                }
                if stream.over {
                    return;
                }
                match stream.wait().await {
                    Woken::Look => {}
                    Woken::KeepAlive => yield sse::keep_alive(),
                    Woken::Shutdown => {
                        if stream.owes_nothing().await {
                            return;
                        }
                        Err(io::Error::other("the gateway stops before the turn's terminal"))?;
                    }
                    Woken::CutOff => Err(io::Error::other("the gateway is cut off from the database"))?,
                    Woken::Erased => Err(io::Error::other("the conversation was erased"))?,
                }
            }
        }
    }
}

/// A session in the database's registry of sessions; dropping it takes it off.
pub struct SessionRegistration {
    id: SessionId,
    store: Store,
}

impl Drop for SessionRegistration {
    fn drop(&mut self) {
        let (store, id) = (self.store.clone(), self.id);
        tokio::spawn(async move {
            // If this fails, the row is removed together with this gateway's.
            let _ = store.forget_sessions(&[id]).await;
        });
    }
}

/// Frames to write together.
struct StreamStep {
    frames: Vec<Bytes>,
    /// The turns whose terminals are complete with these frames.
    ended: Vec<TurnId>,
}

/// Why a wait ended.
enum Woken {
    /// There may be something to show.
    Look,
    /// The client was sent nothing for [`KEEP_ALIVE`].
    KeepAlive,
    /// The replica stops.
    Shutdown,
    /// The replica has not ticked for half a lease.
    CutOff,
    /// The conversation, or the stream's turn, is no more.
    Erased,
}

/// How far a stream has come, and the turns that it has yet to show.
struct ClientStream {
    streams: Streams,
    viewer: Viewer,
    kind: StreamKind,
    changes: Subscription,
    /// Turns that owe something to the cursor, in order.
    open: Vec<TurnView>,
    /// What was open before the last look at the store, and is yet to be met by it.
    before: Vec<(TurnId, i64)>,
    /// Every turn of the last look at the store, whether it owes something or not.
    listed: HashSet<TurnId>,
    /// The number of the last turn that the look at the store has listed.
    listed_through: i64,
    /// The store must be looked at anew before the next step.
    stale: bool,
    /// The look at the store goes on behind `listed_through`: the page was full.
    more: bool,
    /// Turns to go through before the next wait.
    todo: Vec<TurnView>,
    /// The store's count of changes at the last look.
    store_changes: u64,
    /// The stream of a turn has shown the turn's terminal.
    over: bool,
    /// The store could not be read.
    failed: bool,
    erased: bool,
    /// When the stream was opened.
    begin: tokio::time::Instant,
    /// When the client was last sent anything.
    last_sent: Instant,
}

impl ClientStream {
    fn new(streams: Streams, viewer: Viewer, mut changes: Subscription) -> Self {
        let kind = if viewer.turn.is_some() { StreamKind::Turn } else { StreamKind::Session };
        let store_changes = changes.seen().store;
        ClientStream {
            streams,
            viewer,
            kind,
            changes,
            open: Vec::new(),
            before: Vec::new(),
            listed: HashSet::new(),
            listed_through: 0,
            stale: true,
            more: false,
            todo: Vec::new(),
            store_changes,
            over: false,
            failed: false,
            erased: false,
            begin: tokio::time::Instant::now(),
            last_sent: Instant::now(),
        }
    }

    /// The next frames, if there are any now.
    async fn next(&mut self) -> Option<StreamStep> {
        loop {
            if self.stale || (self.more && self.todo.is_empty()) {
                match self.read_store().await {
                    Ok(()) => self.failed = false,
                    Err(error) => return self.fails(&error),
                }
            }
            while let Some(view) = self.todo.first().cloned() {
                match self.step(&view).await {
                    Ok(Some(step)) => return Some(step),
                    Ok(None) => drop(self.todo.remove(0)),
                    Err(error) => return self.fails(&error),
                }
            }
            if !self.more || self.over {
                return None;
            }
        }
    }

    /// The store could not be read: it is looked at anew.
    fn fails(&mut self, error: &StoreError) -> Option<StreamStep> {
        if !std::mem::replace(&mut self.failed, true) {
            tracing::debug!(%error, "a session waits for the database");
        }
        self.stale = true;
        None
    }

    /// Reads the turns that lie past the cursor, a page of them: the first if the look is a new one, else the next. Pages go on
    /// behind the last turn that was listed and not behind the cursor's base, which an open turn may keep far behind.
    async fn read_store(&mut self) -> Result<(), StoreError> {
        if self.stale {
            // Behind what a look that failed on its way has not met.
            self.before.extend(self.open.drain(..).map(|v| (v.turn_id, v.number)));
            self.listed.clear();
            self.listed_through = self.viewer.cursor.base();
        }
        // Until the page was read nothing of the look is known.
        let first = std::mem::replace(&mut self.stale, true);
        let store = &self.streams.store;
        let page = match &self.viewer.turn {
            Some((turn, _)) => store.turn_view(*turn).await?.into_iter().collect(),
            None => store.turn_views_after(&[(self.viewer.conversation_id, self.listed_through)]).await?,
        };
        self.more = self.kind == StreamKind::Session && page.len() as i64 >= crate::store::MAX_VIEWED;
        let through = page.last().map_or(self.listed_through, |v| v.number);
        // A turn that still owes something and is not there any more was erased, or removed by the retention: either way
        // its terminal cannot be shown.
        let more = self.more;
        let met = self.before.extract_if(.., |(_, number)| !more || *number <= through);
        let gone = met.map(|(turn, _)| turn).any(|turn| !page.iter().any(|v: &TurnView| v.turn_id == turn));
        let nothing = first && page.is_empty();
        let erased = match self.kind {
            StreamKind::Turn => nothing,
            StreamKind::Session => gone || (nothing && !self.exists().await?),
        };
        self.erased = erased || (self.erased && !first);
        self.listed.extend(page.iter().map(|v| v.turn_id));
        if self.kind == StreamKind::Session && !page.is_empty() {
            // What earlier pages have left open lies before this one.
            let exist: Vec<i64> = self.open.iter().chain(&page).map(|v| v.number).collect();
            self.viewer.cursor.compact(&exist, through);
            self.listed_through = through;
        }
        let unseen = page.into_iter().filter(|v| self.viewer.cursor.shown(v.number) != Shown::Done);
        self.todo = unseen.collect();
        self.open.extend(self.todo.iter().cloned());
        // A client that comes back to a turn's stream with the terminal on its cursor finds the end of the stream.
        self.over |= self.kind == StreamKind::Turn && !nothing && self.open.is_empty();
        self.stale = false;
        Ok(())
    }

    async fn exists(&self) -> Result<bool, StoreError> {
        Ok(!self.streams.store.conversation_states(&[self.viewer.conversation_id]).await?.is_empty())
    }

    /// Whether the stream may end cleanly now. The store is asked, since no notice of a new turn may have come yet.
    async fn owes_nothing(&mut self) -> bool {
        self.stale = true;
        loop {
            if self.read_store().await.is_err() || !self.open.is_empty() || self.erased {
                return false;
            }
            if !self.more {
                return true;
            }
        }
    }

    /// How a turn is shown here. A session shows a turn that shares a reply with the turn that holds it; if that one lies
    /// before the session's beginning, the turn is shown in full.
    fn kind_of(&self, view: &TurnView) -> StreamKind {
        match &view.terminal {
            Some(terminal) if !self.listed.contains(&terminal.holder) => StreamKind::Turn,
            _ => self.kind,
        }
    }

    /// Shows a part of a turn; `None` when there is nothing more to show of it now.
    async fn step(&mut self, view: &TurnView) -> Result<Option<StreamStep>, StoreError> {
        let kind = self.kind_of(view);
        if let Some(owed) = render::owed(view, &self.viewer.cursor, kind) {
            let span = match self.read_log(view, owed).await {
                // A log that cannot be read (a newer version's frame is in it, say) must not hold the terminal up.
                Err(StoreError::Refused(why)) => {
                    tracing::error!(turn = %owed.log, %why, "the log of turn {} cannot be shown", owed.log);
                    Span::default()
                }
                read => read?,
            };
            if !span.is_empty() {
                let frames = render::output(view, &mut self.viewer.cursor, span);
                return Ok(Some(StreamStep { frames, ended: Vec::new() }));
            }
        }
        let Some(terminal) = &view.terminal else { return Ok(None) };
        let answered = match terminal.answers {
            0 | 1 => Vec::new(),
            _ => self.streams.store.turns_answered_by(terminal.holder).await?,
        };
        let frames = render::terminal(view, terminal, &mut self.viewer.cursor, kind, &answered);
        self.open.retain(|v| v.turn_id != view.turn_id);
        self.over |= self.kind == StreamKind::Turn;
        self.todo.remove(0);
        // All turns that the reply answers are delivered by it, also those that were shown with another turn.
        let mut ended: Vec<TurnId> = answered.into_iter().map(|a| a.0).collect();
        ended.push(view.turn_id);
        Ok(Some(StreamStep { frames, ended }))
    }

    /// The owed part of a log: from memory, if the log is live here; otherwise from the store.
    async fn read_log(&self, view: &TurnView, owed: Owed) -> Result<Span, StoreError> {
        let span = match self.streams.live.read(owed.log, owed.from) {
            // No worker has the turn yet, so it has no log.
            None if owed.until.is_none() && view.worker.is_none() => return Ok(Span::default()),
            // When the worker has moved to another replica, the log in memory may end where it left. So nothing new in memory
            // means that there is nothing new only while the output still passes through here.
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

    /// Waits until there may be something to show. Open turns whose worker another replica holds are followed meanwhile.
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
        let patience = self.patience();
        tokio::select! {
            counts = self.changes.changed() => {
                if counts.store != self.store_changes {
                    self.store_changes = counts.store;
                    self.stale = true;
                } else {
                    self.todo = self.open.clone();
                }
                Woken::Look
            }
            () = tokio::time::sleep(pause) => {
                if pause == silence {
                    self.last_sent = Instant::now();
                    return Woken::KeepAlive;
                }
                self.todo = self.open.clone();
                Woken::Look
            }
            () = self.streams.shutdown.cancelled() => Woken::Shutdown,
            () = self.streams.ticks.missing_for(patience, self.begin) => Woken::CutOff,
        }
    }

    /// How long the replica may go without a tick: half of the shortest lease of those who hold turns that are shown here; of
    /// the usual one, if nobody does.
    fn patience(&self) -> Duration {
        let leases = self.open.iter().filter_map(|view| view.lease_seconds);
        half_a_lease(leases.min().unwrap_or(LEASE_SECONDS))
    }
}
