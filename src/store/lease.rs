//! Leases, the lives of workers: a start, a connect, a suspicion, and what the fleet sees of them. How workers stop: `stop`;
//! how they die: `fail_worker`.

use sqlx::Row;
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::connection::DbConnection;
use super::elect::Ended;
use super::fail_worker::bury;
use super::pool::bounded;
use super::transaction::transaction;
use super::{Notice, Store, StoreError};
use crate::telemetry::turns::TurnEvent;
use crate::turn::cause;
use crate::turn::keys::{GatewayId, Incarnation, StartId, WorkerGroup};
use crate::turn::phase::LeasePhase;
use crate::wire::Credential;

/// A worker that a runtime is about to start.
#[derive(Debug, Clone)]
pub struct NewStart {
    pub start_id: StartId,
    pub organization: String,
    pub agent: String,
    pub worker_group: WorkerGroup,
    /// The Agent's config number that the worker is started for.
    pub config: i64,
    /// The runtime's name: `process` or `kubernetes`.
    pub runtime: &'static str,
    /// The runtime's own name of the worker, by which it can be asked about it.
    pub runtime_ref: String,
    /// The hash of the secret in the worker's credential.
    pub secret_hash: Vec<u8>,
    /// Turns that the worker may hold at a time.
    pub capacity: u32,
    pub heartbeat_seconds: u32,
    pub lease_seconds: u32,
    pub drain_seconds: u32,
    /// How many starts that fail a waiting turn goes through.
    pub start_attempts: u32,
    /// Seconds from the row's commit until the start has failed.
    pub start_seconds: u32,
}

/// A worker that is not dead, as the fleet sees it.
#[derive(Debug, Clone)]
pub struct Lease {
    pub incarnation: Incarnation,
    pub start_id: StartId,
    pub organization: String,
    pub agent: String,
    pub worker_group: WorkerGroup,
    /// The Agent's config number that it was started for.
    pub config: i64,
    /// Whether it claims nothing more and leaves when it holds nothing, since a worker of a newer config replaces it.
    pub retiring: bool,
    pub phase: LeasePhase,
    pub runtime_ref: String,
    pub capacity: u32,
    /// Turns that it holds now; conversations, if it takes what waits in one together.
    pub held: u32,
    /// Seconds since it last held a turn; `None` while it holds one.
    pub idle_seconds: Option<f64>,
    /// Whether its stream closed without a goodbye, and it has not connected again.
    pub suspected: bool,
    /// Whether the worker was told to stop.
    pub stopping: bool,
    /// A start in Kubernetes that has had no pod for [`UNMADE_SECONDS`]: whoever was to make the pod died, or could not.
    pub unmade: bool,
    /// Whether it is for a conversation that was erased, or removed by the retention: nobody has a turn for it ever again.
    pub conversation_gone: bool,
}

/// After this many seconds a start whose pod is not recorded is made again.
const UNMADE_SECONDS: f64 = 3.0;

/// The terms on which a worker is connected.
#[derive(Debug, Clone)]
pub struct Connected {
    pub organization: String,
    pub worker_group: WorkerGroup,
    pub agent: String,
    pub heartbeat_seconds: u32,
    pub lease_seconds: u32,
    pub capacity: u32,
    /// Whether it takes all turns of a conversation that wait together.
    pub together: bool,
    /// Seconds left to drain, if the worker is to.
    pub draining: Option<u32>,
}

