//! Deliberate stops: a worker is told to drain or is stopped by somebody else, says goodbye, and hands back the turns that it
//! never began.

use uuid::Uuid;

use super::connection::DbConnection;
use super::elect;
use super::fail_worker::lock_lease;
use super::transaction::transaction;
use super::{FailedWorker, Notice, Store, StoreError};
use crate::turn::cause;
use crate::turn::keys::{Incarnation, StartId, TurnId, WorkerGroup};
use crate::turn::phase::LeasePhase;
use crate::turn::reason::Reason;

impl Store {
    /// Tells a worker to stop: it claims nothing more, and the turns that it leaves behind end with `reason`. False when it
    /// was told before, or is dead.
    pub async fn drain_worker(&self, incarnation: Incarnation, reason: Reason) -> Result<bool, StoreError> {
        self.drain(incarnation, reason, false).await
    }

    /// Tells a worker to stop for having been idle. False as in [`drain_worker`](Self::drain_worker), and also if the
    /// worker is not live or holds a turn by now.
    pub async fn drain_idle_worker(&self, incarnation: Incarnation, reason: Reason) -> Result<bool, StoreError> {
        self.drain(incarnation, reason, true).await
    }

    async fn drain(&self, incarnation: Incarnation, reason: Reason, only_idle: bool) -> Result<bool, StoreError> {
        let done = transaction!(self.vital(), |tx| {
            let lease = lock_lease(tx, incarnation).await?.filter(|lease| lease.stop_reason.is_none());
            let may = match lease {
                None => false,
                Some(lease) if only_idle => lease.phase == LeasePhase::Live && !holds_turns(tx, incarnation).await?,
                Some(lease) => lease.phase != LeasePhase::Dead,
            };
            if may {
                set_draining(tx, incarnation, Some(reason)).await?;
            }
            Ok(may)
        })
        .await?;
        if done {
            self.notices.send(Notice::Worker(incarnation));
        }
        Ok(done)
    }

    /// A worker of an older config is to be replaced: it claims nothing more, and leaves when it holds nothing. False when it
    /// is not live, or retires already.
    pub async fn retire_worker(&self, incarnation: Incarnation) -> Result<bool, StoreError> {
        self.set_retiring(incarnation, true).await
    }

    /// The worker that was to replace this one has not come to life: it serves on. False when it does not retire, or another
    /// worker of its conversation is there.
    pub async fn restore_worker(&self, incarnation: Incarnation) -> Result<bool, StoreError> {
        self.set_retiring(incarnation, false).await
    }

