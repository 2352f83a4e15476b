//! Workers' lives: start, connect, suspicion, and what the fleet sees of them. How they stop: `stop.rs`.

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::batch::retry_races;
use super::fail::bury;
use super::pool::bounded;
use super::{Notice, Store, StoreError};
use crate::turn::cause;
use crate::turn::defaults;
use crate::turn::keys::{GatewayId, Incarnation, StartId};
use crate::turn::phase::LeasePhase;
use crate::turn::terminal::Failure;
use crate::wire::Credential;

/// A worker that a runtime is about to start.
#[derive(Debug, Clone)]
pub struct NewStart {
    pub start_id: StartId,
    pub organization: String,
    pub agent: String,
    pub worker_group: String,
    pub generation: i64,
    /// The runtime's name and its own reference of the worker.
    pub runtime: &'static str,
    pub runtime_ref: String,
    pub secret_hash: Vec<u8>,
    pub capacity: u32,
    pub heartbeat_seconds: u32,
    pub lease_seconds: u32,
    pub drain_seconds: u32,
    pub start_attempts: u32,
    /// The start deadline runs from the row's commit.
    pub start_seconds: u32,
}

/// A worker as the fleet sees it.
#[derive(Debug, Clone)]
pub struct Lease {
    pub incarnation: Incarnation,
    pub start_id: StartId,
    pub organization: String,
    pub agent: String,
    pub worker_group: String,
    pub generation: i64,
    pub phase: LeasePhase,
    pub runtime_ref: String,
    pub capacity: u32,
    /// Turns in hand.
    pub held: u32,
    /// Seconds without a turn in hand; `None` while busy.
    pub idle_seconds: Option<f64>,
    pub suspected: bool,
    /// It was told to stop.
    pub stopping: bool,
    /// A pod's start without a pod for a while: whoever was to make it died, or could not.
    pub unmade: bool,
}

/// After this long a start whose pod is not recorded is made again, in seconds.
const UNMADE_SECONDS: f64 = 3.0;

/// One worker group's queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerGroupDemand {
    pub organization: String,
    pub agent: String,
    pub worker_group: String,
    /// Conversations whose first open turn waits.
    pub claimable: u32,
}

/// The terms on which a worker is connected.
#[derive(Debug, Clone)]
pub struct Connected {
    pub organization: String,
    pub worker_group: String,
    pub agent: String,
    pub heartbeat_seconds: u32,
    pub lease_seconds: u32,
    pub capacity: u32,
    pub together: bool,
    pub draining: Option<u32>,
}

/// Why a worker may not speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    #[error("unknown credential")]
    Forbidden,
    #[error("this incarnation is dead; stop")]
    Dead,
}

