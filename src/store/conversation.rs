//! Conversations: who owns them, how far they are, and where a session on one starts.

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{Store, StoreError};
use crate::turn::keys::ConversationId;

/// A conversation's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    pub id: ConversationId,
    pub organization: String,
    /// Who submits its turns. Nobody else does.
    pub owner: String,
    /// The owner's own name of it.
    pub name: String,
    /// The Agent of its turns.
    pub agent: Option<String>,
    /// The number of the newest turn.
    pub last_number: i64,
    /// Turns up to this number may be gone: a cursor that lies before it is answered 410.
    pub pruned_through: i64,
}

const CONVERSATION: &str = "SELECT id, organization, owner, name, agent, last_number, pruned_through FROM conversation";

fn conversation(row: &PgRow) -> Result<Conversation, StoreError> {
    Ok(Conversation {
        id: ConversationId(row.try_get("id")?),
        organization: row.try_get("organization")?,
        owner: row.try_get("owner")?,
        name: row.try_get("name")?,
        agent: row.try_get("agent")?,
        last_number: row.try_get("last_number")?,
        pruned_through: row.try_get("pruned_through")?,
    })
}

impl Store {
    /// The conversation that this user calls by this name, if there is one.
    pub async fn conversation(
        &self,
        organization: &str,
        owner: &str,
        name: &str,
    ) -> Result<Option<Conversation>, StoreError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{CONVERSATION} WHERE organization = $1 AND owner = $2 AND name = $3"
        )))
        .bind(organization)
        .bind(owner)
        .bind(name)
        .fetch_optional(&self.general)
        .await?;
        row.as_ref().map(conversation).transpose()
    }

    /// The conversation of this id, if it exists: of whatever organization and owner.
    pub async fn conversation_by_id(&self, id: ConversationId) -> Result<Option<Conversation>, StoreError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("{CONVERSATION} WHERE id = $1")))
            .bind(id.0)
            .fetch_optional(&self.keyed)
            .await?;
        row.as_ref().map(conversation).transpose()
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

    /// Whether a message id was armed in a user's conversation of this name.
    pub async fn knows_message(
        &self,
        organization: &str,
        owner: &str,
        conversation: &str,
        message_id: &str,
    ) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM turn WHERE message_id = $4 AND conversation_id =
               (SELECT id FROM conversation WHERE organization = $1 AND owner = $2 AND name = $3))",
        )
        .bind(organization)
        .bind(owner)
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
