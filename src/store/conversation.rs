//! Conversations: who owns them, how far they are, and where a session on one starts.

use sqlx::Row;
use uuid::Uuid;

use super::{Store, StoreError};
use crate::turn::keys::ConversationId;

/// A conversation's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    pub id: ConversationId,
    pub owner: String,
    /// `None` until the first turn.
    pub agent: Option<String>,
    /// The number of the newest turn.
    pub last_number: i64,
    /// Turns up to this number may be gone: a cursor that lies before it is answered 410.
    pub pruned_through: i64,
}

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

    /// The conversation, which is made if it does not exist. Whoever makes it owns it.
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
        found.ok_or_else(|| StoreError::Raced("the conversation was erased meanwhile".into()))
    }

    /// The number behind which a session without a cursor starts: the turn with the next number is the oldest one that is open
    /// or was not delivered yet.
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
    pub async fn knows_message(
        &self,
        organization: &str,
        conversation: &str,
        message_id: &str,
    ) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM turn WHERE organization = $1 AND conversation = $2 AND message_id = $3)",
        )
        .bind(organization)
        .bind(conversation)
        .bind(message_id)
        .fetch_one(&self.general)
        .await?)
    }

    /// For each of these conversations a pair of numbers that changes whenever one of its turns is armed, claimed or ended.
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
