//! The bodies and events of the client API (`docs/api.md`) as a client reads and writes them. They are not the server's own
//! types: a client takes fields and events that a newer server adds.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::turn::frame::Frame;
use crate::turn::keys::TurnId;
use crate::turn::objects::{ObjectsOnly, objects_only};

/// The body of a submit.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SubmitRequest {
    /// `name` or `namespace/name`.
    pub agent: String,
    pub message: String,
    /// Makes repeats of the call mean the same turn.
    pub message_id: String,
}

impl SubmitRequest {
    /// A message with a new message id.
    pub fn new(agent: impl Into<String>, message: impl Into<String>) -> Self {
        SubmitRequest { agent: agent.into(), message: message.into(), message_id: uuid::Uuid::new_v4().to_string() }
    }
}

/// The answer to a submit: the turn is armed, and exactly one terminal will follow.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(remote = "Self")]
pub struct SubmitResponse {
    pub turn_id: TurnId,
    pub message_id: String,
    pub conversation: String,
    pub worker_group: String,
    /// The conversation's cursor just before this turn.
    pub cursor: String,
}

/// The answer to an erase.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(remote = "Self")]
pub struct EraseResponse {
    pub turns: u64,
    pub cancelled: u64,
}

/// One page of records; `next` is the `before` of the following page.
#[derive(Debug, Clone, Deserialize)]
#[serde(remote = "Self")]
pub struct TurnPage<N> {
    pub turns: Vec<TurnRecord>,
    #[serde(default = "Option::default")]
    pub next: Option<N>,
}

/// Which turns a page of the organization's turns holds, and how many at most.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TurnFilter {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
}

/// A turn's record. Fields that this version does not know are kept, so that printing it as JSON loses nothing.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[serde(remote = "Self")]
pub struct TurnRecord {
    pub turn_id: TurnId,
    pub message_id: String,
    pub organization: String,
    pub conversation: String,
    /// The turn's number in its conversation, from 1.
    pub number: i64,
    pub agent: String,
    #[serde(default)]
    pub worker_group: Option<String>,
    #[serde(default)]
    pub user: Option<String>,
    #[serde(default)]
    pub platform: Option<String>,
    #[serde(default)]
    pub message: Option<String>,
    /// `Armed`, `Running`, `Succeeded` or `Failed`.
    pub phase: String,
    #[serde(with = "time::serde::rfc3339")]
    pub armed_at: OffsetDateTime,
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub claimed_at: Option<OffsetDateTime>,
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// The incarnation that claimed it.
    #[serde(default)]
    pub worker: Option<String>,
    #[serde(default)]
    pub reply: Option<TurnReply>,
    #[serde(default)]
    pub error: Option<ApiFailure>,
    /// Why the model stopped, in its server's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// An answer that came too late. Only operators are given it.
    #[serde(default)]
    pub superseded: Option<Value>,
    #[serde(flatten)]
    pub further: Map<String, Value>,
}

impl TurnRecord {
    /// Whether the turn still owes its terminal.
    pub fn is_open(&self) -> bool {
        matches!(self.phase.as_str(), "Armed" | "Running")
    }
}

/// The reply of a record; one may answer several turns.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[serde(remote = "Self")]
pub struct TurnReply {
    #[serde(default)]
    pub reply_id: Option<String>,
    /// Null if the server has lost it.
    #[serde(default)]
    pub text: Option<String>,
    #[serde(default)]
    pub turn_ids: Vec<TurnId>,
    #[serde(default)]
    pub message_ids: Vec<String>,
    #[serde(flatten)]
    pub further: Map<String, Value>,
}

/// Why a turn has no reply. The reason stays text: a newer server may know more of them.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(remote = "Self")]
pub struct ApiFailure {
    pub reason: String,
    #[serde(default)]
    pub message: String,
    #[serde(default)]
    pub retryable: bool,
    /// What only operators are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// One SSE event of a stream.
#[derive(Debug, Clone)]
pub struct StreamEvent {
    /// The SSE event's name.
    pub name: String,
    /// The cursor just behind this event: reconnecting with it shows what follows.
    pub cursor: Option<String>,
    /// Absent on a session's `connected`.
    pub turn_id: Option<TurnId>,
    pub message_id: Option<String>,
    pub kind: EventKind,
    /// The event's data as it came.
    pub data: Value,
}

/// What an event says.
#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    Connected {
        conversation: String,
    },
    Output(Frame),
    /// The terminal is an error.
    Error(ApiFailure),
    /// The same error again, under a name that EventSource does not use for errors of its own.
    AgentError(ApiFailure),
    Complete(Complete),
    /// An event that this version does not know.
    Unknown,
}

