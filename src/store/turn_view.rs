//! What a client's stream reads of turns: those it has yet to show, with their terminals, and whose they are.

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::transaction::transaction;
use super::{Store, StoreError};
use crate::turn::keys::{ConversationId, Incarnation, TurnId, WorkerGroup};
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// Turns of one conversation that one reading returns at the most.
pub(crate) const MAX_VIEWED: i64 = 200;

/// A turn as a client's stream sees it: open, or with its terminal.
#[derive(Debug, Clone, PartialEq)]
pub struct TurnView {
    pub turn_id: TurnId,
    pub conversation_id: ConversationId,
    pub number: i64,
    pub message_id: String,
    /// The worker that holds it, while it is open.
    pub worker: Option<Incarnation>,
    /// The length of that worker's lease in seconds.
    pub lease_seconds: Option<u32>,
    pub terminal: Option<Terminal>,
}

/// A terminal as it is rendered.
#[derive(Debug, Clone, PartialEq)]
pub struct Terminal {
    /// `None` for a reply.
    pub failure: Option<Failure>,
    /// Why the model stopped, in its server's words.
    pub finish_reason: Option<String>,
    /// The turn whose log holds the reply.
    pub holder: TurnId,
    /// The number of that turn.
    pub holder_number: i64,
    /// Where the reply, or what there is of output, ends in that log.
    pub end: u64,
    /// The numbers of all turns that the reply answers, in order; this one's alone if the reply is its own.
    pub answered: Vec<i64>,
    /// The log was found incomplete: the reply is shown to nobody any more.
    pub log_gone: bool,
}

/// A reply whose log is gone, as far as a cursor needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GoneReply {
    /// The turn's number.
    pub number: i64,
    /// The number of the turn whose log had the reply.
    pub holder_number: i64,
    /// Where the reply ended in that log.
    pub end: u64,
}

/// Where a turn is and whose it is: what every call on a turn asks first.
#[derive(Debug, Clone)]
pub struct TurnHead {
    pub turn_id: TurnId,
    pub conversation_id: ConversationId,
    pub owner: String,
    pub organization: String,
    pub conversation: String,
    pub agent: String,
    pub worker_group: WorkerGroup,
    pub number: i64,
    pub message_id: String,
}

/// What [`view`] reads of a turn `t`, its marker `m` and its terminal `e`.
const VIEW: &str = "t.id, t.conversation_id, t.number, t.message_id, m.incarnation AS worker,
    (SELECT l.lease_seconds FROM lease l WHERE l.incarnation = m.incarnation) AS lease_seconds,
    e.turn_id IS NOT NULL AS ended, e.reason, e.message, e.detail, e.finish_reason, e.holder,
    e.end_at, e.log_gone,
    CASE WHEN e.answers > 1 THEN (SELECT h.number FROM terminal h WHERE h.turn_id = e.holder)
         ELSE e.number END AS holder_number,
    CASE WHEN e.answers > 1 THEN ARRAY(SELECT o.number FROM terminal o WHERE o.holder = e.holder AND o.answers > 1 ORDER BY o.number)
         ELSE ARRAY[e.number] END AS answered";

