//! The projection of Agents, so that gateways need neither YAML nor the Kubernetes API.

use serde_json::Value;
use sqlx::Row;

use super::{Notice, Store, StoreError};

/// An Agent as the store holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredAgent {
    pub namespace: String,
    pub name: String,
    /// `AgentSpec` as JSON.
    pub spec: Value,
    /// Grows with each change of the spec.
    pub generation: i64,
    /// The object's UID in Kubernetes.
    pub uid: Option<String>,
}

impl Store {
    /// Writes an Agent; true when its spec is new.
    pub async fn put_agent(&self, namespace: &str, name: &str, spec: &Value) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "INSERT INTO agent (namespace, name, spec) VALUES ($1, $2, $3)
             ON CONFLICT (namespace, name) DO UPDATE
             SET spec = excluded.spec, generation = agent.generation + 1, updated_at = clock_timestamp(), deleted_at = NULL
             WHERE agent.spec <> excluded.spec OR agent.deleted_at IS NOT NULL",
        )
        .bind(namespace)
        .bind(name)
        .bind(spec)
        .execute(&self.general)
        .await?;
        let changed = done.rows_affected() == 1;
        if changed {
            self.notices.send(Notice::Agents);
        }
        Ok(changed)
    }

    /// Removes an Agent; its waiting turns end when the fleet sees that it is gone.
    pub async fn remove_agent(&self, namespace: &str, name: &str) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE agent SET deleted_at = clock_timestamp()
             WHERE namespace = $1 AND name = $2 AND deleted_at IS NULL",
        )
        .bind(namespace)
        .bind(name)
        .execute(&self.general)
        .await?;
        let removed = done.rows_affected() == 1;
        if removed {
            self.notices.send(Notice::Agents);
        }
        Ok(removed)
    }

    /// All Agents.
    pub async fn agents(&self) -> Result<Vec<StoredAgent>, StoreError> {
        let rows = sqlx::query(
            "SELECT namespace, name, spec, generation, uid FROM agent
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
                    uid: r.try_get("uid")?,
                })
            })
            .collect()
    }

    /// How many turns wait for an agent, counted up to `limit` + 1.
    pub async fn queued(&self, organization: &str, agent: &str, limit: u32) -> Result<u32, StoreError> {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM (SELECT FROM marker WHERE organization = $1 AND agent = $2 AND incarnation IS NULL
                                   LIMIT $3) AS waiting",
        )
        .bind(organization)
        .bind(agent)
        .bind(i64::from(limit) + 1)
        .fetch_one(&self.general)
        .await?;
        Ok(count as u32)
    }

    /// Agents that were removed: their waiting turns are to end.
    pub async fn removed_agents(&self) -> Result<Vec<(String, String)>, StoreError> {
        Ok(sqlx::query_as("SELECT namespace, name FROM agent WHERE deleted_at IS NOT NULL LIMIT 1000")
            .fetch_all(&self.general)
            .await?)
    }
}
