//! Claim: a worker takes turns, in arm order within a conversation. The claim commits before anything is pushed to it.

use std::collections::HashMap;

use sqlx::Row;
use uuid::Uuid;

use super::batch::BatchedVerb;
use super::connection::DbConnection;
use super::pool::bounded;
use super::{Store, StoreError, elect};
use crate::telemetry::turns::{ToldTurn, TurnEvent};
use crate::turn::keys::{ConversationId, Incarnation, TurnId, WorkerGroup};
use crate::turn::routing::Routing;

/// The most turns of one conversation that are claimed together.
const MAX_TOGETHER: i64 = 32;

/// A worker that can take turns.
#[derive(Debug, Clone)]
pub struct ClaimFor {
    pub incarnation: Incarnation,
    /// How many turns the worker can take now. With `together` it counts conversations instead.
    pub room: u32,
    /// Whether the worker takes all waiting turns of a conversation in one claim.
    pub together: bool,
    /// Which turns come first.
    pub order: ClaimOrder,
}

/// The order in which waiting turns are claimed. Whoever claims goes by both, one after the other. So a user's first turn waits
/// twice as long at the most as if every other user had sent one turn alone, and every turn waits twice as long at the most as
/// in the order of arrival. The turns of one user keep their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClaimOrder {
    /// By rank, the place that a turn has among those of its owner that wait for the Agent: the first turns of all users, then
    /// the second ones. Of one rank the oldest first.
    #[default]
    ByRank,
    /// The oldest first.
    OldestFirst,
}

impl ClaimOrder {
    /// The order of the next claim.
    pub fn next(self) -> Self {
        match self {
            ClaimOrder::ByRank => ClaimOrder::OldestFirst,
            ClaimOrder::OldestFirst => ClaimOrder::ByRank,
        }
    }

    /// The order as SQL: columns of `marker` that an index has.
    pub(super) fn columns(self) -> &'static str {
        match self {
            ClaimOrder::ByRank => "m.rank, m.armed_at",
            ClaimOrder::OldestFirst => "m.armed_at",
        }
    }
}

/// A claimed turn, with what a worker needs to run it.
#[derive(Debug, Clone)]
pub struct Claimed {
    pub turn_id: TurnId,
    pub conversation_id: ConversationId,
    pub number: i64,
    pub organization: String,
    pub conversation: String,
    pub message_id: String,
    pub agent: String,
    pub worker_group: WorkerGroup,
    pub user: String,
    pub routing: Routing,
    pub input: String,
    pub traceparent: Option<String>,
    /// Seconds until its hard deadline, by the database's clock.
    pub seconds_left: Option<u64>,
    /// Length of the durable log: more than 0 when the turn was pushed before.
    pub log_end: u64,
    /// Seconds since it was armed.
    pub age: f64,
}

impl Claimed {
    fn told(&self) -> ToldTurn {
        ToldTurn {
            turn_id: self.turn_id,
            organization: self.organization.clone(),
            agent: self.agent.clone(),
            traceparent: self.traceparent.clone(),
        }
    }
}

impl Store {
    /// Claims turns for one worker. The answer is empty also when the worker's lease is not live.
    pub async fn claim(&self, claim: ClaimFor) -> Result<Vec<Claimed>, StoreError> {
        self.claim.call(claim).await
    }

    /// Those of these turns that this worker holds now.
    pub async fn turns_held_by(&self, turns: &[TurnId], worker: Incarnation) -> Result<Vec<Claimed>, StoreError> {
        let ids: Vec<Uuid> = turns.iter().map(|t| t.0).collect();
        bounded(async {
            let mut connection = self.general.acquire().await?;
            let held: Vec<Uuid> =
                sqlx::query_scalar("SELECT turn_id FROM marker WHERE turn_id = ANY($1) AND incarnation = $2")
                    .bind(&ids)
                    .bind(worker.0)
                    .fetch_all(&mut connection)
                    .await?;
            read(&mut connection, &held).await
        })
        .await
    }
}

