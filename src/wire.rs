//! The worker protocol's types, for both ends. `docs/worker-protocol.md` tells the protocol; this is its letter.
//!
//! | call | sends | answers |
//! |---|---|---|
//! | `POST /worker/v1/session`, in Kubernetes alone | | [`Session`]; 425: not yet known, ask again |
//! | `GET /worker/v1/turns` ([`Connect`] as query) | | NDJSON of [`ToWorker`], open until either side ends it |
//! | `POST /worker/v1/turns/{id}/output?offset=N` | [`Output`] | [`Acked`] |
//! | `POST /worker/v1/finish` | [`Finish`] | [`Finished`]; 409 [`Missing`] |
//! | `POST /worker/v1/heartbeat` | [`Heartbeat`] | [`HeartbeatAnswer`]; 410 when the lease is dead |
//! | `POST /worker/v1/goodbye` | [`Goodbye`] | 204 |
//!
//! Every call carries `Authorization: Bearer CREDENTIAL` (see [`Credential`]) and [`INCARNATION`]. 410 Gone on any of
//! them means: this incarnation is dead to Lastword, stop. 401 and 403 mean the same for the credential. 503 means: this
//! gateway has no database now, try another or again.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::turn::frame::Frame;
use crate::turn::keys::{StartId, TurnId, hex};
use crate::turn::reason::Reason;
use crate::turn::terminal::Outcome;

/// Header that names the calling incarnation (a UUID that the worker made when its process started).
pub const INCARNATION: &str = "lastword-incarnation";
/// The largest body that a worker may post, in bytes.
pub const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
/// The longest log of one turn, in log units; more output fails the turn.
pub const MAX_LOG_UNITS: u64 = 16 * 1024 * 1024;
/// The largest frame other than text, in bytes of its JSON; text may be cut anywhere.
pub const MAX_FRAME_BYTES: usize = 1024 * 1024;
/// What one turn's frames may weigh together, in bytes; more output fails the turn. Counted by the replica that holds the
/// worker, from when it does.
pub const MAX_LOG_BYTES: usize = 64 * 1024 * 1024;
/// The most history entries that are pushed with a turn.
pub const MAX_HISTORY: u32 = 100;

/// Environment of a worker that a runtime starts.
pub mod env {
    /// Base URL of the worker port, e.g. `http://127.0.0.1:8081`; several, comma-separated, when there are replicas.
    pub const GATEWAY: &str = "LASTWORD_WORKER_GATEWAY";
    /// The credential, in the form of [`super::Credential`].
    pub const CREDENTIAL: &str = "LASTWORD_CREDENTIAL";
    /// Turns that the worker may hold at once.
    pub const CAPACITY: &str = "LASTWORD_TURNS_PER_WORKER";
    /// In Kubernetes, in place of the credential: the file with the token of the pod's ServiceAccount, which
    /// `POST /worker/v1/session` exchanges for one.
    pub const TOKEN_FILE: &str = "LASTWORD_TOKEN_FILE";
    /// A PEM file with the authorities that the worker trusts at `https://` gateways, and no others; absent: the system's.
    pub const GATEWAY_CA: &str = "LASTWORD_WORKER_GATEWAY_CA";
    /// Seconds that a worker has to finish what it holds after SIGTERM.
    pub const DRAIN_SECONDS: &str = "LASTWORD_DRAIN_SECONDS";
    /// Of the adapter `exec`: seconds between SIGTERM and SIGKILL for a program.
    pub const KILL_SECONDS: &str = "LASTWORD_KILL_SECONDS";
    /// The file that tells Kubernetes why a container ended; only of interest where it exists.
    pub const TERMINATION_LOG: &str = "LASTWORD_TERMINATION_LOG";
}

/// A worker's credential: `lww_<start id>_<secret>`. The runtime that starts the worker makes it and stores its hash
/// with the start; it is good for that start alone, on any replica.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    pub start: StartId,
    secret: String,
}

impl Credential {
    /// A fresh one of 256 random bits.
    pub fn new(start: StartId) -> Self {
        let secret: [u8; 32] = rand::random();
        Credential { start, secret: hex(&secret) }
    }

    /// Reads what a worker showed.
    pub fn parse(text: &str) -> Option<Self> {
        let (start, secret) = text.strip_prefix("lww_")?.split_once('_')?;
        let start = StartId(Uuid::try_parse(start).ok()?);
        (secret.len() == 64).then(|| Credential { start, secret: secret.to_string() })
    }

    /// What to show; a secret.
    pub fn reveal(&self) -> String {
        format!("lww_{}_{}", self.start.0.simple(), self.secret)
    }

    /// What the lease stores: SHA-256 of the secret (256 random bits need no slow hash).
    pub fn hash(&self) -> Vec<u8> {
        use sha2::{Digest, Sha256};
        Sha256::digest(self.secret.as_bytes()).to_vec()
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({}, …)", self.start)
    }
}

/// Answer to `POST /worker/v1/session`, which carries the pod's ServiceAccount token in place of a credential.
#[derive(Clone, Serialize, Deserialize)]
pub struct Session {
    /// In the form of [`Credential`], good for this pod on any replica. A later session of the pod replaces it.
    pub credential: String,
}

