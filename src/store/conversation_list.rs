//! A user's conversations, newest first: what a list of chats shows of each.

use sqlx::Row;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError};
use crate::turn::keys::{ConversationId, TurnId};
use crate::turn::phase::Phase;
use crate::turn::reason::Reason;
use crate::turn::title::{TITLE_SOURCE, title};

/// A conversation as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedConversation {
    pub id: ConversationId,
    pub owner: String,
    /// The owner's own name of it.
    pub name: String,
    /// The Agent of its turns.
    pub agent: Option<String>,
    pub created_at: OffsetDateTime,
    /// The first words of the oldest message that is kept.
    pub title: String,
    /// The newest turn; `None`: all are past their retention.
    pub newest: Option<NewestTurn>,
}

/// How the newest turn of a conversation stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewestTurn {
    pub turn_id: TurnId,
    pub number: i64,
    pub phase: Phase,
    /// Why it failed, if it did.
    pub reason: Option<Reason>,
    pub armed_at: OffsetDateTime,
    pub ended_at: Option<OffsetDateTime>,
}

impl Store {
    /// The conversations that a user owns, newest first: those that were made before the one named, if one is. Costs a few reads by
    /// key for each that is listed, whatever else there is.
    pub async fn list_conversations(
        &self,
        organization: &str,
        owner: &str,
        before: Option<ConversationId>,
        limit: u32,
    ) -> Result<Vec<ListedConversation>, StoreError> {
        let rows = sqlx::query(
            "SELECT c.id, c.owner, c.name, c.agent, c.created_at, first.words, t.id AS turn_id, t.number, t.armed_at,
                    coalesce(m.claimed_at, e.claimed_at) IS NOT NULL AS claimed, e.outcome, e.reason, e.ended_at
             FROM (SELECT id, owner, name, agent, created_at FROM conversation
                   WHERE organization = $1 AND owner = $2 AND id < coalesce($3, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
                   ORDER BY id DESC LIMIT $4) c
             LEFT JOIN LATERAL (SELECT left(input, $5) AS words FROM turn WHERE conversation_id = c.id
                                ORDER BY number LIMIT 1) first ON true
             LEFT JOIN LATERAL (SELECT id, number, armed_at FROM turn WHERE conversation_id = c.id
                                ORDER BY number DESC LIMIT 1) t ON true
             LEFT JOIN marker m ON m.turn_id = t.id LEFT JOIN terminal e ON e.turn_id = t.id
             ORDER BY c.id DESC",
        )
        .bind(organization)
        .bind(owner)
        .bind(before.map(|before| before.0))
        .bind(i64::from(limit))
        .bind(TITLE_SOURCE as i32)
        .fetch_all(&self.general)
        .await?;
        rows.iter()
            .map(|row| {
                let turn: Option<Uuid> = row.try_get("turn_id")?;
                let newest = turn.map(|turn| newest(row, TurnId(turn))).transpose()?;
                Ok(ListedConversation {
                    id: ConversationId(row.try_get("id")?),
                    owner: row.try_get("owner")?,
                    name: row.try_get("name")?,
                    agent: row.try_get("agent")?,
                    created_at: row.try_get("created_at")?,
                    title: title(&row.try_get::<Option<String>, _>("words")?.unwrap_or_default()),
                    newest,
                })
            })
            .collect()
    }
}

fn newest(row: &sqlx::postgres::PgRow, turn_id: TurnId) -> Result<NewestTurn, StoreError> {
    let outcome: Option<String> = row.try_get("outcome")?;
    let reason: Option<String> = row.try_get("reason")?;
    Ok(NewestTurn {
        turn_id,
        number: row.try_get("number")?,
        phase: Phase::of_armed(row.try_get("claimed")?, outcome.map(|outcome| outcome == "reply")),
        reason: reason.map(|reason| reason.parse().unwrap_or(Reason::Internal)),
        armed_at: row.try_get("armed_at")?,
        ended_at: row.try_get("ended_at")?,
    })
}
