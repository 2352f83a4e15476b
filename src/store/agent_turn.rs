//! AgentTurns: which object in Kubernetes a turn was armed for, and where the turn stands, for the object's status.
//!
//! A row of `agent_turn` is a tie: it ties a turn to an object by the object's UID, from arm until the object's status shows
//! the terminal or the object is gone. A leader that has just begun, and remembers nothing, goes by the ties.

use std::collections::HashMap;

use futures::TryStreamExt;
use sqlx::Row;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::append::decode;
use super::connection::DbConnection;
use super::elect::{self, Fence};
use super::pool::bounded;
use super::recorded_log::RecordedLog;
use super::transaction::transaction;
use super::turn_view::failure;
use super::{Store, StoreError};
use crate::turn::frame::Span;
use crate::turn::keys::{GatewayId, TurnId};
use crate::turn::reason::Reason;
use crate::turn::routing::KUBERNETES;
use crate::turn::terminal::{Failure, cut};

/// The longest text of a reply that is read for a status, in bytes. The whole reply is in the turn's record.
pub const MAX_STATUS_TEXT: usize = 16 * 1024;
/// How much of a turn's log is read for that, in bytes: the log has other frames besides text.
const MAX_LOG_BYTES: i64 = 1 << 20;

/// An AgentTurn within its namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AgentTurnRef {
    pub name: String,
    pub uid: String,
}

/// A turn, and the object that it was armed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentTurnTie {
    pub turn_id: TurnId,
    /// The object's namespace.
    pub organization: String,
    pub object: AgentTurnRef,
}

/// Where a turn stands, as an AgentTurn's status tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentTurnState {
    pub turn_id: TurnId,
    /// The namespace and the object, while its status still lacks the terminal.
    pub object: Option<(String, AgentTurnRef)>,
    pub armed_at: Option<OffsetDateTime>,
    pub claimed_at: Option<OffsetDateTime>,
    /// The claiming worker's pod as `namespace/name`, if it is one.
    pub worker: Option<String>,
    pub progress: AgentTurnProgress,
}

/// How far the turn of an AgentTurn is.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentTurnProgress {
    /// Armed, and no worker holds it.
    Waiting,
    /// A worker holds it.
    Running,
    /// Ended with a reply. `text` is its beginning, up to [`MAX_STATUS_TEXT`], or `None` if its log is gone; `cut` says that
    /// there is more.
    Replied { text: Option<String>, cut: bool, at: OffsetDateTime },
    /// Ended with an error.
    Failed { failure: Failure, at: OffsetDateTime },
    /// Its conversation was erased, and the turn with it.
    Erased,
    /// The database does not know the turn.
    Unknown,
}

