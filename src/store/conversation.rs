//! Conversations: who owns them, where a session starts, and erasing them.

use sqlx::Row;
use uuid::Uuid;

use super::batch::retry_races;
use super::elect::{self, Hand};
use super::{Store, StoreError};
use crate::turn::cause;
use crate::turn::keys::{ConversationId, TurnId};

/// A conversation's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    pub id: ConversationId,
    pub owner: String,
    pub agent: Option<String>,
    pub last_number: i64,
    /// Turns up to here may be gone: a cursor before it answers 410.
    pub pruned_through: i64,
}

/// What erasing a conversation removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Erased {
    pub turns: u64,
    pub cancelled: u64,
}

/// Turns of one transaction when erasing.
const ERASE_BATCH: i64 = 1000;

impl Store {
    /// The conversation, if it exists.
    pub async fn conversation(&self, organization: &str, name: &str) -> Result<Option<Conversation>, StoreError> {
        let row = sqlx::query(
            "SELECT id, owner, agent, last_number, pruned_through FROM conversation WHERE organization = $1 AND name = $2",
        )
        .bind(organization)
        .bind(name)
        .fetch_optional(&self.general)
        .await?;
        row.map(|r| {
            Ok(Conversation {
                id: ConversationId(r.try_get("id")?),
                owner: r.try_get("owner")?,
                agent: r.try_get("agent")?,
                last_number: r.try_get("last_number")?,
                pruned_through: r.try_get("pruned_through")?,
            })
        })
        .transpose()
    }

    /// The conversation; whoever opens it first owns it.
    pub async fn open_conversation(
        &self,
        organization: &str,
        name: &str,
        user: &str,
    ) -> Result<Conversation, StoreError> {
        if let Some(found) = self.conversation(organization, name).await? {
            return Ok(found);
        }
        sqlx::query(
            "INSERT INTO conversation (id, organization, name, owner, empty_since) VALUES ($1, $2, $3, $4, clock_timestamp())
             ON CONFLICT (organization, name) DO NOTHING",
        )
        .bind(ConversationId::new().0)
        .bind(organization)
        .bind(name)
        .bind(user)
        .execute(&self.general)
        .await?;
        let found = self.conversation(organization, name).await?;
        found.ok_or_else(|| StoreError::Unavailable("the conversation was erased meanwhile".into()))
    }

