//! A worker is dead: its lease becomes a tombstone and the turns that it held end, in one transaction. If it was a start
//! that came to nothing, the turns that wait for it may end too.

use sqlx::Row;
use uuid::Uuid;

use super::connection::DbConnection;
use super::elect::{self, Ended, Fence};
use super::transaction::transaction;
use super::{Notice, Store, StoreError};
use crate::turn::cause;
use crate::turn::cause::lease::{Ground, LeaseRecord, LeaseStop, StartCause};
use crate::turn::keys::{Incarnation, TurnId};
use crate::turn::phase::LeasePhase;
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// A waiting turn ends after this many starts that somebody else stopped before they claimed anything (an eviction,
/// say). Such a start is no fault of the agent's, and yet the turn must end at some time.
const MAX_INTERRUPTED: i64 = 5;

/// What the death of a worker came to.
#[derive(Debug, Clone, Default)]
pub struct FailedWorker {
    /// Whether this call was the one that ended the lease.
    pub died_now: bool,
    /// Whether the worker had never claimed anything and was not told to stop: a failed start.
    pub failed_start: bool,
    /// The turns that ended with the lease.
    pub ended: Vec<TurnId>,
}

impl Store {
    /// Ends a worker's lease and every turn that its marker names. A start that failed also ends the turns that have
    /// waited through `startAttempts` failed starts, unless another worker is live or starting. A start that was
    /// interrupted ends those that have waited through [`MAX_INTERRUPTED`] interrupted ones.
    ///
    /// The worker is named by its incarnation, so a late report of an old death touches nothing that a successor
    /// claimed.
    pub async fn fail_worker(&self, incarnation: Incarnation, failure: &Failure) -> Result<FailedWorker, StoreError> {
        self.end_lease(incarnation, failure, Ground::Proof).await
    }

    pub(super) async fn end_lease(
        &self,
        incarnation: Incarnation,
        failure: &Failure,
        ground: Ground,
    ) -> Result<FailedWorker, StoreError> {
        let (failed, ended) =
            transaction!(self.vital(), |tx| end_lease_within(tx, incarnation, failure, ground).await).await?;
        self.announce(&ended);
        if failed.died_now {
            self.notices.send(Notice::Worker(incarnation));
        }
        Ok(failed)
    }
}

/// A lease whose row is locked by this transaction.
pub(super) struct LockedLease {
    pub organization: String,
    pub worker_group: String,
    pub phase: LeasePhase,
    /// Whether the worker has ever claimed a turn.
    pub claimed: bool,
    pub start_attempts: i32,
    pub stop_reason: Option<String>,
    /// Whether somebody other than Lastword began to stop the worker.
    pub interrupted: bool,
    /// Whether whoever stopped the worker recorded `stop_reason`; otherwise it is the worker's guess.
    pub stop_recorded: bool,
    /// Why the start has not come to life so far: reason and detail.
    pub start_cause: Option<(String, Option<String>)>,
    /// Whether the lease has run out by now.
    pub lapsed: bool,
    /// Whether the time to drain is over by now.
    pub drained: bool,
}

impl LockedLease {
    /// Why the worker was told to stop; `None` if it was not, or if only a newer version of Lastword knows the reason.
    fn stopped(&self) -> Option<Reason> {
        self.stop_reason.as_deref().and_then(|r| r.parse().ok())
    }

    fn record(&self) -> LeaseRecord {
        let stop = self.stopped().map(|reason| LeaseStop { reason, recorded: self.stop_recorded });
        let start = self
            .start_cause
            .as_ref()
            .map(|(reason, detail)| StartCause { reason: reason.parse().ok(), detail: detail.clone() });
        LeaseRecord { phase: self.phase, stop, start }
    }
}

/// Locks a lease FOR UPDATE: no claim is under way for it, and none begins before this transaction ends.
pub(super) async fn lock_lease(
    tx: &mut DbConnection,
    incarnation: Incarnation,
) -> Result<Option<LockedLease>, StoreError> {
    let row = sqlx::query(
        "SELECT organization, worker_group, phase, claimed, start_attempts, stop_reason, stop_recorded, start_cause,
                interrupted_at IS NOT NULL AS interrupted,
                start_detail, expires_at < clock_timestamp() AS lapsed,
                phase = 'draining' AND drain_until < clock_timestamp() AS drained
         FROM lease WHERE incarnation = $1 FOR UPDATE",
    )
    .bind(incarnation.0)
    .fetch_optional(tx)
    .await?;
    row.map(|r| {
        Ok(LockedLease {
            organization: r.try_get("organization")?,
            worker_group: r.try_get("worker_group")?,
            phase: LeasePhase::of(&r)?,
            claimed: r.try_get("claimed")?,
            start_attempts: r.try_get("start_attempts")?,
            stop_reason: r.try_get("stop_reason")?,
            interrupted: r.try_get("interrupted")?,
            stop_recorded: r.try_get("stop_recorded")?,
            start_cause: r
                .try_get::<Option<String>, _>("start_cause")?
                .map(|cause| Ok::<_, StoreError>((cause, r.try_get("start_detail")?)))
                .transpose()?,
            lapsed: r.try_get("lapsed")?,
            drained: r.try_get("drained")?,
        })
    })
    .transpose()
}

