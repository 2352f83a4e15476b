//! The worker protocol: the types of its requests and answers, which both ends use. `docs/worker-protocol.md` describes how
//! the protocol works; this file fixes its exact form.
//!
//! | call | sends | answers |
//! |---|---|---|
//! | `POST /worker/v1/credential`, in Kubernetes only | the pod's token | [`IssuedCredential`]; 425: the pod is not known yet, ask again |
//! | `GET /worker/v1/turns` ([`Connect`] as query) | | NDJSON of [`ToWorker`], open until either side ends it |
//! | `POST /worker/v1/turns/{id}/output?offset=N` | [`Output`] | [`Acked`] |
//! | `POST /worker/v1/finish` | [`Finish`] | [`Finished`]; 409 [`Missing`] |
//! | `POST /worker/v1/heartbeat` | [`Heartbeat`] | [`HeartbeatAnswer`]; 410 when the lease is dead |
//! | `POST /worker/v1/goodbye` | [`Goodbye`] | 204 |
//!
//! Every call but the first carries `Authorization: Bearer CREDENTIAL` (see [`Credential`]) and the header [`INCARNATION`].
//! Three answers mean the same for every call: 410, that this incarnation's lease has ended, so the worker stops; 401 and
//! 403, that the credential is not accepted, so the worker stops as well; 503, that this gateway cannot reach the database
//! now, so the worker tries another gateway, or this one again.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::turn::frame::Frame;
use crate::turn::keys::{StartId, TurnId, hex};
use crate::turn::objects::objects_only;
use crate::turn::reason::Reason;
use crate::turn::terminal::Outcome;

/// The header that names the calling incarnation: a UUID that the worker makes when its process starts.
pub const INCARNATION: &str = "lastword-incarnation";
/// The largest body that a worker may post, in bytes.
pub const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
/// The longest log of one turn, in log units (see [`Frame::units`]); more output fails the turn.
pub const MAX_LOG_UNITS: u64 = 16 * 1024 * 1024;
/// The largest frame other than text, in bytes of its JSON: workers, gateways and programs that print JSON lines all go by
/// it ([`check_frame`]). A text frame has no limit of its own, since a worker can split it between any two characters.
pub const MAX_FRAME_BYTES: usize = 1024 * 1024;
/// The size of all frames of one turn together (see [`Frame::weight`]), in bytes; more output fails the turn. The gateway
/// replica that holds the worker's stream counts it, from the moment the worker connects to that replica.
pub const MAX_LOG_BYTES: usize = 64 * 1024 * 1024;
/// The most history entries that are pushed with a turn.
pub const MAX_HISTORY: u32 = 100;

/// A frame is larger than [`MAX_FRAME_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame {event} has {bytes} bytes; a frame other than text has at most {MAX_FRAME_BYTES} (1 MiB) of JSON")]
pub struct FrameTooLarge {
    event: &'static str,
    bytes: usize,
}

/// Refuses a frame over [`MAX_FRAME_BYTES`], since no client and no other replica could be sent it whole.
pub fn check_frame(frame: &Frame) -> Result<(), FrameTooLarge> {
    let bytes = frame.weight();
    match frame {
        Frame::Text { .. } => Ok(()),
        _ if bytes <= MAX_FRAME_BYTES => Ok(()),
        _ => Err(FrameTooLarge { event: frame.event(), bytes }),
    }
}