#[derive(Clone)]
pub(super) struct ClaimVerb;

impl BatchedVerb for ClaimVerb {
    type Item = ClaimFor;
    type Answer = Vec<Claimed>;

    fn weight(&self, _: &ClaimFor) -> usize {
        0
    }

    async fn run(&self, tx: &mut DbConnection, items: &[ClaimFor]) -> Result<Vec<Vec<Claimed>>, StoreError> {
        let incarnations: Vec<Uuid> = items.iter().map(|c| c.incarnation.0).collect();
        // Ending or draining a lease locks its row FOR UPDATE, which excludes this FOR KEY SHARE. So either the other
        // transaction waits for this claim, or this claim sees the lease as that transaction committed it.
        let live: LiveWorkers = sqlx::query(
            "SELECT incarnation, organization, agent, worker_group, NOT claimed OR idle_since IS NOT NULL AS changes FROM lease
             WHERE incarnation = ANY($1) AND phase = 'live' AND NOT retiring ORDER BY incarnation FOR KEY SHARE",
        )
        .bind(&incarnations)
        .fetch_all(&mut *tx)
        .await?
        .iter()
        .map(|r| {
            let group = (r.try_get(1)?, r.try_get(2)?, r.try_get(3)?);
            Ok((r.try_get(0)?, LiveWorker { group, changes: r.try_get(4)? }))
        })
        .collect::<Result<_, sqlx::Error>>()?;

        let heads = lock_heads(tx, items, &live).await?;
        let mut taken = assign(items, &live, heads);
        add_followers(tx, items, &mut taken).await?;
        mark(tx, items, &taken, &live).await?;

        let ids: Vec<Uuid> = taken.iter().map(|t| t.turn_id).collect();
        let mut by_turn: HashMap<TurnId, Claimed> = read(tx, &ids).await?.into_iter().map(|c| (c.turn_id, c)).collect();
        by_turn.values().for_each(|claimed| tx.note(TurnEvent::Claimed(claimed.told(), claimed.age)));
        let mut answers: Vec<Vec<Claimed>> = items.iter().map(|_| Vec::new()).collect();
        for t in taken {
            answers[t.item].extend(by_turn.remove(&TurnId(t.turn_id)));
        }
        for answer in &mut answers {
            answer.sort_by_key(|c| (c.conversation_id, c.number));
        }
        Ok(answers)
    }
}

/// The head of a conversation: its first turn without a terminal, which is the one that can be claimed.
struct ConversationHead {
    turn_id: Uuid,
    conversation_id: Uuid,
}

/// A turn and the item (worker) of the batch that takes it.
struct Taken {
    item: usize,
    turn_id: Uuid,
    conversation_id: Uuid,
}

/// A live worker of this batch, its lease locked.
struct LiveWorker {
    group: GroupKey,
    /// Whether a claim changes the lease: a worker's first one does, and one that ends an idle time.
    changes: bool,
}

/// Live workers by incarnation.
type LiveWorkers = HashMap<Uuid, LiveWorker>;
/// A worker group: its organization, its Agent, and its [`WorkerGroup::key`].
type GroupKey = (String, String, Uuid);

