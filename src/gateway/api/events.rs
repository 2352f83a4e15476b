//! The events of a stream, as `/openapi.json` tells them: the `data` of each by the event's name. They are made in
//! [`sse`](crate::stream::sse); a test here holds the two against each other.

use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::turn::reason::Reason;

/// The `data` of each event of a stream, by the event's name. Every event has an `id`, which is a cursor.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is a description")]
#[schema(rename_all = "kebab-case")]
pub struct StreamEvents {
    connected: ConnectedEvent,
    text: TextEvent,
    tool_call: ToolCallEvent,
    tool_result: ToolResultEvent,
    progress: ProgressEvent,
    data: DataEvent,
    error: ErrorEvent,
    agent_error: ErrorEvent,
    complete: CompleteEvent,
}

/// The first event of every connection.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is a description")]
#[schema(rename_all = "camelCase")]
pub struct ConnectedEvent {
    /// Null on a session.
    #[schema(required)]
    turn_id: Option<Uuid>,
    /// Null on a session.
    #[schema(required)]
    message_id: Option<String>,
    conversation: String,
    cursor: String,
}

/// A piece of the reply, cut between characters only.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is a description")]
#[schema(rename_all = "camelCase")]
pub struct TextEvent {
    turn_id: Uuid,
    message_id: String,
    text: String,
}

/// The agent calls a tool.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is a description")]
#[schema(rename_all = "camelCase")]
pub struct ToolCallEvent {
    turn_id: Uuid,
    message_id: String,
    id: String,
    name: String,
    arguments: Value,
}

/// What the tool answered.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is a description")]
#[schema(rename_all = "camelCase")]
pub struct ToolResultEvent {
    turn_id: Uuid,
    message_id: String,
    id: String,
    result: Value,
}

/// A note about work in progress, which is no part of the reply.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is a description")]
#[schema(rename_all = "camelCase")]
pub struct ProgressEvent {
    turn_id: Uuid,
    message_id: String,
    message: String,
}

/// Data of a kind that the agent and its client have agreed on.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is a description")]
#[schema(rename_all = "camelCase")]
pub struct DataEvent {
    turn_id: Uuid,
    message_id: String,
    name: String,
    value: Value,
}

/// The turn has failed. It is told twice, as `error` and as `agent-error`: EventSource fires `error` for connections too.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is a description")]
#[schema(rename_all = "camelCase")]
pub struct ErrorEvent {
    turn_id: Uuid,
    message_id: String,
    reason: Reason,
    message: String,
    retryable: bool,
}

/// The turn is over, and so are all that the same reply answers. Nothing else is a turn's end.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is a description")]
#[schema(rename_all = "camelCase")]
pub struct CompleteEvent {
    turn_id: Uuid,
    message_id: String,
    outcome: EventOutcome,
    turn_ids: Vec<Uuid>,
    message_ids: Vec<String>,
    /// Why the model stopped, in its server's words, where one said so.
    finish_reason: Option<String>,
}

/// How a turn ended.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is a description")]
#[schema(rename_all = "lowercase")]
pub enum EventOutcome {
    Reply,
    Error,
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;
    use utoipa::OpenApi;

    use super::super::openapi::Document;
    use super::*;
    use crate::stream::sse::NativeWriter;
    use crate::stream::writer::{FrameSubject, ShownEnd, ShownOutcome, StreamWriter};
    use crate::turn::cursor::Cursor;
    use crate::turn::frame::Frame;
    use crate::turn::keys::{ConversationId, TurnId};
    use crate::turn::terminal::Failure;

    #[test]
    fn every_event_is_as_it_is_described() {
        let cursor = Cursor::after(ConversationId::new(), 0);
        let about = FrameSubject { turn_id: TurnId::new(), message_id: "m" };
        let mut writer = NativeWriter;
        let failure = Failure::new(Reason::AgentError);
        let answered = [(about.turn_id, "m".to_owned())];
        let reply = ShownEnd { outcome: ShownOutcome::Reply, finish_reason: Some("stop"), answered: &answered };
        let failed = ShownEnd { outcome: ShownOutcome::Failed(&failure), ..reply };
        let output = [
            Frame::text("hello"),
            Frame::ToolCall { id: "1".into(), name: "n".into(), arguments: json!({}) },
            Frame::ToolResult { id: "1".into(), result: json!(1) },
            Frame::Progress { message: "half".into() },
            Frame::Data { name: "n".into(), value: json!(null) },
        ];
        let mut frames = vec![writer.connected(&cursor, "c", None)];
        frames.extend(output.iter().map(|frame| writer.output(&cursor, about, 0, frame)));
        frames.extend([1, 2].map(|step| writer.terminal(&cursor, about, step, &failed)));
        frames.push(writer.terminal(&cursor, about, 1, &reply));
        let document = serde_json::to_value(Document::openapi()).expect("JSON");
        let schemas = &document["components"]["schemas"];
        let events = schemas["StreamEvents"]["properties"].as_object().expect("events");
        assert_eq!(events.len(), frames.len());
        for frame in &frames {
            let (event, data) = read(frame);
            let name = events[&event]["$ref"].as_str().and_then(|path| path.rsplit('/').next()).expect("a schema");
            let mut described: Vec<_> = schemas[name]["properties"].as_object().expect("fields").keys().collect();
            let mut sent: Vec<_> = data.as_object().expect("an object").keys().collect();
            described.sort();
            sent.sort();
            assert_eq!(sent, described, "{event}");
        }
    }

    fn read(frame: &Bytes) -> (String, Value) {
        let text = std::str::from_utf8(frame).expect("text");
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
        (field("event: ").to_owned(), serde_json::from_str(field("data: ")).expect("JSON"))
    }
}
