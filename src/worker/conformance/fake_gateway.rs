//! A gateway without a database, which fails on command: for `lastword worker conformance` and Lastword's own tests.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;
use url::Url;

use super::endpoints;
use super::state::{GatewayState, SharedState};
use crate::turn::keys::TurnId;
use crate::wire::{Hello, ToWorker, TurnPush};

/// A running fake gateway; its port closes when it is dropped.
pub struct FakeGateway {
    url: Url,
    shared: Arc<SharedState>,
    _server: AbortOnDropHandle<()>,
}

impl FakeGateway {
    /// Listens on a free loopback port and accepts `credential`. Heartbeats are due every second; a lease lasts
    /// `lease_seconds`.
    pub async fn start(credential: String, lease_seconds: u32) -> io::Result<Self> {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = Url::parse(&format!("http://{}", listener.local_addr()?)).map_err(io::Error::other)?;
        let hello = Hello { heartbeat_seconds: 1, lease_seconds, capacity: 1, address: None };
        let shared = Arc::new(SharedState::new(GatewayState::new(credential, hello)));
        let server = tokio::spawn(endpoints::serve(listener, shared.clone()));
        Ok(FakeGateway { url, shared, _server: AbortOnDropHandle::new(server) })
    }

    /// The base URL for the worker's `LASTWORD_WORKER_GATEWAY`.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Reads the state, or changes it.
    pub fn with<T>(&self, f: impl FnOnce(&mut GatewayState) -> T) -> T {
        let result = f(&mut self.shared.state());
        self.shared.changed();
        result
    }

    /// Waits until `f` returns `Some`; `None` if it does not within `limit`.
    pub async fn wait<T>(&self, limit: Duration, f: impl Fn(&GatewayState) -> Option<T>) -> Option<T> {
        let mut changed = self.shared.changes();
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

    /// Pushes a new turn with this message. The worker owes it even if no stream is open.
    pub fn push(&self, message: &str) -> TurnId {
        self.push_in(message, "conformance")
    }

    /// The same, in the conversation of this name.
    pub fn push_in(&self, message: &str, conversation: &str) -> TurnId {
        self.push_with(message, conversation, |_| {})
    }

    /// The same, with a change of what is pushed.
    pub fn push_with(&self, message: &str, conversation: &str, change: impl FnOnce(&mut TurnPush)) -> TurnId {
        let mut turn = new_turn(message, conversation);
        change(&mut turn);
        let id = turn.turn_id;
        self.with(|state| state.push(turn));
        id
    }

    /// Pushes a known turn once more.
    pub fn push_again(&self, turn: TurnId) {
        self.with(|state| {
            if let Some(push) = state.turns.get(&turn).map(|turn| turn.push.clone()) {
                state.send(&ToWorker::Turn(Box::new(push)));
            }
        });
    }

    /// Cancels a turn.
    pub fn cancel(&self, turn: TurnId) {
        self.with(|state| {
            if let Some(turn) = state.turns.get_mut(&turn) {
                (turn.closed, turn.cancelled) = (true, true);
            }
            state.send(&ToWorker::Cancel { turn_id: turn });
        });
    }

    /// Orders a drain and pushes a turn right behind it, which so crosses the worker's goodbye.
    pub fn drain_and_push(&self, seconds: u32, message: &str) -> TurnId {
        let turn = new_turn(message, "late");
        let id = turn.turn_id;
        self.with(|state| {
            state.send(&ToWorker::Drain { seconds });
            state.push(turn);
        });
        id
    }

    /// Breaks the connection of the turns stream, and loses all output that is not durable.
    pub fn break_stream(&self) {
        self.with(|state| {
            if let Some((_, connection)) = state.stream.take() {
                connection.cancel();
            }
            state.forget();
        });
    }
}

/// A turn as a real gateway would push it.
fn new_turn(message: &str, conversation: &str) -> TurnPush {
    let turn_id = TurnId::new();
    TurnPush {
        turn_id,
        message_id: format!("message-{turn_id}"),
        organization: "default".into(),
        conversation: conversation.into(),
        conversation_name: format!("name of {conversation}"),
        user: "somebody".into(),
        agent: "agent".into(),
        worker_group: "agent".into(),
        platform: "api".into(),
        platform_metadata: serde_json::json!({}),
        message: message.into(),
        acked: 0,
        history: Vec::new(),
        seconds_left: None,
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
    }
}
