//! Retention: what has ended long ago is removed, in batches with limits of their own.
//!
//! A conversation's turns go in order: a turn never goes before one with a lower number, so one that stays (it is open, it is
//! not old enough, a platform has yet to show it) keeps all behind it. `pruned_through` therefore never overtakes a turn
//! that exists. Turns that one reply answers go together, since the text is in the log of one of them.
//!
//! A pass walks over the terminals that are old enough in the order in which they were written, and takes of each
//! conversation that it meets as much as may go. How far it came is a row in the database: conversations that stay are
//! walked over once, and the next pass goes on behind them, so that they hold up no others.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sqlx::Row;
use time::OffsetDateTime;
use uuid::Uuid;

use super::connection::DbConnection;
use super::transaction::transaction;
use super::{Store, StoreError, principal};

/// So many turns beyond those that are old enough are looked at, for replies that answer turns on both sides.
const GROUP_SPAN: i64 = 100;

/// How long things are kept, and how much one pass removes.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Seconds after its terminal that a turn is kept. A cursor that lies before it is answered 410 afterwards.
    pub turn_seconds: u64,
    /// Seconds that a dead worker's tombstone is kept; at least two leases.
    pub lease_seconds: u64,
    /// Turns, and likewise conversations and tombstones, that one transaction removes; a reply's turns go together beyond it.
    pub batch: u32,
    /// Turns after which a pass ends.
    pub pass_turns: u64,
    /// The time after which a pass ends.
    pub pass_time: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Retention {
            turn_seconds: 30 * 24 * 3600,
            lease_seconds: 3600,
            batch: 500,
            pass_turns: 20_000,
            pass_time: Duration::from_millis(2500),
        }
    }
}

/// What one transaction came to.
struct Pruned {
    turns: u64,
    /// There was as much as it may look at: there may be more.
    more: bool,
}

/// A turn of a conversation from its beginning on, as the retention sees it.
#[derive(Debug, Clone, Copy)]
struct KeptTurn {
    number: i64,
    /// It may not go.
    stays: bool,
    /// The number of the last turn that its reply answers; its own, if it answers no other.
    last_of_reply: i64,
}

/// How many of these turns, a conversation's first ones in order, may go: none that stays, none behind one that stays, no part
/// of a reply's turns; and no more than `limit`, unless one reply answers more.
fn may_go(turns: &[KeptTurn], limit: usize) -> usize {
    let (mut cut, mut reply_until) = (0, 0);
    for (i, turn) in turns.iter().enumerate() {
        if turn.stays || (cut > 0 && i >= limit) {
            break;
        }
        reply_until = reply_until.max(turn.last_of_reply);
        if turn.number >= reply_until {
            cut = i + 1;
        }
    }
    cut
}

impl Store {
    /// Makes one pass; answers how many turns were removed. A turn waits for its own delivery on a platform other than `api`,
    /// and for those of the turns that share its reply. A parked delivery is removed with its turn. The pass goes on while
    /// there is more, until it has used up its budget.
    pub async fn prune_past_retention(&self, retention: &Retention) -> Result<u64, StoreError> {
        let begun = Instant::now();
        let mut turns = 0;
        // Each in its turn, so that none is starved by another that is always full.
        let (mut leases, mut conversations, mut terminals) = (true, true, true);
        self.note_retention(retention).await?;
        while (leases || conversations || terminals) && turns < retention.pass_turns {
            leases = leases && self.prune_leases(retention).await?;
            conversations = conversations && self.prune_conversations(retention).await?;
            if terminals {
                let pruned = self.prune_turns(retention).await?;
                turns += pruned.turns;
                terminals = pruned.more;
            }
            if begun.elapsed() >= retention.pass_time {
                break;
            }
        }
        self.prune_agents(retention).await?;
        self.prune_audit().await?;
        self.prune_short_lived().await?;
        Ok(turns)
    }

    /// Writes down how long turns are kept, from which the metrics find out what is overdue.
    async fn note_retention(&self, retention: &Retention) -> Result<(), StoreError> {
        sqlx::query("UPDATE retention SET turn_seconds = $1 WHERE turn_seconds <> $1")
            .bind(i64::try_from(retention.turn_seconds).unwrap_or(i64::MAX))
            .execute(&self.general)
            .await?;
        Ok(())
    }

