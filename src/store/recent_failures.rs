//! Recent failures: of turns and of workers' starts, for Kubernetes Events; and the starts that came to nothing, for the fleet,
//! which pauses after them.

use sqlx::Row;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError};
use crate::turn::cause;
use crate::turn::keys::WorkerGroup;
use crate::turn::reason::Reason;

/// A turn that ended with an error, or a worker that died before its first claim and was not told to stop.
#[derive(Debug, Clone, PartialEq)]
pub struct RecentFailure {
    /// The turn's id, or the worker's incarnation.
    pub id: Uuid,
    pub organization: String,
    pub agent: String,
    /// The UID of the Agent that it failed under, while that object exists. One made again under the same name is another.
    pub agent_uid: Option<String>,
    pub reason: Reason,
    /// The exit code, where the failure is that a program, or a container, ended. The rest of the detail is for operators alone,
    /// and this is read for Events and statuses, which others see.
    pub code: Option<i32>,
    pub at: OffsetDateTime,
    /// The worker's pod, if there was one: `namespace/name`, and the UID.
    pub pod: Option<(String, String)>,
}

/// The starts of a worker group that ended within the last hour without having claimed a turn.
#[derive(Debug, Clone, PartialEq)]
pub struct FutileStarts {
    pub organization: String,
    pub agent: String,
    pub worker_group: WorkerGroup,
    /// The Agent's config number that they were started for.
    pub config: i64,
    /// Those that died by themselves.
    pub failed: u32,
    /// Those that somebody else than Lastword stopped, or is stopping now.
    pub interrupted: u32,
    /// Seconds since the last of them ended.
    pub ago: f64,
}

/// Worker groups that one reading returns at the most: those with the latest ends.
const MAX_FUTILE: i64 = 10_000;

// A failure is told of an Agent only if it happened after the Agent's object was made: a worker of an object that had the
// same name before may outlive that object for a moment.
impl Store {
    /// The worker groups of which a start came to nothing in the last five minutes.
    pub async fn futile_starts(&self) -> Result<Vec<FutileStarts>, StoreError> {
        let rows = sqlx::query(
            "SELECT organization, agent, worker_group, config, count(*) FILTER (WHERE NOT interrupted) AS failed,
                    count(*) FILTER (WHERE interrupted) AS interrupted,
                    extract(epoch FROM statement_timestamp() - max(at))::float8 AS ago
             FROM (SELECT organization, agent, worker_group, config, interrupted_at IS NOT NULL AS interrupted, died_at AS at
                   FROM lease WHERE phase = 'dead' AND NOT claimed AND died_at > statement_timestamp() - interval '1 hour'
                     AND (stop_reason IS NULL OR interrupted_at IS NOT NULL)
                   UNION ALL
                   SELECT organization, agent, worker_group, config, true, interrupted_at
                   FROM lease WHERE phase <> 'dead' AND NOT claimed AND interrupted_at IS NOT NULL) AS futile
             GROUP BY 1, 2, 3, 4 HAVING max(at) > statement_timestamp() - interval '5 minutes'
             ORDER BY max(at) DESC LIMIT $1",
        )
        .bind(MAX_FUTILE)
        .fetch_all(&self.general)
        .await?;
        rows.iter()
            .map(|r| {
                Ok(FutileStarts {
                    organization: r.try_get("organization")?,
                    agent: r.try_get("agent")?,
                    worker_group: WorkerGroup::from_key(r.try_get("worker_group")?),
                    config: r.try_get("config")?,
                    failed: r.try_get::<i64, _>("failed")? as u32,
                    interrupted: r.try_get::<i64, _>("interrupted")? as u32,
                    ago: r.try_get("ago")?,
                })
            })
            .collect()
    }

    /// The first `limit` turns that failed at or after `since`, oldest first.
    pub async fn failed_turns(&self, since: OffsetDateTime, limit: u32) -> Result<Vec<RecentFailure>, StoreError> {
        let rows = sqlx::query(
            "SELECT e.turn_id AS id, t.organization, t.agent, a.uid, e.reason, e.detail,
                    e.ended_at AS at, l.runtime_ref, l.pod_uid
             FROM terminal e JOIN turn t ON t.id = e.turn_id
             LEFT JOIN lease l ON l.incarnation = coalesce(e.held_by, e.incarnation) AND l.runtime = 'kubernetes'
             LEFT JOIN agent a ON a.namespace = t.organization AND a.name = t.agent AND a.deleted_at IS NULL
               AND e.ended_at >= a.object_since AND coalesce(l.config >= a.object_began, true)
             WHERE e.outcome = 'error' AND e.ended_at >= $1 ORDER BY e.ended_at LIMIT $2",
        )
        .bind(since)
        .bind(i64::from(limit))
        .fetch_all(&self.general)
        .await?;
        rows.iter().map(failed).collect()
    }

    /// The first `limit` starts that failed at or after `since`, oldest first.
    pub async fn failed_starts(&self, since: OffsetDateTime, limit: u32) -> Result<Vec<RecentFailure>, StoreError> {
        let rows = sqlx::query(
            "SELECT l.incarnation AS id, l.organization, l.agent, a.uid, l.death_reason AS reason,
                    l.death_detail AS detail, l.died_at AS at,
                    CASE l.runtime WHEN 'kubernetes' THEN l.runtime_ref END AS runtime_ref, l.pod_uid
             FROM lease l
             LEFT JOIN agent a ON a.namespace = l.organization AND a.name = l.agent AND a.deleted_at IS NULL
               AND l.config >= a.object_began
             WHERE l.phase = 'dead' AND l.died_at >= $1 AND NOT l.claimed AND l.stop_reason IS NULL AND l.death_reason IS NOT NULL
             ORDER BY l.died_at LIMIT $2",
        )
        .bind(since)
        .bind(i64::from(limit))
        .fetch_all(&self.general)
        .await?;
        rows.iter().map(failed).collect()
    }
}

fn failed(row: &PgRow) -> Result<RecentFailure, StoreError> {
    let reason: Option<&str> = row.try_get("reason")?;
    Ok(RecentFailure {
        id: row.try_get("id")?,
        organization: row.try_get("organization")?,
        agent: row.try_get("agent")?,
        agent_uid: row.try_get("uid")?,
        reason: reason.and_then(|r| r.parse().ok()).unwrap_or(Reason::Internal),
        code: row.try_get::<Option<&str>, _>("detail")?.and_then(cause::exit_code),
        at: row.try_get("at")?,
        pod: row.try_get::<Option<String>, _>("runtime_ref")?.zip(row.try_get("pod_uid")?),
    })
}
