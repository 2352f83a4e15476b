//! Records: all that is known of a turn, alone, by conversation or in an operator's list; and the history that is pushed to a
//! worker with a turn.

use std::collections::HashMap;

use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{QueryBuilder, Row};
use time::OffsetDateTime;
use uuid::Uuid;

use super::connection::DbConnection;
use super::pool::bounded;
use super::recorded_log::{RecordedLog, RecordedTools, logs};
use super::turn_view::failure;
use super::{Store, StoreError, elect};
use crate::turn::keys::{ConversationId, Incarnation, TurnId, WorkerGroup};
use crate::turn::phase::Phase;
use crate::turn::terminal::Failure;
use crate::wire::Exchange;

/// The longest text of the history that is pushed with a turn, in bytes.
const MAX_HISTORY_BYTES: usize = 512 * 1024;
/// The longest text of a turn that failed, in bytes.
const MAX_PARTIAL_BYTES: usize = 16 * 1024;

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
    pub worker_group: WorkerGroup,
    pub user: String,
    pub platform: String,
    pub platform_metadata: Value,
    /// What the person wrote.
    pub message: String,
    pub armed_at: OffsetDateTime,
    pub claimed_at: Option<OffsetDateTime>,
    pub ended_at: Option<OffsetDateTime>,
    /// Whether it still owes its terminal.
    pub open: bool,
    /// The worker that holds the turn, or held it to the end.
    pub worker: Option<Incarnation>,
    pub reply: Option<RecordedReply>,
    pub failure: Option<Failure>,
    /// What the agent had said before it failed: the beginning of it, where it is long.
    pub partial: Option<String>,
    /// Why the model stopped, in its server's words, such as `length`.
    pub finish_reason: Option<String>,
    /// What the agent called, where the turn has ended.
    pub tools: RecordedTools,
    /// When the agent's first output was made durable.
    pub first_output_at: Option<OffsetDateTime>,
    /// Whether a platform has yet to be shown the terminal.
    pub undelivered: bool,
    /// A word that came too late, in one line, for operators; and when it came.
    pub superseded: Option<String>,
    pub superseded_at: Option<OffsetDateTime>,
}

impl Record {
    /// Where the turn stands.
    pub fn phase(&self) -> Phase {
        Phase::of_armed(self.claimed_at.is_some(), (!self.open).then_some(self.failure.is_none()))
    }
}

/// A reply, and the turns that it answers.
#[derive(Debug, Clone)]
pub struct RecordedReply {
    /// The worker's name for the reply.
    pub reply_id: Option<String>,
    /// The turn whose log has the text, and where the reply ends in that log.
    pub holder: TurnId,
    pub end: u64,
    /// `None` if the log does not reach to `end`, or misses a part before it: half a reply is shown to nobody.
    pub text: Option<String>,
    /// The turns that it answers, with their message ids, in order.
    pub turns: Vec<(TurnId, String)>,
}

/// What a list of turns is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct ListFilter {
    pub agent: Option<String>,
    /// A conversation's name, whoever's, or its id.
    pub conversation: Option<String>,
    pub user: Option<String>,
    /// No turn is `Pending`: those that are listed were armed.
    pub phase: Option<Phase>,
    /// Only turns that were submitted before this one.
    pub before: Option<TurnId>,
    pub limit: u32,
}

/// What [`records`] reads of a turn.
const RECORD: &str = r#"SELECT t.id, t.conversation_id, t.organization, t.conversation, t.number, t.message_id, t.agent,
    t.worker_group, t."user", t.routing, t.input, t.armed_at, coalesce(m.claimed_at, e.claimed_at) AS claimed_at, m.turn_id IS NOT NULL AS open,
    coalesce(m.incarnation, e.incarnation, e.held_by) AS worker, e.ended_at, e.outcome, e.reason, e.message, e.detail, e.finish_reason, e.reply_id,
    e.holder, e.end_at, c.owner,
    (SELECT o.written_at FROM output o WHERE o.turn_id = coalesce(e.holder, t.id) ORDER BY o.start_at LIMIT 1) AS first_output_at,
    (SELECT true FROM delivery d WHERE d.turn_id = t.id LIMIT 1) IS NOT NULL AS undelivered,
    (SELECT s.said_at FROM superseded s WHERE s.turn_id = t.id) AS superseded_at,
    (SELECT s.outcome || coalesce(': ' || s.reason, '') || coalesce(': ' || nullif(s.text, ''), '') FROM superseded s WHERE s.turn_id = t.id) AS superseded
    FROM turn t JOIN conversation c ON c.id = t.conversation_id
    LEFT JOIN marker m ON m.turn_id = t.id LEFT JOIN terminal e ON e.turn_id = t.id"#;

