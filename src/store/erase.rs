//! Erasing a conversation on its owner's demand, at once and for good.

use uuid::Uuid;

use super::audit::Actor;
use super::elect::{self, Fence};
use super::retention::delete_turns;
use super::transaction::transaction;
use super::{Conversation, Notice, Store, StoreError, principal};
use crate::turn::cause;
use crate::turn::keys::{ConversationId, TurnId, WorkerGroup};

/// What erasing a conversation removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErasedConversation {
    /// Turns that were removed.
    pub turns: u64,
    /// Those of them that were open, and so were cancelled first.
    pub cancelled: u64,
}

/// Turns that one transaction removes at the most.
const ERASE_BATCH: i64 = 1000;

impl Store {
    /// Erases a conversation with its turns, logs and terminals, and writes the audit. Open turns are cancelled first, so that
    /// each has had its terminal. `None`: there is no such conversation.
    pub async fn erase_conversation(
        &self,
        conversation: ConversationId,
        actor: Actor<'_>,
    ) -> Result<Option<ErasedConversation>, StoreError> {
        let Some(conversation) = self.conversation_by_id(conversation).await? else { return Ok(None) };
        let mut erased = ErasedConversation { turns: 0, cancelled: 0 };
        loop {
            erased.cancelled += self.cancel_open(conversation.id).await?;
            let deleted = self.erase_batch(conversation.id).await?;
            erased.turns += deleted;
            if deleted < ERASE_BATCH as u64 && self.erase_conversation_row(&conversation, actor, erased).await? {
                // Its worker, if it has one of its own, is to drain: the fleet looks at once.
                self.notices.send(Notice::WorkerGroup(
                    conversation.organization,
                    conversation.agent.unwrap_or_default(),
                    WorkerGroup::OfConversation(conversation.id),
                ));
                return Ok(Some(erased));
            }
        }
    }

    /// Cancels the open turns; answers how many there were.
    async fn cancel_open(&self, conversation: ConversationId) -> Result<u64, StoreError> {
        let failure = cause::rule::cancelled();
        let ended = transaction!(self.vital(), |tx| {
            let open: Vec<Uuid> = sqlx::query_scalar("SELECT turn_id FROM marker WHERE conversation_id = $1")
                .bind(conversation.0)
                .fetch_all(&mut *tx)
                .await?;
            let open: Vec<TurnId> = open.into_iter().map(TurnId).collect();
            elect::fail_open(tx, &open, Fence::AnyHolder, &failure).await
        })
        .await?;
        self.announce(&ended);
        Ok(ended.len() as u64)
    }

    /// Removes the oldest [`ERASE_BATCH`] turns that have their terminal; answers how many there were.
    async fn erase_batch(&self, conversation: ConversationId) -> Result<u64, StoreError> {
        transaction!(self.general, |tx| {
            let ids: Vec<Uuid> = sqlx::query_scalar(
                "SELECT t.id FROM turn t WHERE conversation_id = $1
                 AND NOT EXISTS (SELECT FROM marker m WHERE m.turn_id = t.id) ORDER BY number LIMIT $2",
            )
            .bind(conversation.0)
            .bind(ERASE_BATCH)
            .fetch_all(&mut *tx)
            .await?;
            delete_turns(tx, &ids).await?;
            Ok(ids.len() as u64)
        })
        .await
    }

    /// Deletes the conversation's own row and writes the audit. False, and nothing is done: a turn was armed meanwhile.
    async fn erase_conversation_row(
        &self,
        conversation: &Conversation,
        actor: Actor<'_>,
        erased: ErasedConversation,
    ) -> Result<bool, StoreError> {
        transaction!(self.general, |tx| {
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
            let gone =
                sqlx::query("DELETE FROM conversation WHERE id = $1").bind(conversation.id.0).execute(&mut *tx).await?;
            if gone.rows_affected() == 0 {
                // Somebody else has erased it meanwhile.
                return Ok(true);
            }
            let owner = (conversation.organization.as_str(), conversation.owner.as_str());
            principal::count_conversations(tx, &[(owner, -1)]).await?;
            sqlx::query(
                "INSERT INTO audit (id, organization, actor, key, action, subject, counts)
                 VALUES ($1, $2, $3, $4, 'erase', $5, jsonb_build_object('turns', $6::bigint, 'cancelled', $7::bigint))",
            )
            .bind(Uuid::now_v7())
            .bind(&conversation.organization)
            .bind(actor.user)
            .bind(actor.key)
            .bind(conversation.id.to_string())
            .bind(erased.turns as i64)
            .bind(erased.cancelled as i64)
            .execute(&mut *tx)
            .await?;
            Ok(true)
        })
        .await
    }
}