    /// The turn before which a session without a cursor starts: before the oldest that is open or undelivered.
    pub async fn session_base(&self, conversation: ConversationId) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar(
            "SELECT least((SELECT min(number) FROM marker WHERE conversation_id = $1),
                          (SELECT min(number) FROM delivery WHERE conversation_id = $1
                             AND (platform = 'api' OR state = 'ready')),
                          (SELECT last_number + 1 FROM conversation WHERE id = $1), 9223372036854775807) - 1",
        )
        .bind(conversation.0)
        .fetch_one(&self.general)
        .await?)
    }

    /// Whether a message id was armed in a conversation.
    pub async fn knows(&self, organization: &str, conversation: &str, message_id: &str) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM turn WHERE organization = $1 AND conversation = $2 AND message_id = $3)",
        )
        .bind(organization)
        .bind(conversation)
        .bind(message_id)
        .fetch_one(&self.general)
        .await?)
    }

    /// Cancels what is open, then erases the conversation, its turns, logs and terminals, and writes the audit.
    pub async fn erase(&self, organization: &str, name: &str, actor: &str) -> Result<Option<Erased>, StoreError> {
        let Some(conversation) = self.conversation(organization, name).await? else { return Ok(None) };
        let mut erased = Erased { turns: 0, cancelled: 0 };
        loop {
            erased.cancelled += self.cancel_open(conversation.id).await?;
            let deleted = self.erase_batch(conversation.id).await?;
            erased.turns += deleted;
            if deleted < ERASE_BATCH as u64
                && self.erase_conversation(&conversation, organization, actor, erased).await?
            {
                return Ok(Some(erased));
            }
        }
    }

    async fn cancel_open(&self, conversation: ConversationId) -> Result<u64, StoreError> {
        let failure = cause::rule::cancelled();
        let ended = retry_races(|| async {
            let mut connection = self.vital().acquire().await?;
            let mut tx = connection.begin().await?;
            let open: Vec<Uuid> = sqlx::query_scalar("SELECT turn_id FROM marker WHERE conversation_id = $1")
                .bind(conversation.0)
                .fetch_all(&mut *tx)
                .await?;
            let open: Vec<TurnId> = open.into_iter().map(TurnId).collect();
            let ended = elect::fail_open(&mut tx, &open, Hand::Anybodys, &failure).await?;
            tx.commit().await?;
            Ok(ended)
        })
        .await?;
        self.announce(&ended);
        Ok(ended.len() as u64)
    }

    async fn erase_batch(&self, conversation: ConversationId) -> Result<u64, StoreError> {
        retry_races(|| async {
            let mut connection = self.general.acquire().await?;
            let mut tx = connection.begin().await?;
            let ids: Vec<Uuid> = sqlx::query_scalar(
                "SELECT t.id FROM turn t WHERE conversation_id = $1
                 AND NOT EXISTS (SELECT FROM marker m WHERE m.turn_id = t.id) ORDER BY number LIMIT $2",
            )
            .bind(conversation.0)
            .bind(ERASE_BATCH)
            .fetch_all(&mut *tx)
            .await?;
            super::retention::delete_turns(&mut tx, &ids).await?;
            tx.commit().await?;
            Ok(ids.len() as u64)
        })
        .await
    }

    /// Deletes the row itself, unless a turn was armed meanwhile.
    async fn erase_conversation(
        &self,
        conversation: &Conversation,
        organization: &str,
        actor: &str,
        erased: Erased,
    ) -> Result<bool, StoreError> {
        retry_races(|| async {
            let mut connection = self.general.acquire().await?;
            let mut tx = connection.begin().await?;
            sqlx::query("SELECT FROM conversation WHERE id = $1 FOR UPDATE")
                .bind(conversation.id.0)
                .execute(&mut *tx)
                .await?;
            let left: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM turn WHERE conversation_id = $1)")
                .bind(conversation.id.0)
                .fetch_one(&mut *tx)
                .await?;
            if left {
                return Ok(false);
            }
            sqlx::query("DELETE FROM session WHERE conversation_id = $1")
                .bind(conversation.id.0)
                .execute(&mut *tx)
                .await?;
            sqlx::query("DELETE FROM conversation WHERE id = $1").bind(conversation.id.0).execute(&mut *tx).await?;
            sqlx::query(
                "INSERT INTO audit (id, organization, actor, action, subject, counts)
                 VALUES ($1, $2, $3, 'erase', $4, jsonb_build_object('turns', $5::bigint, 'cancelled', $6::bigint))",
            )
            .bind(Uuid::now_v7())
            .bind(organization)
            .bind(actor)
            .bind(conversation.id.to_string())
            .bind(erased.turns as i64)
            .bind(erased.cancelled as i64)
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            Ok(true)
        })
        .await
    }
}

impl Store {
    /// For each conversation a pair that changes whenever a turn of it is armed, claimed or ended.
    pub async fn conversation_states(
        &self,
        conversations: &[ConversationId],
    ) -> Result<Vec<(ConversationId, (i64, i64))>, StoreError> {
        let ids: Vec<Uuid> = conversations.iter().map(|c| c.0).collect();
        let rows: Vec<(Uuid, i64, i64)> = sqlx::query_as(
            "SELECT c.id, c.last_number,
                    (SELECT coalesce(sum(m.number * 1000 + (m.incarnation IS NOT NULL)::int), 0)::bigint
                     FROM marker m WHERE m.conversation_id = c.id)
             FROM conversation c WHERE c.id = ANY($1)",
        )
        .bind(&ids)
        .fetch_all(&self.general)
        .await?;
        Ok(rows.into_iter().map(|(id, last, open)| (ConversationId(id), (last, open))).collect())
    }
}
