//! Append: a turn's log, written in pieces. Only the worker that the turn's marker names may append to it.

use std::collections::HashMap;

use serde_json::Value;
use sqlx::Row;
use uuid::Uuid;

use super::batch::BatchedVerb;
use super::connection::DbConnection;
use super::{Store, StoreError, elect};
use crate::telemetry::turns::{ToldTurn, TurnEvent};
use crate::turn::frame::{Frame, Span};
use crate::turn::keys::{Incarnation, TurnId};

/// A row of the log that has more bytes than this takes no further frame: a row is the least that a session reads, and so what it
/// holds of a log whose reader does not read.
const ROW_BYTES: usize = 128 * 1024;
/// One reading of a log ends with the row that takes it beyond this many bytes: a session whose reader does not read holds as much
/// until it is cut.
const READ_BYTES: i64 = 128 * 1024;

/// A piece of a turn's log to make durable.
#[derive(Debug, Clone)]
pub struct Append {
    pub turn_id: TurnId,
    pub incarnation: Incarnation,
    /// The frames and their place in the log. May overlap what is durable; the overlap is cut off.
    pub span: Span,
}

/// Why a piece was not appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The turn's marker does not name this worker, or not any more.
    #[error("the turn is not held by this worker")]
    NotHeld,
    /// The log is durable up to this offset only, and the piece begins behind it.
    #[error("the log is durable up to {0} only")]
    Gap(u64),
    /// It is not known whether the piece was appended: append it again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A piece to insert. The caller holds the marker's lock and has checked that the piece begins where the log ends.
pub(super) struct Piece {
    pub turn_id: TurnId,
    pub span: Span,
}

impl Store {
    /// Appends to a turn's log and answers with the log's durable end.
    pub async fn append_output(&self, append: Append) -> Result<u64, AppendError> {
        self.output.call(append).await?
    }

    /// Where the durable logs of these turns end. Turns without output are absent.
    pub async fn log_ends(&self, turns: &[TurnId]) -> Result<HashMap<TurnId, u64>, StoreError> {
        let ids: Vec<Uuid> = turns.iter().map(|t| t.0).collect();
        let rows =
            sqlx::query("SELECT turn_id, max(end_at) AS log_end FROM output WHERE turn_id = ANY($1) GROUP BY turn_id")
                .bind(&ids)
                .fetch_all(&self.general)
                .await?;
        rows.iter().map(|row| Ok((TurnId(row.try_get("turn_id")?), row.try_get::<i64, _>("log_end")? as u64))).collect()
    }

    /// Reads a turn's log from `offset` on: at most `max_rows` rows of it and about [`READ_BYTES`]. What is read has no hole: it
    /// ends before a piece that is missing, or that cannot be read.
    pub async fn read_log(&self, turn: TurnId, offset: u64, max_rows: u32) -> Result<Span, StoreError> {
        let rows = sqlx::query(
            "SELECT start_at, frames FROM (
               SELECT start_at, frames, sum(octet_length(frames)) OVER (ORDER BY start_at) - octet_length(frames) AS before
               FROM (SELECT start_at, frames FROM output
                     WHERE turn_id = $1 AND start_at >= coalesce(
                             (SELECT max(start_at) FROM output WHERE turn_id = $1 AND start_at <= $2), 0)
                     ORDER BY start_at LIMIT $3) AS part) AS weighed
             WHERE before < $4 ORDER BY start_at",
        )
        .bind(turn.0)
        .bind(offset as i64)
        .bind(i64::from(max_rows))
        .bind(READ_BYTES)
        .fetch_all(&self.keyed)
        .await?;
        let rows = rows.iter().map(|row| Ok((row.try_get::<i64, _>("start_at")? as u64, row.try_get("frames")?)));
        let rows: Vec<(u64, &str)> = rows.collect::<Result<_, sqlx::Error>>()?;
        let Some(&(first, _)) = rows.first() else { return Ok(Span::new(offset, Vec::new())) };
        if first > offset {
            return Ok(Span::new(offset, Vec::new()));
        }
        let mut span = Span::new(first, Vec::new());
        for (start, frames) in rows {
            match decode(frames) {
                Ok(frames) if start == span.end() => span.frames.extend(frames),
                Ok(_) => break,
                Err(error) => {
                    tracing::error!(%turn, %error, "the log of turn {turn} is unreadable from {start} on");
                    break;
                }
            }
        }
        Ok(span.from(offset))
    }
}

/// Reads a row's `frames`. A frame of a kind that only a later version knows is one unit long, as all but text are, and is
/// taken for data of that name: it hides nothing of what is around it.
pub(super) fn decode(frames: &str) -> Result<Vec<Frame>, StoreError> {
    let unreadable =
        |e: serde_json::Error| StoreError::Refused(format!("a stored piece of a log is unreadable: {e}").into());
    serde_json::from_str(frames).or_else(|_| {
        let frames: Vec<Value> = serde_json::from_str(frames).map_err(unreadable)?;
        frames.into_iter().map(|frame| known_or_data(frame).map_err(unreadable)).collect()
    })
}

/// The kinds of frames that this version knows.
const KINDS: [&str; 5] = ["text", "tool-call", "tool-result", "progress", "data"];

fn known_or_data(frame: Value) -> Result<Frame, serde_json::Error> {
    match frame.get("type").and_then(Value::as_str) {
        Some(kind) if !KINDS.contains(&kind) => Ok(Frame::Data { name: kind.to_string(), value: frame }),
        _ => serde_json::from_value(frame),
    }
}