impl Store {
    /// The turns of these conversations behind the given numbers, in order; of each conversation the next [`MAX_VIEWED`] at
    /// the most.
    pub async fn turn_views_after(&self, after: &[(ConversationId, i64)]) -> Result<Vec<TurnView>, StoreError> {
        let ids: Vec<Uuid> = after.iter().map(|(conversation, _)| conversation.0).collect();
        let bases: Vec<i64> = after.iter().map(|(_, base)| *base).collect();
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT {VIEW} FROM unnest($1::uuid[], $2::bigint[]) AS c(id, base)
             CROSS JOIN LATERAL (SELECT id, conversation_id, number, message_id FROM turn
                                 WHERE conversation_id = c.id AND number > c.base ORDER BY number LIMIT $3) t
             LEFT JOIN marker m ON m.turn_id = t.id LEFT JOIN terminal e ON e.turn_id = t.id
             ORDER BY t.conversation_id, t.number"
        )))
        .bind(&ids)
        .bind(&bases)
        .bind(MAX_VIEWED)
        .fetch_all(&self.general)
        .await?;
        rows.iter().map(view).collect()
    }

    /// One turn, as its own stream sees it.
    pub async fn turn_view(&self, turn: TurnId) -> Result<Option<TurnView>, StoreError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT {VIEW} FROM turn t LEFT JOIN marker m ON m.turn_id = t.id LEFT JOIN terminal e ON e.turn_id = t.id
             WHERE t.id = $1"
        )))
        .bind(turn.0)
        .fetch_optional(&self.keyed)
        .await?;
        row.as_ref().map(view).transpose()
    }

    /// The turns that the reply in `holder`'s log answers, with their message ids, in order; none where it answers one alone.
    pub async fn turns_answered_by(&self, holder: TurnId) -> Result<Vec<(TurnId, String)>, StoreError> {
        let rows: Vec<(Uuid, String)> = sqlx::query_as(
            "SELECT t.id, t.message_id FROM terminal e JOIN turn t ON t.id = e.turn_id
             WHERE e.holder = $1 AND e.answers > 1 ORDER BY t.number",
        )
        .bind(holder.0)
        .fetch_all(&self.keyed)
        .await?;
        Ok(rows.into_iter().map(|(id, message)| (TurnId(id), message)).collect())
    }

    /// Notes that the log of a reply is gone, on all terminals that need it. Nobody is shown the reply from then on, so it
    /// waits for no session either. An error's terminal needs no log, and is not touched.
    pub async fn note_log_gone(&self, holder: TurnId) -> Result<(), StoreError> {
        transaction!(self.general, |tx| {
            let noted: Vec<Uuid> = sqlx::query_scalar(
                "WITH its AS MATERIALIZED (
                   SELECT turn_id FROM terminal WHERE outcome = 'reply' AND (turn_id = $1 OR (holder = $1 AND answers > 1))
                   ORDER BY turn_id FOR NO KEY UPDATE)
                 UPDATE terminal e SET log_gone = true FROM its WHERE e.turn_id = its.turn_id RETURNING e.turn_id",
            )
            .bind(holder.0)
            .fetch_all(&mut *tx)
            .await?;
            sqlx::query("DELETE FROM delivery WHERE turn_id = ANY($1) AND platform = 'api'")
                .bind(&noted)
                .execute(&mut *tx)
                .await?;
            Ok(())
        })
        .await
    }

    /// The turns of a conversation behind a number whose replies were noted as gone, in order.
    pub async fn gone_replies_after(
        &self,
        conversation: ConversationId,
        base: i64,
    ) -> Result<Vec<GoneReply>, StoreError> {
        let rows: Vec<(i64, i64, i64)> = sqlx::query_as(
            "SELECT e.number, coalesce(h.number, 0), e.end_at FROM terminal e LEFT JOIN terminal h ON h.turn_id = e.holder
             WHERE e.conversation_id = $1 AND e.number > $2 AND e.log_gone ORDER BY e.number",
        )
        .bind(conversation.0)
        .bind(base)
        .fetch_all(&self.general)
        .await?;
        let gone = |(number, holder_number, end)| GoneReply { number, holder_number, end: end as u64 };
        Ok(rows.into_iter().map(gone).collect())
    }

    /// The newest turn of a conversation that has no terminal yet.
    pub async fn newest_open_turn(&self, conversation: ConversationId) -> Result<Option<TurnHead>, StoreError> {
        let newest: Option<Uuid> =
            sqlx::query_scalar("SELECT turn_id FROM marker WHERE conversation_id = $1 ORDER BY number DESC LIMIT 1")
                .bind(conversation.0)
                .fetch_optional(&self.general)
                .await?;
        match newest {
            Some(turn) => self.turn_head(TurnId(turn)).await,
            None => Ok(None),
        }
    }

    /// Where a turn is and whose it is.
    pub async fn turn_head(&self, turn: TurnId) -> Result<Option<TurnHead>, StoreError> {
        let row = sqlx::query(
            "SELECT t.conversation_id, c.owner, t.organization, t.conversation, t.agent, t.worker_group, t.number, t.message_id
             FROM turn t JOIN conversation c ON c.id = t.conversation_id WHERE t.id = $1",
        )
        .bind(turn.0)
        .fetch_optional(&self.keyed)
        .await?;
        row.map(|r| {
            Ok(TurnHead {
                turn_id: turn,
                conversation_id: ConversationId(r.try_get("conversation_id")?),
                owner: r.try_get("owner")?,
                organization: r.try_get("organization")?,
                conversation: r.try_get("conversation")?,
                agent: r.try_get("agent")?,
                worker_group: WorkerGroup::from_key(r.try_get("worker_group")?),
                number: r.try_get("number")?,
                message_id: r.try_get("message_id")?,
            })
        })
        .transpose()
    }
}

/// The view of a row that selects [`VIEW`].
fn view(row: &PgRow) -> Result<TurnView, StoreError> {
    let ended: bool = row.try_get("ended")?;
    let terminal = if ended {
        Some(Terminal {
            failure: failure(row)?,
            finish_reason: row.try_get("finish_reason")?,
            holder: TurnId(row.try_get("holder")?),
            // Without its holder a turn is none that a session has passed.
            holder_number: row.try_get::<Option<i64>, _>("holder_number")?.unwrap_or(0),
            end: row.try_get::<i64, _>("end_at")? as u64,
            answered: row.try_get("answered")?,
            log_gone: row.try_get("log_gone")?,
        })
    } else {
        None
    };
    Ok(TurnView {
        turn_id: TurnId(row.try_get("id")?),
        conversation_id: ConversationId(row.try_get("conversation_id")?),
        number: row.try_get("number")?,
        message_id: row.try_get("message_id")?,
        worker: row.try_get::<Option<Uuid>, _>("worker")?.map(Incarnation),
        lease_seconds: row.try_get::<Option<i32>, _>("lease_seconds")?.map(|seconds| seconds as u32),
        terminal,
    })
}

/// The failure of a row that selects a terminal's `reason`, `message` and `detail`; `None` if it has no reason.
pub(super) fn failure(row: &PgRow) -> Result<Option<Failure>, StoreError> {
    let reason: Option<String> = row.try_get("reason")?;
    reason
        .map(|reason| {
            Ok(Failure {
                // A newer version's reason is no reason to hide the terminal.
                reason: reason.parse().unwrap_or(Reason::Internal),
                message: row.try_get::<Option<String>, _>("message")?.unwrap_or_default(),
                detail: row.try_get("detail")?,
                exit: None,
            })
        })
        .transpose()
}