/// Query of `GET /worker/v1/turns`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Connect {
    /// Turns that the worker may hold at once; the Agent's `turnsPerWorker` caps it.
    #[serde(default = "one")]
    pub capacity: u32,
    /// Turns in hand already, comma-separated: after a reconnect.
    #[serde(default)]
    pub turns: String,
    /// Past turns of the conversation to push with each turn, at most [`MAX_HISTORY`]; 0 for none.
    #[serde(default)]
    pub history: u32,
    /// Claim all turns of a conversation that wait together, for one reply to all; counts as one of `capacity`.
    #[serde(default)]
    pub together: bool,
}

fn one() -> u32 {
    1
}

/// A line of the turns stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum ToWorker {
    /// First line: the worker is live.
    Hello(Hello),
    /// Run this turn. A turn id is run once; a repeat is ignored.
    Turn(Box<TurnPush>),
    /// Stop this turn; nothing that is said of it counts any more.
    #[serde(rename_all = "camelCase")]
    Cancel { turn_id: TurnId },
    /// Claim nothing more, hand back what has not begun, finish the rest within `seconds`, then say goodbye and exit.
    Drain { seconds: u32 },
    /// Nothing; keeps the connection known to be open.
    Ping,
}

/// The terms of the lease.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    pub heartbeat_seconds: u32,
    pub lease_seconds: u32,
    /// Turns that will be pushed at once at the most.
    pub capacity: u32,
}

/// One turn to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TurnPush {
    pub turn_id: TurnId,
    pub message_id: String,
    pub organization: String,
    pub conversation: String,
    pub user: String,
    pub agent: String,
    pub worker_group: String,
    pub platform: String,
    #[serde(default)]
    pub platform_metadata: Value,
    /// What the person said.
    pub message: String,
    /// Output that is durable already, in log units: more than 0 when the turn is pushed again.
    #[serde(default)]
    pub acked: u64,
    /// Earlier turns of the conversation that ended with a reply, oldest first.
    #[serde(default)]
    pub history: Vec<Exchange>,
    /// W3C trace context of the submit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// One earlier turn of the conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    pub message: String,
    pub reply: String,
}

/// Body of an output post; `offset` in the query says where it begins in the turn's log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    pub frames: Vec<Frame>,
}

/// How much of a turn's log the gateway has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acked {
    /// Durable: the worker may forget it.
    pub acked: u64,
    /// Received, shown to clients, not yet durable: the worker keeps it, and re-sends it if this gateway dies.
    pub received: u64,
}

/// The last word of the worker on these turns.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Finish {
    /// Turns that this ends, in one conversation. The output is the first one's.
    pub turn_ids: Vec<TurnId>,
    /// The worker's name for this word, the same at each repetition.
    pub reply_id: String,
    pub outcome: Outcome,
    /// Length of the whole log, in log units.
    pub end: u64,
    /// The last piece of the log, if it was not posted before (or again).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<Tail>,
}

/// A piece of the log that comes with [`Finish`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tail {
    pub offset: u64,
    pub frames: Vec<Frame>,
}

/// Answer to a [`Finish`] that was understood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    pub result: FinishResult,
}

/// What came of a worker's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FinishResult {
    /// It is the last word of at least one of the turns (or was already, by this very reply).
    Accepted,
    /// Another word came first; this one is kept for operators.
    Superseded,
}

/// 409: bytes of the log below `end` are missing here; send again from `acked` on, then finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    pub acked: u64,
}

/// A sign of life.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Heartbeat {
    /// Turns in hand.
    pub turns: Vec<TurnId>,
}

/// What the markers say against what the worker holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct HeartbeatAnswer {
    /// Turns that the worker should have and did not name.
    pub push: Vec<TurnPush>,
    /// Turns that the worker named and no longer owes.
    pub stop: Vec<TurnId>,
    /// The worker is to drain: see [`ToWorker::Drain`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<u32>,
}

/// The worker leaves.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Goodbye {
    pub phase: GoodbyePhase,
    /// Turns that were never given to the agent program; somebody else may run them.
    #[serde(default)]
    pub hand_back: Vec<TurnId>,
    /// Why it leaves, when it was told to (SIGTERM: `NodeShutdown`): what it leaves behind ends with this, unless whoever
    /// stopped it recorded a better one. Absent: it leaves by itself, and if it never claimed a turn, its start failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// How far the worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GoodbyePhase {
    /// It takes no more turns and finishes those it holds.
    Draining,
    /// It ends now; what it still holds fails.
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_survives_its_text_and_hides_in_logs() {
        let credential = Credential::new(StartId::new());
        let shown = credential.reveal();
        assert_eq!(Credential::parse(&shown).as_ref(), Some(&credential));
        assert!(!format!("{credential:?}").contains(&credential.secret));
        for bad in ["", "lww_", "lww_x_y", &shown[1..], &format!("{shown}0")] {
            assert_eq!(Credential::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_letter_of_the_protocol() {
        let turn = TurnId::new();
        let line = serde_json::to_value(ToWorker::Cancel { turn_id: turn }).expect("serializable");
        assert_eq!(line, serde_json::json!({"type": "cancel", "turnId": turn}));
        let finish: Finish = serde_json::from_value(serde_json::json!({
            "turnIds": [turn], "replyId": "r", "outcome": {"type": "reply"}, "end": 2,
            "tail": {"offset": 0, "frames": [{"type": "text", "text": "hi"}]},
        }))
        .expect("as documented");
        assert_eq!(finish.tail.expect("a tail").frames, [Frame::text("hi")]);
        let error: Outcome = serde_json::from_value(serde_json::json!(
            {"type": "error", "reason": "AgentError", "message": "m"}))
        .expect("as documented");
        assert_eq!(error.as_str(), "error");
    }
}
