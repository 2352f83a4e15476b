//! Whose silence counts now. The rules are those of [`crate::turn::silence`]; here is what they are asked about.

use sqlx::Row;
use uuid::Uuid;

use super::gate::ReadGate;
use super::{Store, StoreError};
use crate::turn::keys::Incarnation;
use crate::turn::phase::LeasePhase;
use crate::turn::silence::{CarrierTicks, counts_from};

impl Store {
    /// Workers whose lease ran out long enough ago to be taken for dead, and starts to which no worker connected in time; `most`
    /// at the most. A verdict on a start waits once, for the time that the start was given, if a gateway was lost meanwhile:
    /// the worker may have lived and found no other gateway yet.
    ///
    /// Leases are judged by kind: those of one length that one gateway carries have their moment in common. So no more is
    /// read than has lapsed, and what waits for its gateway does not stand in the way of what does not.
    pub(super) async fn silent_workers(
        &self,
        gate: &ReadGate,
        most: i64,
    ) -> Result<Vec<(Incarnation, LeasePhase)>, StoreError> {
        let kinds = self.lapsed_kinds(gate).await?;
        if kinds.leases.is_empty() {
            return Ok(Vec::new());
        }
        let rows = sqlx::query(
            "SELECT l.incarnation, l.phase FROM unnest($1::uuid[], $2::int[], $3::float8[]) AS kind(carrier, lease, ago)
             JOIN lease l ON l.heard_by IS NOT DISTINCT FROM kind.carrier AND l.lease_seconds = kind.lease
             WHERE l.phase <> 'dead' AND l.expires_at < statement_timestamp()
               AND l.expires_at <= $4 - make_interval(secs => kind.ago)
             ORDER BY l.expires_at LIMIT $5",
        )
        .bind(&kinds.carriers)
        .bind(&kinds.leases)
        .bind(&kinds.ago)
        .bind(gate.seen)
        .bind(most)
        .fetch_all(self.vital())
        .await?;
        let mut silent = Vec::with_capacity(rows.len());
        for row in &rows {
            silent.push((Incarnation(row.try_get("incarnation")?), LeasePhase::of(row)?));
        }
        let starts =
            silent.iter().filter(|(_, phase)| *phase == LeasePhase::Starting).map(|(start, _)| *start).collect();
        let waiting = self.extend_starts(gate, starts).await?;
        silent.retain(|(incarnation, _)| !waiting.contains(incarnation));
        Ok(silent)
    }

    /// The kinds of leases among those that have lapsed whose silence counts, and from how long ago on.
    async fn lapsed_kinds(&self, gate: &ReadGate) -> Result<SilentKinds, StoreError> {
        let rows = sqlx::query(
            "SELECT l.heard_by, l.lease_seconds, g.id IS NOT NULL AS carried,
                    extract(epoch FROM g.seen - g.since)::float8 AS steady,
                    extract(epoch FROM $1 - g.seen_before)::float8 AS last_but_one,
                    extract(epoch FROM $1 - g.expires_at)::float8 AS ran_out
             FROM (SELECT DISTINCT heard_by, lease_seconds FROM lease WHERE phase <> 'dead' AND expires_at <= $1) l
             LEFT JOIN gateway g ON g.id = l.heard_by",
        )
        .bind(gate.seen)
        .fetch_all(self.vital())
        .await?;
        let mut kinds = SilentKinds::default();
        for row in rows {
            let lease: i32 = row.try_get("lease_seconds")?;
            let carrier = match row.try_get("carried")? {
                true => Some(CarrierTicks {
                    steady: row.try_get("steady")?,
                    last_but_one: row.try_get("last_but_one")?,
                    ran_out: row.try_get("ran_out")?,
                }),
                false => None,
            };
            if let Some(ago) = counts_from(f64::from(lease), &gate.ticks, carrier) {
                kinds.carriers.push(row.try_get("heard_by")?);
                kinds.leases.push(lease);
                kinds.ago.push(ago);
            }
        }
        Ok(kinds)
    }

    /// Gives these starts their time once more, where any gateway counted as lost at a time that the start has lived through,
    /// and the start has not been given more before. Answers those starts.
    async fn extend_starts(&self, gate: &ReadGate, starts: Vec<Incarnation>) -> Result<Vec<Incarnation>, StoreError> {
        if starts.is_empty() {
            return Ok(Vec::new());
        }
        let starts: Vec<Uuid> = starts.into_iter().map(|start| start.0).collect();
        let extended: Vec<Uuid> = sqlx::query_scalar(
            "UPDATE lease l SET start_extended = true, expires_at = clock_timestamp() + (expires_at - started_at)
             WHERE incarnation = ANY($1) AND phase = 'starting' AND NOT start_extended
               AND EXISTS (SELECT FROM gateway g WHERE g.expires_at <= $2 OR g.returned_at > l.started_at)
             RETURNING incarnation",
        )
        .bind(&starts)
        .bind(gate.seen)
        .fetch_all(self.vital())
        .await?;
        if !extended.is_empty() {
            let starts = extended.len();
            tracing::info!(
                starts,
                "a gateway was lost; {starts} starts that no worker has connected to wait once more"
            );
        }
        Ok(extended.into_iter().map(Incarnation).collect())
    }
}

/// Leases of which the silence counts, by what they have in common: three columns, a row a kind.
#[derive(Default)]
struct SilentKinds {
    /// The gateway that carried their last sign of life.
    carriers: Vec<Option<Uuid>>,
    /// Their length in seconds.
    leases: Vec<i32>,
    /// How many seconds before the gate's last tick they must have run out.
    ago: Vec<f64>,
}