/// An open turn, the worker that has claimed it, and the seconds since it was armed.
struct HeldTurn {
    turn: ToldTurn,
    by: Option<Uuid>,
    age: f64,
}

#[derive(Clone)]
pub(super) struct AppendVerb;

impl BatchedVerb for AppendVerb {
    type Item = Append;
    type Answer = Result<u64, AppendError>;

    fn weight(&self, append: &Append) -> usize {
        append.span.weight()
    }

    async fn run(&self, tx: &mut DbConnection, items: &[Append]) -> Result<Vec<Self::Answer>, StoreError> {
        let ids: Vec<Uuid> = items.iter().map(|a| a.turn_id.0).collect();
        let mut held: HashMap<TurnId, HeldTurn> = sqlx::query(
            "SELECT turn_id, incarnation, organization, agent, NULL::text AS traceparent,
                    extract(epoch FROM clock_timestamp() - armed_at)::float8 AS age
             FROM marker WHERE turn_id = ANY($1) ORDER BY turn_id FOR NO KEY UPDATE",
        )
        .bind(&ids)
        .fetch_all(&mut *tx)
        .await?
        .iter()
        .map(|row| {
            let turn = elect::told_turn(row)?;
            let by = row.try_get("incarnation")?;
            Ok((turn.turn_id, HeldTurn { turn, by, age: row.try_get("age")? }))
        })
        .collect::<Result<_, StoreError>>()?;
        let ends: HashMap<Uuid, i64> =
            sqlx::query_as("SELECT turn_id, max(end_at) FROM output WHERE turn_id = ANY($1) GROUP BY turn_id")
                .bind(&ids)
                .fetch_all(&mut *tx)
                .await?
                .into_iter()
                .collect();
        let mut ends: HashMap<TurnId, u64> = ends.into_iter().map(|(id, end)| (TurnId(id), end as u64)).collect();
        let mut pieces = Vec::new();
        let mut answers = Vec::with_capacity(items.len());
        for append in items {
            if held.get(&append.turn_id).and_then(|held| held.by) != Some(append.incarnation.0) {
                answers.push(Err(AppendError::NotHeld));
                continue;
            }
            let end = ends.entry(append.turn_id).or_default();
            let span = append.span.clone().from(*end).coalesced();
            answers.push(if span.is_empty() {
                Ok(*end)
            } else if span.start != *end {
                Err(AppendError::Gap(*end))
            } else {
                *end = span.end();
                pieces.push(Piece { turn_id: append.turn_id, span });
                Ok(*end)
            });
        }
        insert(tx, &pieces).await?;
        for piece in pieces.iter().filter(|piece| piece.span.start == 0) {
            if let Some(held) = held.remove(&piece.turn_id) {
                tx.note(TurnEvent::BegunOutput(held.turn, held.age));
            }
        }
        Ok(answers)
    }
}

/// The frames of a piece, in as many rows as [`ROW_BYTES`] makes of them: usually one.
fn in_rows(frames: &[Frame]) -> Vec<&[Frame]> {
    let (mut rows, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (i, frame) in frames.iter().enumerate() {
        if bytes > ROW_BYTES {
            rows.push(&frames[begin..i]);
            (begin, bytes) = (i, 0);
        }
        bytes += frame.weight();
    }
    rows.push(&frames[begin..]);
    rows
}

/// Inserts pieces, see [`Piece`].
pub(super) async fn insert(tx: &mut DbConnection, pieces: &[Piece]) -> Result<(), StoreError> {
    if pieces.is_empty() {
        return Ok(());
    }
    let (mut ids, mut starts, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    let mut frames = Vec::new();
    for piece in pieces {
        let mut at = piece.span.start;
        for row in in_rows(&piece.span.frames) {
            ids.push(piece.turn_id.0);
            starts.push(at as i64);
            at += row.iter().map(Frame::units).sum::<u64>();
            ends.push(at as i64);
            frames.push(serde_json::to_string(row).map_err(|e| StoreError::Refused(format!("frames: {e}").into()))?);
        }
    }
    sqlx::query(
        "INSERT INTO output (turn_id, start_at, end_at, frames)
         SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::text[])",
    )
    .bind(&ids)
    .bind(&starts)
    .bind(&ends)
    .bind(&frames)
    .execute(tx)
    .await?;
    Ok(())
}

/// Copies whole logs from one turn to another (`from_to`), in place of what the other had.
pub(super) async fn copy(tx: &mut DbConnection, from_to: &[(TurnId, TurnId)]) -> Result<(), StoreError> {
    let from: Vec<Uuid> = from_to.iter().map(|p| p.0.0).collect();
    let to: Vec<Uuid> = from_to.iter().map(|p| p.1.0).collect();
    sqlx::query("DELETE FROM output WHERE turn_id = ANY($1)").bind(&to).execute(&mut *tx).await?;
    sqlx::query(
        "INSERT INTO output (turn_id, start_at, end_at, frames)
         SELECT c.target, o.start_at, o.end_at, o.frames
         FROM unnest($1::uuid[], $2::uuid[]) AS c(source, target) JOIN output o ON o.turn_id = c.source",
    )
    .bind(&from)
    .bind(&to)
    .execute(tx)
    .await?;
    Ok(())
}
