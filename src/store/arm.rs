//! Arm: insert a turn and its marker in one transaction. Nothing is dispatched before it has committed.

use serde_json::Value;
use sqlx::Row;
use time::OffsetDateTime;

use super::batch::BatchedVerb;
use super::connection::DbConnection;
use super::{AgentTurnRef, Notice, Store, StoreError};
use crate::turn::keys::{ConversationId, GatewayId, TurnId};

/// A turn to arm.
#[derive(Debug, Clone)]
pub struct Arm {
    pub turn_id: TurnId,
    pub organization: String,
    pub conversation: String,
    pub message_id: String,
    pub agent: String,
    pub worker_group: String,
    pub user: String,
    /// [`crate::turn::routing::Routing`] as JSON.
    pub routing: Value,
    /// The message.
    pub input: String,
    /// See [`crate::turn::keys::content_hash`]. It tells whether a repeated message id means the same turn.
    pub content_hash: Vec<u8>,
    pub traceparent: Option<String>,
    /// The hard deadline, in seconds from arm.
    pub turn_seconds: u32,
    /// The gateway that checks the turn before it may be claimed, and for how many seconds others leave that to it.
    pub guard: Option<(GatewayId, u32)>,
    /// The AgentTurn that the turn is armed for. The same transaction ties the two.
    pub object: Option<AgentTurnRef>,
}

/// An armed turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Armed {
    pub turn_id: TurnId,
    pub conversation_id: ConversationId,
    /// The turn's place in its conversation.
    pub number: i64,
    /// By the database's clock.
    pub armed_at: OffsetDateTime,
    /// Whether this call armed it; otherwise an earlier one with the same messageId and content did.
    pub fresh: bool,
}

/// Why no turn was armed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArmError {
    /// The conversation belongs to another user. To the caller it does not exist.
    #[error("no such conversation")]
    NotYours,
    /// The conversation belongs to the Agent of its first turn, which is this one and not the caller's.
    #[error("the conversation belongs to the agent {0:?}; start another conversation")]
    OtherAgent(String),
    #[error("this messageId was used before, with other content")]
    OtherContent,
    /// It is not known whether the turn was armed: arm it again with the same message id.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The turns that a new one would have before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// Turns that wait for the Agent, counted up to one more than was asked for.
    pub queued: u32,
    /// Turns of the conversation that are open.
    pub open: u64,
}

impl Store {
    /// What a new turn would have before it; `queued` is counted up to `limit` + 1.
    pub async fn backlog_before_turn(
        &self,
        organization: &str,
        agent: &str,
        conversation: &str,
        limit: u32,
    ) -> Result<Backlog, StoreError> {
        let (queued, open): (i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM (SELECT FROM marker WHERE organization = $1 AND agent = $2 AND incarnation IS NULL
                                           LIMIT $4) AS waiting),
                    (SELECT count(*) FROM marker WHERE conversation_id =
                       (SELECT id FROM conversation WHERE organization = $1 AND name = $3))",
        )
        .bind(organization)
        .bind(agent)
        .bind(conversation)
        .bind(i64::from(limit) + 1)
        .fetch_one(&self.general)
        .await?;
        Ok(Backlog { queued: queued as u32, open: open as u64 })
    }

    /// Arms a turn; armed means: exactly one terminal will follow. The same message id with the same content is answered
    /// with the turn that it armed before.
    pub async fn arm(&self, arm: Arm) -> Result<Armed, ArmError> {
        let worker_group = (arm.organization.clone(), arm.worker_group.clone());
        let claimable = arm.guard.is_none();
        let armed = self.arm.call(arm).await??;
        if armed.fresh {
            self.notices.send(Notice::Conversation(armed.conversation_id));
            if claimable {
                self.notices.send(Notice::WorkerGroup(worker_group.0, worker_group.1));
            }
        }
        Ok(armed)
    }
}

#[derive(Clone)]
pub(super) struct ArmVerb;

/// A conversation as the batch found or made it, locked until the commit.
struct LockedConversation {
    id: ConversationId,
    owner: String,
    agent: Option<String>,
}

impl BatchedVerb for ArmVerb {
    type Item = Arm;
    type Answer = Result<Armed, ArmError>;

    fn weight(&self, arm: &Arm) -> usize {
        arm.input.len()
    }