/// The environment variables that a runtime (the controller for pods, `lastword dev` for processes) sets for a worker.
/// What the *agent program* of one turn is told has a name space of its own, `LASTWORD_TURN_…`: see `worker/exec.rs`.
pub mod env {
    /// Base URLs of the gateways' worker port, comma-separated, e.g. `http://127.0.0.1:8081`. The controller's flag
    /// `--worker-gateway` reads the same variable for the same value: it is the list that it hands on to its pods. The two
    /// cannot be confused, since a controller never runs in a worker's environment.
    pub const GATEWAY: &str = "LASTWORD_WORKER_GATEWAY";
    /// The credential, in the form of [`super::Credential`].
    pub const CREDENTIAL: &str = "LASTWORD_CREDENTIAL";
    /// Turns that the worker may hold at once.
    pub const CAPACITY: &str = "LASTWORD_TURNS_PER_WORKER";
    /// In Kubernetes, in place of the credential: the path of the file with the token of the pod's ServiceAccount, which
    /// the worker exchanges for a credential by `POST /worker/v1/credential`.
    pub const TOKEN_FILE: &str = "LASTWORD_TOKEN_FILE";
    /// The path of a PEM file with the certificate authorities that the worker trusts at `https://` gateways, and no others.
    /// Unset: the worker trusts those of the system.
    pub const GATEWAY_CA: &str = "LASTWORD_WORKER_GATEWAY_CA";
    /// Seconds that a worker has to finish what it holds after SIGTERM.
    pub const DRAIN_SECONDS: &str = "LASTWORD_DRAIN_SECONDS";
    /// Only the adapter `exec` reads it: seconds that an agent program has between SIGTERM and SIGKILL.
    pub const KILL_SECONDS: &str = "LASTWORD_KILL_SECONDS";
    /// Only the adapter `exec` reads it: `true` lets processes that a turn's program has detached live on until the worker
    /// ends.
    pub const KEEP_DETACHED: &str = "LASTWORD_KEEP_DETACHED";
    /// The path of the container's termination log, the file from which Kubernetes takes why a container ended. The worker
    /// writes it only where it exists; unset, it is `/dev/termination-log`.
    pub const TERMINATION_LOG: &str = "LASTWORD_TERMINATION_LOG";
}

/// A worker's credential: `lww_<start id>_<secret>`. On one machine, the runtime that starts the worker makes it; in
/// Kubernetes, the gateway that has verified the pod's token does. Its hash is stored in the worker's lease. It is valid
/// for that one start, on any gateway replica.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    pub start: StartId,
    secret: String,
}

impl Credential {
    /// A new credential with a secret of 256 random bits.
    pub fn new(start: StartId) -> Self {
        let secret: [u8; 32] = rand::random();
        Credential { start, secret: hex(&secret) }
    }

    /// Parses the credential that a worker sent; `None` if the text is not of this form.
    pub fn parse(text: &str) -> Option<Self> {
        let (start, secret) = text.strip_prefix("lww_")?.split_once('_')?;
        let start = StartId(Uuid::try_parse(start).ok()?);
        (secret.len() == 64).then(|| Credential { start, secret: secret.to_string() })
    }

    /// The credential as text, with its secret: only to be sent, never to be logged.
    pub fn reveal(&self) -> String {
        format!("lww_{}_{}", self.start.0.simple(), self.secret)
    }

    /// The SHA-256 of the secret, which the lease stores. A slow hash is for passwords, which can be guessed; 256 random
    /// bits cannot.
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

/// The answer to `POST /worker/v1/credential`, the call that carries the token of the pod's ServiceAccount in place of a
/// credential.
#[derive(Clone, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct IssuedCredential {
    /// In the form of [`Credential`], valid for this pod on any gateway replica. Only the one issued last to a pod is valid.
    pub credential: String,
}

/// The query of `GET /worker/v1/turns`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[serde(remote = "Self")]
pub struct Connect {
    /// Turns that the worker may hold at once; the Agent's `turnsPerWorker` caps it.
    #[serde(default = "one")]
    pub capacity: u32,
    /// The ids of the turns that the worker holds already, comma-separated; not empty only after a reconnect.
    #[serde(default)]
    pub turns: String,
    /// Past turns of the conversation to push with each turn, at most [`MAX_HISTORY`]; 0 for none.
    #[serde(default)]
    pub history: u32,
    /// Whether to claim all waiting turns of a conversation together, for one reply to all of them; together they count as
    /// one of `capacity`.
    #[serde(default)]
    pub together: bool,
}

fn one() -> u32 {
    1
}

/// A line of the turns stream, from the gateway to the worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
#[serde(remote = "Self")]
pub enum ToWorker {
    /// The first line: the worker's lease is live, on these terms.
    Hello(Hello),
    /// Run this turn. A worker runs a turn id once and ignores a repeat.
    Turn(Box<TurnPush>),
    /// Stop this turn; the gateway ignores whatever the worker sends about it from now on.
    #[serde(rename_all = "camelCase")]
    Cancel { turn_id: TurnId },
    /// Take no more turns, hand back those that have not begun, finish the others within `seconds`, then say goodbye and
    /// exit.
    Drain { seconds: u32 },
    /// No content: it keeps proxies and both ends from taking the connection for dead.
    Ping,
}

/// The terms of the lease.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(remote = "Self")]
pub struct Hello {
    pub heartbeat_seconds: u32,
    pub lease_seconds: u32,
    /// The most turns that the worker will hold at once: what it asked for, capped by the Agent's `turnsPerWorker`.
    pub capacity: u32,
}