    /// Looks at the next terminals that are old enough, and removes what may go of their conversations.
    async fn prune_turns(&self, retention: &Retention) -> Result<Pruned, StoreError> {
        transaction!(self.general, |tx| {
            // In a statement of its own, so that the next one begins to read its index at this place.
            let (until, turn): (Option<OffsetDateTime>, Uuid) =
                sqlx::query_as("SELECT looked_until, looked_turn FROM retention").fetch_one(&mut *tx).await?;
            let next = sqlx::query(
                "SELECT turn_id, conversation_id, ended_at FROM terminal
                 WHERE ended_at < statement_timestamp() - make_interval(secs => $1)
                   AND (ended_at, turn_id) > (coalesce($3::timestamptz, '-infinity'), $4::uuid)
                 ORDER BY ended_at, turn_id LIMIT $2",
            )
            .bind(retention.turn_seconds as f64)
            .bind(i64::from(retention.batch))
            .bind(until)
            .bind(turn)
            .fetch_all(&mut *tx)
            .await?;
            let met: Vec<Uuid> = next.iter().map(|row| row.try_get("conversation_id")).collect::<Result<_, _>>()?;
            let (gone, whole) = take_old_turns(tx, &met, retention).await?;
            let more = !whole || next.len() as u64 >= u64::from(retention.batch);
            match next.last() {
                // What is left of these conversations is looked at again.
                _ if !whole => {}
                Some(last) if more => {
                    look_behind(tx, Some((last.try_get("ended_at")?, last.try_get("turn_id")?))).await?;
                }
                _ => look_behind(tx, None).await?,
            }
            Ok(Pruned { turns: gone, more })
        })
        .await
    }

    /// Removes tombstones of workers, once no marker names them any more; a batch of them. Whether there may be more.
    async fn prune_leases(&self, retention: &Retention) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "DELETE FROM lease WHERE incarnation IN (
               SELECT incarnation FROM lease l WHERE phase = 'dead'
                 AND died_at < statement_timestamp() - greatest(make_interval(secs => $1), 2 * make_interval(secs => lease_seconds))
                 AND NOT EXISTS (SELECT FROM marker m WHERE m.incarnation = l.incarnation)
               ORDER BY died_at LIMIT $2)",
        )
        .bind(retention.lease_seconds as f64)
        .bind(i64::from(retention.batch))
        .execute(&self.general)
        .await?;
        Ok(done.rows_affected() >= u64::from(retention.batch))
    }

    /// Removes conversations that have been without a turn for as long as a turn is kept, and on which nobody has a session; a
    /// batch of them. Their names are free again then. Until then the rows tell that a cursor is past its retention. Whether
    /// there may be more.
    async fn prune_conversations(&self, retention: &Retention) -> Result<bool, StoreError> {
        transaction!(self.general, |tx| {
            // A row that another transaction has locked is passed over, since an arm is about to give that conversation
            // a turn.
            let empty: Vec<Uuid> = sqlx::query_scalar(
                "SELECT id FROM conversation WHERE id IN (
                   SELECT id FROM conversation WHERE empty_since < statement_timestamp() - make_interval(secs => $1)
                   ORDER BY empty_since LIMIT $2)
                   AND empty_since < statement_timestamp() - make_interval(secs => $1)
                 ORDER BY organization, owner, name FOR UPDATE SKIP LOCKED",
            )
            .bind(retention.turn_seconds as f64)
            .bind(i64::from(retention.batch))
            .fetch_all(&mut *tx)
            .await?;
            if empty.is_empty() {
                return Ok(false);
            }
            // Behind the lock, so that this statement sees every turn that was armed and every session that was registered
            // before.
            let gone: Vec<(String, String)> = sqlx::query_as(
                "DELETE FROM conversation c WHERE id = ANY($1)
                   AND (SELECT true FROM turn t WHERE t.conversation_id = c.id LIMIT 1) IS NULL
                   AND (SELECT true FROM marker m WHERE m.conversation_id = c.id LIMIT 1) IS NULL
                   AND (SELECT true FROM session s WHERE s.conversation_id = c.id LIMIT 1) IS NULL
                 RETURNING organization, owner",
            )
            .bind(&empty)
            .fetch_all(&mut *tx)
            .await?;
            let mut fewer: BTreeMap<(&str, &str), i64> = BTreeMap::new();
            for (organization, owner) in &gone {
                *fewer.entry((organization, owner)).or_default() -= 1;
            }
            let fewer: Vec<_> = fewer.into_iter().collect();
            if !fewer.is_empty() {
                principal::count_conversations(tx, &fewer).await?;
            }
            // The conversations that stay are looked at again after another retention: they must not fill every batch.
            sqlx::query("UPDATE conversation SET empty_since = clock_timestamp() WHERE id = ANY($1)")
                .bind(&empty)
                .execute(&mut *tx)
                .await?;
            Ok(empty.len() as u64 >= u64::from(retention.batch))
        })
        .await
    }

    /// Removes tombstones of Agents that nothing names any more: no turn that waits, no lease, and so no turn that a worker
    /// holds.
    async fn prune_agents(&self, retention: &Retention) -> Result<(), StoreError> {
        sqlx::query(
            "DELETE FROM agent a WHERE deleted_at < statement_timestamp() - make_interval(secs => $1)
               AND (SELECT true FROM marker m WHERE m.organization = a.namespace AND m.agent = a.name AND m.incarnation IS NULL
                    LIMIT 1) IS NULL
               AND NOT EXISTS (SELECT FROM lease l WHERE l.organization = a.namespace AND l.agent = a.name)",
        )
        .bind(retention.turn_seconds as f64)
        .execute(&self.general)
        .await?;
        Ok(())
    }
}