    async fn run(&self, tx: &mut DbConnection, items: &[Arm]) -> Result<Vec<Self::Answer>, StoreError> {
        let conversations = open_conversations(tx, items).await?;
        let mut allowed: Vec<usize> = Vec::with_capacity(items.len());
        let mut answers: Vec<Option<Self::Answer>> = Vec::with_capacity(items.len());
        for (i, (arm, conversation)) in items.iter().zip(&conversations).enumerate() {
            answers.push(if conversation.owner != arm.user {
                Some(Err(ArmError::NotYours))
            } else {
                match &conversation.agent {
                    Some(agent) if *agent != arm.agent => Some(Err(ArmError::OtherAgent(agent.clone()))),
                    _ => {
                        allowed.push(i);
                        None
                    }
                }
            });
        }
        insert(tx, items, &conversations, &allowed).await?;
        // Another statement reads what stands under the message ids now, whether this batch inserted it or an earlier arm.
        let found = find(tx, items, &allowed).await?;
        for (&i, found) in allowed.iter().zip(found) {
            answers[i] = Some(if found.content_hash == items[i].content_hash {
                Ok(Armed {
                    turn_id: found.turn_id,
                    conversation_id: conversations[i].id,
                    number: found.number,
                    armed_at: found.armed_at,
                    fresh: found.turn_id == items[i].turn_id,
                })
            } else {
                Err(ArmError::OtherContent)
            });
        }
        Ok(answers.into_iter().flatten().collect())
    }
}

/// Finds or makes each item's conversation and locks it, in key order. Under the lock turns get their numbers, so that of
/// two arms in one conversation the one that commits first has the lower number: everybody sees the same order.
async fn open_conversations(tx: &mut DbConnection, items: &[Arm]) -> Result<Vec<LockedConversation>, StoreError> {
    let ids: Vec<uuid::Uuid> = items.iter().map(|_| ConversationId::new().0).collect();
    let organizations: Vec<&str> = items.iter().map(|a| a.organization.as_str()).collect();
    let names: Vec<&str> = items.iter().map(|a| a.conversation.as_str()).collect();
    let owners: Vec<&str> = items.iter().map(|a| a.user.as_str()).collect();
    sqlx::query(
        "INSERT INTO conversation (id, organization, name, owner)
         SELECT DISTINCT ON (organization, name) id, organization, name, owner
         FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY
              AS c(id, organization, name, owner, position)
         ORDER BY organization, name, position
         ON CONFLICT (organization, name) DO NOTHING",
    )
    .bind(&ids)
    .bind(&organizations)
    .bind(&names)
    .bind(&owners)
    .execute(&mut *tx)
    .await?;
    let rows = sqlx::query(
        "SELECT id, organization, name, owner, agent FROM conversation
         WHERE (organization, name) IN (SELECT * FROM unnest($1::text[], $2::text[]))
         ORDER BY organization, name FOR UPDATE",
    )
    .bind(&organizations)
    .bind(&names)
    .fetch_all(&mut *tx)
    .await?;
    let mut by_key = std::collections::HashMap::with_capacity(rows.len());
    for row in &rows {
        let key: (String, String) = (row.try_get("organization")?, row.try_get("name")?);
        let found: (uuid::Uuid, String, Option<String>) =
            (row.try_get("id")?, row.try_get("owner")?, row.try_get("agent")?);
        by_key.insert(key, found);
    }
    // A conversation without an agent gets that of the batch's first item.
    let mut conversations = Vec::with_capacity(items.len());
    for arm in items {
        let Some((id, owner, agent)) = by_key.get_mut(&(arm.organization.clone(), arm.conversation.clone())) else {
            return Err(StoreError::Raced("a conversation was erased meanwhile".into()));
        };
        conversations.push(LockedConversation { id: ConversationId(*id), owner: owner.clone(), agent: agent.clone() });
        if *owner == arm.user {
            agent.get_or_insert_with(|| arm.agent.clone());
        }
    }
    Ok(conversations)
}

