//! What records tell of turns' logs: the text, if all of it is there, and the tools that the agent called.

use std::collections::HashMap;

use sqlx::Row;
use uuid::Uuid;

use super::StoreError;
use super::append::decode;
use super::connection::DbConnection;
use crate::turn::frame::{Frame, Span};
use crate::turn::keys::TurnId;

/// The most tool calls and results that one record holds, and their weight in bytes (see [`Frame::weight`]).
const MAX_TOOLS: usize = 64;
const MAX_TOOL_BYTES: usize = 64 * 1024;
/// What the tool calls of all records that are read together may weigh, in bytes.
const MAX_TOOL_BYTES_TOGETHER: usize = 1024 * 1024;

/// A log that is read in pieces, in order, up to its end.
pub(super) struct RecordedLog {
    /// Where the reply ends in the log, in log units.
    end: u64,
    /// How far the log was read without a gap, in log units.
    read: u64,
    pub text: String,
    pub tools: RecordedTools,
}

impl RecordedLog {
    pub fn new(end: u64) -> Self {
        RecordedLog { end, read: 0, text: String::new(), tools: RecordedTools::default() }
    }

    /// Takes the next piece, unless there is a gap before it. Of its tools it takes what has room, which is in bytes.
    pub fn push(&mut self, span: Span, room: &mut usize) {
        if span.start == self.read {
            self.read = span.end();
            let span = span.until(self.end);
            self.text.push_str(&span.text());
            span.frames.into_iter().for_each(|frame| self.tools.take(frame, room));
        }
    }

    pub fn is_whole(&self) -> bool {
        self.read >= self.end
    }
}

/// An agent's tool calls and their results, as its log has them, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RecordedTools {
    pub frames: Vec<Frame>,
    /// There were more than are kept here.
    pub truncated: bool,
}

impl RecordedTools {
    /// Keeps a frame if it is of a tool and there is room for it, here and in what all records together may have.
    fn take(&mut self, frame: Frame, room: &mut usize) {
        if !matches!(frame, Frame::ToolCall { .. } | Frame::ToolResult { .. }) || self.truncated {
            return;
        }
        let weight = frame.weight();
        let own: usize = self.frames.iter().map(Frame::weight).sum();
        if self.frames.len() >= MAX_TOOLS || own + weight > MAX_TOOL_BYTES || weight > *room {
            self.truncated = true;
            return;
        }
        *room -= weight;
        self.frames.push(frame);
    }
}

/// Reads each of these logs up to its end.
pub(super) async fn logs(
    connection: &mut DbConnection,
    ends: &[(TurnId, u64)],
) -> Result<HashMap<TurnId, RecordedLog>, StoreError> {
    if ends.is_empty() {
        return Ok(HashMap::new());
    }
    let ids: Vec<Uuid> = ends.iter().map(|e| e.0.0).collect();
    let rows =
        sqlx::query("SELECT turn_id, start_at, frames FROM output WHERE turn_id = ANY($1) ORDER BY turn_id, start_at")
            .bind(&ids)
            .fetch_all(connection)
            .await?;
    let mut logs: HashMap<TurnId, RecordedLog> =
        ends.iter().map(|&(turn, end)| (turn, RecordedLog::new(end))).collect();
    let mut room = MAX_TOOL_BYTES_TOGETHER;
    for row in rows {
        let start: i64 = row.try_get("start_at")?;
        if let Some(log) = logs.get_mut(&TurnId(row.try_get("turn_id")?)) {
            log.push(Span::new(start as u64, decode(row.try_get("frames")?)?), &mut room);
        }
    }
    Ok(logs)
}