/// One turn for the worker to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(remote = "Self")]
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
    /// The person's message.
    pub message: String,
    /// How much of the turn's log is durable already, in log units: more than 0 only when the turn is pushed again.
    #[serde(default)]
    pub acked: u64,
    /// Earlier turns of the conversation that ended with a reply, oldest first.
    #[serde(default)]
    pub history: Vec<Exchange>,
    /// Seconds from now until the turn's hard deadline, at which it ends whatever the worker does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
    /// The W3C trace context of the request that submitted the turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// One earlier turn of the conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Exchange {
    pub message: String,
    pub reply: String,
}

/// The body of an output post. The query's `offset` says where the first frame begins in the turn's log, in log units.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(remote = "Self")]
pub struct Output {
    pub frames: Vec<Frame>,
}

/// How much of a turn's log the gateway has, in log units from the log's beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Acked {
    /// Durable up to here: the worker may forget it.
    pub acked: u64,
    /// Received up to here, and shown to clients. What is beyond `acked` is not durable yet: the worker keeps it, and sends
    /// it again if this gateway dies.
    pub received: u64,
}

/// The worker's last word on these turns.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[serde(remote = "Self")]
pub struct Finish {
    /// The turns that it ends, all of one conversation. Their common output was posted under the first one's id.
    pub turn_ids: Vec<TurnId>,
    /// An id that the worker gives to this word and repeats when it repeats the call, so that a repeat is recognized.
    pub reply_id: String,
    pub outcome: Outcome,
    /// Why the model stopped, in the words of its server, such as `length`: told beside the outcome, in the turn's record and
    /// on its stream. Of more than [`MAX_FINISH_REASON_BYTES`](crate::turn::terminal::MAX_FINISH_REASON_BYTES) bytes the
    /// beginning is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// The length of the whole log, in log units.
    pub end: u64,
    /// The last piece of the log, where no post has brought it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<Tail>,
}

/// The last piece of a turn's log, sent with [`Finish`]; `offset` is where it begins, in log units.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(remote = "Self")]
pub struct Tail {
    pub offset: u64,
    pub frames: Vec<Frame>,
}

/// The answer to a [`Finish`] that the gateway could decide on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Finished {
    pub result: FinishResult,
}

/// Whether a worker's word became the turn's last word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FinishResult {
    /// It is the last word of at least one of the turns. A repeat of the word that won gets this answer too.
    Accepted,
    /// Every turn had its last word already; this one is recorded for operators only.
    Superseded,
}

/// The body of a 409: this gateway lacks a part of the log. The worker sends it again from `acked` on, then repeats the
/// call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Missing {
    /// What the gateway has, in log units from the log's beginning.
    pub acked: u64,
}

/// A worker's sign of life, sent every `heartbeatSeconds`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[serde(remote = "Self")]
pub struct Heartbeat {
    /// The ids of the turns that the worker holds.
    pub turns: Vec<TurnId>,
}

/// The differences between the turns that the worker holds and those that the database says it owes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct HeartbeatAnswer {
    /// Turns that the worker owes and did not name.
    pub push: Vec<TurnPush>,
    /// Turns that the worker named and does not owe any more.
    pub stop: Vec<TurnId>,
    /// Set when the worker is to drain, in seconds: see [`ToWorker::Drain`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<u32>,
}

/// Tells the gateway that the worker is about to end.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[serde(remote = "Self")]
pub struct Goodbye {
    pub phase: GoodbyePhase,
    /// Turns that this worker never gave to its agent program, so that another worker may run them.
    #[serde(default)]
    pub hand_back: Vec<TurnId>,
    /// Why the worker ends, if somebody told it to (`NodeShutdown` after a SIGTERM). The turns that it leaves unfinished end
    /// with this reason, unless whoever stopped the worker recorded a more exact one. Absent: the worker ends by itself,
    /// and if it has never claimed a turn, its start counts as failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// How far the worker's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GoodbyePhase {
    /// The worker takes no more turns and finishes those that it holds.
    Draining,
    /// The worker ends now; the turns that it still holds fail.
    Gone,
}

objects_only!(both IssuedCredential, Connect, ToWorker, Hello, TurnPush, Exchange, Output, Acked, Finish, Tail, Finished, Missing, Heartbeat, HeartbeatAnswer, Goodbye);

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