/// Numbers the allowed items behind the last turns of their conversations, and inserts turns and markers.
async fn insert(
    tx: &mut DbConnection,
    items: &[Arm],
    conversations: &[LockedConversation],
    allowed: &[usize],
) -> Result<(), StoreError> {
    if allowed.is_empty() {
        return Ok(());
    }
    let pick = |f: fn(&Arm) -> String| -> Vec<String> { allowed.iter().map(|&i| f(&items[i])).collect() };
    let ids: Vec<uuid::Uuid> = allowed.iter().map(|&i| items[i].turn_id.0).collect();
    let conversation_ids: Vec<uuid::Uuid> = allowed.iter().map(|&i| conversations[i].id.0).collect();
    let guards: Vec<Option<uuid::Uuid>> = allowed.iter().map(|&i| items[i].guard.map(|g| g.0.0)).collect();
    let guard_seconds: Vec<Option<i32>> = allowed.iter().map(|&i| items[i].guard.map(|g| g.1 as i32)).collect();
    let routings: Vec<Value> = allowed.iter().map(|&i| items[i].routing.clone()).collect();
    let hashes: Vec<&[u8]> = allowed.iter().map(|&i| items[i].content_hash.as_slice()).collect();
    let traces: Vec<Option<&str>> = allowed.iter().map(|&i| items[i].traceparent.as_deref()).collect();
    let turn_seconds: Vec<i32> = allowed.iter().map(|&i| items[i].turn_seconds as i32).collect();
    let object_names: Vec<Option<&str>> =
        allowed.iter().map(|&i| Some(items[i].object.as_ref()?.name.as_str())).collect();
    let object_uids: Vec<Option<&str>> =
        allowed.iter().map(|&i| Some(items[i].object.as_ref()?.uid.as_str())).collect();
    sqlx::query(
        r#"WITH item AS (
             SELECT i.*, c.last_number + row_number() OVER (PARTITION BY i.conversation_id ORDER BY position) AS number,
                    clock_timestamp() AS armed_at
             FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                         $9::jsonb[], $10::text[], $11::bytea[], $12::text[], $13::int[], $14::uuid[], $15::int[], $16::text[], $17::text[])
                  WITH ORDINALITY
                  AS i(id, conversation_id, organization, conversation, message_id, agent, worker_group, "user",
                       routing, input, content_hash, traceparent, turn_seconds, guard, guard_seconds, object_name, object_uid, position)
             JOIN conversation c ON c.id = i.conversation_id
           ), turns AS (
             INSERT INTO turn (id, conversation_id, number, organization, conversation, message_id, agent, worker_group,
                               "user", routing, input, content_hash, traceparent, armed_at)
             SELECT id, conversation_id, number, organization, conversation, message_id, agent, worker_group,
                    "user", routing, input, content_hash, traceparent, armed_at
             FROM item ORDER BY position
             ON CONFLICT (organization, conversation, message_id) DO NOTHING
             RETURNING id, number
           ), markers AS (
             INSERT INTO marker (turn_id, conversation_id, number, organization, agent, worker_group, phase,
                                 guard, guard_until, armed_at, deadline_at)
             SELECT i.id, i.conversation_id, i.number, i.organization, i.agent, i.worker_group,
                    CASE WHEN i.guard IS NULL THEN 'waiting' ELSE 'guarding' END,
                    i.guard, i.armed_at + make_interval(secs => i.guard_seconds),
                    i.armed_at, i.armed_at + make_interval(secs => i.turn_seconds)
             FROM item i JOIN turns USING (id)
           ), ties AS (
             INSERT INTO agent_turn (turn_id, organization, name, uid, armed_at)
             SELECT i.id, i.organization, i.object_name, i.object_uid, i.armed_at
             FROM item i JOIN turns USING (id) WHERE i.object_uid IS NOT NULL
           )
           UPDATE conversation c SET last_number = new.last, agent = coalesce(c.agent, new.agent), empty_since = NULL
           FROM (SELECT i.conversation_id, max(t.number) AS last, min(i.agent) AS agent
                 FROM turns t JOIN item i USING (id) GROUP BY i.conversation_id) new
           WHERE c.id = new.conversation_id"#,
    )
    .bind(&ids)
    .bind(&conversation_ids)
    .bind(pick(|a| a.organization.clone()))
    .bind(pick(|a| a.conversation.clone()))
    .bind(pick(|a| a.message_id.clone()))
    .bind(pick(|a| a.agent.clone()))
    .bind(pick(|a| a.worker_group.clone()))
    .bind(pick(|a| a.user.clone()))
    .bind(&routings)
    .bind(pick(|a| a.input.clone()))
    .bind(&hashes)
    .bind(&traces)
    .bind(&turn_seconds)
    .bind(&guards)
    .bind(&guard_seconds)
    .bind(&object_names)
    .bind(&object_uids)
    .execute(tx)
    .await?;
    Ok(())
}

/// The turn that a message id stands for.
struct FoundTurn {
    turn_id: TurnId,
    number: i64,
    armed_at: OffsetDateTime,
    content_hash: Vec<u8>,
}

/// Reads what stands under each allowed item's messageId now.
async fn find(tx: &mut DbConnection, items: &[Arm], allowed: &[usize]) -> Result<Vec<FoundTurn>, StoreError> {
    if allowed.is_empty() {
        return Ok(Vec::new());
    }
    let pick = |f: fn(&Arm) -> &str| -> Vec<&str> { allowed.iter().map(|&i| f(&items[i])).collect() };
    let rows = sqlx::query(
        "SELECT t.id, t.number, t.armed_at, t.content_hash
         FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS i(organization, conversation, message_id, position)
         JOIN turn t USING (organization, conversation, message_id)
         ORDER BY position",
    )
    .bind(pick(|a| &a.organization))
    .bind(pick(|a| &a.conversation))
    .bind(pick(|a| &a.message_id))
    .fetch_all(tx)
    .await?;
    if rows.len() != allowed.len() {
        return Err(StoreError::Raced("a turn was pruned meanwhile".into()));
    }
    rows.iter()
        .map(|row| {
            Ok(FoundTurn {
                turn_id: TurnId(row.try_get("id")?),
                number: row.try_get("number")?,
                armed_at: row.try_get("armed_at")?,
                content_hash: row.try_get("content_hash")?,
            })
        })
        .collect()
}