/// Why a worker may not speak.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// No start has this credential.
    #[error("unknown credential")]
    Forbidden,
    /// The lease is dead, and stays so.
    #[error("this incarnation is dead; stop")]
    Dead,
    /// Not known to be connected: the worker comes again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Writes the lease of a start. With `only_first` not if the worker group has a worker that is live or starting; the
    /// answer is then false. A conversation never gets a second one, whoever asks and whatever two callers see at once.
    pub async fn start_worker(&self, start: &NewStart, only_first: bool) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "INSERT INTO lease (incarnation, start_id, organization, agent, worker_group, config, phase, runtime,
                                runtime_ref, secret_hash, capacity, heartbeat_seconds, lease_seconds, drain_seconds,
                                start_attempts, expires_at)
             SELECT $1, $1, $2, $3, $4, $5, 'starting', $6, $7, $8, $9, $10, $11, $12, $13,
                    clock_timestamp() + make_interval(secs => $14)
             WHERE NOT ($15 AND EXISTS (SELECT FROM lease WHERE organization = $2 AND agent = $3 AND worker_group = $4
                                        AND phase IN ('starting', 'live') AND NOT retiring))
             ON CONFLICT (worker_group) WHERE phase IN ('starting', 'live') AND NOT retiring
               AND worker_group <> '00000000-0000-0000-0000-000000000000' DO NOTHING",
        )
        .bind(start.start_id.0)
        .bind(&start.organization)
        .bind(&start.agent)
        .bind(start.worker_group.key())
        .bind(start.config)
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

    /// A worker opens its stream: its lease becomes live and names this stream. A second incarnation under the credential of
    /// one start ends the first at once, since the process that was the first is gone.
    pub async fn connect_worker(
        &self,
        credential: &Credential,
        incarnation: Incarnation,
        gateway: GatewayId,
        stream: Uuid,
        capacity: u32,
        together: bool,
    ) -> Result<Connected, ConnectError> {
        let (connected, replaced) = transaction!(self.vital(), |tx| {
            let replaced = match claim_start(tx, credential, incarnation).await? {
                StartClaim::Refused(error) => return Ok((Err(error), None)),
                StartClaim::Own => None,
                StartClaim::Replaces(first) => Some((first, succeed(tx, first, incarnation).await?)),
            };
            let retired = replace_older(tx, incarnation).await?;
            let moved = open_stream(tx, incarnation, gateway, stream, capacity, together).await?;
            Ok((Ok((read_terms(tx, incarnation).await?, moved, retired)), replaced))
        })
        .await?;
        if let Some((first, ended)) = replaced {
            self.announce(&ended);
            self.notices.send(Notice::Worker(first));
        }
        connected.map(|(terms, moved, retired)| {
            if let Some(retired) = retired {
                tracing::info!(incarnation = %retired, "worker {retired} takes no more turns: its Agent changed");
                self.notices.send(Notice::Worker(retired));
            }
            if moved {
                // Whoever holds the stream that it had may not have noticed that it is over.
                self.notices.send(Notice::Worker(incarnation));
            }
            terms
        })
    }

    /// Checks a worker that speaks to a replica which does not hold its stream.
    pub async fn authenticate_worker(
        &self,
        credential: &Credential,
        incarnation: Incarnation,
    ) -> Result<Connected, ConnectError> {
        let (phase, terms) = bounded(async {
            let mut connection = self.vital().acquire().await?;
            let row =
                sqlx::query("SELECT phase FROM lease WHERE incarnation = $1 AND start_id = $2 AND secret_hash = $3")
                    .bind(incarnation.0)
                    .bind(credential.start.0)
                    .bind(credential.hash())
                    .fetch_optional(&mut connection)
                    .await?;
            let phase = row.as_ref().map(LeasePhase::of).transpose()?;
            let terms = match phase {
                None | Some(LeasePhase::Dead) => None,
                Some(_) => Some(read_terms(&mut connection, incarnation).await?),
            };
            Ok((phase, terms))
        })
        .await?;
        match (phase, terms) {
            (None, _) => Err(ConnectError::Forbidden),
            (Some(_), None) => Err(ConnectError::Dead),
            (Some(_), Some(terms)) => Ok(terms),
        }
    }

    /// A worker's stream closed without a goodbye: the worker is to be looked at now, if its lease still names this stream.
    /// False: it does not, the worker has connected again.
    pub async fn suspect_worker(&self, incarnation: Incarnation, stream: Uuid) -> Result<bool, StoreError> {
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

    /// Tells the gateway that holds this worker's stream to look at the worker's markers.
    pub fn notify_worker_changed(&self, incarnation: Incarnation) {
        self.notices.send(Notice::Worker(incarnation));
    }

    /// Every worker that is not dead.
    pub async fn living_workers(&self) -> Result<Vec<Lease>, StoreError> {
        let rows = sqlx::query(
            "SELECT l.incarnation, l.start_id, l.organization, l.agent, l.worker_group, l.config, l.retiring, l.phase,
                    l.runtime_ref, l.capacity, l.suspected_at IS NOT NULL AS suspected, l.stop_reason IS NOT NULL AND l.stop_recorded AS stopping,
                    l.runtime = 'kubernetes' AND l.phase = 'starting' AND l.pod_uid IS NULL
                      AND l.started_at < statement_timestamp() - make_interval(secs => $1) AS unmade,
                    extract(epoch FROM statement_timestamp() - l.idle_since)::float8 AS idle_seconds,
                    -- Only who takes turns together needs the markers' rows; for the others the index tells.
                    CASE WHEN l.together
                         THEN (SELECT count(DISTINCT m.conversation_id) FROM marker m WHERE m.incarnation = l.incarnation)
                         ELSE (SELECT count(*) FROM marker m WHERE m.incarnation = l.incarnation) END AS held,
                    l.worker_group <> $2 AND (SELECT true FROM conversation c WHERE c.id = l.worker_group) IS NULL
                      AS conversation_gone
             FROM lease l WHERE phase <> 'dead' ORDER BY l.started_at",
        )
        .bind(UNMADE_SECONDS)
        .bind(WorkerGroup::OfAgent.key())
        .fetch_all(self.vital())
        .await?;
        rows.iter()
            .map(|r| {
                Ok(Lease {
                    incarnation: Incarnation(r.try_get("incarnation")?),
                    start_id: StartId(r.try_get("start_id")?),
                    organization: r.try_get("organization")?,
                    agent: r.try_get("agent")?,
                    worker_group: WorkerGroup::from_key(r.try_get("worker_group")?),
                    config: r.try_get("config")?,
                    retiring: r.try_get("retiring")?,
                    phase: LeasePhase::of(r)?,
                    runtime_ref: r.try_get("runtime_ref")?,
                    capacity: r.try_get::<i32, _>("capacity")? as u32,
                    held: r.try_get::<i64, _>("held")? as u32,
                    idle_seconds: r.try_get("idle_seconds")?,
                    suspected: r.try_get("suspected")?,
                    stopping: r.try_get("stopping")?,
                    unmade: r.try_get("unmade")?,
                    conversation_gone: r.try_get("conversation_gone")?,
                })
            })
            .collect()
    }

    /// The incarnation that a start has now; `None` when its lease is dead.
    pub async fn incarnation_of_start(&self, start: StartId) -> Result<Option<Incarnation>, StoreError> {
        let id: Option<Uuid> =
            sqlx::query_scalar("SELECT incarnation FROM lease WHERE start_id = $1 AND phase <> 'dead'")
                .bind(start.0)
                .fetch_optional(self.vital())
                .await?;
        Ok(id.map(Incarnation))
    }
}

