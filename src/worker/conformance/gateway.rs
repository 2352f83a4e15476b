//! A gateway without a database, which can fail on command: for `lastword worker conformance` and our own tests.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use super::endpoints;
use crate::turn::frame::Span;
use crate::turn::keys::TurnId;
use crate::wire::{Connect, Finish, Goodbye, Hello, ToWorker, TurnPush};

/// What is wrong with the next finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishFault {
    /// It is taken, but the connection breaks before the answer.
    NoAnswer,
    /// 503, nothing is taken.
    Unavailable,
    /// All output that is not durable is forgotten: 409.
    Forgotten,
}

/// What the gateway saw and knows.
pub struct State {
    pub(super) credential: String,
    pub hello: Hello,
    /// One for each call of the turns stream that was let in.
    pub connects: Vec<Connect>,
    /// All that ever called, in order of their first call.
    pub incarnations: Vec<String>,
    /// The stream, and what breaks its connection.
    pub(super) stream: Option<(mpsc::UnboundedSender<Bytes>, CancellationToken)>,
    pub turns: HashMap<TurnId, TurnLog>,
    pub heartbeats: Vec<(Instant, Vec<TurnId>)>,
    pub goodbyes: Vec<Goodbye>,
    /// What no worker may do.
    pub problems: Vec<String>,
    /// Answer this many turns streams by 503.
    pub unavailable_streams: u32,
    /// 503s given for them.
    pub refused_streams: u32,
    pub finish_faults: Vec<FinishFault>,
    /// The lease is dead: 410 on all calls.
    pub gone: bool,
    /// Nothing becomes durable.
    pub hold: bool,
    /// Output posts are not answered.
    pub stall: bool,
}

/// One turn as the gateway sees it.
pub struct TurnLog {
    pub push: TurnPush,
    pub span: Span,
    pub acked: u64,
    /// Posts of output, empty ones too.
    pub posts: u32,
    /// Posts beyond what was received.
    pub gaps: u32,
    /// All that were taken or answered by a fault.
    pub finishes: Vec<Finish>,
    /// Nothing more is owed: finished, cancelled, or handed back.
    pub closed: bool,
    pub cancelled: bool,
    pub handed_back: bool,
}

impl TurnLog {
    /// The reply's text.
    pub fn text(&self) -> String {
        self.span.text()
    }
}

impl State {
    /// A connection broke, or the gateway died: what is not durable is lost.
    pub(super) fn forget(&mut self) {
        for turn in self.turns.values_mut().filter(|turn| !turn.closed) {
            turn.span = Span::new(0, std::mem::take(&mut turn.span.frames)).until(turn.acked);
        }
    }

    pub(super) fn line(&mut self, line: &ToWorker) -> bool {
        let Ok(mut bytes) = serde_json::to_vec(line) else { return false };
        bytes.push(b'\n');
        self.stream.as_ref().is_some_and(|(stream, _)| stream.send(bytes.into()).is_ok())
    }

    /// Turns that the worker should have.
    pub(super) fn owed(&self, named: &[TurnId]) -> Vec<TurnPush> {
        let owed = self.turns.values().filter(|turn| !turn.closed && !named.contains(&turn.push.turn_id));
        owed.map(|turn| TurnPush { acked: turn.acked, ..turn.push.clone() }).collect()
    }
}

/// State, and the sign that it changed.
pub(super) struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn changed(&self) {
        self.changed.send_replace(());
    }
}

/// A running one; its port closes when it is dropped.
pub struct Gateway {
    url: Url,
    shared: Arc<Shared>,
    _server: AbortOnDropHandle<()>,
}