/// Ends a lease in the transaction at hand, if the ground that it is ended on holds under the lease's lock.
pub(super) async fn end_lease_within(
    tx: &mut DbConnection,
    incarnation: Incarnation,
    failure: &Failure,
    ground: Ground,
) -> Result<(FailedWorker, Vec<Ended>), StoreError> {
    let Some(lease) = lock_lease(tx, incarnation).await? else {
        return Ok(Default::default());
    };
    // Silence and the end of a drain are read again under the lock: a heartbeat that came meanwhile spares the worker.
    let may = match ground {
        Ground::Proof => true,
        Ground::Silence => lease.lapsed,
        Ground::DrainOver => lease.drained,
    };
    if !may {
        return Ok(Default::default());
    }
    let failure = cause::lease::known_better(&lease.record(), failure, ground).storable();
    let died_now = lease.phase != LeasePhase::Dead;
    if died_now {
        write_tombstone(tx, incarnation, &failure).await?;
    }
    let mut ended = fail_held(tx, incarnation, &failure).await?;
    let never_claimed = died_now && !lease.claimed;
    let failed_start = never_claimed && lease.stopped().is_none();
    if failed_start || (never_claimed && lease.interrupted) {
        ended.extend(fail_waiting(tx, &lease, &failure).await?);
    }
    Ok((FailedWorker { died_now, failed_start, ended: ended.iter().map(|e| e.turn_id).collect() }, ended))
}

/// Ends a lease of which another incarnation proves that its process is gone, and the turns that it held. The start goes on in
/// that other one, so it did not fail, and those who wait for it wait on.
pub(super) async fn bury(
    tx: &mut DbConnection,
    incarnation: Incarnation,
    failure: &Failure,
) -> Result<Vec<Ended>, StoreError> {
    let Some(lease) = lock_lease(tx, incarnation).await? else {
        return Ok(Vec::new());
    };
    let failure = cause::lease::known_better(&lease.record(), failure, Ground::Proof).storable();
    write_tombstone(tx, incarnation, &failure).await?;
    fail_held(tx, incarnation, &failure).await
}

/// Ends the turns that a worker holds whose lease is locked.
async fn fail_held(
    tx: &mut DbConnection,
    incarnation: Incarnation,
    failure: &Failure,
) -> Result<Vec<Ended>, StoreError> {
    let held: Vec<Uuid> = sqlx::query_scalar("SELECT turn_id FROM marker WHERE incarnation = $1")
        .bind(incarnation.0)
        .fetch_all(&mut *tx)
        .await?;
    let held: Vec<TurnId> = held.into_iter().map(TurnId).collect();
    elect::fail_open(tx, &held, Fence::HeldBy(incarnation), failure).await
}

/// Makes a locked lease a tombstone, which says why the worker died.
async fn write_tombstone(tx: &mut DbConnection, incarnation: Incarnation, failure: &Failure) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE lease SET phase = 'dead', died_at = clock_timestamp(), death_reason = $2, death_detail = $3
         WHERE incarnation = $1",
    )
    .bind(incarnation.0)
    .bind(failure.reason.as_str())
    .bind(&failure.detail)
    .execute(tx)
    .await?;
    Ok(())
}

/// Ends the turns that have now waited through as many failed starts as their Agent allows, or through
/// [`MAX_INTERRUPTED`] interrupted ones, if no other worker of the group is live or starting.
async fn fail_waiting(tx: &mut DbConnection, lease: &LockedLease, failure: &Failure) -> Result<Vec<Ended>, StoreError> {
    // Starts of one worker group fail one after the other: of two that fail together, the later one must see that the
    // first is dead.
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1 || '/' || $2, 0))")
        .bind(&lease.organization)
        .bind(&lease.worker_group)
        .execute(&mut *tx)
        .await?;
    let waiting: Vec<Uuid> = sqlx::query_scalar(
        "SELECT m.turn_id FROM marker m
         WHERE m.organization = $1 AND m.worker_group = $2 AND m.incarnation IS NULL AND m.phase = 'waiting'
           AND NOT EXISTS (SELECT FROM lease l WHERE l.organization = $1 AND l.worker_group = $2
                           AND l.phase IN ('starting', 'live'))
           AND (SELECT count(*) FILTER (WHERE l.stop_reason IS NULL) >= $3
                       OR count(*) FILTER (WHERE l.interrupted_at IS NOT NULL) >= $4
                FROM lease l WHERE l.phase = 'dead' AND l.died_at >= m.armed_at
                AND l.organization = $1 AND l.worker_group = $2 AND NOT l.claimed)
         LIMIT 5000",
    )
    .bind(&lease.organization)
    .bind(&lease.worker_group)
    .bind(i64::from(lease.start_attempts))
    .bind(MAX_INTERRUPTED)
    .fetch_all(&mut *tx)
    .await?;
    let waiting: Vec<TurnId> = waiting.into_iter().map(TurnId).collect();
    elect::fail_open(tx, &waiting, Fence::Unclaimed, failure).await
}
