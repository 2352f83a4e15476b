//! Deliberate stops: a worker drains, says goodbye, hands back what it never began.

use sqlx::PgConnection;
use uuid::Uuid;

use super::batch::retry_races;
use super::elect;
use super::fail::lock_lease;
use super::{FailedWorker, Notice, Store, StoreError};
use crate::turn::cause;
use crate::turn::keys::{Incarnation, StartId, TurnId};
use crate::turn::phase::LeasePhase;
use crate::turn::reason::Reason;

impl Store {
    /// Tells a worker to stop: it claims nothing more. What it leaves behind carries `reason`.
    pub async fn drain_worker(&self, incarnation: Incarnation, reason: Reason) -> Result<bool, StoreError> {
        self.drain(incarnation, reason, false).await
    }

    /// The same, unless the worker holds a turn by now: nobody who works is stopped for having been idle.
    pub async fn drain_idle_worker(&self, incarnation: Incarnation, reason: Reason) -> Result<bool, StoreError> {
        self.drain(incarnation, reason, true).await
    }

    async fn drain(&self, incarnation: Incarnation, reason: Reason, only_idle: bool) -> Result<bool, StoreError> {
        let done = retry_races(|| async {
            let mut connection = self.vital().acquire().await?;
            let mut tx = connection.begin().await?;
            let lease = lock_lease(&mut tx, incarnation).await?.filter(|lease| lease.stop_reason.is_none());
            let may = match lease {
                None => false,
                Some(lease) if only_idle => {
                    lease.phase == LeasePhase::Live && !holds_turns(&mut tx, incarnation).await?
                }
                Some(lease) => lease.phase != LeasePhase::Dead,
            };
            if may {
                set_draining(&mut tx, incarnation, Some(reason)).await?;
            }
            tx.commit().await?;
            Ok(may)
        })
        .await?;
        if done {
            self.notices.send(Notice::Worker(incarnation));
        }
        Ok(done)
    }

    /// Drains a start that was never carried out: no pod was made for it, nobody has connected. False: it was.
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

    /// The worker was told to stop by somebody else (a signal), and guesses why: what it leaves behind carries `reason`,
    /// unless whoever stopped it records a better one, before or after; and its end is no failed start, but an interrupted one.
    pub async fn note_stop(&self, incarnation: Incarnation, reason: Reason) -> Result<(), StoreError> {
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

    /// The worker says goodbye: it takes no more turns and hands back those that never began.
    pub async fn worker_draining(&self, incarnation: Incarnation, hand_back: &[TurnId]) -> Result<u32, StoreError> {
        let (count, place) = retry_races(|| async {
            let mut connection = self.vital().acquire().await?;
            let mut tx = connection.begin().await?;
            let lease = lock_lease(&mut tx, incarnation).await?;
            let mut count = 0;
            if let Some(lease) = &lease
                && lease.phase != LeasePhase::Dead
            {
                if lease.phase == LeasePhase::Live {
                    set_draining(&mut tx, incarnation, None).await?;
                }
                count = give_back(&mut tx, incarnation, hand_back).await?;
            }
            tx.commit().await?;
            Ok((count, lease.map(|l| (l.organization, l.worker_group))))
        })
        .await?;
        if let (Some((organization, worker_group)), true) = (place, count > 0) {
            self.notices.send(Notice::WorkerGroup(organization, worker_group));
        }
        Ok(count)
    }

    /// The worker is gone by its own word: its lease ends, what never began is handed back, what it leaves fails.
    pub async fn worker_gone(
        &self,
        incarnation: Incarnation,
        hand_back: &[TurnId],
    ) -> Result<FailedWorker, StoreError> {
        self.worker_draining(incarnation, hand_back).await?;
        let failure = cause::lease::left();
        self.fail_worker(incarnation, &failure).await
    }
}

/// Whether a marker names the worker whose lease is locked. A statement of its own behind the lock: it sees every claim that
/// came before.
async fn holds_turns(tx: &mut PgConnection, incarnation: Incarnation) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT FROM marker WHERE incarnation = $1)")
        .bind(incarnation.0)
        .fetch_one(tx)
        .await?)
}

/// Moves a locked lease to `draining`. Without a reason it does so by the worker's own word: a pod that somebody else stops
/// has its own grace.
async fn set_draining(
    tx: &mut PgConnection,
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

/// Hands turns back that the worker says never began, in key order.
async fn give_back(tx: &mut PgConnection, incarnation: Incarnation, turns: &[TurnId]) -> Result<u32, StoreError> {
    if turns.is_empty() {
        return Ok(0);
    }
    let open = elect::lock(tx, turns).await?;
    let mine: Vec<Uuid> =
        open.iter().filter(|(_, o)| o.holder == Some(incarnation) && o.log_end == 0).map(|(t, _)| t.0).collect();
    sqlx::query("UPDATE marker SET phase = 'waiting', incarnation = NULL, claimed_at = NULL WHERE turn_id = ANY($1)")
        .bind(&mine)
        .execute(tx)
        .await?;
    Ok(mine.len() as u32)
}
