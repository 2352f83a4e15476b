//! Arm: insert a turn and its marker in one transaction. Nothing is dispatched before it has committed.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;
use sqlx::Row;
use time::OffsetDateTime;

use super::batch::BatchedVerb;
use super::connection::DbConnection;
use super::principal::{self, Owner, PrincipalLimits};
use super::request::{self, TurnRequest};
use super::{AgentTurnRef, Notice, Store, StoreError};
use crate::telemetry::turns::{ToldTurn, TurnEvent};
use crate::turn::keys::{ConversationId, GatewayId, Grouping, TurnId, WorkerGroup};

/// A turn to arm.
#[derive(Debug, Clone)]
pub struct Arm {
    pub turn_id: TurnId,
    pub organization: String,
    /// The user's own name of the conversation, which is made if there is none.
    pub conversation: String,
    pub message_id: String,
    pub agent: String,
    /// Whether the conversation has workers of its own. Which group that is follows from the conversation's id, which is known
    /// behind the conversation's lock.
    pub grouping: Grouping,
    /// Who submits the turn, and so owns the conversation.
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
    /// What the user may have; `None`: nothing is counted.
    pub limits: Option<PrincipalLimits>,
    /// The request that the turn is armed for, where its client may send it again without a message id.
    pub request: Option<TurnRequest>,
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
    pub worker_group: WorkerGroup,
    /// Whether this call armed it; otherwise an earlier one with the same messageId and content did.
    pub fresh: bool,
}

/// Why no turn was armed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArmError {
    /// The conversation belongs to the Agent of its first turn, which is this one and not the caller's.
    #[error("the conversation belongs to the agent {0:?}; start another conversation")]
    OtherAgent(String),
    #[error("this messageId was used before, with other content")]
    OtherContent,
    #[error("you have {0} open turns, which is as many as a user may have; wait for some to end")]
    TooManyOpen(u32),
    #[error("you have {0} conversations, which is as many as a user may have; erase some")]
    TooManyConversations(u64),
    /// It is not known whether the turn was armed: arm it again with the same message id.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Arms a turn; armed means: exactly one terminal will follow. The same message id with the same content is answered
    /// with the turn that it armed before.
    pub async fn arm(&self, arm: Arm) -> Result<Armed, ArmError> {
        let (organization, agent) = (arm.organization.clone(), arm.agent.clone());
        let claimable = arm.guard.is_none();
        let armed = self.arm.call(arm).await??;
        if armed.fresh {
            self.notices.send(Notice::Conversation(armed.conversation_id));
            if claimable {
                self.notices.send(Notice::WorkerGroup(organization, agent, armed.worker_group));
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
        let mut answers: Vec<Option<Self::Answer>> = Vec::with_capacity(items.len());
        for (arm, conversation) in items.iter().zip(&conversations) {
            answers.push(match conversation {
                Err(max) => Some(Err(ArmError::TooManyConversations(*max))),
                Ok(LockedConversation { agent: Some(agent), .. }) if *agent != arm.agent => {
                    Some(Err(ArmError::OtherAgent(agent.clone())))
                }
                Ok(_) => None,
            });
        }
        let allowed: Vec<AllowedArm<'_>> = (items.iter().zip(conversations).zip(&answers).enumerate())
            .filter(|(_, (_, answer))| answer.is_none())
            .filter_map(|(place, ((arm, conversation), _))| {
                Some(AllowedArm { place, arm, conversation: conversation.ok()?.id })
            })
            .collect();
        let limits: Vec<_> =
            allowed.iter().map(|a| ((a.arm.organization.as_str(), a.arm.user.as_str()), a.arm.limits)).collect();
        let full = principal::without_room(tx, &limits).await?;
        let roomy: Vec<&AllowedArm<'_>> =
            allowed.iter().zip(&full).filter(|(_, full)| full.is_none()).map(|(a, _)| a).collect();
        insert(tx, &roomy).await?;
        request::insert(tx, roomy.iter().filter_map(|a| Some((a.arm.turn_id, a.arm.request.as_ref()?)))).await?;
        // Another statement reads what stands under the message ids now, whether this batch inserted it or an earlier arm. One
        // that there was no room for may repeat what was armed.
        let found = find(tx, &allowed).await?;
        for ((AllowedArm { place, arm, conversation }, found), full) in allowed.iter().zip(found).zip(full) {
            answers[*place] = Some(match (found, full) {
                (Some(found), _) if found.content_hash == arm.content_hash => {
                    let fresh = found.turn_id == arm.turn_id;
                    if fresh {
                        tx.note(TurnEvent::Armed(arm.told()));
                    }
                    Ok(Armed {
                        turn_id: found.turn_id,
                        conversation_id: *conversation,
                        number: found.number,
                        armed_at: found.armed_at,
                        worker_group: found.worker_group,
                        fresh,
                    })
                }
                (Some(_), _) => Err(ArmError::OtherContent),
                (None, Some(max)) => Err(ArmError::TooManyOpen(max)),
                (None, None) => return Err(StoreError::Raced("a turn was pruned meanwhile".into())),
            });
        }
        Ok(answers.into_iter().flatten().collect())
    }
}

impl Arm {
    fn told(&self) -> ToldTurn {
        ToldTurn {
            turn_id: self.turn_id,
            organization: self.organization.clone(),
            agent: self.agent.clone(),
            traceparent: self.traceparent.clone(),
        }
    }
}

/// An item of the batch whose conversation takes its turn.
struct AllowedArm<'a> {
    /// Which item of the batch it is.
    place: usize,
    arm: &'a Arm,
    conversation: ConversationId,
}

