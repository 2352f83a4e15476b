//! Reading: what a session has yet to show, a turn's record, lists, and the history that is pushed with a turn.

use std::collections::HashMap;

use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, QueryBuilder, Row};
use time::OffsetDateTime;
use uuid::Uuid;

use super::output::decode;
use super::pool::bounded;
use super::{Store, StoreError, elect};
use crate::turn::frame::Span;
use crate::turn::keys::{ConversationId, Incarnation, TurnId};
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;
use crate::wire::Exchange;

/// Turns of one conversation that one look returns at the most.
pub(crate) const MAX_VIEWED: i64 = 200;
/// Text of the pushed history at the most, in bytes.
const MAX_HISTORY_BYTES: usize = 512 * 1024;

/// A turn as a stream sees it: open, or with its terminal.
#[derive(Debug, Clone, PartialEq)]
pub struct TurnView {
    pub turn_id: TurnId,
    pub conversation_id: ConversationId,
    pub number: i64,
    pub message_id: String,
    /// Who runs it, while it is open.
    pub worker: Option<Incarnation>,
    pub terminal: Option<Terminal>,
}

/// A terminal as it is rendered.
#[derive(Debug, Clone, PartialEq)]
pub struct Terminal {
    /// `None` for a reply.
    pub failure: Option<Failure>,
    /// The turn whose log holds the reply.
    pub holder: TurnId,
    pub end: u64,
    /// How many turns the reply answers.
    pub answers: u32,
}

/// Where a turn is and whose: what every call on a turn asks first.
#[derive(Debug, Clone)]
pub struct Head {
    pub turn_id: TurnId,
    pub conversation_id: ConversationId,
    pub owner: String,
    pub organization: String,
    pub conversation: String,
    pub worker_group: String,
    pub number: i64,
    pub message_id: String,
}

/// All that is known of a turn.
#[derive(Debug, Clone)]
pub struct Record {
    pub turn_id: TurnId,
    pub conversation_id: ConversationId,
    pub owner: String,
    pub organization: String,
    pub conversation: String,
    pub number: i64,
    pub message_id: String,
    pub agent: String,
    pub worker_group: String,
    pub user: String,
    pub platform: String,
    pub platform_metadata: Value,
    pub message: String,
    pub armed_at: OffsetDateTime,
    pub claimed_at: Option<OffsetDateTime>,
    pub ended_at: Option<OffsetDateTime>,
    pub open: bool,
    pub worker: Option<Incarnation>,
    pub reply: Option<RecordedReply>,
    pub failure: Option<Failure>,
    pub superseded: Option<String>,
}

/// A reply, with all turns that it answers.
#[derive(Debug, Clone)]
pub struct RecordedReply {
    pub reply_id: Option<String>,
    pub holder: TurnId,
    pub end: u64,
    pub text: String,
    pub turns: Vec<(TurnId, String)>,
}

/// What a list is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct ListFilter {
    pub agent: Option<String>,
    pub conversation: Option<String>,
    pub user: Option<String>,
    /// `Armed`, `Running`, `Succeeded` or `Failed`.
    pub phase: Option<String>,
    pub before: Option<TurnId>,
    pub limit: u32,
}

const VIEW: &str = "t.id, t.conversation_id, t.number, t.message_id, m.incarnation AS worker,
    e.turn_id IS NOT NULL AS ended, e.reason, e.message, e.detail, e.holder, e.end_at, e.answers";

const RECORD: &str = r#"SELECT t.id, t.conversation_id, t.organization, t.conversation, t.number, t.message_id, t.agent,
    t.worker_group, t."user", t.routing, t.input, t.armed_at, coalesce(m.claimed_at, e.claimed_at) AS claimed_at, m.turn_id IS NOT NULL AS open,
    coalesce(m.incarnation, e.incarnation) AS worker, e.ended_at, e.outcome, e.reason, e.message, e.detail, e.reply_id,
    e.holder, e.end_at, c.owner,
    (SELECT s.outcome || coalesce(': ' || s.reason, '') || coalesce(': ' || nullif(s.text, ''), '') FROM superseded s WHERE s.turn_id = t.id) AS superseded
    FROM turn t JOIN conversation c ON c.id = t.conversation_id
    LEFT JOIN marker m ON m.turn_id = t.id LEFT JOIN terminal e ON e.turn_id = t.id"#;