impl Store {
    /// The database's clock.
    pub async fn database_time(&self) -> Result<OffsetDateTime, StoreError> {
        Ok(sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&self.general).await?)
    }

    /// The turn that was armed for an object (by namespace and UID), while the object's status still lacks the terminal.
    pub async fn turn_of_agent_turn(&self, organization: &str, uid: &str) -> Result<Option<TurnId>, StoreError> {
        let id: Option<Uuid> =
            sqlx::query_scalar("SELECT turn_id FROM agent_turn WHERE organization = $1 AND uid = $2")
                .bind(organization)
                .bind(uid)
                .fetch_optional(&self.general)
                .await?;
        Ok(id.map(TurnId))
    }

    /// Ties of turns that were armed before `armed_before`, in the order of the turns' ids, the first `limit` behind `after`.
    pub async fn agent_turn_ties(
        &self,
        after: Option<TurnId>,
        armed_before: OffsetDateTime,
        limit: u32,
    ) -> Result<Vec<AgentTurnTie>, StoreError> {
        let rows = sqlx::query(
            "SELECT turn_id, organization, name, uid FROM agent_turn WHERE turn_id > $1 AND armed_at < $2
             ORDER BY turn_id LIMIT $3",
        )
        .bind(after.map_or(Uuid::nil(), |t| t.0))
        .bind(armed_before)
        .bind(i64::from(limit))
        .fetch_all(&self.general)
        .await?;
        rows.iter()
            .map(|r| {
                Ok(AgentTurnTie {
                    turn_id: TurnId(r.try_get("turn_id")?),
                    organization: r.try_get("organization")?,
                    object: AgentTurnRef { name: r.try_get("name")?, uid: r.try_get("uid")? },
                })
            })
            .collect()
    }

    /// Forgets objects (by namespace and UID) that are gone: their open turns end with `failure`, and deliveries and ties are
    /// removed. Answers how many turns ended.
    pub async fn forget_agent_turns(&self, gone: &[(String, String)], failure: &Failure) -> Result<usize, StoreError> {
        if gone.is_empty() {
            return Ok(0);
        }
        let organizations: Vec<&str> = gone.iter().map(|g| g.0.as_str()).collect();
        let uids: Vec<&str> = gone.iter().map(|g| g.1.as_str()).collect();
        let ended = transaction!(self.vital(), |tx| {
            let turns: Vec<Uuid> = sqlx::query_scalar(
                "SELECT turn_id FROM agent_turn
                 WHERE (organization, uid) IN (SELECT * FROM unnest($1::text[], $2::text[])) ORDER BY turn_id",
            )
            .bind(&organizations)
            .bind(&uids)
            .fetch_all(&mut *tx)
            .await?;
            let ids: Vec<TurnId> = turns.iter().copied().map(TurnId).collect();
            let ended = elect::fail_open(tx, &ids, Fence::AnyHolder, failure).await?;
            remove(tx, &turns).await?;
            Ok(ended)
        })
        .await?;
        self.announce(&ended);
        Ok(ended.len())
    }

    /// Removes the deliveries and ties of these turns: their terminals are in their objects' statuses, or there is no object.
    pub async fn remove_agent_turn_deliveries(&self, turns: &[TurnId]) -> Result<(), StoreError> {
        if turns.is_empty() {
            return Ok(());
        }
        let mut ids: Vec<Uuid> = turns.iter().map(|t| t.0).collect();
        ids.sort();
        transaction!(self.general, |tx| remove(tx, &ids).await).await
    }

    /// Takes deliveries that are due to objects of these namespaces (none named: of all) for `seconds`, which must exceed the
    /// time that writing a status takes.
    pub async fn take_agent_turn_deliveries(
        &self,
        namespaces: &[String],
        by: GatewayId,
        seconds: u32,
        limit: u32,
    ) -> Result<Vec<TurnId>, StoreError> {
        let turns: Vec<Uuid> = sqlx::query_scalar(
            "WITH due AS MATERIALIZED (
               SELECT turn_id FROM delivery
               WHERE platform = 'kubernetes' AND state = 'ready' AND due_at < statement_timestamp()
                 AND (cardinality($1::text[]) = 0 OR organization = ANY($1))
               ORDER BY due_at LIMIT $4 FOR UPDATE SKIP LOCKED)
             UPDATE delivery d SET due_at = clock_timestamp() + make_interval(secs => $3), claimed_by = $2,
                    attempts = d.attempts + 1
             FROM due WHERE d.turn_id = due.turn_id AND d.platform = 'kubernetes'
             RETURNING d.turn_id",
        )
        .bind(namespaces)
        .bind(by.0)
        .bind(f64::from(seconds))
        .bind(i64::from(limit))
        .fetch_all(&self.general)
        .await?;
        Ok(turns.into_iter().map(TurnId).collect())
    }

    /// Puts off the deliveries of these turns, whose statuses could not be written: they are due again after a pause that grows
    /// with the attempts, from 5 s to 2 min.
    pub async fn put_off_agent_turn_deliveries(&self, turns: &[TurnId]) -> Result<(), StoreError> {
        let ids: Vec<Uuid> = turns.iter().map(|t| t.0).collect();
        sqlx::query(
            "WITH owed AS MATERIALIZED (SELECT turn_id FROM delivery WHERE turn_id = ANY($1) AND platform = 'kubernetes'
                                        ORDER BY turn_id FOR UPDATE)
             UPDATE delivery d SET claimed_by = NULL,
                    due_at = clock_timestamp() + make_interval(secs => least(5 * greatest(d.attempts, 1), 120))
             FROM owed WHERE d.turn_id = owed.turn_id AND d.platform = 'kubernetes'",
        )
        .bind(&ids)
        .execute(&self.general)
        .await?;
        Ok(())
    }

    /// Where these turns stand: an answer for each of them, in no order.
    pub async fn agent_turn_states(&self, turns: &[TurnId]) -> Result<Vec<AgentTurnState>, StoreError> {
        self.states(turns, true).await
    }

    /// Where those of these turns stand that do more than wait, and whose terminals are not on their way as deliveries.
    pub async fn moved_agent_turns(&self, turns: &[TurnId]) -> Result<Vec<AgentTurnState>, StoreError> {
        self.states(turns, false).await
    }

    async fn states(&self, turns: &[TurnId], all: bool) -> Result<Vec<AgentTurnState>, StoreError> {
        if turns.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<Uuid> = turns.iter().map(|t| t.0).collect();
        bounded(async {
            let mut connection = self.general.acquire().await?;
            let rows = sqlx::query(
            "SELECT i.id, t.armed_at, coalesce(m.claimed_at, e.claimed_at) AS claimed_at, m.turn_id IS NOT NULL AS open,
                    m.incarnation IS NOT NULL AS held, e.outcome, e.reason, e.message, e.detail, e.holder, e.end_at,
                    e.ended_at, o.organization, o.name, o.uid,
                    (SELECT l.runtime_ref FROM lease l WHERE l.runtime = 'kubernetes'
                       AND l.incarnation = coalesce(m.incarnation, e.held_by, e.incarnation)) AS worker
             FROM unnest($1::uuid[]) AS i(id)
             LEFT JOIN turn t ON t.id = i.id LEFT JOIN marker m ON m.turn_id = i.id
             LEFT JOIN terminal e ON e.turn_id = i.id LEFT JOIN agent_turn o ON o.turn_id = i.id
             WHERE $2 OR m.incarnation IS NOT NULL
                OR (m.turn_id IS NULL AND (e.turn_id IS NULL OR o.turn_id IS NULL OR NOT EXISTS (
                      SELECT FROM delivery d WHERE d.turn_id = i.id AND d.platform = $3)))",
        )
        .bind(&ids)
        .bind(all)
        .bind(KUBERNETES)
        .fetch_all(&mut connection)
        .await?;
            let mut replies = HashMap::new();
            for row in &rows {
                if row.try_get::<Option<String>, _>("outcome")?.as_deref() == Some("reply") {
                    replies.insert(row.try_get::<Uuid, _>("holder")?, row.try_get::<i64, _>("end_at")? as u64);
                }
            }
            let texts = texts(&mut connection, &replies).await?;
            rows.iter().map(|row| state(row, &texts)).collect()
        })
        .await
    }
}