impl Store {
    /// The record of a turn.
    pub async fn turn_record(&self, turn: TurnId) -> Result<Option<Record>, StoreError> {
        bounded(async {
            let mut connection = self.general.acquire().await?;
            let query = format!("{RECORD} WHERE t.id = $1");
            let mut again = true;
            loop {
                let row = sqlx::query(sqlx::AssertSqlSafe(query.as_str()))
                    .bind(turn.0)
                    .fetch_optional(&mut connection)
                    .await?;
                let record = records(&mut connection, row.as_slice()).await?.pop();
                let lacks_text = record.as_ref().is_some_and(|r| r.reply.as_ref().is_some_and(|r| r.text.is_none()));
                // The turn may have been removed with its log between the two statements: then it is gone as a whole.
                if !lacks_text || !std::mem::take(&mut again) {
                    return Ok(record);
                }
            }
        })
        .await
    }

    /// A conversation's turns with numbers below `before` (`None`: all), newest first.
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
            .fetch_all(&mut connection)
            .await?;
            records(&mut connection, &rows).await
        })
        .await
    }

    /// The turns of an organization, newest first.
    pub async fn list_turns(&self, organization: &str, filter: &ListFilter) -> Result<Vec<Record>, StoreError> {
        let mut query = QueryBuilder::new(RECORD);
        query.push(" WHERE t.organization = ").push_bind(organization);
        for (column, value) in [("t.agent", &filter.agent), ("t.\"user\"", &filter.user)] {
            if let Some(value) = value {
                query.push(format!(" AND {column} = ")).push_bind(value);
            }
        }
        if let Some(conversation) = &filter.conversation {
            // As an array that is computed first: the turns of a conversation have an index, and its name has one.
            query.push(" AND t.conversation_id = ANY (ARRAY(SELECT id FROM conversation WHERE organization = ");
            query.push_bind(organization).push(" AND name = ").push_bind(conversation).push(")");
            if let Ok(id) = conversation.parse::<ConversationId>() {
                query.push(" || ").push_bind(id.0);
            }
            query.push(")");
        }
        match filter.phase {
            None => &mut query,
            Some(Phase::Pending) => query.push(" AND false"),
            Some(Phase::Armed) => query.push(" AND m.phase <> 'claimed'"),
            Some(Phase::Running) => query.push(" AND m.phase = 'claimed'"),
            Some(Phase::Succeeded) => query.push(" AND e.outcome = 'reply'"),
            // Failures are few among many turns. They have an index of their own, by organization.
            Some(Phase::Failed) => query.push(" AND e.outcome = 'error' AND e.organization = ").push_bind(organization),
        };
        if let Some(before) = filter.before {
            query.push(" AND t.id < ").push_bind(before.0);
        }
        query.push(" ORDER BY t.id DESC LIMIT ").push_bind(i64::from(filter.limit));
        bounded(async {
            let mut connection = self.general.acquire().await?;
            let rows = query.build().fetch_all(&mut connection).await?;
            records(&mut connection, &rows).await
        })
        .await
    }

    /// The messages and replies of a conversation before the turn of number `before`, oldest first: the last `limit` of them,
    /// and fewer where their text is longer than [`MAX_HISTORY_BYTES`].
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
            .fetch_all(&mut connection)
            .await?;
            // A log has at least as many units as its text has bytes: a log that would not fit is not even read.
            let (mut ends, mut units) = (Vec::with_capacity(rows.len()), 0);
            for row in &rows {
                let end = row.try_get::<i64, _>("end_at")? as u64;
                units += end;
                if units > MAX_HISTORY_BYTES as u64 {
                    break;
                }
                ends.push((TurnId(row.try_get("turn_id")?), end));
            }
            let mut logs = logs(&mut connection, &ends).await?;
            let mut exchanges = Vec::with_capacity(rows.len());
            let mut bytes = 0;
            for (row, (turn, _)) in rows.iter().zip(&ends) {
                // A model that is shown half an answer as its own goes on from it.
                let Some(log) = logs.remove(turn).filter(RecordedLog::is_whole) else { continue };
                let reply = log.text;
                let exchange = Exchange { message: row.try_get("input")?, reply };
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

/// Reads what the rows of [`RECORD`] need besides, and makes records of them.
async fn records(connection: &mut DbConnection, rows: &[PgRow]) -> Result<Vec<Record>, StoreError> {
    let (mut holders, mut ends) = (Vec::new(), Vec::new());
    for row in rows {
        if let Some(outcome) = row.try_get::<Option<String>, _>("outcome")? {
            let log = (TurnId(row.try_get("holder")?), row.try_get::<i64, _>("end_at")? as u64);
            ends.push(log);
            if outcome == "reply" {
                holders.push(log);
            }
        }
    }
    let logs = logs(connection, &ends).await?;
    let answered = answered(connection, &holders).await?;
    rows.iter()
        .map(|row| {
            let holder = row.try_get::<Option<Uuid>, _>("holder")?.map(TurnId);
            let reply = match (row.try_get::<Option<String>, _>("outcome")?.as_deref(), holder) {
                (Some("reply"), Some(holder)) => Some(RecordedReply {
                    reply_id: row.try_get("reply_id")?,
                    holder,
                    end: row.try_get::<i64, _>("end_at")? as u64,
                    text: logs.get(&holder).filter(|log| log.is_whole()).map(|log| log.text.clone()),
                    turns: answered.get(&holder).cloned().unwrap_or_default(),
                }),
                _ => None,
            };
            let routing = elect::routing(row).unwrap_or_default();
            let log = holder.and_then(|holder| logs.get(&holder)).filter(|log| reply.is_none() || log.is_whole());
            let partial = log.filter(|log| reply.is_none() && !log.text.is_empty()).map(|log| beginning(&log.text));
            Ok(Record {
                turn_id: TurnId(row.try_get("id")?),
                conversation_id: ConversationId(row.try_get("conversation_id")?),
                owner: row.try_get("owner")?,
                organization: row.try_get("organization")?,
                conversation: row.try_get("conversation")?,
                number: row.try_get("number")?,
                message_id: row.try_get("message_id")?,
                agent: row.try_get("agent")?,
                worker_group: WorkerGroup::from_key(row.try_get("worker_group")?),
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
                finish_reason: row.try_get("finish_reason")?,
                partial,
                tools: log.map(|log| log.tools.clone()).unwrap_or_default(),
                first_output_at: row.try_get("first_output_at")?,
                undelivered: row.try_get("undelivered")?,
                superseded: row.try_get("superseded")?,
                superseded_at: row.try_get("superseded_at")?,
            })
        })
        .collect()
}

/// As much of a text as a record holds of one that is no reply.
fn beginning(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_PARTIAL_BYTES)].to_owned()
}

/// By holder, the turns that the reply in its log answers, with their message ids, in order.
async fn answered(
    connection: &mut DbConnection,
    holders: &[(TurnId, u64)],
) -> Result<HashMap<TurnId, Vec<(TurnId, String)>>, StoreError> {
    if holders.is_empty() {
        return Ok(HashMap::new());
    }
    let ids: Vec<Uuid> = holders.iter().map(|h| h.0.0).collect();
    let rows: Vec<(Uuid, Uuid, String)> = sqlx::query_as(
        "SELECT h.turn_id, t.id, t.message_id FROM terminal h
         CROSS JOIN LATERAL (SELECT h.turn_id AS its WHERE h.answers = 1
                             UNION ALL SELECT e.turn_id FROM terminal e WHERE e.holder = h.turn_id AND e.answers > 1) a
         JOIN turn t ON t.id = a.its WHERE h.turn_id = ANY($1) ORDER BY t.number",
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