/// What became of an incarnation's claim to a start.
enum StartClaim {
    Refused(ConnectError),
    /// The start is this incarnation's.
    Own,
    /// The start is another incarnation's, which is to end: this one succeeds it.
    Replaces(Incarnation),
}

/// Finds the start that a credential belongs to and makes it `incarnation`'s own.
async fn claim_start(
    tx: &mut DbConnection,
    credential: &Credential,
    incarnation: Incarnation,
) -> Result<StartClaim, StoreError> {
    let rows = sqlx::query(
        "SELECT incarnation, phase, secret_hash FROM lease WHERE start_id = $1 ORDER BY incarnation FOR UPDATE",
    )
    .bind(credential.start.0)
    .fetch_all(&mut *tx)
    .await?;
    let known = rows
        .iter()
        .any(|r| r.try_get::<&[u8], _>("secret_hash").is_ok_and(|h| bool::from(h.ct_eq(&credential.hash()))));
    if !known {
        return Ok(StartClaim::Refused(ConnectError::Forbidden));
    }
    let mut current = None;
    for row in &rows {
        let (id, phase) = (Incarnation(row.try_get("incarnation")?), LeasePhase::of(row)?);
        match phase {
            LeasePhase::Dead if id == incarnation => return Ok(StartClaim::Refused(ConnectError::Dead)),
            _ if id == incarnation => return Ok(StartClaim::Own),
            LeasePhase::Dead => {}
            phase => current = Some((id, phase)),
        }
    }
    match current {
        None => Ok(StartClaim::Refused(ConnectError::Dead)),
        Some((start, LeasePhase::Starting)) => {
            // The row of a start that nobody has connected to bears the start's own id as its incarnation.
            sqlx::query("UPDATE lease SET incarnation = $2 WHERE incarnation = $1")
                .bind(start.0)
                .bind(incarnation.0)
                .execute(tx)
                .await?;
            Ok(StartClaim::Own)
        }
        Some((first, _)) => Ok(StartClaim::Replaces(first)),
    }
}

/// Writes the lease of a second incarnation of one start, which takes over what belongs to the container. The first one is
/// buried with the turns that it held, in the same transaction: a start has one living lease, and no turn names a dead one.
/// Answers the turns that ended.
async fn succeed(tx: &mut DbConnection, first: Incarnation, second: Incarnation) -> Result<Vec<Ended>, StoreError> {
    let ended = bury(tx, first, &cause::lease::replaced()).await?;
    sqlx::query(
        "INSERT INTO lease (incarnation, start_id, organization, agent, worker_group, config, phase, runtime,
                            runtime_ref, secret_hash, capacity, heartbeat_seconds, lease_seconds, drain_seconds,
                            start_attempts, expires_at, drain_until, stop_reason, stop_recorded,
                            interrupted_at, pod_uid, grace_seconds, retiring)
         SELECT $2, start_id, organization, agent, worker_group, config,
                -- A stop holds for the container, whichever process runs in it.
                CASE WHEN drain_until IS NULL THEN 'starting' ELSE 'draining' END, runtime, runtime_ref,
                secret_hash, capacity, heartbeat_seconds, lease_seconds, drain_seconds, start_attempts,
                clock_timestamp() + make_interval(secs => lease_seconds), drain_until, stop_reason, stop_recorded,
                interrupted_at, pod_uid, grace_seconds, retiring
         FROM lease WHERE incarnation = $1",
    )
    .bind(first.0)
    .bind(second.0)
    .execute(tx)
    .await?;
    Ok(ended)
}

