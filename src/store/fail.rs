//! Failures with proof: a worker is dead, a start failed, one turn is to end now.

use std::time::Duration;

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::batch::retry_races;
use super::elect::{self, Ended, Hand};
use super::{Store, StoreError};
use crate::turn::cause;
use crate::turn::cause::lease::{Ground, Record, StartCause, Stop};
use crate::turn::keys::{Incarnation, TurnId};
use crate::turn::phase::LeasePhase;
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// How long a removed Agent may take to come back before its waiting turns end.
const MADE_AGAIN: Duration = Duration::from_secs(3);

/// Starts that somebody else stopped, an eviction say, before they took a message: that many a waiting turn is started
/// through. No failing of the agent's, and yet some end must be.
const MAX_INTERRUPTED: i64 = 5;

/// What the death of a worker came to.
#[derive(Debug, Clone, Default)]
pub struct FailedWorker {
    /// Whether this call was the one that ended the lease.
    pub died_now: bool,
    /// Whether it had never claimed anything and was not told to stop: a failed start.
    pub failed_start: bool,
    pub ended: Vec<TurnId>,
}

impl Store {
    /// Ends a worker's lease and every turn that its marker names. A start that failed also ends the turns that have
    /// waited through `startAttempts` failed starts, unless another worker is live or starting; one that was interrupted
    /// those that have waited through [`MAX_INTERRUPTED`] of that kind.
    ///
    /// Keyed by incarnation: a late notice of an old death touches nothing that a successor claimed.
    pub async fn fail_worker(&self, incarnation: Incarnation, failure: &Failure) -> Result<FailedWorker, StoreError> {
        self.end_lease(incarnation, failure, Ground::Proof).await
    }

    pub(super) async fn end_lease(
        &self,
        incarnation: Incarnation,
        failure: &Failure,
        ground: Ground,
    ) -> Result<FailedWorker, StoreError> {
        let (failed, ended) = retry_races(|| async {
            let mut connection = self.vital().acquire().await?;
            let mut tx = connection.begin().await?;
            let done = end_lease(&mut tx, incarnation, failure, ground).await?;
            tx.commit().await?;
            Ok(done)
        })
        .await?;
        self.announce(&ended);
        if failed.died_now {
            self.notices.send(super::Notice::Worker(incarnation));
        }
        Ok(failed)
    }

    /// Ends one turn, whoever holds it; `None` when it had its last word.
    pub async fn fail_turn(&self, turn: TurnId, failure: &Failure) -> Result<Option<Ended>, StoreError> {
        let ended = retry_races(|| async {
            let mut connection = self.vital().acquire().await?;
            let mut tx = connection.begin().await?;
            let ended = elect::fail_open(&mut tx, &[turn], Hand::Anybodys, failure).await?;
            tx.commit().await?;
            Ok(ended)
        })
        .await?;
        self.announce(&ended);
        Ok(ended.into_iter().next())
    }

    /// Ends a turn that this worker holds by its marker and has lost; the worker's own heartbeats say so.
    pub async fn fail_lost_turn(
        &self,
        turn: TurnId,
        holder: Incarnation,
        failure: &Failure,
    ) -> Result<bool, StoreError> {
        let ended = retry_races(|| async {
            let mut connection = self.vital().acquire().await?;
            let mut tx = connection.begin().await?;
            let ended = elect::fail_open(&mut tx, &[turn], Hand::Of(holder), failure).await?;
            tx.commit().await?;
            Ok(ended)
        })
        .await?;
        self.announce(&ended);
        Ok(!ended.is_empty())
    }

    /// Ends the newest waiting turns of an agent that are beyond its queue's limit; at most 500 a call.
    pub async fn shed(&self, organization: &str, agent: &str, max_queued: u32) -> Result<u32, StoreError> {
        let failure = cause::rule::shed();
        let ended = retry_races(|| async {
            let mut connection = self.vital().acquire().await?;
            let mut tx = connection.begin().await?;
            let over: Vec<Uuid> = sqlx::query_scalar(
                "SELECT turn_id FROM marker WHERE organization = $1 AND agent = $2 AND incarnation IS NULL AND phase = 'waiting'
                 ORDER BY armed_at OFFSET $3 LIMIT 500",
            )
            .bind(organization)
            .bind(agent)
            .bind(i64::from(max_queued))
            .fetch_all(&mut *tx)
            .await?;
            let over: Vec<TurnId> = over.into_iter().map(TurnId).collect();
            let ended = elect::fail_open(&mut tx, &over, Hand::Nobodys, &failure).await?;
            tx.commit().await?;
            Ok(ended)
        })
        .await?;
        self.announce(&ended);
        Ok(ended.len() as u32)
    }

