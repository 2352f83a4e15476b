//! The registry of sessions: which gateway replica holds a client's stream on a conversation.

use uuid::Uuid;

use super::{Store, StoreError};
use crate::turn::keys::{ConversationId, GatewayId, SessionId};

/// A session, and the replica that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OtherSession {
    pub gateway: GatewayId,
    /// Whether it is the conversation's owner who listens.
    pub owner: bool,
}

impl Store {
    /// Registers a session, before it reads anything: from then on whoever writes a terminal can find it. Removing an empty
    /// conversation and this take the same lock, so that either the remover sees the session, or the session is told that the
    /// conversation is gone ([`StoreError::Raced`]).
    pub async fn register_session(
        &self,
        session: SessionId,
        gateway: GatewayId,
        organization: &str,
        conversation: ConversationId,
        owner: bool,
    ) -> Result<(), StoreError> {
        let exists = sqlx::query_scalar::<_, bool>(
            "WITH place AS MATERIALIZED (SELECT id FROM conversation WHERE id = $4 FOR KEY SHARE), new AS (
               INSERT INTO session (id, gateway, organization, conversation_id, owner)
               SELECT $1, $2, $3, id, $5 FROM place ON CONFLICT (id) DO NOTHING)
             SELECT EXISTS (SELECT FROM place)",
        )
        .bind(session.0)
        .bind(gateway.0)
        .bind(organization)
        .bind(conversation.0)
        .bind(owner)
        .fetch_one(&self.general)
        .await?;
        if exists { Ok(()) } else { Err(StoreError::Raced("the conversation was removed meanwhile".into())) }
    }

    /// Forgets sessions that ended.
    pub async fn forget_sessions(&self, sessions: &[SessionId]) -> Result<(), StoreError> {
        let ids: Vec<Uuid> = sessions.iter().map(|s| s.0).collect();
        sqlx::query("DELETE FROM session WHERE id = ANY($1)").bind(&ids).execute(&self.general).await?;
        Ok(())
    }

    /// Forgets gateways that have not ticked for a minute past their expiry, and their sessions. Answers how many sessions. The
    /// row of one that a lease names which is not dead stays: by it the silence of that worker is judged.
    pub async fn forget_lost_gateways(&self) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "WITH lost AS (SELECT id FROM gateway WHERE expires_at < statement_timestamp() - interval '1 minute'),
                  gone AS (DELETE FROM gateway g USING lost
                           WHERE g.id = lost.id AND NOT EXISTS (
                             SELECT FROM lease l WHERE l.heard_by = g.id AND l.phase <> 'dead'))
             DELETE FROM session s WHERE s.gateway IN (SELECT id FROM lost)
                OR (s.registered_at < statement_timestamp() - interval '1 hour'
                    AND NOT EXISTS (SELECT FROM gateway g WHERE g.id = s.gateway))",
        )
        .execute(&self.general)
        .await?;
        Ok(done.rows_affected())
    }

    /// The sessions on a conversation, those of its owner first; 1,000 at the most.
    pub async fn sessions_on_conversation(
        &self,
        conversation: ConversationId,
    ) -> Result<Vec<OtherSession>, StoreError> {
        let rows: Vec<(Uuid, bool)> = sqlx::query_as(
            "SELECT gateway, owner FROM session WHERE conversation_id = $1 ORDER BY owner DESC LIMIT 1000",
        )
        .bind(conversation.0)
        .fetch_all(&self.general)
        .await?;
        Ok(rows.into_iter().map(|(gateway, owner)| OtherSession { gateway: GatewayId(gateway), owner }).collect())
    }
}
