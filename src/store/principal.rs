//! What a principal has: the conversations that a user of an organization owns, and the turns of theirs that are open. Both are
//! counted in the database, so the limits hold for all replicas together.

use std::collections::{BTreeMap, HashMap};

use super::connection::DbConnection;
use super::{Store, StoreError};

/// A principal: an organization, and a user of it.
pub(super) type Owner<'a> = (&'a str, &'a str);

/// What a principal may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrincipalLimits {
    pub open_turns: u32,
    pub conversations: u64,
    /// Whether the open turns are to be counted when the turn is armed, behind a lock on the principal. Without it they were
    /// counted a moment ago, and were far from the limit.
    pub exact: bool,
}

impl PrincipalLimits {
    /// So many places must be left for the count of a moment ago to be enough: more than one principal submits at once.
    const FAR: u32 = 500;

    /// The same, to be counted exactly if `open` turns of the principal's are near the limit.
    pub fn near(self, open: u32) -> Self {
        PrincipalLimits { exact: self.open_turns.saturating_sub(open) <= Self::FAR, ..self }
    }
}

/// The turns that a new one would have before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// Turns that wait for the Agent, counted up to one more than was asked for.
    pub queued: u32,
    /// Those of them that are the principal's.
    pub own_queued: u32,
    /// Turns of the conversation that are open.
    pub open: u32,
    /// Turns of the principal that are open, counted up to one more than was asked for.
    pub own_open: u32,
}

impl Store {
    /// What a new turn of `user`'s would have before it; `queued` and `own_queued` are counted up to `max_queued` + 1, `own_open`
    /// up to `max_open` + 1.
    pub async fn backlog_before_turn(
        &self,
        organization: &str,
        user: &str,
        agent: &str,
        conversation: &str,
        (max_queued, max_open): (u32, u32),
    ) -> Result<Backlog, StoreError> {
        let (queued, own_queued, open, own_open): (i64, i64, i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM (SELECT FROM marker WHERE organization = $1 AND agent = $3 AND incarnation IS NULL
                                           LIMIT $5) AS waiting),
                    (SELECT count(*) FROM (SELECT FROM marker WHERE organization = $1 AND owner = $2 AND agent = $3
                                           AND incarnation IS NULL LIMIT $5) AS own_waiting),
                    (SELECT count(*) FROM marker WHERE conversation_id =
                       (SELECT id FROM conversation WHERE organization = $1 AND owner = $2 AND name = $4)),
                    (SELECT count(*) FROM (SELECT FROM marker WHERE organization = $1 AND owner = $2 LIMIT $6) AS own)",
        )
        .bind(organization)
        .bind(user)
        .bind(agent)
        .bind(conversation)
        .bind(i64::from(max_queued) + 1)
        .bind(i64::from(max_open) + 1)
        .fetch_one(&self.general)
        .await?;
        let [queued, own_queued, open, own_open] = [queued, own_queued, open, own_open].map(|count| count as u32);
        Ok(Backlog { queued, own_queued, open, own_open })
    }
}

/// Adds to the numbers of conversations that these principals own, who stand in order, or takes off them; answers with the
/// numbers as they are now. The caller holds the locks of the conversations that are counted.
pub(super) async fn count_conversations(
    tx: &mut DbConnection,
    more: &[(Owner<'_>, i64)],
) -> Result<HashMap<(String, String), u64>, StoreError> {
    let organizations: Vec<&str> = more.iter().map(|(owner, _)| owner.0).collect();
    let owners: Vec<&str> = more.iter().map(|(owner, _)| owner.1).collect();
    let counts: Vec<i64> = more.iter().map(|(_, count)| *count).collect();
    let rows: Vec<(String, String, i64)> = sqlx::query_as(
        "INSERT INTO principal AS p (organization, owner, conversations)
         SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) AS n(organization, owner, conversations) ORDER BY 1, 2
         ON CONFLICT (organization, owner) DO UPDATE SET conversations = p.conversations + excluded.conversations
         RETURNING organization, owner, conversations",
    )
    .bind(&organizations)
    .bind(&owners)
    .bind(&counts)
    .fetch_all(&mut *tx)
    .await?;
    if counts.iter().any(|count| *count < 0) {
        sqlx::query(
            "DELETE FROM principal p USING unnest($1::text[], $2::text[]) AS n(organization, owner)
             WHERE p.organization = n.organization AND p.owner = n.owner AND p.conversations <= 0",
        )
        .bind(&organizations)
        .bind(&owners)
        .execute(&mut *tx)
        .await?;
    }
    Ok(rows.into_iter().map(|(organization, owner, count)| ((organization, owner), count.max(0) as u64)).collect())
}

/// Which of these turns their principals have no room for, each with what its principal may have: an answer for each, the limit
/// for one that has none. Only the principals are counted of whom a turn is to be counted exactly.
pub(super) async fn without_room<'a>(
    tx: &mut DbConnection,
    turns: &[(Owner<'a>, Option<PrincipalLimits>)],
) -> Result<Vec<Option<u32>>, StoreError> {
    let mut left: BTreeMap<Owner<'a>, (u32, u32)> = turns
        .iter()
        .filter_map(|(owner, limits)| Some((*owner, limits.filter(|limits| limits.exact)?)))
        .map(|(owner, limits)| (owner, (limits.open_turns, limits.open_turns)))
        .collect();
    if !left.is_empty() {
        let organizations: Vec<&str> = left.keys().map(|owner| owner.0).collect();
        let owners: Vec<&str> = left.keys().map(|owner| owner.1).collect();
        // Each of them owns a conversation by now, and so has a row.
        sqlx::query(
            "SELECT FROM principal WHERE (organization, owner) IN (SELECT * FROM unnest($1::text[], $2::text[]))
             ORDER BY organization, owner FOR UPDATE",
        )
        .bind(&organizations)
        .bind(&owners)
        .execute(&mut *tx)
        .await?;
        // Behind the lock, so that this statement sees what every other arm has committed.
        let most: Vec<i64> = left.values().map(|(max, _)| i64::from(*max)).collect();
        let open: Vec<i64> = sqlx::query_scalar(
            "SELECT (SELECT count(*) FROM (SELECT FROM marker m WHERE m.organization = p.organization AND m.owner = p.owner
                                           LIMIT p.most) AS own)
             FROM unnest($1::text[], $2::text[], $3::bigint[]) WITH ORDINALITY AS p(organization, owner, most, position)
             ORDER BY position",
        )
        .bind(&organizations)
        .bind(&owners)
        .bind(&most)
        .fetch_all(&mut *tx)
        .await?;
        for ((_, room), open) in left.values_mut().zip(open) {
            *room = room.saturating_sub(open as u32);
        }
    }
    let mut full = Vec::with_capacity(turns.len());
    for (owner, _) in turns {
        full.push(left.get_mut(owner).and_then(|(max, room)| {
            let full = (*room == 0).then_some(*max);
            *room = room.saturating_sub(1);
            full
        }));
    }
    Ok(full)
}