/// Removes what may go of the turns of these conversations, each named once for every terminal of it that was met. Answers
/// how many turns went, and whether they were all that may go. A conversation that somebody else has locked is left to a
/// later pass: an arm is about to give it a turn, or another controller prunes it.
async fn take_old_turns(tx: &mut DbConnection, met: &[Uuid], retention: &Retention) -> Result<(u64, bool), StoreError> {
    let locked: Vec<Uuid> = sqlx::query_scalar(
        "SELECT id FROM conversation WHERE id = ANY($1) ORDER BY organization, owner, name FOR UPDATE SKIP LOCKED",
    )
    .bind(met)
    .fetch_all(&mut *tx)
    .await?;
    if locked.is_empty() {
        return Ok((0, true));
    }
    // Behind the lock. Of each conversation as many turns as its terminals that were met, and a reply's more; at the least all
    // of the first reply's, which others may have ended between. Subqueries that are NULL, and no NOT EXISTS: Postgres makes
    // anti joins of these, which scan all of `delivery`.
    let rows = sqlx::query(
        "SELECT t.conversation_id, t.id, t.number,
                coalesce(e.ended_at >= statement_timestamp() - make_interval(secs => $3), true)
                  OR (SELECT true FROM delivery d WHERE d.turn_id = t.id AND d.platform <> 'api' AND d.state = 'ready' LIMIT 1)
                     IS NOT NULL AS stays,
                CASE WHEN e.answers > 1 THEN
                  (SELECT max(o.number) FROM terminal o WHERE o.holder = e.holder AND o.answers > 1) END AS last_of_reply
         FROM (SELECT id, count(*) AS terminals FROM unnest($1::uuid[]) AS m(id) WHERE id = ANY($2) GROUP BY id) c
         CROSS JOIN LATERAL (
           SELECT max(o.number) AS last FROM (SELECT id FROM turn WHERE conversation_id = c.id ORDER BY number LIMIT 1) f
           JOIN terminal e ON e.turn_id = f.id AND e.answers > 1
           JOIN terminal o ON o.holder = e.holder AND o.answers > 1) reply
         CROSS JOIN LATERAL (
           SELECT conversation_id, id, number FROM turn WHERE conversation_id = c.id ORDER BY number
           LIMIT greatest(c.terminals + $4, (SELECT count(*) FROM turn w WHERE w.conversation_id = c.id
                                               AND w.number <= reply.last))) t
         LEFT JOIN terminal e ON e.turn_id = t.id
         ORDER BY t.conversation_id, t.number",
    )
    .bind(met)
    .bind(&locked)
    .bind(retention.turn_seconds as f64)
    .bind(GROUP_SPAN)
    .fetch_all(&mut *tx)
    .await?;
    let mut conversations: Vec<(Uuid, Vec<Uuid>, Vec<KeptTurn>)> = Vec::new();
    for row in &rows {
        let (conversation, number): (Uuid, i64) = (row.try_get("conversation_id")?, row.try_get("number")?);
        if conversations.last().is_none_or(|c| c.0 != conversation) {
            conversations.push((conversation, Vec::new(), Vec::new()));
        }
        let Some((_, ids, turns)) = conversations.last_mut() else { continue };
        ids.push(row.try_get("id")?);
        let last: Option<i64> = row.try_get("last_of_reply")?;
        turns.push(KeptTurn { number, stays: row.try_get("stays")?, last_of_reply: last.unwrap_or(number) });
    }
    let (mut gone, mut whole) = (Vec::new(), true);
    let (mut emptied, mut through) = (Vec::new(), Vec::new());
    for (conversation, ids, turns) in &conversations {
        let room = (retention.batch as usize).saturating_sub(gone.len());
        let all = may_go(turns, usize::MAX);
        let go = if room == 0 { 0 } else { may_go(turns, room) };
        whole &= go == all;
        if go > 0 {
            gone.extend_from_slice(&ids[..go]);
            emptied.push(*conversation);
            through.push(turns[go - 1].number);
        }
    }
    if gone.is_empty() {
        return Ok((0, whole));
    }
    sqlx::query(
        "UPDATE conversation c SET pruned_through = greatest(c.pruned_through, gone.number)
         FROM unnest($1::uuid[], $2::bigint[]) AS gone(id, number) WHERE c.id = gone.id",
    )
    .bind(&emptied)
    .bind(&through)
    .execute(&mut *tx)
    .await?;
    delete_turns(tx, &gone).await?;
    note_empty(tx, &emptied).await?;
    Ok((gone.len() as u64, whole))
}