/// Removes deliveries and ties of turns, in key order.
async fn remove(tx: &mut DbConnection, turns: &[Uuid]) -> Result<(), StoreError> {
    for statement in [
        "WITH due AS MATERIALIZED (SELECT turn_id FROM delivery WHERE turn_id = ANY($1) AND platform = 'kubernetes'
                                   ORDER BY turn_id FOR UPDATE)
         DELETE FROM delivery d USING due WHERE d.turn_id = due.turn_id AND d.platform = 'kubernetes'",
        "WITH tied AS MATERIALIZED (SELECT turn_id FROM agent_turn WHERE turn_id = ANY($1) ORDER BY turn_id FOR UPDATE)
         DELETE FROM agent_turn o USING tied WHERE o.turn_id = tied.turn_id",
    ] {
        sqlx::query(statement).bind(turns).execute(&mut *tx).await?;
    }
    Ok(())
}

fn state(row: &PgRow, texts: &HashMap<Uuid, (String, bool)>) -> Result<AgentTurnState, StoreError> {
    let object: Option<String> = row.try_get("uid")?;
    let object = match object {
        Some(uid) => Some((row.try_get("organization")?, AgentTurnRef { name: row.try_get("name")?, uid })),
        None => None,
    };
    let outcome: Option<String> = row.try_get("outcome")?;
    let progress = match outcome.as_deref() {
        Some("reply") => {
            let (text, cut) = match texts.get(&row.try_get::<Uuid, _>("holder")?).cloned() {
                Some((text, cut)) => (Some(text), cut),
                None => (None, false),
            };
            AgentTurnProgress::Replied { text, cut, at: row.try_get("ended_at")? }
        }
        Some(_) => {
            let failure = failure(row)?.unwrap_or_else(|| Failure::new(Reason::Internal));
            AgentTurnProgress::Failed { failure, at: row.try_get("ended_at")? }
        }
        None if row.try_get("held")? => AgentTurnProgress::Running,
        None if row.try_get("open")? => AgentTurnProgress::Waiting,
        None if object.is_some() => AgentTurnProgress::Erased,
        None => AgentTurnProgress::Unknown,
    };
    Ok(AgentTurnState {
        turn_id: TurnId(row.try_get("id")?),
        object,
        armed_at: row.try_get("armed_at")?,
        claimed_at: row.try_get("claimed_at")?,
        worker: row.try_get("worker")?,
        progress,
    })
}