/// Locks for each worker group as many claimable turns as its workers in this batch have room for. Rows that another
/// transaction has locked are passed over. Every condition stands in the locking SELECT itself, so that it holds for the
/// version of the row that was locked. The order is that of the batch's first item: the claims of one worker have both in turn.
async fn lock_heads(
    tx: &mut DbConnection,
    items: &[ClaimFor],
    live: &LiveWorkers,
) -> Result<HashMap<GroupKey, Vec<ConversationHead>>, StoreError> {
    let mut room: HashMap<GroupKey, i64> = HashMap::new();
    for item in items {
        if let Some(worker) = live.get(&item.incarnation.0) {
            *room.entry(worker.group.clone()).or_default() += i64::from(item.room);
        }
    }
    let mut groups: Vec<(GroupKey, i64)> = room.into_iter().filter(|(_, n)| *n > 0).collect();
    if groups.is_empty() {
        return Ok(HashMap::new());
    }
    groups.sort();
    let organizations: Vec<&str> = groups.iter().map(|p| p.0.0.as_str()).collect();
    let agents: Vec<&str> = groups.iter().map(|p| p.0.1.as_str()).collect();
    let worker_groups: Vec<Uuid> = groups.iter().map(|p| p.0.2).collect();
    let rooms: Vec<i64> = groups.iter().map(|p| p.1).collect();
    let order = items[0].order.columns();
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
        "SELECT d.organization, d.agent, d.worker_group, m.turn_id, m.conversation_id
         FROM unnest($1::text[], $2::text[], $3::uuid[], $4::bigint[]) AS d(organization, agent, worker_group, room)
         CROSS JOIN LATERAL (
           SELECT turn_id, conversation_id FROM marker m
           WHERE m.organization = d.organization AND m.agent = d.agent AND m.worker_group = d.worker_group
             AND m.incarnation IS NULL AND m.phase = 'waiting'
             AND NOT EXISTS (SELECT FROM marker e WHERE e.conversation_id = m.conversation_id AND e.number < m.number)
           ORDER BY {order} LIMIT d.room FOR UPDATE OF m SKIP LOCKED
         ) m"
    )))
    .bind(&organizations)
    .bind(&agents)
    .bind(&worker_groups)
    .bind(&rooms)
    .fetch_all(tx)
    .await?;
    let mut heads: HashMap<GroupKey, Vec<ConversationHead>> = HashMap::new();
    for row in rows.iter().rev() {
        let group = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        heads
            .entry(group)
            .or_default()
            .push(ConversationHead { turn_id: row.try_get(3)?, conversation_id: row.try_get(4)? });
    }
    Ok(heads)
}

/// Deals the heads out to the workers, one to each in turn, so that the workers of a group fill evenly.
fn assign(items: &[ClaimFor], live: &LiveWorkers, mut heads: HashMap<GroupKey, Vec<ConversationHead>>) -> Vec<Taken> {
    let mut taken = Vec::new();
    let mut room: Vec<u32> = items.iter().map(|i| i.room).collect();
    let mut dealt = true;
    while dealt {
        dealt = false;
        for (i, item) in items.iter().enumerate() {
            let Some(worker) = live.get(&item.incarnation.0) else { continue };
            if room[i] > 0
                && let Some(head) = heads.get_mut(&worker.group).and_then(Vec::pop)
            {
                room[i] -= 1;
                dealt = true;
                taken.push(Taken { item: i, turn_id: head.turn_id, conversation_id: head.conversation_id });
            }
        }
    }
    taken
}

/// Adds the turns that wait right behind the heads, for workers that take a conversation's waiting turns together.
async fn add_followers(tx: &mut DbConnection, items: &[ClaimFor], taken: &mut Vec<Taken>) -> Result<(), StoreError> {
    let together: HashMap<Uuid, usize> =
        taken.iter().filter(|t| items[t.item].together).map(|t| (t.conversation_id, t.item)).collect();
    if together.is_empty() {
        return Ok(());
    }
    let conversations: Vec<Uuid> = together.keys().copied().collect();
    let rows: Vec<(Uuid, Uuid)> = sqlx::query_as(
        "SELECT f.turn_id, f.conversation_id FROM unnest($1::uuid[]) AS c(id)
         CROSS JOIN LATERAL (
           SELECT turn_id, conversation_id FROM marker m
           WHERE m.conversation_id = c.id AND m.phase = 'waiting'
             AND NOT EXISTS (SELECT FROM marker e WHERE e.conversation_id = m.conversation_id
                             AND e.number < m.number AND e.phase <> 'waiting')
           ORDER BY m.number LIMIT $2 FOR UPDATE OF m SKIP LOCKED
         ) f",
    )
    .bind(&conversations)
    .bind(MAX_TOGETHER)
    .fetch_all(tx)
    .await?;
    for (turn_id, conversation_id) in rows {
        if !taken.iter().any(|t| t.turn_id == turn_id) {
            taken.push(Taken { item: together[&conversation_id], turn_id, conversation_id });
        }
    }
    Ok(())
}

