//! Workers that are pods: which pod a start has, and why it has not come to life so far.

use uuid::Uuid;

use super::{Store, StoreError};
use crate::turn::keys::StartId;
use crate::turn::terminal::Failure;

/// The pod of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedPod {
    /// `namespace/name`.
    pub runtime_ref: String,
    /// The pod's UID; `None` while nobody has recorded that the pod was made.
    pub uid: Option<String>,
}

impl Store {
    /// A number for a start that no other start ever had or will have.
    pub async fn next_start_number(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar("SELECT nextval('start_number')").fetch_one(self.vital()).await?)
    }

    /// Records the UID of the pod that a start has, and its grace: the seconds between SIGTERM and SIGKILL. False when the
    /// start is dead or has another pod.
    pub async fn record_pod_of_start(&self, start: StartId, uid: &str, grace_seconds: u32) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE lease SET pod_uid = $2, grace_seconds = $3
             WHERE start_id = $1 AND phase <> 'dead' AND runtime = 'kubernetes' AND coalesce(pod_uid, $2) = $2",
        )
        .bind(start.0)
        .bind(uid)
        .bind(i32::try_from(grace_seconds).unwrap_or(i32::MAX))
        .execute(self.vital())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The pod of a start that is not dead.
    pub async fn pod_of_start(&self, start: StartId) -> Result<Option<RecordedPod>, StoreError> {
        let row: Option<(String, Option<String>)> = sqlx::query_as(
            "SELECT runtime_ref, pod_uid FROM lease WHERE start_id = $1 AND phase <> 'dead' AND runtime = 'kubernetes'",
        )
        .bind(start.0)
        .fetch_optional(self.vital())
        .await?;
        Ok(row.map(|(runtime_ref, uid)| RecordedPod { runtime_ref, uid }))
    }

    /// The start whose pod this is, by the pod's `namespace/name` and UID; `None` also when the start is dead.
    pub async fn start_of_pod(&self, runtime_ref: &str, uid: &str) -> Result<Option<StartId>, StoreError> {
        let start: Option<Uuid> = sqlx::query_scalar(
            "SELECT start_id FROM lease
             WHERE runtime_ref = $1 AND pod_uid = $2 AND phase <> 'dead' AND runtime = 'kubernetes'",
        )
        .bind(runtime_ref)
        .bind(uid)
        .fetch_optional(self.vital())
        .await?;
        Ok(start.map(StartId))
    }

    /// Notes why a start has not come to life so far; `None` when nothing is in its way any more. The cause becomes the
    /// reason of the failure if the start deadline passes.
    pub async fn note_cause_of_start(&self, start: StartId, cause: Option<&Failure>) -> Result<(), StoreError> {
        let cause = cause.cloned().map(Failure::storable);
        sqlx::query(
            "UPDATE lease SET start_cause = $2, start_detail = $3
             WHERE start_id = $1 AND phase = 'starting'
               AND (start_cause, start_detail) IS DISTINCT FROM ($2, $3)",
        )
        .bind(start.0)
        .bind(cause.as_ref().map(|c| c.reason.as_str()))
        .bind(cause.and_then(|c| c.detail))
        .execute(self.vital())
        .await?;
        Ok(())
    }
}
