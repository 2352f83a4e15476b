//! What the fake gateway knows and has seen. Tests and checks read it, and set its faults.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use axum::body::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::turn::frame::Span;
use crate::turn::keys::TurnId;
use crate::wire::{Connect, Finish, Goodbye, Hello, ToWorker, TurnPush};

/// What goes wrong with the next `finish` call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishFault {
    /// The word is taken, but the connection breaks before the answer.
    NoAnswer,
    /// The answer is 503, and the word is not taken.
    Unavailable,
    /// The gateway loses all output that is not durable, and answers 409.
    Forgotten,
}

/// What the gateway knows, what it has seen, and how it is to fail.
pub struct GatewayState {
    /// The credential that it accepts.
    pub(super) credential: String,
    /// The terms that it grants.
    pub hello: Hello,
    /// The query of each call of the turns stream that was accepted.
    pub connects: Vec<Connect>,
    /// The incarnations that ever called, in the order of their first calls.
    pub incarnations: Vec<String>,
    /// The open turns stream, and the token that breaks its connection.
    pub(super) stream: Option<(mpsc::UnboundedSender<Bytes>, CancellationToken)>,
    pub turns: HashMap<TurnId, RecordedTurn>,
    /// When each heartbeat came, and the turns that it named.
    pub heartbeats: Vec<(Instant, Vec<TurnId>)>,
    pub goodbyes: Vec<Goodbye>,
    /// The breaches of the protocol that were seen, in words.
    pub problems: Vec<String>,
    /// A fault: so many more calls of the turns stream are answered 503.
    pub unavailable_streams: u32,
    /// How many were.
    pub refused_streams: u32,
    /// Faults of the next `finish` calls, one each.
    pub finish_faults: Vec<FinishFault>,
    /// A fault: the lease is dead, so all calls are answered 410.
    pub gone: bool,
    /// A fault: output is received, but does not become durable.
    pub hold: bool,
    /// A fault: output posts are never answered.
    pub stall: bool,
}

/// One turn, as the gateway sees it.
pub struct RecordedTurn {
    /// What was pushed.
    pub push: TurnPush,
    /// The output received so far.
    pub span: Span,
    /// How far the output is durable, in log units.
    pub acked: u64,
    /// How many posts of output came, empty ones too.
    pub posts: u32,
    /// How many of them began beyond what was received.
    pub gaps: u32,
    /// The `finish` calls, those that met a fault too.
    pub finishes: Vec<Finish>,
    /// The worker owes nothing more: the turn was finished, cancelled or handed back.
    pub closed: bool,
    pub cancelled: bool,
    pub handed_back: bool,
}

impl RecordedTurn {
    /// The reply's text.
    pub fn text(&self) -> String {
        self.span.text()
    }
}

impl RecordedTurn {
    /// A turn of which nothing has come yet.
    pub(super) fn new(push: TurnPush) -> Self {
        RecordedTurn {
            push,
            span: Span::default(),
            acked: 0,
            posts: 0,
            gaps: 0,
            finishes: Vec::new(),
            closed: false,
            cancelled: false,
            handed_back: false,
        }
    }
}

impl GatewayState {
    /// A gateway without faults that has seen nothing yet.
    pub(super) fn new(credential: String, hello: Hello) -> Self {
        GatewayState {
            credential,
            hello,
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
        }
    }

    /// Loses all output that is not durable, as when a gateway dies.
    pub(super) fn forget(&mut self) {
        for turn in self.turns.values_mut().filter(|turn| !turn.closed) {
            turn.span = Span::new(0, std::mem::take(&mut turn.span.frames)).until(turn.acked);
        }
    }

    /// Sends a line to the worker, if its stream is open.
    pub(super) fn send(&self, line: &ToWorker) {
        let (Some((stream, _)), Ok(mut bytes)) = (&self.stream, serde_json::to_vec(line)) else { return };
        bytes.push(b'\n');
        // An error means that the stream has just closed, which the worker sees by itself.
        let _ = stream.send(bytes.into());
    }

    /// Enters a new turn and pushes it. The worker owes it even if no stream is open.
    pub(super) fn push(&mut self, turn: TurnPush) {
        self.turns.insert(turn.turn_id, RecordedTurn::new(turn.clone()));
        self.send(&ToWorker::Turn(Box::new(turn)));
    }

    /// The turns that the worker owes and did not name.
    pub(super) fn owed(&self, named: &[TurnId]) -> Vec<TurnPush> {
        let owed = self.turns.values().filter(|turn| !turn.closed && !named.contains(&turn.push.turn_id));
        owed.map(|turn| TurnPush { acked: turn.acked, ..turn.push.clone() }).collect()
    }
}

/// The state, shared by the calls and by those who look on, with a sign for each change.
pub(super) struct SharedState {
    state: Mutex<GatewayState>,
    changed: watch::Sender<()>,
}

impl SharedState {
    pub(super) fn new(state: GatewayState) -> Self {
        SharedState { state: Mutex::new(state), changed: watch::channel(()).0 }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, GatewayState> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Tells those who wait that the state has changed.
    pub(super) fn changed(&self) {
        self.changed.send_replace(());
    }

    /// A receiver of these signs.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}
