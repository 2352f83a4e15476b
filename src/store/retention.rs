//! Retention: what has ended long ago is removed, in batches with limits of their own.

use sqlx::PgConnection;
use uuid::Uuid;

use super::transaction::transaction;
use super::{Store, StoreError};

/// How long things are kept, and how much one pass removes.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Seconds after its terminal that a turn is kept. A cursor that lies before it is answered 410 afterwards.
    pub turn_seconds: u64,
    /// Seconds that a dead worker's tombstone is kept; at least two leases.
    pub lease_seconds: u64,
    /// Turns, and likewise conversations, that one pass removes at the most.
    pub batch: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Retention { turn_seconds: 30 * 24 * 3600, lease_seconds: 3600, batch: 500 }
    }
}

impl Store {
    /// Makes one pass; answers how many turns were removed. A turn waits for its own delivery on a platform other than `api`,
    /// and for those of the turns whose reply lies in its log. A parked delivery is removed with its turn.
    pub async fn prune_past_retention(&self, retention: &Retention) -> Result<u64, StoreError> {
        self.prune_leases(retention).await?;
        self.prune_agents(retention).await?;
        self.prune_conversations(retention).await?;
        transaction!(self.general, |tx| {
            // Subqueries that are NULL, and no NOT EXISTS: Postgres makes anti joins of these, which scan all of `delivery` to
            // find the 500 oldest turns.
            let old: Vec<Uuid> = sqlx::query_scalar(
                "SELECT turn_id FROM terminal t WHERE ended_at < statement_timestamp() - make_interval(secs => $1)
                   AND (SELECT true FROM delivery d WHERE d.turn_id = t.turn_id AND d.platform <> 'api' AND d.state = 'ready' LIMIT 1) IS NULL
                   AND (SELECT true FROM terminal o JOIN delivery d ON d.turn_id = o.turn_id AND d.platform <> 'api' AND d.state = 'ready'
                        WHERE o.conversation_id = t.conversation_id AND o.holder = t.turn_id
                          AND o.number BETWEEN t.number + 1 AND t.number + 100 LIMIT 1) IS NULL
                 ORDER BY ended_at LIMIT $2",
            )
            .bind(retention.turn_seconds as f64)
            .bind(i64::from(retention.batch))
            .fetch_all(&mut *tx)
            .await?;
            if old.is_empty() {
                return Ok(0);
            }
            sqlx::query(
                "WITH gone AS (SELECT conversation_id, max(number) AS number FROM turn WHERE id = ANY($1) GROUP BY 1),
                      locked AS MATERIALIZED (
                        SELECT id FROM conversation WHERE id IN (SELECT conversation_id FROM gone)
                        ORDER BY organization, name FOR UPDATE)
                 UPDATE conversation c SET pruned_through = greatest(c.pruned_through, gone.number)
                 FROM gone JOIN locked ON locked.id = gone.conversation_id WHERE c.id = gone.conversation_id",
            )
            .bind(&old)
            .execute(&mut *tx)
            .await?;
            let conversations = conversations_of(tx, &old).await?;
            delete_turns(tx, &old).await?;
            note_empty(tx, &conversations).await?;
            Ok(old.len() as u64)
        })
        .await
    }

    /// Removes tombstones of workers, once no marker names them any more.
    async fn prune_leases(&self, retention: &Retention) -> Result<(), StoreError> {
        sqlx::query(
            "DELETE FROM lease WHERE incarnation IN (
               SELECT incarnation FROM lease l WHERE phase = 'dead'
                 AND died_at < statement_timestamp() - greatest(make_interval(secs => $1), 2 * make_interval(secs => lease_seconds))
                 AND NOT EXISTS (SELECT FROM marker m WHERE m.incarnation = l.incarnation)
               ORDER BY died_at LIMIT 1000)",
        )
        .bind(retention.lease_seconds as f64)
        .execute(&self.general)
        .await?;
        Ok(())
    }

    /// Removes conversations that have been without a turn for as long as a turn is kept, and on which nobody has a session; a
    /// batch of them. Their names are free again then. Until then the rows tell that a cursor is past its retention.
    async fn prune_conversations(&self, retention: &Retention) -> Result<(), StoreError> {
        transaction!(self.general, |tx| {
            // A row that another transaction has locked is passed over, since an arm is about to give that conversation
            // a turn.
            let empty: Vec<Uuid> = sqlx::query_scalar(
                "SELECT id FROM conversation WHERE id IN (
                   SELECT id FROM conversation WHERE empty_since < statement_timestamp() - make_interval(secs => $1)
                   ORDER BY empty_since LIMIT $2)
                   AND empty_since < statement_timestamp() - make_interval(secs => $1)
                 ORDER BY organization, name FOR UPDATE SKIP LOCKED",
            )
            .bind(retention.turn_seconds as f64)
            .bind(i64::from(retention.batch))
            .fetch_all(&mut *tx)
            .await?;
            if empty.is_empty() {
                return Ok(());
            }
            // Behind the lock, so that this statement sees every turn that was armed and every session that was registered
            // before.
            sqlx::query(
                "DELETE FROM conversation c WHERE id = ANY($1)
                   AND (SELECT true FROM turn t WHERE t.conversation_id = c.id LIMIT 1) IS NULL
                   AND (SELECT true FROM marker m WHERE m.conversation_id = c.id LIMIT 1) IS NULL
                   AND (SELECT true FROM session s WHERE s.conversation_id = c.id LIMIT 1) IS NULL",
            )
            .bind(&empty)
            .execute(&mut *tx)
            .await?;
            // The conversations that stay are looked at again after another retention: they must not fill every batch.
            sqlx::query("UPDATE conversation SET empty_since = clock_timestamp() WHERE id = ANY($1)")
                .bind(&empty)
                .execute(&mut *tx)
                .await?;
            Ok(())
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

/// The conversations of these turns.
async fn conversations_of(tx: &mut PgConnection, turns: &[Uuid]) -> Result<Vec<Uuid>, StoreError> {
    let found = sqlx::query_scalar("SELECT DISTINCT conversation_id FROM turn WHERE id = ANY($1)").bind(turns);
    Ok(found.fetch_all(tx).await?)
}

/// Notes since when those of these conversations are empty whose last turn is gone. The caller holds their locks.
async fn note_empty(tx: &mut PgConnection, conversations: &[Uuid]) -> Result<(), StoreError> {
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
pub(super) async fn delete_turns(tx: &mut PgConnection, ids: &[Uuid]) -> Result<(), StoreError> {
    for statement in [
        "DELETE FROM output WHERE turn_id = ANY($1)",
        "DELETE FROM delivery WHERE turn_id = ANY($1)",
        "DELETE FROM superseded WHERE turn_id = ANY($1)",
        "DELETE FROM terminal WHERE turn_id = ANY($1)",
        "DELETE FROM turn WHERE id = ANY($1)",
    ] {
        sqlx::query(statement).bind(ids).execute(&mut *tx).await?;
    }
    Ok(())
}