impl Store {
    /// The turns of these conversations behind the given numbers, in order; for each at most the next 200.
    pub async fn turn_views_after(&self, after: &[(ConversationId, i64)]) -> Result<Vec<TurnView>, StoreError> {
        let ids: Vec<Uuid> = after.iter().map(|a| a.0.0).collect();
        let bases: Vec<i64> = after.iter().map(|a| a.1).collect();
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

    /// One turn as its own stream sees it.
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

    /// The turns that one reply answers, with their message ids, in order.
    pub async fn turns_answered_by(&self, holder: TurnId) -> Result<Vec<(TurnId, String)>, StoreError> {
        let rows: Vec<(Uuid, String)> = sqlx::query_as(
            "SELECT t.id, t.message_id FROM terminal h
             JOIN terminal e ON e.conversation_id = h.conversation_id AND e.holder = h.turn_id AND e.outcome = 'reply'
             JOIN turn t ON t.id = e.turn_id WHERE h.turn_id = $1 AND e.number BETWEEN h.number - 100 AND h.number + 100
             ORDER BY t.number",
        )
        .bind(holder.0)
        .fetch_all(&self.general)
        .await?;
        Ok(rows.into_iter().map(|(id, message)| (TurnId(id), message)).collect())
    }

    /// A turn's place and owner.
    pub async fn turn_head(&self, turn: TurnId) -> Result<Option<Head>, StoreError> {
        let row = sqlx::query(
            "SELECT t.conversation_id, c.owner, t.organization, t.conversation, t.worker_group, t.number, t.message_id
             FROM turn t JOIN conversation c ON c.id = t.conversation_id WHERE t.id = $1",
        )
        .bind(turn.0)
        .fetch_optional(&self.keyed)
        .await?;
        row.map(|r| {
            Ok(Head {
                turn_id: turn,
                conversation_id: ConversationId(r.try_get("conversation_id")?),
                owner: r.try_get("owner")?,
                organization: r.try_get("organization")?,
                conversation: r.try_get("conversation")?,
                worker_group: r.try_get("worker_group")?,
                number: r.try_get("number")?,
                message_id: r.try_get("message_id")?,
            })
        })
        .transpose()
    }

    /// A turn's record.
    pub async fn turn_record(&self, turn: TurnId) -> Result<Option<Record>, StoreError> {
        bounded(async {
            let mut connection = self.general.acquire().await?;
            let row = sqlx::query(sqlx::AssertSqlSafe(format!("{RECORD} WHERE t.id = $1")))
                .bind(turn.0)
                .fetch_optional(&mut *connection)
                .await?;
            Ok(records(&mut connection, row.as_slice()).await?.pop())
        })
        .await
    }

    /// A conversation's turns before `before`, newest first.
    pub async fn conversation_history(
        &self,
        conversation: ConversationId,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<Record>, StoreError> {
        bounded(async {
            let mut connection = self.general.acquire().await?;
            let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
                "{RECORD} WHERE t.conversation_id = $1 AND t.number < $2 ORDER BY t.number DESC LIMIT $3"
            )))
            .bind(conversation.0)
            .bind(before.unwrap_or(i64::MAX))
            .bind(i64::from(limit))
            .fetch_all(&mut *connection)
            .await?;
            records(&mut connection, &rows).await
        })
        .await
    }

    /// An organization's turns, newest first.
    pub async fn list_turns(&self, organization: &str, filter: &ListFilter) -> Result<Vec<Record>, StoreError> {
        let mut query = QueryBuilder::new(RECORD);
        query.push(" WHERE t.organization = ").push_bind(organization);
        for (column, value) in
            [("t.agent", &filter.agent), ("t.conversation", &filter.conversation), ("t.\"user\"", &filter.user)]
        {
            if let Some(value) = value {
                query.push(format!(" AND {column} = ")).push_bind(value);
            }
        }
        match filter.phase.as_deref() {
            Some("Armed") => query.push(" AND m.phase <> 'claimed'"),
            Some("Running") => query.push(" AND m.phase = 'claimed'"),
            Some("Succeeded") => query.push(" AND e.outcome = 'reply'"),
            // Failures are few among many: by their own index, which is one organization's.
            Some("Failed") => query.push(" AND e.outcome = 'error' AND e.organization = ").push_bind(organization),
            _ => &mut query,
        };
        if let Some(before) = filter.before {
            query.push(" AND t.id < ").push_bind(before.0);
        }
        query.push(" ORDER BY t.id DESC LIMIT ").push_bind(i64::from(filter.limit));
        bounded(async {
            let mut connection = self.general.acquire().await?;
            let rows = query.build().fetch_all(&mut *connection).await?;
            records(&mut connection, &rows).await
        })
        .await
    }

    /// The last `limit` exchanges of a conversation before a turn, oldest first.
    pub async fn conversation_exchanges(
        &self,
        conversation: ConversationId,
        before: i64,
        limit: u32,
    ) -> Result<Vec<Exchange>, StoreError> {
        bounded(async {
            let mut connection = self.general.acquire().await?;
            let rows = sqlx::query(
                "SELECT t.input, e.turn_id, e.holder, e.end_at FROM terminal e JOIN turn t ON t.id = e.turn_id
             WHERE e.conversation_id = $1 AND e.number < $2 AND e.outcome = 'reply' AND e.holder = e.turn_id
             ORDER BY e.number DESC LIMIT $3",
            )
            .bind(conversation.0)
            .bind(before)
            .bind(i64::from(limit))
            .fetch_all(&mut *connection)
            .await?;
            // A log has as many units as its text has bytes, at least: what would not fit is not even read.
            let (mut ends, mut units) = (Vec::with_capacity(rows.len()), 0);
            for row in &rows {
                let end = row.try_get::<i64, _>("end_at")? as u64;
                units += end;
                if units > MAX_HISTORY_BYTES as u64 {
                    break;
                }
                ends.push((TurnId(row.try_get("turn_id")?), end));
            }
            let mut texts = texts(&mut connection, &ends).await?;
            let mut exchanges = Vec::with_capacity(rows.len());
            let mut bytes = 0;
            for (row, (turn, _)) in rows.iter().zip(&ends) {
                let exchange =
                    Exchange { message: row.try_get("input")?, reply: texts.remove(turn).unwrap_or_default() };
                bytes += exchange.message.len() + exchange.reply.len();
                if bytes > MAX_HISTORY_BYTES {
                    break;
                }
                exchanges.push(exchange);
            }
            exchanges.reverse();
            Ok(exchanges)
        })
        .await
    }
}