    async fn set_retiring(&self, incarnation: Incarnation, retiring: bool) -> Result<bool, StoreError> {
        let done = transaction!(self.vital(), |tx| {
            // The lock excludes claims, which read `retiring` under one of their own.
            let live = lock_lease(tx, incarnation).await?.is_some_and(|lease| lease.phase == LeasePhase::Live);
            if !live {
                return Ok(false);
            }
            let done = sqlx::query(
                "UPDATE lease l SET retiring = $2 WHERE incarnation = $1 AND retiring <> $2 AND ($2 OR NOT EXISTS (
                   SELECT FROM lease o WHERE o.worker_group = l.worker_group AND o.phase IN ('starting', 'live') AND NOT o.retiring
                     AND o.organization = l.organization AND o.agent = l.agent AND l.worker_group <> $3))",
            )
            .bind(incarnation.0)
            .bind(retiring)
            .bind(WorkerGroup::OfAgent.key())
            .execute(tx)
            .await?;
            Ok(done.rows_affected() == 1)
        })
        .await?;
        if done {
            self.notices.send(Notice::Worker(incarnation));
        }
        Ok(done)
    }

    /// Drains a start that was never carried out: no pod was made for it, and nobody has connected. False if a pod was
    /// made or a worker has connected.
    pub async fn withdraw_start(&self, start: StartId, reason: Reason) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE lease SET phase = 'draining', stop_reason = $2, stop_recorded = true, drain_until = clock_timestamp()
             WHERE start_id = $1 AND phase = 'starting' AND pod_uid IS NULL",
        )
        .bind(start.0)
        .bind(reason.as_str())
        .execute(self.vital())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// A worker got a signal to stop, and guesses why: the turns that it leaves behind end with `reason`, unless whoever
    /// stopped the worker records a better one, before or after. If it has not claimed anything, its end counts as an
    /// interrupted start, not as a failed one.
    pub async fn note_stop_of_worker(&self, incarnation: Incarnation, reason: Reason) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE lease SET stop_reason = $2, stop_recorded = false, interrupted_at = clock_timestamp()
             WHERE incarnation = $1 AND phase <> 'dead' AND stop_reason IS NULL",
        )
        .bind(incarnation.0)
        .bind(reason.as_str())
        .execute(self.vital())
        .await?;
        Ok(())
    }

    /// The worker says that it is draining: it claims nothing more, and hands back the turns that it never began. Answers how
    /// many of these can be claimed by others now.
    pub async fn worker_draining(&self, incarnation: Incarnation, hand_back: &[TurnId]) -> Result<u32, StoreError> {
        let (count, group) = transaction!(self.vital(), |tx| {
            let Some(lease) = lock_lease(tx, incarnation).await? else { return Ok((0, None)) };
            let mut count = 0;
            if lease.phase != LeasePhase::Dead {
                if lease.phase == LeasePhase::Live {
                    set_draining(tx, incarnation, None).await?;
                }
                count = give_back(tx, incarnation, hand_back).await?;
            }
            Ok((count, Some((lease.organization, lease.agent, lease.worker_group))))
        })
        .await?;
        if let (Some((organization, agent, worker_group)), true) = (group, count > 0) {
            self.notices.send(Notice::WorkerGroup(organization, agent, worker_group));
        }
        Ok(count)
    }

    /// The worker says that it is gone: it hands back the turns that it never began, its lease ends, and the other turns that
    /// it holds fail.
    pub async fn worker_gone(
        &self,
        incarnation: Incarnation,
        hand_back: &[TurnId],
    ) -> Result<FailedWorker, StoreError> {
        self.worker_draining(incarnation, hand_back).await?;
        let failure = cause::lease::left();
        self.fail_worker(incarnation, &failure).await
    }

    /// Somebody else than Lastword stops the pod of this start: its worker drains for `within_seconds`, by default for as
    /// long as the pod has, and the turns that it leaves behind end with `reason`. A stop that was recorded before keeps its
    /// reason and may only become shorter; what a worker guessed is replaced.
    ///
    /// True when this changed something.
    pub async fn record_stop_of_start(
        &self,
        start: StartId,
        reason: Reason,
        within_seconds: Option<u32>,
    ) -> Result<bool, StoreError> {
        let stopped = transaction!(self.vital(), |tx| {
            let Some(incarnation) = incarnation_of_start(tx, start).await? else { return Ok(None) };
            let Some(lease) = lock_lease(tx, incarnation).await?.filter(|l| l.phase != LeasePhase::Dead) else {
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
            Ok((done.rows_affected() == 1).then_some(incarnation))
        })
        .await?;
        if let Some(incarnation) = stopped {
            self.notices.send(Notice::Worker(incarnation));
        }
        Ok(stopped.is_some())
    }

    /// Whether this worker's pod was stopped by a signal, the worker still holds a turn, and nobody has recorded yet why it
    /// was stopped. In Kubernetes somebody soon will.
    pub async fn worker_awaits_stop_reason(&self, incarnation: Incarnation) -> Result<bool, StoreError> {
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
    pub async fn stop_reason_of_worker(&self, incarnation: Incarnation) -> Result<Option<Reason>, StoreError> {
        let reason: Option<Option<String>> = sqlx::query_scalar("SELECT stop_reason FROM lease WHERE incarnation = $1")
            .bind(incarnation.0)
            .fetch_optional(self.vital())
            .await?;
        Ok(reason.flatten().and_then(|r| r.parse().ok()))
    }
}

/// The incarnation that a start has now; `None` when its lease is dead.
async fn incarnation_of_start(tx: &mut DbConnection, start: StartId) -> Result<Option<Incarnation>, StoreError> {
    let id: Option<Uuid> = sqlx::query_scalar("SELECT incarnation FROM lease WHERE start_id = $1 AND phase <> 'dead'")
        .bind(start.0)
        .fetch_optional(tx)
        .await?;
    Ok(id.map(Incarnation))
}

/// Whether a marker names the worker. The caller has locked the worker's lease, so this later statement sees every
/// claim that came before the lock.
async fn holds_turns(tx: &mut DbConnection, incarnation: Incarnation) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT FROM marker WHERE incarnation = $1)")
        .bind(incarnation.0)
        .fetch_one(tx)
        .await?)
}

/// Moves a locked lease to `draining`. `reason` is `None` if the worker itself says that it drains. If its pod is being
/// stopped by somebody else at that time, the worker has the longer of the pod's grace and `drainSeconds`.
async fn set_draining(
    tx: &mut DbConnection,
    incarnation: Incarnation,
    reason: Option<Reason>,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE lease SET phase = 'draining', stop_reason = coalesce(stop_reason, $2),
                drain_until = coalesce(drain_until, clock_timestamp() + make_interval(secs =>
                  CASE WHEN $2 IS NULL AND stop_reason IS NOT NULL THEN greatest(drain_seconds, grace_seconds)
                       ELSE drain_seconds END))
         WHERE incarnation = $1",
    )
    .bind(incarnation.0)
    .bind(reason.map(|r| r.as_str()))
    .execute(tx)
    .await?;
    Ok(())
}

/// Hands back those of these turns that the worker holds and that have no output: they wait again. Answers how many.
async fn give_back(tx: &mut DbConnection, incarnation: Incarnation, turns: &[TurnId]) -> Result<u32, StoreError> {
    if turns.is_empty() {
        return Ok(0);
    }
    let open = elect::lock(tx, turns).await?;
    let mine: Vec<Uuid> =
        open.iter().filter(|(_, o)| o.held_by == Some(incarnation) && o.log_end == 0).map(|(t, _)| t.0).collect();
    sqlx::query("UPDATE marker SET phase = 'waiting', incarnation = NULL, claimed_at = NULL WHERE turn_id = ANY($1)")
        .bind(&mine)
        .execute(tx)
        .await?;
    Ok(mine.len() as u32)
}