/// The next look begins behind this terminal; with `None` at the beginning.
async fn look_behind(tx: &mut DbConnection, terminal: Option<(OffsetDateTime, Uuid)>) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE retention SET looked_until = $1::timestamptz, looked_turn = coalesce($2::uuid, looked_turn)
         WHERE looked_until IS DISTINCT FROM $1",
    )
    .bind(terminal.map(|t| t.0))
    .bind(terminal.map(|t| t.1))
    .execute(tx)
    .await?;
    Ok(())
}

/// Notes since when those of these conversations are empty whose last turn is gone. The caller holds their locks.
async fn note_empty(tx: &mut DbConnection, conversations: &[Uuid]) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE conversation c SET empty_since = clock_timestamp() WHERE id = ANY($1)
           AND (SELECT true FROM turn t WHERE t.conversation_id = c.id LIMIT 1) IS NULL",
    )
    .bind(conversations)
    .execute(tx)
    .await?;
    Ok(())
}

/// Deletes these turns, which have ended, with everything that belongs to them.
pub(super) async fn delete_turns(tx: &mut DbConnection, ids: &[Uuid]) -> Result<(), StoreError> {
    for statement in [
        "DELETE FROM output WHERE turn_id = ANY($1)",
        "DELETE FROM delivery WHERE turn_id = ANY($1)",
        "DELETE FROM superseded WHERE turn_id = ANY($1)",
        "DELETE FROM request WHERE turn_id = ANY($1)",
        "DELETE FROM terminal WHERE turn_id = ANY($1)",
        "DELETE FROM turn WHERE id = ANY($1)",
    ] {
        sqlx::query(statement).bind(ids).execute(&mut *tx).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Turns of a conversation: each stays or not, and shares its reply with the one so many places before it, or not.
    fn conversation() -> impl Strategy<Value = Vec<(bool, usize)>> {
        prop::collection::vec((prop::bool::weighted(0.1), 0usize..4), 0..30)
    }

    proptest! {
        #[test]
        fn what_goes_is_in_order_and_whole(shape in conversation(), limit in 1usize..40) {
            let mut reply: Vec<usize> = Vec::new();
            for (i, (_, back)) in shape.iter().enumerate() {
                reply.push(if *back == 0 || *back > i { i } else { reply[i - back] });
            }
            let last_of = |i: usize| reply.iter().rposition(|r| *r == reply[i]).unwrap_or(i);
            let number = |i: usize| 10 + 3 * i as i64;
            let turns: Vec<KeptTurn> = (0..shape.len())
                .map(|i| KeptTurn { number: number(i), stays: shape[i].0, last_of_reply: number(last_of(i)) })
                .collect();
            let whole = |n: usize| (0..n).all(|i| !shape[i].0 && last_of(i) < n);
            let best = (0..=shape.len()).rev().find(|&n| whole(n)).unwrap_or(0);
            prop_assert_eq!(may_go(&turns, usize::MAX), best);
            let some = may_go(&turns, limit);
            prop_assert!(whole(some) && some <= best && (some > 0 || best == 0));
            let first = (1..=shape.len()).find(|&n| whole(n)).unwrap_or(0);
            prop_assert!(some <= limit.max(first), "{some} of {best}, limit {limit}");
        }
    }
}