impl Gateway {
    /// Listens on a free loopback port. Heartbeats are wanted every second, the lease is `lease_seconds` long.
    pub async fn start(credential: String, lease_seconds: u32) -> io::Result<Self> {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = Url::parse(&format!("http://{}", listener.local_addr()?)).map_err(io::Error::other)?;
        let state = State {
            credential,
            hello: Hello { heartbeat_seconds: 1, lease_seconds, capacity: 1 },
            connects: Vec::new(),
            incarnations: Vec::new(),
            stream: None,
            turns: HashMap::new(),
            heartbeats: Vec::new(),
            goodbyes: Vec::new(),
            problems: Vec::new(),
            unavailable_streams: 0,
            refused_streams: 0,
            finish_faults: Vec::new(),
            gone: false,
            hold: false,
            stall: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: watch::channel(()).0 });
        let server = tokio::spawn(endpoints::serve(listener, shared.clone()));
        Ok(Gateway { url, shared, _server: AbortOnDropHandle::new(server) })
    }

    /// For `LASTWORD_WORKER_GATEWAY`.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Looks at the state, or changes it.
    pub fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let result = f(&mut self.shared.state());
        self.shared.changed();
        result
    }

    /// Waits until `f` finds what it looks for; `None` when it does not within `limit`.
    pub async fn wait<T>(&self, limit: Duration, f: impl Fn(&State) -> Option<T>) -> Option<T> {
        let mut changed = self.shared.changed.subscribe();
        let found = async {
            loop {
                changed.mark_unchanged();
                if let Some(found) = f(&self.shared.state()) {
                    return found;
                }
                if changed.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        };
        tokio::time::timeout(limit, found).await.ok()
    }

    /// Pushes a new turn, and owes it to the worker whether or not there is a stream now.
    pub fn push(&self, message: &str) -> TurnId {
        self.push_in(message, "conformance")
    }

    /// The same in a conversation of that name.
    pub fn push_in(&self, message: &str, conversation: &str) -> TurnId {
        let turn = new_turn(message, conversation);
        let id = turn.turn_id;
        self.with(|state| add(state, turn));
        id
    }

    /// Pushes a known turn once more.
    pub fn push_again(&self, turn: TurnId) {
        self.with(|state| {
            if let Some(push) = state.turns.get(&turn).map(|turn| turn.push.clone()) {
                state.line(&ToWorker::Turn(Box::new(push)));
            }
        });
    }

    /// Cancels a turn.
    pub fn cancel(&self, turn: TurnId) {
        self.with(|state| {
            if let Some(turn) = state.turns.get_mut(&turn) {
                (turn.closed, turn.cancelled) = (true, true);
            }
            state.line(&ToWorker::Cancel { turn_id: turn });
        });
    }

    /// Orders a drain, and pushes a turn that crosses the worker's goodbye. Both are one write.
    pub fn drain_and_push(&self, seconds: u32, message: &str) -> TurnId {
        let turn = new_turn(message, "late");
        let id = turn.turn_id;
        self.with(|state| {
            state.line(&ToWorker::Drain { seconds });
            add(state, turn);
        });
        id
    }

    /// Breaks the turns stream's connection and forgets what is not durable.
    pub fn break_stream(&self) {
        self.with(|state| {
            if let Some((_, connection)) = state.stream.take() {
                connection.cancel();
            }
            state.forget();
        });
    }
}

fn add(state: &mut State, turn: TurnPush) {
    let log = TurnLog {
        push: turn.clone(),
        span: Span::default(),
        acked: 0,
        posts: 0,
        gaps: 0,
        finishes: Vec::new(),
        closed: false,
        cancelled: false,
        handed_back: false,
    };
    state.turns.insert(turn.turn_id, log);
    state.line(&ToWorker::Turn(Box::new(turn)));
}

fn new_turn(message: &str, conversation: &str) -> TurnPush {
    let turn_id = TurnId::new();
    TurnPush {
        turn_id,
        message_id: format!("message-{turn_id}"),
        organization: "default".into(),
        conversation: conversation.into(),
        user: "somebody".into(),
        agent: "agent".into(),
        worker_group: "agent".into(),
        platform: "api".into(),
        platform_metadata: serde_json::json!({}),
        message: message.into(),
        acked: 0,
        history: Vec::new(),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
    }
}
