//! Agents as the store holds them. Controllers copy them here from YAML or from the Kubernetes API, so that gateways need
//! neither.

use serde_json::Value;
use sqlx::Row;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Notice, Store, StoreError};
use crate::crd::AgentSpec;
use crate::turn::keys::Incarnation;

/// An Agent as the store holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredAgent {
    pub namespace: String,
    pub name: String,
    /// `AgentSpec` as JSON.
    pub spec: Value,
    /// Grows with each change of the spec or of the object's UID, and when a removed Agent comes back.
    pub generation: i64,
    /// The config number: grows where the change is of what a worker is made of. Workers of an older one are replaced.
    pub config: i64,
    /// Whether a worker of this config has come to life.
    pub proven: bool,
    /// The object's UID; `None` on one machine.
    pub uid: Option<String>,
}

/// The fields of an Agent's spec that are baked into a worker when it is made: another value of one takes another worker. All
/// other fields hold for the workers that run.
const BAKED: [&str; 5] = ["scope", "adapter", "template", "openai", "detachedProcesses"];

/// What a worker's lease takes from the Agent's spec when the worker connects.
#[derive(Debug, Clone, Copy)]
struct LeaseTerms {
    /// Turns at a time.
    capacity: u32,
    heartbeat_seconds: u32,
    lease_seconds: u32,
}

/// The terms in a spec; `None` if it cannot be read, so that workers keep what they have.
fn terms(spec: &Value) -> Option<LeaseTerms> {
    let spec: AgentSpec = serde_json::from_value(spec.clone()).ok()?;
    Some(LeaseTerms {
        capacity: spec.limits.turns_per_worker(),
        heartbeat_seconds: spec.timing.whole_heartbeat_seconds(),
        lease_seconds: spec.timing.lease_seconds(),
    })
}

/// How many workers and turns an Agent has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentCounts {
    pub namespace: String,
    pub name: String,
    /// Workers that are live or starting.
    pub workers: u32,
    /// Those of them that are of the Agent's newest config.
    pub updated: u32,
    /// Turns that wait; counted up to 1,000,000.
    pub queued: u32,
    /// Turns that a worker holds.
    pub running: u32,
}

impl Store {
    /// Writes an Agent that is no object, on one machine; true when its spec is new.
    pub async fn put_agent(&self, namespace: &str, name: &str, spec: &Value) -> Result<bool, StoreError> {
        self.put(namespace, name, spec, None).await
    }

    /// Writes an Agent that is an object with this UID and `metadata.generation`; true when its spec or the object is new. An
    /// older reading of the same object changes nothing.
    pub async fn put_agent_object(
        &self,
        namespace: &str,
        name: &str,
        spec: &Value,
        uid: &str,
        generation: i64,
    ) -> Result<bool, StoreError> {
        self.put(namespace, name, spec, Some((uid, generation))).await
    }

