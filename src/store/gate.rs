//! The settling gate: nobody punishes an outage.
//!
//! While the database is away no heartbeat can be written, so afterwards every worker looks silent. Verdicts of silence (a
//! lease ran out, a start took too long) are therefore held back until workers have had the time to speak again. What
//! decides that is one row, `gate`:
//!
//! - Gateways move `seen` in every heartbeat tick, in an empty one too.
//! - A gap longer than [`GAP_SECONDS`], a restarted server or a clock that stepped back sets `since` to now. Verdicts wait
//!   until a whole lease has passed since then, in which gateways ticked without a gap.
//! - If the database blinks again and again, so that no lease ever passes without a gap, the times of ticking between the
//!   gaps are added up. Verdicts wait no longer than until the sum is five of the longest leases.

use sqlx::{PgConnection, Row};

use super::{Store, StoreError};

/// More than this many seconds between two ticks are a gap. A gateway ticks twice a second (`heartbeat::TICK`), so
/// about seven ticks in a row are missing. [`SETTLED`] repeats the number.
pub const GAP_SECONDS: f64 = 3.5;

/// The SQL condition, over a row of `gate g` and a row with `lease_seconds`, under which silence of that length means
/// something.
pub(super) const SETTLED: &str = "(statement_timestamp() - g.seen < interval '3.5 seconds'
    AND (statement_timestamp() >= g.since + make_interval(secs => lease_seconds)
         OR g.ticked_seconds + extract(epoch FROM statement_timestamp() - g.since)
            >= 5 * greatest(lease_seconds, g.longest_lease)))";

/// The SQL condition, over rows of `gate g` and `lease`, under which a lease ran out although a gateway could write: one has
/// ticked since. Without it a lease shorter than [`GAP_SECONDS`], which runs out before a gap counts as one, would be judged
/// while all gateways are cut off from the database.
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
    /// Reads the settling gate.
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
    // The row is locked in a statement of its own, so that the time which the next statement reads is younger than
    // every tick before it.
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
        // Only a clock that stepped back makes a start begin in the future. It gets the time that it was given, from now on.
        sqlx::query(
            "UPDATE lease SET started_at = clock_timestamp(), expires_at = clock_timestamp() + (expires_at - started_at)
             WHERE phase = 'starting' AND started_at > clock_timestamp()",
        )
        .execute(tx)
        .await?;
    }
    Ok(())
}