/// Writes the claims to the markers, and to those leases that they change.
async fn mark(
    tx: &mut DbConnection,
    items: &[ClaimFor],
    taken: &[Taken],
    live: &LiveWorkers,
) -> Result<(), StoreError> {
    if taken.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = taken.iter().map(|t| t.turn_id).collect();
    let workers: Vec<Uuid> = taken.iter().map(|t| items[t.item].incarnation.0).collect();
    sqlx::query(
        "UPDATE marker m SET phase = 'claimed', incarnation = c.incarnation, claimed_at = clock_timestamp(), guard = NULL
         FROM unnest($1::uuid[], $2::uuid[]) AS c(turn_id, incarnation) WHERE m.turn_id = c.turn_id",
    )
    .bind(&ids)
    .bind(&workers)
    .execute(&mut *tx)
    .await?;
    // Leases are locked in key order, as heartbeats do, so that the two cannot deadlock.
    let changed: Vec<Uuid> = workers.into_iter().filter(|w| live.get(w).is_some_and(|worker| worker.changes)).collect();
    if !changed.is_empty() {
        sqlx::query(
            "WITH mine AS MATERIALIZED (SELECT incarnation FROM lease WHERE incarnation = ANY($1)
                                        ORDER BY incarnation FOR NO KEY UPDATE)
             UPDATE lease l SET claimed = true, idle_since = NULL FROM mine WHERE l.incarnation = mine.incarnation",
        )
        .bind(&changed)
        .execute(tx)
        .await?;
    }
    Ok(())
}

/// Reads what a worker needs to run these turns.
async fn read(tx: &mut DbConnection, ids: &[Uuid]) -> Result<Vec<Claimed>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        r#"SELECT t.id, t.conversation_id, t.number, t.organization, t.conversation, t.message_id, t.agent, t.worker_group,
                  t."user", t.routing, t.input, t.traceparent, extract(epoch FROM clock_timestamp() - t.armed_at)::float8 AS age,
                  (SELECT greatest(0, extract(epoch FROM m.deadline_at - clock_timestamp()))::bigint FROM marker m
                   WHERE m.turn_id = t.id) AS seconds_left,
                  (SELECT max(end_at) FROM output o WHERE o.turn_id = t.id) AS log_end
           FROM turn t WHERE t.id = ANY($1)"#,
    )
    .bind(ids)
    .fetch_all(tx)
    .await?;
    rows.iter()
        .map(|r| {
            Ok(Claimed {
                turn_id: TurnId(r.try_get("id")?),
                conversation_id: ConversationId(r.try_get("conversation_id")?),
                number: r.try_get("number")?,
                organization: r.try_get("organization")?,
                conversation: r.try_get("conversation")?,
                message_id: r.try_get("message_id")?,
                agent: r.try_get("agent")?,
                worker_group: WorkerGroup::from_key(r.try_get("worker_group")?),
                user: r.try_get("user")?,
                // A routing that cannot be read does not keep a turn from being run; the election deals with it at the end.
                routing: elect::routing(r).unwrap_or_default(),
                input: r.try_get("input")?,
                traceparent: r.try_get("traceparent")?,
                seconds_left: r.try_get::<Option<i64>, _>("seconds_left")?.map(|seconds| seconds as u64),
                log_end: r.try_get::<Option<i64>, _>("log_end")?.unwrap_or(0) as u64,
                age: r.try_get("age")?,
            })
        })
        .collect()
}
