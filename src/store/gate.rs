//! The settling gate: nobody punishes an outage.
//!
//! Gateways move `seen` in every heartbeat tick, an empty one too. A gap longer than [`GAP_SECONDS`], a restarted server
//! or a clock that stepped back resets `since`. Verdicts of silence wait until gateways have ticked without a gap for a
//! whole lease; if the database blinks for ever, they wait until the ticking between the blinks adds up to
//! five of the longest leases, so that an outage without end cannot hold back every end.

use sqlx::{PgConnection, Row};

use super::{Store, StoreError};

/// Ticks come each second; three missing ones in a row are a gap.
pub const GAP_SECONDS: f64 = 3.5;

/// The condition, over a row of `gate g`, under which silence of `lease_seconds` means something.
pub(super) const SETTLED: &str = "(statement_timestamp() - g.seen < interval '3.5 seconds'
    AND (statement_timestamp() >= g.since + make_interval(secs => lease_seconds)
         OR g.ticked_seconds + extract(epoch FROM statement_timestamp() - g.since)
            >= 5 * greatest(lease_seconds, g.longest_lease)))";

/// The condition, over rows of `gate g` and `lease`, under which a lease ran out though a gateway could write: one has
/// ticked since. A lease that is shorter than [`GAP_SECONDS`] runs out before a gap is one, and so would be judged while
/// all gateways are cut off.
pub(super) const TICKED_SINCE: &str = "expires_at <= g.seen";

/// The gate, for operators and metrics.
#[derive(Debug, Clone, Copy)]
pub struct GateState {
    /// Seconds since a gateway last ticked.
    pub seen_ago: f64,
    /// Seconds since the last gap.
    pub steady_for: f64,
}

impl Store {
    /// Reads the gate.
    pub async fn gate_state(&self) -> Result<GateState, StoreError> {
        let row = sqlx::query(
            "SELECT extract(epoch FROM statement_timestamp() - seen)::float8 AS seen_ago,
                    extract(epoch FROM statement_timestamp() - since)::float8 AS steady_for FROM gate",
        )
        .fetch_one(self.vital())
        .await?;
        Ok(GateState { seen_ago: row.try_get("seen_ago")?, steady_for: row.try_get("steady_for")? })
    }
}

/// One gateway's tick. Afterwards no expiry lies more than a lease ahead: a clock that stepped back cannot keep a dead
/// worker alive.
pub(super) async fn tick(tx: &mut PgConnection) -> Result<(), StoreError> {
    // Locked by a statement of its own: the time below is then younger than every tick before.
    sqlx::query("SELECT FROM gate FOR UPDATE").execute(&mut *tx).await?;
    let reset: bool = sqlx::query_scalar(
        "WITH before AS (SELECT seen, since, server_started FROM gate),
              now AS (SELECT clock_timestamp() AS at),
              judged AS (
                SELECT at, greatest(0, extract(epoch FROM seen - since)) AS steady,
                       (at - seen > make_interval(secs => $1) OR at < seen OR since > at
                        OR server_started <> pg_postmaster_start_time()) AS reset
                FROM before, now)
         UPDATE gate g SET seen = at,
                since = CASE WHEN reset THEN at ELSE g.since END,
                server_started = pg_postmaster_start_time(),
                -- The steady times between the gaps of one unsettled time add up; a settled time ends the count.
                ticked_seconds = CASE WHEN NOT reset THEN g.ticked_seconds
                                      WHEN steady >= g.longest_lease THEN 0
                                      ELSE g.ticked_seconds + steady END,
                longest_lease = CASE WHEN NOT reset THEN g.longest_lease ELSE coalesce(
                  (SELECT max(lease_seconds) FROM lease WHERE phase <> 'dead'), g.longest_lease) END
         FROM judged RETURNING reset",
    )
    .bind(GAP_SECONDS)
    .fetch_one(&mut *tx)
    .await?;
    if reset {
        tracing::warn!("the database was away or its clock stepped: verdicts of silence wait for one lease");
        sqlx::query(
            "UPDATE lease SET expires_at = clock_timestamp() + make_interval(secs => lease_seconds)
             WHERE phase IN ('live', 'draining') AND expires_at > clock_timestamp() + make_interval(secs => lease_seconds)",
        )
        .execute(&mut *tx)
        .await?;
        // A start keeps the time that it was given, from now on; only a clock that stepped back puts its beginning ahead.
        sqlx::query(
            "UPDATE lease SET started_at = clock_timestamp(), expires_at = clock_timestamp() + (expires_at - started_at)
             WHERE phase = 'starting' AND started_at > clock_timestamp()",
        )
        .execute(tx)
        .await?;
    }
    Ok(())
}
