//! AgentTurns: which object a turn was armed for, and where that turn stands for the object's status.
//!
//! The row ties a turn to an object's UID from arm until the status shows the terminal, or the object is gone. It is what a
//! new leader, or one that lost its memory, goes by.

use std::collections::HashMap;

use futures::TryStreamExt;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use time::OffsetDateTime;
use uuid::Uuid;

use super::batch::retry_races;
use super::elect::{self, Hand};
use super::output::decode;
use super::pool::bounded;
use super::{Store, StoreError};
use crate::turn::frame::Span;
use crate::turn::keys::{GatewayId, TurnId};
use crate::turn::reason::Reason;
use crate::turn::routing::KUBERNETES;
use crate::turn::terminal::{Failure, cut};

/// The longest text of a reply that is read for a status, in bytes: objects are for reading, the record is for all of it.
pub const MAX_STATUS_TEXT: usize = 16 * 1024;
/// What of a turn's log is read for that, in bytes: it holds other frames than text.
const MAX_LOG_BYTES: i64 = 1 << 20;

/// An AgentTurn within its namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ObjectRef {
    pub name: String,
    pub uid: String,
}

/// A turn with the object that it was armed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectRow {
    pub turn_id: TurnId,
    pub organization: String,
    pub object: ObjectRef,
}

/// Where a turn stands, as an AgentTurn's status tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectState {
    pub turn_id: TurnId,
    /// The object, if its terminal is still owed to it; with its namespace.
    pub object: Option<(String, ObjectRef)>,
    pub armed_at: Option<OffsetDateTime>,
    pub claimed_at: Option<OffsetDateTime>,
    /// The claiming worker's pod as `namespace/name`, if it is one.
    pub worker: Option<String>,
    pub standing: Standing,
}

/// How far a turn is.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// Armed; no worker holds it.
    Waiting,
    /// A worker holds it.
    Running,
    /// Ended with a reply; its text up to [`MAX_STATUS_TEXT`], `cut` says that this is not all of it.
    Replied {
        text: String,
        cut: bool,
        at: OffsetDateTime,
    },
    Failed {
        failure: Failure,
        at: OffsetDateTime,
    },
    /// Its conversation was erased, and the turn with it.
    Erased,
    /// The database does not know it.
    Unknown,
}

impl Store {
    /// The database's clock.
    pub async fn database_time(&self) -> Result<OffsetDateTime, StoreError> {
        Ok(sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&self.general).await?)
    }

    /// The turn that was armed for an object and still owes it its terminal status.
    pub async fn turn_of_agent_turn(&self, organization: &str, uid: &str) -> Result<Option<TurnId>, StoreError> {
        let id: Option<Uuid> = sqlx::query_scalar("SELECT turn_id FROM object WHERE organization = $1 AND uid = $2")
            .bind(organization)
            .bind(uid)
            .fetch_optional(&self.general)
            .await?;
        Ok(id.map(TurnId))
    }

    /// Objects that turns were armed for before `armed_before`, by turn, behind `after`.
    pub async fn agent_turn_ties(
        &self,
        after: Option<TurnId>,
        armed_before: OffsetDateTime,
        limit: u32,
    ) -> Result<Vec<ObjectRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT turn_id, organization, name, uid FROM object WHERE turn_id > $1 AND armed_at < $2
             ORDER BY turn_id LIMIT $3",
        )
        .bind(after.map_or(Uuid::nil(), |t| t.0))
        .bind(armed_before)
        .bind(i64::from(limit))
        .fetch_all(&self.general)
        .await?;
        rows.iter()
            .map(|r| {
                Ok(ObjectRow {
                    turn_id: TurnId(r.try_get("turn_id")?),
                    organization: r.try_get("organization")?,
                    object: ObjectRef { name: r.try_get("name")?, uid: r.try_get("uid")? },
                })
            })
            .collect()
    }

    /// The objects (namespace, UID) are gone: their open turns end with `failure`, and no status is owed to them any more.
    /// Answers how many turns were ended.
    pub async fn forget_agent_turns(&self, gone: &[(String, String)], failure: &Failure) -> Result<usize, StoreError> {
        if gone.is_empty() {
            return Ok(0);
        }
        let organizations: Vec<&str> = gone.iter().map(|g| g.0.as_str()).collect();
        let uids: Vec<&str> = gone.iter().map(|g| g.1.as_str()).collect();
        let ended = retry_races(|| async {
            let mut connection = self.vital().acquire().await?;
            let mut tx = connection.begin().await?;
            let turns: Vec<Uuid> = sqlx::query_scalar(
                "SELECT turn_id FROM object WHERE (organization, uid) IN (SELECT * FROM unnest($1::text[], $2::text[]))
                 ORDER BY turn_id",
            )
            .bind(&organizations)
            .bind(&uids)
            .fetch_all(&mut *tx)
            .await?;
            let ids: Vec<TurnId> = turns.iter().copied().map(TurnId).collect();
            let ended = elect::fail_open(&mut tx, &ids, Hand::Anybodys, failure).await?;
            remove(&mut tx, &turns).await?;
            tx.commit().await?;
            Ok(ended)
        })
        .await?;
        self.announce(&ended);
        Ok(ended.len())
    }

    /// The terminals of these turns are in their objects' statuses, or there is no object: nothing is owed any more.
    pub async fn remove_agent_turn_deliveries(&self, turns: &[TurnId]) -> Result<(), StoreError> {
        if turns.is_empty() {
            return Ok(());
        }
        let mut ids: Vec<Uuid> = turns.iter().map(|t| t.0).collect();
        ids.sort();
        retry_races(|| async {
            let mut connection = self.general.acquire().await?;
            let mut tx = connection.begin().await?;
            remove(&mut tx, &ids).await?;
            tx.commit().await?;
            Ok(())
        })
        .await
    }

    /// Takes terminals that are due to objects of these namespaces (none named: of all) for `seconds`, which must exceed
    /// the time that showing one takes.
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

    /// The terminals of these turns could not be shown: they are due again after a pause that grows with the attempts,
    /// from 5 s to 2 min.
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

    /// Where these turns stand, in no order; every one is answered.
    pub async fn agent_turn_states(&self, turns: &[TurnId]) -> Result<Vec<ObjectState>, StoreError> {
        self.states(turns, true).await
    }

    /// Those of these turns that do more than wait, and whose terminal is not already on its way as a delivery.
    pub async fn moved_agent_turns(&self, turns: &[TurnId]) -> Result<Vec<ObjectState>, StoreError> {
        self.states(turns, false).await
    }

    async fn states(&self, turns: &[TurnId], all: bool) -> Result<Vec<ObjectState>, StoreError> {
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
             LEFT JOIN terminal e ON e.turn_id = i.id LEFT JOIN object o ON o.turn_id = i.id
             WHERE $2 OR m.incarnation IS NOT NULL
                OR (m.turn_id IS NULL AND (e.turn_id IS NULL OR o.turn_id IS NULL OR NOT EXISTS (
                      SELECT FROM delivery d WHERE d.turn_id = i.id AND d.platform = $3)))",
        )
        .bind(&ids)
        .bind(all)
        .bind(KUBERNETES)
        .fetch_all(&mut *connection)
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
async fn remove(tx: &mut PgConnection, turns: &[Uuid]) -> Result<(), StoreError> {
    for statement in [
        "WITH due AS MATERIALIZED (SELECT turn_id FROM delivery WHERE turn_id = ANY($1) AND platform = 'kubernetes'
                                   ORDER BY turn_id FOR UPDATE)
         DELETE FROM delivery d USING due WHERE d.turn_id = due.turn_id AND d.platform = 'kubernetes'",
        "WITH tied AS MATERIALIZED (SELECT turn_id FROM object WHERE turn_id = ANY($1) ORDER BY turn_id FOR UPDATE)
         DELETE FROM object o USING tied WHERE o.turn_id = tied.turn_id",
    ] {
        sqlx::query(statement).bind(turns).execute(&mut *tx).await?;
    }
    Ok(())
}