/// A conversation's organization, owner and name.
type ConversationKey<'a> = (&'a str, &'a str, &'a str);

fn key(arm: &Arm) -> ConversationKey<'_> {
    (&arm.organization, &arm.user, &arm.conversation)
}

/// Finds or makes each item's conversation and locks it, in key order. Under the lock turns get their numbers, so that of
/// two arms in one conversation the one that commits first has the lower number: everybody sees the same order. `Err` is for
/// one that its owner may not make: the most that the owner may have.
async fn open_conversations(
    tx: &mut DbConnection,
    items: &[Arm],
) -> Result<Vec<Result<LockedConversation, u64>>, StoreError> {
    let ids: Vec<uuid::Uuid> = items.iter().map(|_| ConversationId::new().0).collect();
    let organizations: Vec<&str> = items.iter().map(|a| a.organization.as_str()).collect();
    let owners: Vec<&str> = items.iter().map(|a| a.user.as_str()).collect();
    let names: Vec<&str> = items.iter().map(|a| a.conversation.as_str()).collect();
    let made: Vec<uuid::Uuid> = sqlx::query_scalar(
        "INSERT INTO conversation (id, organization, owner, name)
         SELECT DISTINCT ON (organization, owner, name) id, organization, owner, name
         FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY
              AS c(id, organization, owner, name, position)
         ORDER BY organization, owner, name, position
         ON CONFLICT (organization, owner, name) DO NOTHING RETURNING id",
    )
    .bind(&ids)
    .bind(&organizations)
    .bind(&owners)
    .bind(&names)
    .fetch_all(&mut *tx)
    .await?;
    let rows = sqlx::query(
        "SELECT id, organization, owner, name, agent FROM conversation
         WHERE (organization, owner, name) IN (SELECT * FROM unnest($1::text[], $2::text[], $3::text[]))
         ORDER BY organization, owner, name FOR UPDATE",
    )
    .bind(&organizations)
    .bind(&owners)
    .bind(&names)
    .fetch_all(&mut *tx)
    .await?;
    let mut by_key: HashMap<ConversationKey<'_>, (uuid::Uuid, Option<String>)> = HashMap::with_capacity(rows.len());
    for row in &rows {
        let key = (row.try_get("organization")?, row.try_get("owner")?, row.try_get("name")?);
        by_key.insert(key, (row.try_get("id")?, row.try_get("agent")?));
    }
    let refused = count_made(tx, items, &by_key, &made).await?;
    // A conversation without an agent gets that of the batch's first item.
    let mut conversations = Vec::with_capacity(items.len());
    for arm in items {
        let Some((id, agent)) = by_key.get_mut(&key(arm)) else {
            return Err(StoreError::Raced("a conversation was erased meanwhile".into()));
        };
        conversations.push(match refused.get(id) {
            Some(max) => Err(*max),
            None => Ok(LockedConversation { id: ConversationId(*id), agent: agent.clone() }),
        });
        agent.get_or_insert_with(|| arm.agent.clone());
    }
    Ok(conversations)
}