/// The beginning of each reply's text, and whether there is more. A reply whose log is gone is left out.
async fn texts(
    connection: &mut DbConnection,
    ends: &HashMap<Uuid, u64>,
) -> Result<HashMap<Uuid, (String, bool)>, StoreError> {
    if ends.is_empty() {
        return Ok(HashMap::new());
    }
    let mut logs: HashMap<Uuid, (RecordedLog, bool)> =
        ends.iter().map(|(&turn, &end)| (turn, (RecordedLog::new(end), false))).collect();
    let ids: Vec<Uuid> = ends.keys().copied().collect();
    // Rows are read one by one, and of each text only what is shown is kept: logs are long, and objects are many.
    let mut rows = sqlx::query(
        "SELECT turn_id, start_at, CASE WHEN read < $2 THEN frames END AS frames
         FROM (SELECT turn_id, start_at, frames, sum(octet_length(frames)) OVER (PARTITION BY turn_id ORDER BY start_at)
                      - octet_length(frames) AS read
               FROM output WHERE turn_id = ANY($1)) AS log
         ORDER BY turn_id, start_at",
    )
    .bind(&ids)
    .bind(MAX_LOG_BYTES)
    .fetch(connection);
    while let Some(row) = rows.try_next().await? {
        let turn: Uuid = row.try_get("turn_id")?;
        let Some((log, partly)) = logs.get_mut(&turn) else { continue };
        if *partly {
            continue;
        }
        match row.try_get::<Option<&str>, _>("frames")? {
            Some(frames) => {
                // A status shows no tools.
                log.push(Span::new(row.try_get::<i64, _>("start_at")? as u64, decode(frames)?), &mut 0);
                *partly = log.text.len() > MAX_STATUS_TEXT;
                log.text = cut(std::mem::take(&mut log.text), MAX_STATUS_TEXT);
            }
            None => *partly = true,
        }
    }
    let shown = logs.into_iter().filter(|(_, (log, partly))| *partly || log.is_whole());
    Ok(shown.map(|(turn, (log, partly))| (turn, (log.text, partly))).collect())
}