impl Store {
    /// Writes the lease row of a start, unless the worker group has a worker that is live or starting and `only_first`.
    pub async fn start_worker(&self, start: &NewStart, only_first: bool) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "INSERT INTO lease (incarnation, start_id, organization, agent, worker_group, generation, phase, runtime,
                                runtime_ref, secret_hash, capacity, heartbeat_seconds, lease_seconds, drain_seconds,
                                start_attempts, expires_at)
             SELECT $1, $1, $2, $3, $4, $5, 'starting', $6, $7, $8, $9, $10, $11, $12, $13,
                    clock_timestamp() + make_interval(secs => $14)
             WHERE NOT ($15 AND EXISTS (SELECT FROM lease WHERE organization = $2 AND worker_group = $4
                                        AND phase IN ('starting', 'live')))",
        )
        .bind(start.start_id.0)
        .bind(&start.organization)
        .bind(&start.agent)
        .bind(&start.worker_group)
        .bind(start.generation)
        .bind(start.runtime)
        .bind(&start.runtime_ref)
        .bind(&start.secret_hash)
        .bind(start.capacity as i32)
        .bind(start.heartbeat_seconds as i32)
        .bind(start.lease_seconds as i32)
        .bind(start.drain_seconds as i32)
        .bind(start.start_attempts as i32)
        .bind(f64::from(start.start_seconds))
        .bind(only_first)
        .execute(self.vital())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// A worker opens its stream: its lease is live and names this stream. A second incarnation under one start's
    /// credential ends the first at once: the process that made it is gone.
    pub async fn connect_worker(
        &self,
        credential: &Credential,
        incarnation: Incarnation,
        gateway: GatewayId,
        stream: Uuid,
        capacity: u32,
        together: bool,
    ) -> Result<Result<Connected, ConnectError>, StoreError> {
        let failure = cause::lease::replaced();
        let (answer, replaced) = retry_races(|| async {
            let mut connection = self.vital().acquire().await?;
            let mut tx = connection.begin().await?;
            let (answer, replaced) = match find_start(&mut tx, credential, incarnation).await? {
                Err(error) => (Err(error), None),
                Ok(replaced) => {
                    open_stream(&mut tx, incarnation, gateway, stream, capacity, together).await?;
                    (Ok(read_terms(&mut tx, incarnation).await?), replaced)
                }
            };
            tx.commit().await?;
            Ok((answer, replaced))
        })
        .await?;
        if let Some(first) = replaced {
            self.fail_worker(first, &failure).await?;
        }
        Ok(answer)
    }

    /// Checks a worker that speaks to a replica which does not hold its stream.
    pub async fn authenticate_worker(
        &self,
        credential: &Credential,
        incarnation: Incarnation,
    ) -> Result<Result<Connected, ConnectError>, StoreError> {
        bounded(async {
            let mut connection = self.vital().acquire().await?;
            let row =
                sqlx::query("SELECT phase FROM lease WHERE incarnation = $1 AND start_id = $2 AND secret_hash = $3")
                    .bind(incarnation.0)
                    .bind(credential.start.0)
                    .bind(credential.hash())
                    .fetch_optional(&mut *connection)
                    .await?;
            match row {
                None => Ok(Err(ConnectError::Forbidden)),
                Some(row) => match LeasePhase::parse(row.try_get("phase")?) {
                    LeasePhase::Dead => Ok(Err(ConnectError::Dead)),
                    _ => Ok(Ok(read_terms(&mut connection, incarnation).await?)),
                },
            }
        })
        .await
    }

    /// A stream closed without goodbye: look at the worker, if its lease still names that very stream.
    pub async fn suspect(&self, incarnation: Incarnation, stream: Uuid) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE lease SET suspected_at = clock_timestamp(), stream = NULL
             WHERE incarnation = $1 AND stream = $2 AND phase IN ('live', 'draining')",
        )
        .bind(incarnation.0)
        .bind(stream)
        .execute(self.vital())
        .await?;
        let suspected = done.rows_affected() == 1;
        if suspected {
            self.notices.send(Notice::Worker(incarnation));
        }
        Ok(suspected)
    }

    /// Tells whoever holds this worker's stream to look at its markers.
    pub fn worker_changed(&self, incarnation: Incarnation) {
        self.notices.send(Notice::Worker(incarnation));
    }

    /// Every worker that is not dead.
    pub async fn workers(&self) -> Result<Vec<Lease>, StoreError> {
        let rows = sqlx::query(
            "SELECT l.incarnation, l.start_id, l.organization, l.agent, l.worker_group, l.generation, l.phase,
                    l.runtime_ref, l.capacity, l.suspected_at IS NOT NULL AS suspected, l.stop_reason IS NOT NULL AND l.stop_recorded AS stopping,
                    l.runtime = 'kubernetes' AND l.phase = 'starting' AND l.pod_uid IS NULL
                      AND l.started_at < statement_timestamp() - make_interval(secs => $1) AS unmade,
                    extract(epoch FROM statement_timestamp() - l.idle_since)::float8 AS idle_seconds,
                    (SELECT count(*) FROM marker m WHERE m.incarnation = l.incarnation) AS held
             FROM lease l WHERE phase <> 'dead' ORDER BY l.started_at",
        )
        .bind(UNMADE_SECONDS)
        .fetch_all(self.vital())
        .await?;
        rows.iter()
            .map(|r| {
                Ok(Lease {
                    incarnation: Incarnation(r.try_get("incarnation")?),
                    start_id: StartId(r.try_get("start_id")?),
                    organization: r.try_get("organization")?,
                    agent: r.try_get("agent")?,
                    worker_group: r.try_get("worker_group")?,
                    generation: r.try_get("generation")?,
                    phase: LeasePhase::parse(r.try_get("phase")?),
                    runtime_ref: r.try_get("runtime_ref")?,
                    capacity: r.try_get::<i32, _>("capacity")? as u32,
                    held: r.try_get::<i64, _>("held")? as u32,
                    idle_seconds: r.try_get("idle_seconds")?,
                    suspected: r.try_get("suspected")?,
                    stopping: r.try_get("stopping")?,
                    unmade: r.try_get("unmade")?,
                })
            })
            .collect()
    }

    /// What waits, a row a worker group: of each agent the oldest claimable turns, twice as many as its workers can hold and
    /// at most 1,000. More would change no decision, and a queue may be very deep.
    pub async fn demand(&self) -> Result<Vec<WorkerGroupDemand>, StoreError> {
        // Not NOT EXISTS: as an anti join it looks at all that wait before the first head is found.
        let rows = sqlx::query(
            "SELECT a.namespace AS organization, a.name AS agent, m.worker_group, count(*) AS claimable
             FROM agent a CROSS JOIN LATERAL (
               SELECT worker_group FROM marker m
               WHERE m.organization = a.namespace AND m.agent = a.name AND m.incarnation IS NULL AND m.phase = 'waiting'
                 AND (SELECT true FROM marker e WHERE e.conversation_id = m.conversation_id AND e.number < m.number
                      LIMIT 1) IS NULL
               ORDER BY m.armed_at LIMIT least(1000, 16 + 2 * coalesce((a.spec #>> '{limits,maxWorkers}')::bigint, $1)
                                                          * coalesce((a.spec #>> '{limits,turnsPerWorker}')::bigint, $2))
             ) m
             WHERE a.deleted_at IS NULL GROUP BY 1, 2, 3",
        )
        .bind(i64::from(defaults::MAX_WORKERS))
        .bind(i64::from(defaults::TURNS_PER_WORKER))
        .fetch_all(&self.general)
        .await?;
        rows.iter()
            .map(|r| {
                Ok(WorkerGroupDemand {
                    organization: r.try_get("organization")?,
                    agent: r.try_get("agent")?,
                    worker_group: r.try_get("worker_group")?,
                    claimable: r.try_get::<i64, _>("claimable")? as u32,
                })
            })
            .collect()
    }

    /// The incarnation that a start has now, if it lives.
    pub async fn incarnation_of(&self, start: StartId) -> Result<Option<Incarnation>, StoreError> {
        let id: Option<Uuid> =
            sqlx::query_scalar("SELECT incarnation FROM lease WHERE start_id = $1 AND phase <> 'dead'")
                .bind(start.0)
                .fetch_optional(self.vital())
                .await?;
        Ok(id.map(Incarnation))
    }
}

/// Finds the start that a credential belongs to and makes `incarnation` its own; answers with the incarnation that it
/// replaces.
async fn find_start(
    tx: &mut PgConnection,
    credential: &Credential,
    incarnation: Incarnation,
) -> Result<Result<Option<Incarnation>, ConnectError>, StoreError> {
    let rows = sqlx::query(
        "SELECT incarnation, phase, secret_hash FROM lease WHERE start_id = $1 ORDER BY incarnation FOR UPDATE",
    )
    .bind(credential.start.0)
    .fetch_all(&mut *tx)
    .await?;
    let known = rows.iter().any(|r| {
        use subtle::ConstantTimeEq;
        r.try_get::<&[u8], _>("secret_hash").is_ok_and(|h| bool::from(h.ct_eq(&credential.hash())))
    });
    if !known {
        return Ok(Err(ConnectError::Forbidden));
    }
    let mut current = None;
    for row in &rows {
        let phase = LeasePhase::parse(row.try_get("phase")?);
        let id: Uuid = row.try_get("incarnation")?;
        if id == incarnation.0 {
            return Ok(if phase == LeasePhase::Dead { Err(ConnectError::Dead) } else { Ok(None) });
        }
        if phase != LeasePhase::Dead {
            current = Some((id, phase));
        }
    }
    match current {
        None => Ok(Err(ConnectError::Dead)),
        Some((id, LeasePhase::Starting)) => {
            sqlx::query("UPDATE lease SET incarnation = $2 WHERE incarnation = $1")
                .bind(id)
                .bind(incarnation.0)
                .execute(tx)
                .await?;
            Ok(Ok(None))
        }
        Some((id, _)) => {
            // The row of the first is ended by `fail_worker` right behind this transaction; here it only makes room.
            bury(tx, Incarnation(id), &Failure::new(cause::lease::replaced().reason)).await?;
            sqlx::query(
                "INSERT INTO lease (incarnation, start_id, organization, agent, worker_group, generation, phase, runtime,
                                    runtime_ref, secret_hash, capacity, heartbeat_seconds, lease_seconds, drain_seconds,
                                    start_attempts, expires_at, drain_until, stop_reason, stop_recorded,
                                    interrupted_at, pod_uid, grace_seconds)
                 SELECT $2, start_id, organization, agent, worker_group, generation,
                        -- A stop holds for the container, whichever process runs in it.
                        CASE WHEN drain_until IS NULL THEN 'starting' ELSE 'draining' END, runtime, runtime_ref,
                        secret_hash, capacity, heartbeat_seconds, lease_seconds, drain_seconds, start_attempts,
                        clock_timestamp() + make_interval(secs => lease_seconds), drain_until, stop_reason, stop_recorded,
                        interrupted_at, pod_uid, grace_seconds
                 FROM lease WHERE incarnation = $1",
            )
            .bind(id)
            .bind(incarnation.0)
            .execute(tx)
            .await?;
            Ok(Ok(Some(Incarnation(id))))
        }
    }
}

async fn open_stream(
    tx: &mut PgConnection,
    incarnation: Incarnation,
    gateway: GatewayId,
    stream: Uuid,
    capacity: u32,
    together: bool,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE lease SET phase = CASE phase WHEN 'starting' THEN 'live' ELSE phase END,
                gateway = $2, stream = $3, together = $5, capacity = least(capacity, $4),
                connected_at = clock_timestamp(), suspected_at = NULL,
                idle_since = coalesce(idle_since, clock_timestamp()),
                expires_at = clock_timestamp() + make_interval(secs => lease_seconds)
         WHERE incarnation = $1",
    )
    .bind(incarnation.0)
    .bind(gateway.0)
    .bind(stream)
    .bind(capacity.clamp(1, 10_000) as i32)
    .bind(together)
    .execute(tx)
    .await?;
    Ok(())
}

async fn read_terms(tx: &mut PgConnection, incarnation: Incarnation) -> Result<Connected, StoreError> {
    let r = sqlx::query(
        "SELECT organization, worker_group, agent, heartbeat_seconds, lease_seconds, capacity, together,
                CASE phase WHEN 'draining' THEN greatest(0, extract(epoch FROM drain_until - clock_timestamp()))::int END AS drain
         FROM lease WHERE incarnation = $1",
    )
    .bind(incarnation.0)
    .fetch_one(tx)
    .await?;
    Ok(Connected {
        organization: r.try_get("organization")?,
        worker_group: r.try_get("worker_group")?,
        agent: r.try_get("agent")?,
        heartbeat_seconds: r.try_get::<i32, _>("heartbeat_seconds")? as u32,
        lease_seconds: r.try_get::<i32, _>("lease_seconds")? as u32,
        capacity: r.try_get::<i32, _>("capacity")? as u32,
        together: r.try_get("together")?,
        draining: r.try_get::<Option<i32>, _>("drain")?.map(|s| s as u32),
    })
}
