//! Demand: the turns that wait for a worker, by worker group. The fleet's plan rests on it.

use sqlx::Row;

use super::{ClaimOrder, Store, StoreError};
use crate::turn::defaults;
use crate::turn::keys::WorkerGroup;

/// A worker group whose turns wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerGroupDemand {
    pub organization: String,
    pub agent: String,
    pub worker_group: WorkerGroup,
    /// Conversations whose first open turn waits.
    pub claimable: u32,
}

impl Store {
    /// The worker groups whose turns wait, and how many do, those that come first in this order in front. Of each Agent only the
    /// first claimable turns in either order are counted, twice as many as its workers can hold and at most 1,000: more would
    /// change no decision, and a queue may be very deep.
    pub async fn demand_of_worker_groups(&self, order: ClaimOrder) -> Result<Vec<WorkerGroupDemand>, StoreError> {
        // The subquery is compared by IS NULL, because Postgres would make an anti join of NOT EXISTS, which reads all
        // waiting turns before it has found the first one at the head of its conversation.
        let first = |columns: &str| {
            format!(
                "SELECT m.turn_id, m.worker_group, m.rank, m.armed_at FROM marker m
                 WHERE m.organization = a.namespace AND m.agent = a.name AND m.incarnation IS NULL AND m.phase = 'waiting'
                   AND (SELECT true FROM marker e WHERE e.conversation_id = m.conversation_id AND e.number < m.number
                        LIMIT 1) IS NULL
                 ORDER BY {columns} LIMIT least(1000, 16 + 2 * coalesce((a.spec #>> '{{limits,maxWorkers}}')::bigint, $1)
                                                             * coalesce((a.spec #>> '{{limits,turnsPerWorker}}')::bigint, $2))"
            )
        };
        let (ranked, oldest) = (first(ClaimOrder::ByRank.columns()), first(ClaimOrder::OldestFirst.columns()));
        let in_front = match order {
            ClaimOrder::ByRank => "min(m.rank), min(m.armed_at)",
            ClaimOrder::OldestFirst => "min(m.armed_at)",
        };
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT a.namespace AS organization, a.name AS agent, m.worker_group, count(*) AS claimable
             FROM agent a CROSS JOIN LATERAL (({ranked}) UNION ({oldest})) m
             WHERE a.deleted_at IS NULL GROUP BY 1, 2, 3 ORDER BY {in_front}"
        )))
        .bind(i64::from(defaults::MAX_WORKERS))
        .bind(i64::from(defaults::TURNS_PER_WORKER))
        .fetch_all(&self.general)
        .await?;
        rows.iter()
            .map(|r| {
                Ok(WorkerGroupDemand {
                    organization: r.try_get("organization")?,
                    agent: r.try_get("agent")?,
                    worker_group: WorkerGroup::from_key(r.try_get("worker_group")?),
                    claimable: r.try_get::<i64, _>("claimable")? as u32,
                })
            })
            .collect()
    }
}
