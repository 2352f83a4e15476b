//! Workers that are pods: which pod a start has, what its token is good for, and why it stops.

use sqlx::Row;
use uuid::Uuid;

use super::batch::retry_races;
use super::fail::lock_lease;
use super::{Notice, Store, StoreError};
use crate::turn::keys::{Incarnation, StartId};
use crate::turn::phase::LeasePhase;
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// What a pod that proved who it is may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodSession {
    /// It is this start's pod; the new secret is the start's from now on.
    Granted(StartId),
    /// A start waits for a pod of this name, but nobody has recorded its UID yet: ask again.
    NotRecorded,
    /// Its lease is dead.
    Dead,
    /// Its adapter has begun its session: whoever asks now is the agent program beside it, which can read the token.
    Begun,
    /// No start of ours has this pod.
    Unknown,
}

/// The pod of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedPod {
    /// `namespace/name`.
    pub runtime_ref: String,
    /// `None`: not made yet, as far as anybody has recorded.
    pub uid: Option<String>,
}

impl Store {
    /// A number for a start that no other start has, ever.
    pub async fn next_attempt(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar("SELECT nextval('start_number')").fetch_one(self.vital()).await?)
    }

    /// Records the pod that a start has; false when the start is dead, or has another pod.
    pub async fn record_pod(&self, start: StartId, uid: &str, grace_seconds: u32) -> Result<bool, StoreError> {
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
    pub async fn pod_of(&self, start: StartId) -> Result<Option<RecordedPod>, StoreError> {
        let row: Option<(String, Option<String>)> = sqlx::query_as(
            "SELECT runtime_ref, pod_uid FROM lease WHERE start_id = $1 AND phase <> 'dead' AND runtime = 'kubernetes'",
        )
        .bind(start.0)
        .fetch_optional(self.vital())
        .await?;
        Ok(row.map(|(runtime_ref, uid)| RecordedPod { runtime_ref, uid }))
    }

    /// The start, not dead, whose pod this very one is.
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

    /// A pod has proven its name and UID: `secret` makes a new one for its start.
    ///
    /// Once the worker has connected, only a `Custom` one may ask again (its process may be started anew within its
    /// container): our own adapters keep what they have until the container ends.
    pub async fn session_of_pod(
        &self,
        runtime_ref: &str,
        uid: &str,
        secret: impl Fn(StartId) -> Vec<u8>,
    ) -> Result<PodSession, StoreError> {
        let rows = sqlx::query(
            "SELECT l.start_id, l.phase, l.pod_uid, coalesce(a.spec->>'adapter' = 'Custom', false) AS again
             FROM lease l LEFT JOIN agent a ON a.namespace = l.organization AND a.name = l.agent
             WHERE l.runtime_ref = $1 AND l.runtime = 'kubernetes' ORDER BY l.phase = 'dead', l.started_at DESC LIMIT 10",
        )
        .bind(runtime_ref)
        .fetch_all(self.vital())
        .await?;
        let mut answer = PodSession::Unknown;
        for row in &rows {
            let phase = LeasePhase::parse(row.try_get("phase")?);
            let recorded: Option<&str> = row.try_get("pod_uid")?;
            match recorded {
                Some(recorded) if recorded != uid => {}
                // One that is being stopped needs no session any more: who holds turns has one.
                Some(_) if matches!(phase, LeasePhase::Dead | LeasePhase::Draining) => return Ok(PodSession::Dead),
                Some(_) => {
                    let (start, again) = (StartId(row.try_get("start_id")?), row.try_get("again")?);
                    return self.begin_session(start, uid, again, secret(start)).await;
                }
                None if phase != LeasePhase::Dead => answer = PodSession::NotRecorded,
                None => {}
            }
        }
        Ok(answer)
    }

    /// Gives a start another secret; also to one that is connected, if it may come `again`.
    async fn begin_session(
        &self,
        start: StartId,
        uid: &str,
        again: bool,
        secret_hash: Vec<u8>,
    ) -> Result<PodSession, StoreError> {
        // Again by the UID: the lease was read without a lock.
        let done = sqlx::query(
            "UPDATE lease SET secret_hash = $3
             WHERE start_id = $1 AND pod_uid = $2 AND (phase = 'starting' OR (phase = 'live' AND $4))",
        )
        .bind(start.0)
        .bind(uid)
        .bind(secret_hash)
        .bind(again)
        .execute(self.vital())
        .await?;
        Ok(match done.rows_affected() {
            0 if again => PodSession::Dead,
            0 => PodSession::Begun,
            _ => PodSession::Granted(start),
        })
    }

    /// Somebody else stops this worker's pod: it drains, for as long as the pod has, and what it leaves behind carries
    /// `reason`. A stop that was recorded before keeps its reason and may only become shorter; a worker's own guess is
    /// replaced.
    ///
    /// True when this changed something.
    pub async fn record_stop(
        &self,
        start: StartId,
        reason: Reason,
        within_seconds: Option<u32>,
    ) -> Result<bool, StoreError> {
        let stopped = retry_races(|| async {
            let Some(incarnation) = self.incarnation_of(start).await? else { return Ok(None) };
            let mut connection = self.vital().acquire().await?;
            let mut tx = connection.begin().await?;
            let Some(lease) = lock_lease(&mut tx, incarnation).await?.filter(|l| l.phase != LeasePhase::Dead) else {
                return Ok(None);
            };
            let keeps = lease.stop_reason.is_some() && lease.stop_recorded;
            let done = sqlx::query(
                "UPDATE lease l SET phase = 'draining', stop_reason = n.reason, stop_recorded = true, drain_until = n.until,
                        interrupted_at = CASE WHEN $4 THEN interrupted_at ELSE coalesce(interrupted_at, clock_timestamp()) END
                 FROM (SELECT CASE WHEN $4 THEN stop_reason ELSE $2 END AS reason,
                              CASE WHEN $4 THEN least(drain_until, until.at) ELSE until.at END AS until
                       FROM lease, LATERAL (SELECT clock_timestamp() + make_interval(secs =>
                                              coalesce($3, grace_seconds, drain_seconds)) AS at) until
                       WHERE incarnation = $1) n
                 WHERE l.incarnation = $1
                   AND (l.phase <> 'draining' OR NOT $4 OR n.until < l.drain_until - interval '1 second')",
            )
            .bind(incarnation.0)
            .bind(reason.as_str())
            .bind(within_seconds.map(|s| i32::try_from(s).unwrap_or(i32::MAX)))
            .bind(keeps)
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            Ok((done.rows_affected() == 1).then_some(incarnation))
        })
        .await?;
        if let Some(incarnation) = stopped {
            self.notices.send(Notice::Worker(incarnation));
        }
        Ok(stopped.is_some())
    }

    /// Whether this worker was stopped by a signal, still holds a turn, and nobody has recorded why it was stopped: in
    /// Kubernetes somebody will, soon.
    pub async fn awaits_stop_reason(&self, incarnation: Incarnation) -> Result<bool, StoreError> {
        let awaits = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM lease l WHERE incarnation = $1 AND runtime = 'kubernetes' AND phase <> 'dead'
                            AND stop_reason IS NOT NULL AND NOT stop_recorded
                            AND EXISTS (SELECT FROM marker m WHERE m.incarnation = l.incarnation))",
        )
        .bind(incarnation.0)
        .fetch_one(self.vital())
        .await?;
        Ok(awaits)
    }

    /// Why this worker was told to stop, if it was.
    pub async fn stop_reason(&self, incarnation: Incarnation) -> Result<Option<Reason>, StoreError> {
        let reason: Option<Option<String>> = sqlx::query_scalar("SELECT stop_reason FROM lease WHERE incarnation = $1")
            .bind(incarnation.0)
            .fetch_optional(self.vital())
            .await?;
        Ok(reason.flatten().and_then(|r| r.parse().ok()))
    }

    /// Why a start has not come to life so far, `None` when nothing is in its way any more. It becomes the reason if the
    /// start deadline passes.
    pub async fn note_start_cause(&self, start: StartId, cause: Option<&Failure>) -> Result<(), StoreError> {
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