    /// Ends every open turn of an agent that no longer exists and is not in a worker's hand; at most 500 a call. One that
    /// has been gone for less than [`MADE_AGAIN`] may be about to come back: deleted and made again is how many people
    /// replace things.
    pub async fn orphan(&self, organization: &str, agent: &str) -> Result<u32, StoreError> {
        let failure = cause::rule::agent_gone();
        let ended = retry_races(|| async {
            let mut connection = self.vital().acquire().await?;
            let mut tx = connection.begin().await?;
            let waiting: Vec<Uuid> = sqlx::query_scalar(
                "SELECT turn_id FROM marker WHERE organization = $1 AND agent = $2 AND incarnation IS NULL
                   AND EXISTS (SELECT FROM agent WHERE namespace = $1 AND name = $2
                               AND deleted_at < statement_timestamp() - make_interval(secs => $3)) LIMIT 500",
            )
            .bind(organization)
            .bind(agent)
            .bind(MADE_AGAIN.as_secs_f64())
            .fetch_all(&mut *tx)
            .await?;
            let waiting: Vec<TurnId> = waiting.into_iter().map(TurnId).collect();
            let ended = elect::fail_open(&mut tx, &waiting, Hand::Nobodys, &failure).await?;
            tx.commit().await?;
            Ok(ended)
        })
        .await?;
        self.announce(&ended);
        Ok(ended.len() as u32)
    }
}

/// The lease as the one who ends it finds it.
pub(super) struct Ending {
    pub organization: String,
    pub worker_group: String,
    pub phase: LeasePhase,
    pub claimed: bool,
    pub start_attempts: i32,
    pub stop_reason: Option<String>,
    /// It is stopped, and not by us.
    pub interrupted: bool,
    /// Whoever stopped it said so; else it is the worker's guess.
    pub stop_recorded: bool,
    /// Why it has not come to life so far, with the detail.
    pub start_cause: Option<(String, Option<String>)>,
    pub lapsed: bool,
    pub drained: bool,
}

impl Ending {
    /// Why it was told to stop; a reason that only a newer version knows is none.
    fn stopped(&self) -> Option<Reason> {
        self.stop_reason.as_deref().and_then(|r| r.parse().ok())
    }

    fn record(&self) -> Record {
        let stop = self.stopped().map(|reason| Stop { reason, recorded: self.stop_recorded });
        let start = self
            .start_cause
            .as_ref()
            .map(|(reason, detail)| StartCause { reason: reason.parse().ok(), detail: detail.clone() });
        Record { phase: self.phase, stop, start }
    }
}

/// Locks a lease FOR UPDATE: no claim holds it, and none will before this transaction ends.
pub(super) async fn lock_lease(tx: &mut PgConnection, incarnation: Incarnation) -> Result<Option<Ending>, StoreError> {
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
        Ok(Ending {
            organization: r.try_get("organization")?,
            worker_group: r.try_get("worker_group")?,
            phase: LeasePhase::parse(r.try_get("phase")?),
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

pub(super) async fn end_lease(
    tx: &mut PgConnection,
    incarnation: Incarnation,
    failure: &Failure,
    ground: Ground,
) -> Result<(FailedWorker, Vec<Ended>), StoreError> {
    let Some(lease) = lock_lease(tx, incarnation).await? else {
        return Ok(Default::default());
    };
    // Read again under the lease's lock: a heartbeat may have come meanwhile.
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
        bury(tx, incarnation, &failure).await?;
    }
    let held: Vec<Uuid> = sqlx::query_scalar("SELECT turn_id FROM marker WHERE incarnation = $1")
        .bind(incarnation.0)
        .fetch_all(&mut *tx)
        .await?;
    let held: Vec<TurnId> = held.into_iter().map(TurnId).collect();
    let mut ended = elect::fail_open(tx, &held, Hand::Of(incarnation), &failure).await?;
    let of_no_use = died_now && !lease.claimed;
    let failed_start = of_no_use && lease.stopped().is_none();
    if failed_start || (of_no_use && lease.interrupted) {
        ended.extend(fail_waiting(tx, &lease, &failure).await?);
    }
    Ok((FailedWorker { died_now, failed_start, ended: ended.iter().map(|e| e.turn_id).collect() }, ended))
}

/// Writes the tombstone.
pub(super) async fn bury(tx: &mut PgConnection, incarnation: Incarnation, failure: &Failure) -> Result<(), StoreError> {
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
/// [`MAX_INTERRUPTED`], if no worker is there or coming.
async fn fail_waiting(tx: &mut PgConnection, lease: &Ending, failure: &Failure) -> Result<Vec<Ended>, StoreError> {
    // One at a time in a worker group: of two starts that fail together, the later one must see that the first is dead.
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
    elect::fail_open(tx, &waiting, Hand::Nobodys, failure).await
}
