//! A client's stream: on a conversation (a session), or on one turn.
//!
//! The stream pulls: it waits for a change of its conversation, reads what its cursor has not seen (output from the live
//! logs, turns and terminals from the store), writes it, and waits again. So nothing queues up for a slow client, and a
//! wake-up that is lost costs the time until the next poll, never a frame. What is to be read and shown next is decided by
//! [`progress`](super::progress).
//!
//! A gateway that is cut off from the database cannot know what ends elsewhere. After half a lease it aborts its streams, so that
//! clients go on at another gateway, by their cursors.
//!
//! A stream ends cleanly only when no turn on it lacks its terminal. Otherwise it is aborted, since every client library
//! takes a clean end for success.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::Stream;
use tokio_util::sync::CancellationToken;

use super::delivery::ShownTerminals;
use super::progress::{Next, StreamKind, StreamProgress};
use super::registry::{SessionRegistration, SessionRegistry};
use super::render::Owed;
use super::writer::{FrameSubject, StreamWriter};
use crate::dispatch::follow::Follower;
use crate::dispatch::live::LiveLogs;
use crate::dispatch::subscriptions::{Subscription, Subscriptions};
use crate::heartbeat::{Ticks, half_a_lease};
use crate::store::{Store, StoreError, TurnView};
use crate::turn::cursor::{Cursor, Shown};
use crate::turn::defaults::LEASE_SECONDS;
use crate::turn::frame::Span;
use crate::turn::keys::{ConversationId, GatewayId, TurnId};

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
    pub sessions: SessionRegistry,
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
    /// The bytes of the stream, as the writer makes them. A session must have been registered before this is called, else the delivery of a terminal
    /// that is written meanwhile would be put aside for want of a session.
    pub fn open(
        self,
        viewer: Viewer,
        writer: Box<dyn StreamWriter>,
        session: Option<SessionRegistration>,
    ) -> impl Stream<Item = Result<Bytes, io::Error>> + Send {
        async_stream::try_stream! {
            let _registered = session;
            // Subscribed before the first look at the store, so that no change falls between the two.
            let changes = self.subscriptions.subscribe(viewer.conversation_id);
            let mut stream = ClientStream::new(self, &viewer, writer, changes);
            let about = viewer.turn.as_ref().map(|(id, message)| FrameSubject { turn_id: *id, message_id: message });
            let opening = stream.progress.connected(&viewer.conversation, about);
            if !opening.is_empty() {
                yield opening;
            }
            loop {
                while let Some(step) = stream.next().await {
                    for frame in step.frames.into_iter().filter(|frame| !frame.is_empty()) {
                        yield frame;
                        stream.last_sent = Instant::now();
                    }
                    // To be asked for more means that the frames so far were passed on to the client's connection.
                    stream.was_shown(&step.ended);
                }
                if stream.progress.is_over() {
                    return;
                }
                match stream.wait().await {
                    Woken::Look => {}
                    Woken::KeepAlive => yield stream.progress.keep_alive(),
                    Woken::Shutdown => {
                        if stream.owes_nothing().await {
                            return;
                        }
                        Err(io::Error::other("the gateway stops before the turn's terminal"))?;
                    }
                    Woken::CutOff => Err(io::Error::other("the gateway is cut off from the database"))?,
                    Woken::Lost(why) => Err(io::Error::other(why))?,
                }
            }
        }
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
    /// What is yet to be shown is no more, for this reason.
    Lost(&'static str),
}

/// A stream, and what it needs to go on.
struct ClientStream {
    streams: Streams,
    conversation_id: ConversationId,
    /// Whether what is shown counts as delivered.
    owner: bool,
    changes: Subscription,
    progress: StreamProgress,
    /// The store's count of changes at the last look.
    store_changes: u64,
    /// The store could not be read.
    failed: bool,
    /// When the stream was opened.
    begin: tokio::time::Instant,
    /// The log of a reply that is yet to be shown is gone.
    gone: bool,
    /// When the client was last sent anything.
    last_sent: Instant,
}

impl ClientStream {
    fn new(streams: Streams, viewer: &Viewer, writer: Box<dyn StreamWriter>, mut changes: Subscription) -> Self {
        let kind = viewer.turn.as_ref().map_or(StreamKind::Session, |(turn, _)| StreamKind::Turn(*turn));
        let store_changes = changes.seen().store;
        ClientStream {
            streams,
            conversation_id: viewer.conversation_id,
            owner: viewer.owner,
            changes,
            progress: StreamProgress::new(kind, viewer.cursor.clone(), writer),
            store_changes,
            failed: false,
            begin: tokio::time::Instant::now(),
            gone: false,
            last_sent: Instant::now(),
        }
    }

    /// The next frames, if there are any now.
    async fn next(&mut self) -> Option<StreamStep> {
        while !self.gone {
            let next = self.progress.next();
            if next == Next::Wait {
                return None;
            }
            match self.advance(next).await {
                Ok(step) => {
                    self.failed = false;
                    if !step.frames.is_empty() {
                        return Some(step);
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.failed, true) {
                        tracing::debug!(%error, "a stream waits for the database");
                    }
                    self.progress.look_anew();
                    return None;
                }
            }
        }
        None
    }

    /// Does what is next; the step has no frames where there is nothing to show of it.
    async fn advance(&mut self, next: Next) -> Result<StreamStep, StoreError> {
        let store = &self.streams.store;
        let mut step = StreamStep { frames: Vec::new(), ended: Vec::new() };
        match next {
            Next::Page(behind) => self.read_page(behind).await?,
            Next::Holder { of, holder } => self.progress.took_holder(of, store.turn_view(holder).await?),
            Next::Log(view, owed) => {
                let span = self.read_log(&view, owed).await?;
                step.frames = self.progress.took_log(view.turn_id, span);
            }
            Next::Terminal(view) => {
                let answered = match &view.terminal {
                    Some(terminal) if terminal.answered.len() > 1 => store.turns_answered_by(terminal.holder).await?,
                    _ => Vec::new(),
                };
                (step.frames, step.ended) = self.progress.shows_terminal(view.turn_id, &answered);
            }
            Next::Gone { holder, noted } => {
                if !noted {
                    tracing::error!(turn = %holder, "the log of turn {holder} is gone: its reply is shown to nobody any more");
                    store.note_log_gone(holder).await?;
                }
                self.gone = true;
            }
            Next::Wait => {}
        }
        Ok(step)
    }

    /// Reads turns past the cursor, a page of them.
    async fn read_page(&mut self, behind: i64) -> Result<(), StoreError> {
        let store = &self.streams.store;
        match self.progress.kind() {
            StreamKind::Turn(turn) => {
                let page: Vec<_> = store.turn_view(turn).await?.into_iter().collect();
                let exists = !page.is_empty();
                self.progress.took_page(page, false, exists);
            }
            StreamKind::Session => {
                let page = store.turn_views_after(&[(self.conversation_id, behind)]).await?;
                let exists = !page.is_empty() || !self.progress.begins_look() || self.exists().await?;
                let full = page.len() as i64 >= crate::store::MAX_VIEWED;
                self.progress.took_page(page, full, exists);
            }
        }
        Ok(())
    }

    async fn exists(&self) -> Result<bool, StoreError> {
        Ok(!self.streams.store.conversation_states(&[self.conversation_id]).await?.is_empty())
    }

    /// Whether the stream may end cleanly now. The store is asked, since no notice of a new turn may have come yet.
    async fn owes_nothing(&mut self) -> bool {
        self.progress.look_anew();
        loop {
            let behind = match self.progress.next() {
                Next::Page(behind) => behind,
                _ => return self.progress.has_looked() && self.progress.owing().is_empty(),
            };
            if self.read_page(behind).await.is_err() || self.progress.is_erased() {
                return false;
            }
        }
    }

    /// The owed part of a log: from memory, if the log is live here; otherwise from the store.
    async fn read_log(&self, view: &TurnView, owed: Owed) -> Result<Span, StoreError> {
        let live = &self.streams.live;
        let span = match live.read(owed.log, owed.from) {
            // No worker has the turn yet, so it has no log.
            None if owed.until.is_none() && view.worker.is_none() => return Ok(Span::default()),
            // When the worker has moved to another replica, the log in memory may end where it left. So nothing new in memory
            // means that there is nothing new only while the output still passes through here.
            Some(span) if owed.until.is_none() && (!span.is_empty() || live.passes(owed.log, owed.from)) => span,
            Some(span) if owed.until.is_some_and(|until| span.end() >= until) => span,
            _ => self.streams.store.read_log(owed.log, owed.from, LOG_ROWS).await?,
        };
        Ok(match owed.until {
            Some(until) => span.until(until),
            None => span,
        })
    }

    fn was_shown(&self, ended: &[TurnId]) {
        if self.owner {
            ended.iter().for_each(|&turn| self.streams.shown.note(turn));
        }
    }

    /// Waits until there may be something to show. Open turns whose worker another replica holds are followed meanwhile.
    async fn wait(&mut self) -> Woken {
        if self.progress.is_erased() {
            return Woken::Lost("the conversation was erased");
        }
        if self.gone {
            return Woken::Lost("the log of a reply is gone");
        }
        let mut remote = false;
        for view in self.progress.owing() {
            let Shown::Part { offset, .. } = self.progress.cursor().shown(view.number) else { continue };
            if let (Some(worker), false) = (view.worker, self.streams.live.passes(view.turn_id, offset)) {
                remote = true;
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
                    self.progress.look_anew();
                }
                self.progress.go_through();
                Woken::Look
            }
            () = tokio::time::sleep(pause) => {
                if pause == silence {
                    self.last_sent = Instant::now();
                    return Woken::KeepAlive;
                }
                self.progress.go_through();
                Woken::Look
            }
            () = self.streams.shutdown.cancelled() => Woken::Shutdown,
            () = self.streams.ticks.missing_for(patience, self.begin) => Woken::CutOff,
        }
    }

    /// How long the replica may go without a tick: half of the shortest lease of those who hold turns that are shown here; of
    /// the usual one, if nobody does.
    fn patience(&self) -> Duration {
        let leases = self.progress.owing().iter().filter_map(|view| view.lease_seconds);
        half_a_lease(leases.min().unwrap_or(LEASE_SECONDS))
    }
}