/// Counts the conversations that this batch has made, and gives up those beyond what their owners may have. Answers with these:
/// their ids, and the most that the owner may have.
async fn count_made(
    tx: &mut DbConnection,
    items: &[Arm],
    by_key: &HashMap<ConversationKey<'_>, (uuid::Uuid, Option<String>)>,
    made: &[uuid::Uuid],
) -> Result<HashMap<uuid::Uuid, u64>, StoreError> {
    if made.is_empty() {
        return Ok(HashMap::new());
    }
    let made: HashSet<uuid::Uuid> = made.iter().copied().collect();
    let mut of_owner: BTreeMap<Owner<'_>, (Vec<uuid::Uuid>, Option<u64>)> = BTreeMap::new();
    for arm in items {
        let Some((id, _)) = by_key.get(&key(arm)).filter(|(id, _)| made.contains(id)) else { continue };
        let (ids, max) = of_owner.entry((&arm.organization, &arm.user)).or_default();
        if !ids.contains(id) {
            ids.push(*id);
        }
        *max = max.or(arm.limits.as_ref().map(|limits| limits.conversations));
    }
    let counts: Vec<(Owner<'_>, i64)> = of_owner.iter().map(|(owner, (ids, _))| (*owner, ids.len() as i64)).collect();
    let totals = principal::count_conversations(tx, &counts).await?;
    let (mut refused, mut given_up) = (HashMap::new(), Vec::new());
    for (owner, (ids, max)) in &of_owner {
        let (Some(max), Some(total)) = (max, totals.get(&(owner.0.to_owned(), owner.1.to_owned()))) else { continue };
        let over = usize::try_from(total.saturating_sub(*max)).unwrap_or(usize::MAX).min(ids.len());
        if over > 0 {
            refused.extend(ids[ids.len() - over..].iter().map(|id| (*id, *max)));
            given_up.push((*owner, -(over as i64)));
        }
    }
    if !given_up.is_empty() {
        let ids: Vec<uuid::Uuid> = refused.keys().copied().collect();
        sqlx::query("DELETE FROM conversation WHERE id = ANY($1)").bind(&ids).execute(&mut *tx).await?;
        principal::count_conversations(tx, &given_up).await?;
    }
    Ok(refused)
}

/// Numbers the allowed items behind the last turns of their conversations, and inserts turns and markers.
async fn insert(tx: &mut DbConnection, allowed: &[&AllowedArm<'_>]) -> Result<(), StoreError> {
    if allowed.is_empty() {
        return Ok(());
    }
    let arms = || allowed.iter().map(|a| a.arm);
    let pick = |f: fn(&Arm) -> &str| -> Vec<&str> { arms().map(f).collect() };
    let ids: Vec<uuid::Uuid> = arms().map(|a| a.turn_id.0).collect();
    let conversation_ids: Vec<uuid::Uuid> = allowed.iter().map(|a| a.conversation.0).collect();
    let groups: Vec<uuid::Uuid> =
        allowed.iter().map(|a| WorkerGroup::of(a.arm.grouping, a.conversation).key()).collect();
    let guards: Vec<Option<uuid::Uuid>> = arms().map(|a| a.guard.map(|g| g.0.0)).collect();
    let guard_seconds: Vec<Option<i32>> = arms().map(|a| a.guard.map(|g| g.1 as i32)).collect();
    let routings: Vec<Value> = arms().map(|a| a.routing.clone()).collect();
    let hashes: Vec<&[u8]> = arms().map(|a| a.content_hash.as_slice()).collect();
    let traces: Vec<Option<&str>> = arms().map(|a| a.traceparent.as_deref()).collect();
    let turn_seconds: Vec<i32> = arms().map(|a| a.turn_seconds as i32).collect();
    let object_names: Vec<Option<&str>> = arms().map(|a| Some(a.object.as_ref()?.name.as_str())).collect();
    let object_uids: Vec<Option<&str>> = arms().map(|a| Some(a.object.as_ref()?.uid.as_str())).collect();
    sqlx::query(
        r#"WITH item AS (
             SELECT i.*, c.last_number + row_number() OVER (PARTITION BY i.conversation_id ORDER BY position) AS number,
                    least(100, row_number() OVER (PARTITION BY i.organization, i."user", i.agent ORDER BY position) +
                      coalesce((SELECT o.rank FROM marker o WHERE o.organization = i.organization AND o.owner = i."user"
                                AND o.agent = i.agent AND o.incarnation IS NULL ORDER BY o.rank DESC LIMIT 1), -1)) AS rank,
                    clock_timestamp() AS armed_at
             FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::uuid[], $8::text[],
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
             ON CONFLICT (conversation_id, message_id) DO NOTHING
             RETURNING id, number
           ), markers AS (
             INSERT INTO marker (turn_id, conversation_id, number, organization, owner, agent, worker_group, rank, phase,
                                 guard, guard_until, armed_at, deadline_at)
             SELECT i.id, i.conversation_id, i.number, i.organization, i."user", i.agent, i.worker_group, i.rank,
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
    .bind(pick(|a| &a.organization))
    .bind(pick(|a| &a.conversation))
    .bind(pick(|a| &a.message_id))
    .bind(pick(|a| &a.agent))
    .bind(&groups)
    .bind(pick(|a| &a.user))
    .bind(&routings)
    .bind(pick(|a| &a.input))
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
    worker_group: WorkerGroup,
    content_hash: Vec<u8>,
}

/// Reads what stands under each allowed item's messageId now, if anything does.
async fn find(tx: &mut DbConnection, allowed: &[AllowedArm<'_>]) -> Result<Vec<Option<FoundTurn>>, StoreError> {
    if allowed.is_empty() {
        return Ok(Vec::new());
    }
    let conversations: Vec<uuid::Uuid> = allowed.iter().map(|a| a.conversation.0).collect();
    let messages: Vec<&str> = allowed.iter().map(|a| a.arm.message_id.as_str()).collect();
    let rows = sqlx::query(
        "SELECT t.id, t.number, t.armed_at, t.worker_group, t.content_hash
         FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS i(conversation_id, message_id, position)
         LEFT JOIN turn t USING (conversation_id, message_id)
         ORDER BY position",
    )
    .bind(&conversations)
    .bind(&messages)
    .fetch_all(tx)
    .await?;
    let found = |row: &sqlx::postgres::PgRow| -> Result<Option<FoundTurn>, StoreError> {
        let Some(id) = row.try_get("id")? else { return Ok(None) };
        Ok(Some(FoundTurn {
            turn_id: TurnId(id),
            number: row.try_get("number")?,
            armed_at: row.try_get("armed_at")?,
            worker_group: WorkerGroup::from_key(row.try_get("worker_group")?),
            content_hash: row.try_get("content_hash")?,
        }))
    };
    rows.iter().map(found).collect()
}