fn view(row: &PgRow) -> Result<TurnView, StoreError> {
    let ended: bool = row.try_get("ended")?;
    let terminal = if ended {
        Some(Terminal {
            failure: failure(row)?,
            holder: TurnId(row.try_get("holder")?),
            end: row.try_get::<i64, _>("end_at")? as u64,
            answers: row.try_get::<i16, _>("answers")? as u32,
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
        terminal,
    })
}

fn failure(row: &PgRow) -> Result<Option<Failure>, StoreError> {
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

async fn records(connection: &mut PgConnection, rows: &[PgRow]) -> Result<Vec<Record>, StoreError> {
    let mut holders: Vec<(TurnId, u64)> = Vec::new();
    for row in rows {
        if row.try_get::<Option<String>, _>("outcome")?.as_deref() == Some("reply") {
            holders.push((TurnId(row.try_get("holder")?), row.try_get::<i64, _>("end_at")? as u64));
        }
    }
    let texts = texts(connection, &holders).await?;
    let answered = answered(connection, &holders).await?;
    rows.iter()
        .map(|row| {
            let holder = row.try_get::<Option<Uuid>, _>("holder")?.map(TurnId);
            let reply = match (row.try_get::<Option<String>, _>("outcome")?.as_deref(), holder) {
                (Some("reply"), Some(holder)) => Some(RecordedReply {
                    reply_id: row.try_get("reply_id")?,
                    holder,
                    end: row.try_get::<i64, _>("end_at")? as u64,
                    text: texts.get(&holder).cloned().unwrap_or_default(),
                    turns: answered.get(&holder).cloned().unwrap_or_default(),
                }),
                _ => None,
            };
            let routing = elect::routing(row).unwrap_or_default();
            Ok(Record {
                turn_id: TurnId(row.try_get("id")?),
                conversation_id: ConversationId(row.try_get("conversation_id")?),
                owner: row.try_get("owner")?,
                organization: row.try_get("organization")?,
                conversation: row.try_get("conversation")?,
                number: row.try_get("number")?,
                message_id: row.try_get("message_id")?,
                agent: row.try_get("agent")?,
                worker_group: row.try_get("worker_group")?,
                user: row.try_get("user")?,
                platform: routing.platform,
                platform_metadata: routing.platform_metadata,
                message: row.try_get("input")?,
                armed_at: row.try_get("armed_at")?,
                claimed_at: row.try_get("claimed_at")?,
                ended_at: row.try_get("ended_at")?,
                open: row.try_get("open")?,
                worker: row.try_get::<Option<Uuid>, _>("worker")?.map(Incarnation),
                reply,
                failure: failure(row)?,
                superseded: row.try_get("superseded")?,
            })
        })
        .collect()
}

/// The text of each log up to its end.
async fn texts(connection: &mut PgConnection, ends: &[(TurnId, u64)]) -> Result<HashMap<TurnId, String>, StoreError> {
    if ends.is_empty() {
        return Ok(HashMap::new());
    }
    let ids: Vec<Uuid> = ends.iter().map(|e| e.0.0).collect();
    let rows =
        sqlx::query("SELECT turn_id, start_at, frames FROM output WHERE turn_id = ANY($1) ORDER BY turn_id, start_at")
            .bind(&ids)
            .fetch_all(connection)
            .await?;
    let ends: HashMap<TurnId, u64> = ends.iter().copied().collect();
    let mut texts: HashMap<TurnId, String> = HashMap::new();
    for row in rows {
        let turn = TurnId(row.try_get("turn_id")?);
        let start: i64 = row.try_get("start_at")?;
        let span = Span::new(start as u64, decode(row.try_get("frames")?)?);
        let end = ends.get(&turn).copied().unwrap_or(u64::MAX);
        texts.entry(turn).or_default().push_str(&span.until(end).text());
    }
    Ok(texts)
}

async fn answered(
    connection: &mut PgConnection,
    holders: &[(TurnId, u64)],
) -> Result<HashMap<TurnId, Vec<(TurnId, String)>>, StoreError> {
    if holders.is_empty() {
        return Ok(HashMap::new());
    }
    let ids: Vec<Uuid> = holders.iter().map(|h| h.0.0).collect();
    let rows: Vec<(Uuid, Uuid, String)> = sqlx::query_as(
        "SELECT h.turn_id, t.id, t.message_id FROM terminal h
         JOIN terminal e ON e.conversation_id = h.conversation_id AND e.number BETWEEN h.number - 100 AND h.number + 100
                        AND e.holder = h.turn_id AND e.outcome = 'reply'
         JOIN turn t ON t.id = e.turn_id WHERE h.turn_id = ANY($1) ORDER BY t.number",
    )
    .bind(&ids)
    .fetch_all(connection)
    .await?;
    let mut answered: HashMap<TurnId, Vec<(TurnId, String)>> = HashMap::new();
    for (holder, turn, message) in rows {
        answered.entry(TurnId(holder)).or_default().push((TurnId(turn), message));
    }
    Ok(answered)
}
