//! Heartbeats: a gateway writes those of all its workers in one transaction a tick, which is also the gateway's own sign of
//! life and moves the settling gate.
//!
//! A beat also writes whom the worker spoke to, since the worker's silence is judged by that gateway's ticks.

use std::collections::HashMap;

use sqlx::Row;
use time::OffsetDateTime;
use uuid::Uuid;

use super::connection::DbConnection;
use super::replica::Replica;
use super::transaction::transaction;
use super::{Store, StoreError, gate};
use crate::turn::keys::{GatewayId, Incarnation, TurnId};

/// A worker's sign of life.
#[derive(Debug, Clone)]
pub struct Beat {
    pub incarnation: Incarnation,
    /// Whether it holds turns; `None`: it has just finished one, and the markers say whether it holds others.
    pub busy: Option<bool>,
}

/// What the database says of a worker that gave a sign of life. A worker that gets none must stop: its lease is dead.
#[derive(Debug, Clone, Default)]
pub struct BeatAnswer {
    /// Turns whose markers name it.
    pub held: Vec<TurnId>,
    /// Seconds left to drain, if it is to.
    pub drain: Option<u32>,
}

/// What the database says of a worker.
#[derive(Debug, Clone, Default)]
pub struct WorkerState {
    pub answer: BeatAnswer,
    /// The stream that is its own now; `None`: its last one closed.
    pub stream: Option<Uuid>,
    /// Turns that it may hold at a time.
    pub capacity: u32,
}

impl Store {
    /// One tick of a gateway: its own life, the settling gate, and its workers' leases. The answers are by worker; one whose
    /// lease is dead has none. `expires_seconds`: how long others take the gateway to live without another tick.
    ///
    /// `gather` answers all beats that wait, those that it answered before and that are not written yet among them. It is
    /// called with the database's time, once that was read, which the gate takes for the tick's: a worker whose beat waited by
    /// then is not silent. A transaction that loses a race calls it again.
    pub async fn heartbeat_of_gateway(
        &self,
        gateway: &Replica,
        expires_seconds: u32,
        gather: impl Fn(OffsetDateTime) -> Vec<Beat> + Send + Sync,
    ) -> Result<HashMap<Incarnation, BeatAnswer>, StoreError> {
        transaction!(self.vital(), |tx| {
            let gathered = gate::before_gathering(tx).await?;
            let beats = gather(gathered);
            let answers = renew_leases(tx, gateway.id, &beats).await?;
            gate::tick(tx, gateway, f64::from(expires_seconds), gathered).await?;
            Ok(answers)
        })
        .await
    }

    /// The end of a gateway that stops in order: writes the beats that it still has, and removes its row and those of its
    /// sessions. From then on the silence of the workers that it heard is judged by the gate alone. One that cannot say this
    /// counts as lost some time later.
    pub async fn stop_gateway(&self, gateway: GatewayId, beats: &[Beat]) -> Result<(), StoreError> {
        transaction!(self.vital(), |tx| {
            renew_leases(tx, gateway, beats).await?;
            // As behind every beat, for the order of locks: gateways' rows are written under the gate's lock.
            sqlx::query("SELECT FROM gate FOR UPDATE").execute(&mut *tx).await?;
            sqlx::query("DELETE FROM gateway WHERE id = $1").bind(gateway.0).execute(&mut *tx).await?;
            sqlx::query("DELETE FROM session WHERE gateway = $1").bind(gateway.0).execute(&mut *tx).await?;
            Ok(())
        })
        .await
    }

    /// What a heartbeat would answer this worker, without being one; `None` when its lease is dead.
    pub async fn worker_state(&self, incarnation: Incarnation) -> Result<Option<WorkerState>, StoreError> {
        let row = sqlx::query(
            "SELECT CASE phase WHEN 'draining' THEN greatest(0, extract(epoch FROM drain_until - clock_timestamp()))::int END AS drain,
                    ARRAY(SELECT turn_id FROM marker m WHERE m.incarnation = l.incarnation) AS held, stream, capacity
             FROM lease l WHERE incarnation = $1 AND phase <> 'dead'",
        )
        .bind(incarnation.0)
        .fetch_optional(&self.general)
        .await?;
        row.map(|r| {
            let held: Vec<Uuid> = r.try_get("held")?;
            let drain: Option<i32> = r.try_get("drain")?;
            let answer = BeatAnswer { held: held.into_iter().map(TurnId).collect(), drain: drain.map(|s| s as u32) };
            Ok(WorkerState { answer, stream: r.try_get("stream")?, capacity: r.try_get::<i32, _>("capacity")? as u32 })
        })
        .transpose()
    }
}

/// Renews the leases of workers that gave a sign of life to this gateway: one small HOT update each.
async fn renew_leases(
    tx: &mut DbConnection,
    gateway: GatewayId,
    beats: &[Beat],
) -> Result<HashMap<Incarnation, BeatAnswer>, StoreError> {
    if beats.is_empty() {
        return Ok(HashMap::new());
    }
    let ids: Vec<Uuid> = beats.iter().map(|b| b.incarnation.0).collect();
    let busy: Vec<Option<bool>> = beats.iter().map(|b| b.busy).collect();
    let rows = sqlx::query(
        "WITH beat AS (
           SELECT l.incarnation, b.busy FROM unnest($1::uuid[], $2::bool[]) AS b(incarnation, busy)
           JOIN lease l USING (incarnation)
           WHERE l.phase IN ('live', 'draining') ORDER BY l.incarnation FOR NO KEY UPDATE OF l)
         UPDATE lease l SET
           expires_at = clock_timestamp() + make_interval(secs => l.lease_seconds), heard_by = $3,
           idle_since = CASE
             WHEN coalesce(busy, EXISTS (SELECT FROM marker m WHERE m.incarnation = l.incarnation)) THEN NULL
             -- Whoever has finished a turn is idle from then on, whenever it was idle before.
             WHEN busy IS NULL THEN clock_timestamp()
             ELSE coalesce(l.idle_since, clock_timestamp()) END
         FROM beat WHERE l.incarnation = beat.incarnation
         RETURNING l.incarnation,
           CASE l.phase WHEN 'draining'
             THEN greatest(0, extract(epoch FROM l.drain_until - clock_timestamp()))::int END AS drain",
    )
    .bind(&ids)
    .bind(&busy)
    .bind(gateway.0)
    .fetch_all(&mut *tx)
    .await?;
    let mut answers = HashMap::with_capacity(rows.len());
    for row in rows {
        let drain: Option<i32> = row.try_get("drain")?;
        let answer = BeatAnswer { held: Vec::new(), drain: drain.map(|s| s as u32) };
        answers.insert(Incarnation(row.try_get("incarnation")?), answer);
    }
    let held: Vec<(Uuid, Uuid)> = sqlx::query_as("SELECT incarnation, turn_id FROM marker WHERE incarnation = ANY($1)")
        .bind(&ids)
        .fetch_all(&mut *tx)
        .await?;
    for (incarnation, turn) in held {
        if let Some(answer) = answers.get_mut(&Incarnation(incarnation)) {
            answer.held.push(TurnId(turn));
        }
    }
    Ok(answers)
}