fn state(row: &PgRow, texts: &HashMap<Uuid, (String, bool)>) -> Result<ObjectState, StoreError> {
    let object: Option<String> = row.try_get("uid")?;
    let object = match object {
        Some(uid) => Some((row.try_get("organization")?, ObjectRef { name: row.try_get("name")?, uid })),
        None => None,
    };
    let outcome: Option<String> = row.try_get("outcome")?;
    let standing = match outcome.as_deref() {
        Some("reply") => {
            let (text, cut) = texts.get(&row.try_get::<Uuid, _>("holder")?).cloned().unwrap_or_default();
            Standing::Replied { text, cut, at: row.try_get("ended_at")? }
        }
        Some(_) => {
            let reason: Option<String> = row.try_get("reason")?;
            let failure = Failure {
                // A newer version's reason is no reason to hide the terminal.
                reason: reason.and_then(|r| r.parse().ok()).unwrap_or(Reason::Internal),
                message: row.try_get::<Option<String>, _>("message")?.unwrap_or_default(),
                detail: row.try_get("detail")?,
                exit: None,
            };
            Standing::Failed { failure, at: row.try_get("ended_at")? }
        }
        None if row.try_get("held")? => Standing::Running,
        None if row.try_get("open")? => Standing::Waiting,
        None if object.is_some() => Standing::Erased,
        None => Standing::Unknown,
    };
    Ok(ObjectState {
        turn_id: TurnId(row.try_get("id")?),
        object,
        armed_at: row.try_get("armed_at")?,
        claimed_at: row.try_get("claimed_at")?,
        worker: row.try_get("worker")?,
        standing,
    })
}

/// The beginning of each reply's text, and whether there is more.
async fn texts(
    connection: &mut PgConnection,
    ends: &HashMap<Uuid, u64>,
) -> Result<HashMap<Uuid, (String, bool)>, StoreError> {
    let mut texts: HashMap<Uuid, (String, bool)> = HashMap::new();
    if ends.is_empty() {
        return Ok(texts);
    }
    let ids: Vec<Uuid> = ends.keys().copied().collect();
    // One row at a time is held, and of each text only what is shown.
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
        let end = ends.get(&turn).copied().unwrap_or(u64::MAX);
        let (text, partly) = texts.entry(turn).or_default();
        if *partly {
            continue;
        }
        match row.try_get::<Option<&str>, _>("frames")? {
            Some(frames) => {
                let span = Span::new(row.try_get::<i64, _>("start_at")? as u64, decode(frames)?);
                text.push_str(&span.until(end).text());
                *partly = text.len() > MAX_STATUS_TEXT;
                *text = cut(std::mem::take(text), MAX_STATUS_TEXT);
            }
            None => *partly = true,
        }
    }
    Ok(texts)
}