    async fn put(
        &self,
        namespace: &str,
        name: &str,
        spec: &Value,
        object: Option<(&str, i64)>,
    ) -> Result<bool, StoreError> {
        let terms = terms(spec);
        let (changed, resized): (bool, Vec<Uuid>) = sqlx::query_as(
            "WITH put AS (
               INSERT INTO agent (namespace, name, spec, uid, object_generation, object_began, object_since,
                                  capacity, heartbeat_seconds, lease_seconds)
               VALUES ($1, $2, $3, $4, $5, CASE WHEN $4::text IS NOT NULL THEN 1 END,
                       CASE WHEN $4::text IS NOT NULL THEN clock_timestamp() END, $7, $8, $9)
               ON CONFLICT (namespace, name) DO UPDATE
               SET spec = excluded.spec, uid = excluded.uid, object_generation = excluded.object_generation,
                   generation = agent.generation + 1, updated_at = clock_timestamp(), deleted_at = NULL,
                   config = agent.config + CASE
                     WHEN agent.uid IS DISTINCT FROM excluded.uid OR agent.deleted_at IS NOT NULL THEN 1
                     WHEN EXISTS (SELECT FROM unnest($6::text[]) AS part
                                  WHERE agent.spec -> part IS DISTINCT FROM excluded.spec -> part) THEN 1
                     ELSE 0 END,
                   capacity = excluded.capacity, heartbeat_seconds = excluded.heartbeat_seconds,
                   lease_seconds = excluded.lease_seconds,
                   object_began = CASE WHEN agent.uid = excluded.uid THEN agent.object_began
                                       WHEN excluded.uid IS NOT NULL THEN agent.config + 1 END,
                   object_since = CASE WHEN agent.uid = excluded.uid THEN agent.object_since ELSE excluded.object_since END
               WHERE (agent.spec <> excluded.spec OR agent.uid IS DISTINCT FROM excluded.uid OR agent.deleted_at IS NOT NULL)
                 AND NOT coalesce(agent.uid = excluded.uid AND agent.object_generation > excluded.object_generation, false)
               RETURNING capacity),
             sized AS MATERIALIZED (
               SELECT l.incarnation, least(l.offered, put.capacity) AS capacity FROM put JOIN lease l
                 ON l.organization = $1 AND l.agent = $2 AND l.phase = 'live' AND l.capacity <> least(l.offered, put.capacity)
               ORDER BY l.incarnation FOR NO KEY UPDATE OF l),
             resized AS (
               UPDATE lease l SET capacity = sized.capacity FROM sized WHERE l.incarnation = sized.incarnation
               RETURNING l.incarnation)
             SELECT EXISTS (SELECT FROM put), ARRAY(SELECT incarnation FROM resized)",
        )
        .bind(namespace)
        .bind(name)
        .bind(spec)
        .bind(object.map(|o| o.0))
        .bind(object.map(|o| o.1))
        .bind(BAKED)
        .bind(terms.map(|t| t.capacity as i32))
        .bind(terms.map(|t| t.heartbeat_seconds as i32))
        .bind(terms.map(|t| t.lease_seconds as i32))
        .fetch_one(&self.general)
        .await?;
        if changed {
            self.notices.send(Notice::Agents);
        }
        for incarnation in resized {
            self.notices.send(Notice::Worker(Incarnation(incarnation)));
        }
        Ok(changed)
    }

    /// Removes an Agent; false when there is none. Its waiting turns end when the fleet sees that it is gone.
    pub async fn remove_agent(&self, namespace: &str, name: &str) -> Result<bool, StoreError> {
        self.remove(namespace, name, None).await
    }

    /// Removes the Agent that is the object with this UID. Another object under the same name stays.
    pub async fn remove_agent_object(&self, namespace: &str, name: &str, uid: &str) -> Result<bool, StoreError> {
        self.remove(namespace, name, Some(uid)).await
    }

    async fn remove(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE agent SET deleted_at = clock_timestamp()
             WHERE namespace = $1 AND name = $2 AND ($3::text IS NULL OR uid = $3) AND deleted_at IS NULL",
        )
        .bind(namespace)
        .bind(name)
        .bind(uid)
        .execute(&self.general)
        .await?;
        let removed = done.rows_affected() == 1;
        if removed {
            self.notices.send(Notice::Agents);
        }
        Ok(removed)
    }

    /// Removes the Agents whose objects a complete list of these namespaces (`None`: of all) did not show. `listed` are the
    /// UIDs of the list. `began` is when the list began, by the database's clock: an Agent that was written later may be newer
    /// than the list. Answers how many were removed.
    pub async fn remove_unlisted_agents(
        &self,
        namespaces: Option<&[String]>,
        listed: &[String],
        began: OffsetDateTime,
    ) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "UPDATE agent SET deleted_at = clock_timestamp()
             WHERE deleted_at IS NULL AND uid IS NOT NULL AND NOT uid = ANY($2) AND updated_at < $3
               AND ($1::text[] IS NULL OR namespace = ANY($1))",
        )
        .bind(namespaces)
        .bind(listed)
        .bind(began)
        .execute(&self.general)
        .await?;
        if done.rows_affected() > 0 {
            self.notices.send(Notice::Agents);
        }
        Ok(done.rows_affected())
    }

    /// How many workers and turns each Agent has.
    pub async fn agent_counts(&self) -> Result<Vec<AgentCounts>, StoreError> {
        let rows = sqlx::query(
            "WITH running AS (SELECT organization, agent, count(*) AS n FROM marker WHERE incarnation IS NOT NULL GROUP BY 1, 2),
                  workers AS (SELECT l.organization, l.agent, count(*) AS n, count(*) FILTER (WHERE l.config >= a.config) AS updated
                              FROM lease l JOIN agent a ON a.namespace = l.organization AND a.name = l.agent
                              WHERE l.phase IN ('starting', 'live') GROUP BY 1, 2)
             SELECT a.namespace, a.name, coalesce(w.n, 0) AS workers, coalesce(w.updated, 0) AS updated, coalesce(r.n, 0) AS running, q.n AS queued
             FROM agent a
             LEFT JOIN running r ON r.organization = a.namespace AND r.agent = a.name
             LEFT JOIN workers w ON w.organization = a.namespace AND w.agent = a.name
             CROSS JOIN LATERAL (SELECT count(*) AS n FROM (
               SELECT FROM marker m WHERE m.organization = a.namespace AND m.agent = a.name AND m.incarnation IS NULL
               LIMIT 1000000) AS waiting) q
             WHERE a.deleted_at IS NULL",
        )
        .fetch_all(&self.general)
        .await?;
        rows.iter()
            .map(|r| {
                Ok(AgentCounts {
                    namespace: r.try_get("namespace")?,
                    name: r.try_get("name")?,
                    workers: r.try_get::<i64, _>("workers")? as u32,
                    updated: r.try_get::<i64, _>("updated")? as u32,
                    queued: r.try_get::<i64, _>("queued")? as u32,
                    running: r.try_get::<i64, _>("running")? as u32,
                })
            })
            .collect()
    }

    /// All Agents, by namespace and name.
    pub async fn agents(&self) -> Result<Vec<StoredAgent>, StoreError> {
        let rows = sqlx::query(
            "SELECT namespace, name, spec, generation, config, proven >= config AS proven, uid FROM agent
             WHERE deleted_at IS NULL ORDER BY namespace, name",
        )
        .fetch_all(&self.general)
        .await?;
        rows.iter()
            .map(|r| {
                Ok(StoredAgent {
                    namespace: r.try_get("namespace")?,
                    name: r.try_get("name")?,
                    spec: r.try_get("spec")?,
                    generation: r.try_get("generation")?,
                    config: r.try_get("config")?,
                    proven: r.try_get("proven")?,
                    uid: r.try_get("uid")?,
                })
            })
            .collect()
    }

    /// An Agent's spec as it is now; `None` when there is no such Agent.
    pub async fn agent_spec(&self, namespace: &str, name: &str) -> Result<Option<Value>, StoreError> {
        Ok(sqlx::query_scalar("SELECT spec FROM agent WHERE namespace = $1 AND name = $2 AND deleted_at IS NULL")
            .bind(namespace)
            .bind(name)
            .fetch_optional(&self.general)
            .await?)
    }

    /// Agents (namespace, name) that were removed and still have waiting turns, which are to end; at most 1,000, those that
    /// were removed first in front.
    pub async fn removed_agents(&self) -> Result<Vec<(String, String)>, StoreError> {
        Ok(sqlx::query_as(
            "SELECT namespace, name FROM agent a
             WHERE deleted_at IS NOT NULL AND (
               SELECT true FROM marker m
               WHERE m.organization = a.namespace AND m.agent = a.name AND m.incarnation IS NULL LIMIT 1)
             ORDER BY deleted_at LIMIT 1000",
        )
        .fetch_all(&self.general)
        .await?)
    }
}