/// Makes a lease live, and this stream its stream. Answers whether it had another one that was not known to be over.
async fn open_stream(
    tx: &mut DbConnection,
    incarnation: Incarnation,
    gateway: GatewayId,
    stream: Uuid,
    capacity: u32,
    together: bool,
) -> Result<bool, StoreError> {
    let row = sqlx::query(
        // The terms are those of the Agent as it is now, which may have changed since the worker was started.
        "UPDATE lease l SET phase = CASE phase WHEN 'starting' THEN 'live' ELSE phase END,
                gateway = $2, heard_by = $2, stream = $3, together = $5, offered = $4,
                capacity = least(now.capacity, $4), heartbeat_seconds = now.heartbeat_seconds, lease_seconds = now.lease_seconds,
                connected_at = clock_timestamp(), suspected_at = NULL,
                idle_since = coalesce(idle_since, clock_timestamp()),
                expires_at = clock_timestamp() + make_interval(secs => now.lease_seconds)
         FROM (SELECT b.incarnation AS its, b.stream AS before, b.phase AS was_phase, coalesce(a.capacity, b.capacity) AS capacity,
                      coalesce(a.heartbeat_seconds, b.heartbeat_seconds) AS heartbeat_seconds,
                      coalesce(a.lease_seconds, b.lease_seconds) AS lease_seconds
               FROM lease b LEFT JOIN agent a ON a.namespace = b.organization AND a.name = b.agent AND a.deleted_at IS NULL
               WHERE b.incarnation = $1) AS now
         WHERE l.incarnation = now.its
         RETURNING now.before IS NOT NULL AS moved, now.was_phase = 'starting' AS started, l.organization, l.agent,
                   extract(epoch FROM clock_timestamp() - l.started_at)::float8 AS after",
    )
    .bind(incarnation.0)
    .bind(gateway.0)
    .bind(stream)
    .bind(capacity.clamp(1, 10_000) as i32)
    .bind(together)
    .fetch_one(&mut *tx)
    .await?;
    if row.try_get("started")? {
        let (organization, agent) = (row.try_get("organization")?, row.try_get("agent")?);
        tx.note(TurnEvent::WorkerStarted { organization, agent, after: row.try_get("after")? });
    }
    Ok(row.try_get("moved")?)
}

/// What the first connect of a worker means for the workers of older configs: its config is proven to work, and where workers
/// are shared, one of the older ones retires, so that there are never fewer than before. One whose lease somebody has locked is
/// passed over, since leases are locked in order elsewhere. Answers the one that retires.
async fn replace_older(tx: &mut DbConnection, incarnation: Incarnation) -> Result<Option<Incarnation>, StoreError> {
    let first: Option<(String, String, Uuid, i64)> = sqlx::query_as(
        "SELECT organization, agent, worker_group, config FROM lease WHERE incarnation = $1 AND phase = 'starting'",
    )
    .bind(incarnation.0)
    .fetch_optional(&mut *tx)
    .await?;
    let Some((organization, agent, worker_group, config)) = first else { return Ok(None) };
    let proves = "UPDATE agent SET proven = $3 WHERE namespace = $1 AND name = $2 AND proven < $3 AND config >= $3";
    sqlx::query(proves).bind(&organization).bind(&agent).bind(config).execute(&mut *tx).await?;
    if WorkerGroup::from_key(worker_group) != WorkerGroup::OfAgent {
        return Ok(None);
    }
    let retired: Option<Uuid> = sqlx::query_scalar(
        "UPDATE lease SET retiring = true WHERE incarnation = (
           SELECT incarnation FROM lease
           WHERE organization = $1 AND agent = $2 AND worker_group = $3 AND phase = 'live' AND NOT retiring AND config < $4
           ORDER BY idle_since, started_at LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING incarnation",
    )
    .bind(&organization)
    .bind(&agent)
    .bind(worker_group)
    .bind(config)
    .fetch_optional(tx)
    .await?;
    Ok(retired.map(Incarnation))
}

/// Reads the terms of a lease.
async fn read_terms(tx: &mut DbConnection, incarnation: Incarnation) -> Result<Connected, StoreError> {
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
        worker_group: WorkerGroup::from_key(r.try_get("worker_group")?),
        agent: r.try_get("agent")?,
        heartbeat_seconds: r.try_get::<i32, _>("heartbeat_seconds")? as u32,
        lease_seconds: r.try_get::<i32, _>("lease_seconds")? as u32,
        capacity: r.try_get::<i32, _>("capacity")? as u32,
        together: r.try_get("together")?,
        draining: r.try_get::<Option<i32>, _>("drain")?.map(|s| s as u32),
    })
}