/// The turn is over.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[serde(remote = "Self")]
pub struct Complete {
    /// `reply` or `error`.
    pub outcome: String,
    /// Every turn that this reply answers.
    pub turn_ids: Vec<TurnId>,
    pub message_ids: Vec<String>,
    /// Why the model stopped, in its server's words.
    pub finish_reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(remote = "Self")]
struct Envelope {
    #[serde(default)]
    turn_id: Option<TurnId>,
    #[serde(default)]
    message_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(remote = "Self")]
struct ConnectedData {
    #[serde(default)]
    conversation: String,
}

impl StreamEvent {
    /// Reads one SSE event.
    ///
    /// # Errors
    /// When the data is no JSON object, or a known event lacks a field that its meaning hangs on.
    pub fn parse(name: &str, id: &str, data: &str) -> Result<StreamEvent, serde_json::Error> {
        let data = Value::Object(serde_json::from_str(data)?);
        let envelope = Envelope::deserialize(&data)?;
        let kind = match name {
            "connected" => EventKind::Connected { conversation: ConnectedData::deserialize(&data)?.conversation },
            "text" | "tool-call" | "tool-result" | "progress" | "data" => {
                let mut frame = data.clone();
                frame["type"] = name.into(); // the event's name says it; the data does not repeat it
                EventKind::Output(serde_json::from_value(frame)?)
            }
            "error" => EventKind::Error(ApiFailure::deserialize(&data)?),
            "agent-error" => EventKind::AgentError(ApiFailure::deserialize(&data)?),
            "complete" => EventKind::Complete(Complete::deserialize(&data)?),
            _ => EventKind::Unknown,
        };
        Ok(StreamEvent {
            name: name.to_string(),
            cursor: (!id.is_empty()).then(|| id.to_string()),
            turn_id: envelope.turn_id,
            message_id: envelope.message_id,
            kind,
            data,
        })
    }

    /// Whether this event is the last one of `turn`.
    pub fn completes(&self, turn: TurnId) -> bool {
        match &self.kind {
            EventKind::Complete(complete) => self.turn_id == Some(turn) || complete.turn_ids.contains(&turn),
            _ => false,
        }
    }
}

impl<'de, N: Deserialize<'de>> Deserialize<'de> for TurnPage<N> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        TurnPage::<N>::deserialize(ObjectsOnly(from))
    }
}

objects_only!(read SubmitResponse, Complete, Envelope, ConnectedData);

objects_only!(both EraseResponse, TurnRecord, TurnReply, ApiFailure);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_known_by_their_event_name() {
        let turn = TurnId::new();
        let data = format!(r#"{{"turnId":"{turn}","messageId":"m","text":"a","new":1}}"#);
        let event = StreamEvent::parse("text", "7", &data).unwrap();
        assert_eq!(event.kind, EventKind::Output(Frame::text("a")));
        assert_eq!((event.turn_id, event.cursor.as_deref()), (Some(turn), Some("7")));
    }

    #[test]
    fn unknown_events_and_reasons_pass() {
        assert_eq!(StreamEvent::parse("weather", "", r#"{"turnId":null}"#).unwrap().kind, EventKind::Unknown);
        let error = StreamEvent::parse("error", "1", r#"{"reason":"Brand-New","message":"m"}"#).unwrap();
        assert!(matches!(error.kind, EventKind::Error(f) if f.reason == "Brand-New" && !f.retryable));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(StreamEvent::parse("text", "", "[]").is_err());
        assert!(StreamEvent::parse("text", "", r#"{"turnId":null}"#).is_err());
    }

    #[test]
    fn a_complete_ends_every_turn_that_it_names() {
        let (a, b) = (TurnId::new(), TurnId::new());
        let data = format!(r#"{{"turnId":"{a}","messageId":"m","outcome":"reply","turnIds":["{a}","{b}"]}}"#);
        let event = StreamEvent::parse("complete", "9", &data).unwrap();
        assert!(event.completes(a) && event.completes(b) && !event.completes(TurnId::new()));
    }

    #[test]
    fn a_record_keeps_what_it_does_not_know() {
        let record: TurnRecord = serde_json::from_value(serde_json::json!({
            "turnId": TurnId::new(), "messageId": "m", "organization": "o", "conversation": "c", "number": 1,
            "agent": "bc", "phase": "Armed", "armedAt": "2026-01-02T03:04:05.678Z", "mood": "good"
        }))
        .unwrap();
        assert!(record.is_open());
        assert_eq!(serde_json::to_value(&record).unwrap()["mood"], "good");
    }
}
