//! How a frame is written as a Server-Sent Event. `docs/api.md` says what each event means.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::turn::cursor::Cursor;
use crate::turn::frame::Frame;
use crate::turn::keys::TurnId;
use crate::turn::terminal::Failure;

/// The turn that a frame is about.
#[derive(Debug, Clone, Copy)]
pub struct FrameSubject<'a> {
    pub turn_id: TurnId,
    pub message_id: &'a str,
}

/// One frame: event, id and a line of JSON. JSON has no raw line break, so nothing can break out of the frame.
fn frame(event: &str, cursor: &Cursor, data: &Value) -> Bytes {
    format!("event: {event}\nid: {cursor}\ndata: {data}\n\n").into()
}

/// A comment that keeps proxies from closing an idle stream.
pub fn keep_alive() -> Bytes {
    Bytes::from_static(b": keep-alive\n\n")
}

/// The first frame of a connection. On a session it is about no turn.
pub fn connected(cursor: &Cursor, conversation: &str, about: Option<FrameSubject<'_>>) -> Bytes {
    let data = json!({
        "turnId": about.map(|a| a.turn_id),
        "messageId": about.map(|a| a.message_id),
        "conversation": conversation,
        "cursor": cursor.to_string(),
    });
    frame("connected", cursor, &data)
}

/// A frame of output.
pub fn output(cursor: &Cursor, about: FrameSubject<'_>, output: &Frame) -> Bytes {
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
pub fn error(cursor: &Cursor, event: &str, about: FrameSubject<'_>, failure: &Failure) -> Bytes {
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
pub fn complete(
    cursor: &Cursor,
    about: FrameSubject<'_>,
    (outcome, finish_reason): (&str, Option<&str>),
    answered: &[(TurnId, String)],
) -> Bytes {
    let mut data = json!({
        "turnId": about.turn_id,
        "messageId": about.message_id,
        "outcome": outcome,
        "turnIds": answered.iter().map(|a| a.0).collect::<Vec<_>>(),
        "messageIds": answered.iter().map(|a| &a.1).collect::<Vec<_>>(),
    });
    if let Some(reason) = finish_reason {
        data["finishReason"] = reason.into();
    }
    frame("complete", cursor, &data)
}
