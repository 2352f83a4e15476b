//! Those who act on a store in tests: clients that arm, workers that claim and finish, gateways that tick.

use lastword::store::{Arm, Armed, ClaimFor, ClaimOrder, Claimed, FinishError, NewStart, Store, WorkerWord};
use lastword::turn::frame::{Frame, Span};
use lastword::turn::keys::{GatewayId, Grouping, Incarnation, StartId, TurnId, WorkerGroup, content_hash};
use lastword::turn::reason::Reason;
use lastword::turn::routing::Routing;
use lastword::turn::terminal::{Failure, Outcome};
use lastword::wire::Credential;
use serde_json::Value;
use uuid::Uuid;

use super::Db;

pub const ORGANIZATION: &str = "acme";
pub const AGENT: &str = "bot";
pub const USER: &str = "ada";
/// The lease of every worker that nobody said otherwise of, in seconds.
pub const LEASE: u32 = 60;

/// A turn of `bot` in this conversation, with a message of its own.
pub fn arm(conversation: &str) -> Arm {
    let message_id = Uuid::new_v4().to_string();
    message(conversation, &message_id, &format!("hello {message_id}"))
}

/// A turn with this messageId and text.
pub fn message(conversation: &str, message_id: &str, text: &str) -> Arm {
    Arm {
        turn_id: TurnId::new(),
        organization: ORGANIZATION.into(),
        conversation: conversation.into(),
        message_id: message_id.into(),
        agent: AGENT.into(),
        grouping: Grouping::PerAgent,
        user: USER.into(),
        routing: serde_json::to_value(Routing::default()).expect("serializable"),
        input: text.into(),
        content_hash: content_hash(AGENT, USER, "api", text, &Value::Null),
        traceparent: None,
        turn_seconds: 600,
        guard: None,
        object: None,
        limits: None,
        request: None,
    }
}

/// A start of a worker that all conversations of `bot` share, and its credential.
pub fn new_start() -> (NewStart, Credential) {
    let start_id = StartId::new();
    let credential = Credential::new(start_id);
    let start = NewStart {
        start_id,
        organization: ORGANIZATION.into(),
        agent: AGENT.into(),
        worker_group: WorkerGroup::OfAgent,
        config: 1,
        runtime: "process",
        runtime_ref: "boot".into(),
        secret_hash: credential.hash(),
        capacity: 10_000,
        heartbeat_seconds: 20,
        lease_seconds: LEASE,
        drain_seconds: 30,
        start_attempts: 1,
        start_seconds: 60,
    };
    (start, credential)
}

/// A worker whose lease is live.
#[derive(Clone)]
pub struct Worker {
    pub incarnation: Incarnation,
    pub credential: Credential,
    pub gateway: GatewayId,
    pub stream: Uuid,
    pub together: bool,
}

impl Worker {
    /// Starts and connects one for `bot`.
    pub async fn live(store: &Store) -> Worker {
        Worker::with(store, |_| {}).await
    }

    /// One that takes all turns of a conversation that wait.
    pub async fn together(store: &Store) -> Worker {
        let mut worker = Worker::live(store).await;
        worker.together = true;
        worker
    }

    /// Starts and connects one whose start was changed before.
    pub async fn with(store: &Store, change: impl FnOnce(&mut NewStart)) -> Worker {
        let (mut start, credential) = new_start();
        change(&mut start);
        assert!(store.start_worker(&start, false).await.expect("starts"));
        Worker::connect(store, credential).await
    }

    /// Connects a new incarnation under a credential.
    pub async fn connect(store: &Store, credential: Credential) -> Worker {
        let worker = Worker {
            incarnation: Incarnation::new(),
            credential,
            gateway: GatewayId::new(),
            stream: Uuid::new_v4(),
            together: false,
        };
        let connected = store
            .connect_worker(&worker.credential, worker.incarnation, worker.gateway, worker.stream, 10_000, false)
            .await;
        connected.expect("may connect");
        worker
    }

    /// Claims up to `room` turns.
    pub async fn claim(&self, store: &Store, room: u32) -> Vec<Claimed> {
        let claim =
            ClaimFor { incarnation: self.incarnation, room, together: self.together, order: ClaimOrder::OldestFirst };
        store.claim(claim).await.expect("claims")
    }

    /// Claims up to `room` turns; their ids.
    pub async fn claim_ids(&self, store: &Store, room: u32) -> Vec<TurnId> {
        self.claim(store, room).await.into_iter().map(|c| c.turn_id).collect()
    }

    /// A reply with this text, none of it durable yet.
    pub fn reply(&self, turns: &[TurnId], text: &str) -> WorkerWord {
        WorkerWord {
            incarnation: self.incarnation,
            turn_ids: turns.to_vec(),
            reply_id: Uuid::new_v4().to_string(),
            outcome: Outcome::Reply,
            finish_reason: None,
            end: text.len() as u64,
            tail: Span::new(0, vec![Frame::text(text)]),
        }
    }
}

/// Finishes; the database is there.
pub async fn finish(store: &Store, word: WorkerWord) -> Result<bool, FinishError> {
    store.finish(word).await
}

/// Arms; nothing is wrong with it.
pub async fn armed(store: &Store, arm: Arm) -> Armed {
    store.arm(arm).await.expect("armed")
}

pub fn failure(reason: Reason) -> Failure {
    Failure::detailed(reason, "by the test")
}

impl Db {
    /// How a turn ended: `reply`, or the reason of its error; `None` while it is open.
    pub async fn outcome(&self, turn: TurnId) -> Option<String> {
        self.text(format!("SELECT coalesce(reason, outcome) FROM terminal WHERE turn_id = '{turn}'")).await
    }

    /// The phase of a turn's marker; `None` when it is gone.
    pub async fn phase(&self, turn: TurnId) -> Option<String> {
        self.text(format!("SELECT phase FROM marker WHERE turn_id = '{turn}'")).await
    }

    /// The phase of a lease.
    pub async fn lease(&self, incarnation: Incarnation) -> Option<String> {
        self.text(format!("SELECT phase FROM lease WHERE incarnation = '{incarnation}'")).await
    }

    /// Gateways, all that there are, have ticked without a gap for an hour, and tick now.
    pub async fn settled(&self) {
        self.sql("UPDATE gate SET since = clock_timestamp() - interval '1 hour', seen = clock_timestamp()").await;
        self.sql("UPDATE gateway SET since = clock_timestamp() - interval '1 hour', seen = clock_timestamp()").await;
    }
}
