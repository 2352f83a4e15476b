//! Lastword's own dialect: each frame is a Server-Sent Event with the cursor behind it as its id. `docs/api.md` says what each
//! event means.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::writer::{FrameSubject, ShownEnd, ShownOutcome, StreamWriter};
use crate::turn::cursor::Cursor;
use crate::turn::frame::Frame;
use crate::turn::keys::TurnId;
use crate::turn::terminal::Failure;

/// How long an EventSource waits before it connects again. A stream breaks when its replica stops, and then another is there.
const RETRY_MILLISECONDS: u32 = 1000;

/// Writes Lastword's own dialect.
pub struct NativeWriter;

impl StreamWriter for NativeWriter {
    fn connected(&mut self, cursor: &Cursor, conversation: &str, about: Option<FrameSubject<'_>>) -> Bytes {
        connected(cursor, conversation, about)
    }

    fn output(&mut self, cursor: &Cursor, about: FrameSubject<'_>, _offset: u64, frame: &Frame) -> Bytes {
        output(cursor, about, frame)
    }

    fn terminal_steps(&self, end: &ShownEnd<'_>) -> u8 {
        match end.outcome {
            ShownOutcome::Reply => 1,
            ShownOutcome::Cancelled(_) | ShownOutcome::Failed(_) => 3,
        }
    }

    fn terminal(&mut self, cursor: &Cursor, about: FrameSubject<'_>, step: u8, end: &ShownEnd<'_>) -> Bytes {
        match (end.outcome, step) {
            (ShownOutcome::Reply, _) => complete(cursor, about, "reply", end),
            (ShownOutcome::Cancelled(failure) | ShownOutcome::Failed(failure), 1) => {
                error(cursor, "error", about, failure)
            }
            (ShownOutcome::Cancelled(failure) | ShownOutcome::Failed(failure), 2) => {
                error(cursor, "agent-error", about, failure)
            }
            (ShownOutcome::Cancelled(_) | ShownOutcome::Failed(_), _) => complete(cursor, about, "error", end),
        }
    }
}

/// One frame: event, id and a line of JSON. JSON has no raw line break, so nothing can break out of the frame.
fn frame(event: &str, cursor: &Cursor, data: &Value) -> Bytes {
    format!("event: {event}\nid: {cursor}\ndata: {data}\n\n").into()
}

/// The first frame of a connection. On a session it is about no turn.
fn connected(cursor: &Cursor, conversation: &str, about: Option<FrameSubject<'_>>) -> Bytes {
    let data = json!({
        "turnId": about.map(|a| a.turn_id),
        "messageId": about.map(|a| a.message_id),
        "conversation": conversation,
        "cursor": cursor.to_string(),
    });
    let frame = frame("connected", cursor, &data);
    [format!("retry: {RETRY_MILLISECONDS}\n").as_bytes(), &frame].concat().into()
}

/// A frame of output.
fn output(cursor: &Cursor, about: FrameSubject<'_>, output: &Frame) -> Bytes {
    let mut data = match serde_json::to_value(output) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    data.remove("type");
    data.insert("turnId".into(), json!(about.turn_id));
    data.insert("messageId".into(), json!(about.message_id));
    frame(output.event(), cursor, &Value::Object(data))
}

/// The terminal of a turn that failed, as the event `error` or as `agent-error`. It is sent under both names, because
/// EventSource also fires `error` for its own connection errors.
fn error(cursor: &Cursor, event: &str, about: FrameSubject<'_>, failure: &Failure) -> Bytes {
    let data = json!({
        "turnId": about.turn_id,
        "messageId": about.message_id,
        "reason": failure.reason,
        "message": failure.message,
        "retryable": failure.retryable(),
    });
    frame(event, cursor, &data)
}

/// The last frame of a turn, or of all turns that one reply answers. The outcome is `reply` or `error`; beside it, why the
/// model stopped, if that is known.
fn complete(cursor: &Cursor, about: FrameSubject<'_>, outcome: &str, end: &ShownEnd<'_>) -> Bytes {
    let (turns, messages): (Vec<TurnId>, Vec<&String>) =
        end.answered.iter().map(|(turn, message)| (*turn, message)).unzip();
    let mut data = json!({
        "turnId": about.turn_id,
        "messageId": about.message_id,
        "outcome": outcome,
        "turnIds": turns,
        "messageIds": messages,
    });
    if let Some(reason) = end.finish_reason {
        data["finishReason"] = reason.into();
    }
    frame("complete", cursor, &data)
}
