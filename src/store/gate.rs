//! The settling gate: nobody punishes an outage.
//!
//! While the database is away no heartbeat can be written, so afterwards every worker looks silent. Verdicts of silence (a
//! lease ran out, a start took too long) are therefore held back until workers have had the time to speak again. What
//! decides that is one row, `gate`:
//!
//! - Gateways move `seen` in every heartbeat tick, in an empty one too. It is the time *before* the tick gathered the beats
//!   that waited for it. So a verdict on a moment that lies before `seen` is one on a worker whose beat did not wait in the
//!   gateway at that moment; however slow the tick was, no beat that came meanwhile is overlooked.
//! - A gap longer than [`GAP_SECONDS`], a restarted server or a clock that stepped back sets `since` to now. Verdicts wait
//!   until gateways have ticked without a gap for a whole lease since then.
//! - If no lease ever passes without a gap, because the database blinks again and again, or is so slow that every tick comes
//!   after a gap, the time that was ticked is added up over the gaps: each tick counts for the time since the one before it,
//!   for [`GAP_SECONDS`] at the most. Verdicts wait no longer than until the sum is five of the longest leases.
//! - A deadline is no verdict of silence. It waits for [`WORDS_SECONDS`] after a gap only, in which words that waited arrive.
//!
//! Only time that was ticked counts. While no gateway can write, `seen` stands still, and with it every verdict.

use sqlx::Row;
use time::OffsetDateTime;

use super::connection::DbConnection;
use super::{Store, StoreError};

/// More than this many seconds between two ticks are a gap. A gateway ticks twice a second (`heartbeat::TICK`), so
/// about seven ticks in a row are missing.
pub const GAP_SECONDS: f64 = 3.5;

/// After a gap deadlines wait for so many seconds: replies that could not be written during the gap are sent again well
/// within, and beat the deadline.
pub const WORDS_SECONDS: f64 = 15.0;

/// The SQL condition, over a row of `gate g`, under which the count of ticks ends the wait for a time without a gap.
macro_rules! counted {
    () => {
        "g.ticked_seconds >= 5 * g.longest_lease"
    };
}

/// The SQL condition, over rows of `gate g` and `lease`, under which a lease that ran out means something: a gateway gathered
/// beats since then, and there was no gap for the length of the lease.
pub(super) const SILENT: &str = concat!(
    "(expires_at <= g.seen AND (g.seen >= g.since + make_interval(secs => lease_seconds) OR (",
    counted!(),
    " AND g.ticked_seconds >= 5 * lease_seconds)))"
);

/// The SQL condition, over a row of `gate g` and the time `$due`, under which that deadline is over.
pub(super) fn deadline_is_over(due: &str) -> String {
    format!("({due} <= g.seen AND (g.seen >= g.since + make_interval(secs => {WORDS_SECONDS}) OR {}))", counted!())
}

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

/// The time before the beats of a tick are gathered, for [`tick`].
pub(super) async fn before_gathering(tx: &mut DbConnection) -> Result<OffsetDateTime, StoreError> {
    Ok(sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(tx).await?)
}

/// One gateway's tick, whose beats were gathered at `gathered` or later. Afterwards no expiry lies more than a lease ahead: a
/// clock that stepped back cannot keep a dead worker alive.
pub(super) async fn tick(tx: &mut DbConnection, gathered: OffsetDateTime) -> Result<(), StoreError> {
    // The row is locked in a statement of its own, so that the time which the next statement reads is younger than every
    // tick before it. Of two gateways' ticks the one that gathered later may commit first.
    sqlx::query("SELECT FROM gate FOR UPDATE").execute(&mut *tx).await?;
    let reset: bool = sqlx::query_scalar(
        "WITH before AS (SELECT seen, since, server_started FROM gate),
              now AS (SELECT clock_timestamp() AS at, least($2, clock_timestamp()) AS gathered),
              -- Read by those ticks alone that end a gap.
              longest AS (SELECT max(lease_seconds) AS lease FROM lease WHERE phase <> 'dead'),
              judged AS (
                SELECT gathered, greatest(0, extract(epoch FROM seen - since)) AS steady,
                       least($1, greatest(0, extract(epoch FROM gathered - seen))) AS ticked, at < seen AS back,
                       (gathered - seen > make_interval(secs => $1) OR at < seen OR since > at
                        OR server_started <> pg_postmaster_start_time()) AS reset
                FROM before, now)
         UPDATE gate g SET seen = CASE WHEN back THEN gathered ELSE greatest(g.seen, gathered) END,
                since = CASE WHEN reset THEN gathered ELSE g.since END,
                server_started = pg_postmaster_start_time(),
                -- The time ticked adds up over the gaps of one unsettled time; a settled time ends the count. Which leases
                -- there are may have changed since the last gap: the shorter of the longest ones then and now has settled.
                ticked_seconds = CASE WHEN reset AND steady >= least((SELECT lease FROM longest), g.longest_lease) THEN 0
                                      ELSE g.ticked_seconds + ticked END,
                longest_lease = CASE WHEN reset THEN coalesce((SELECT lease FROM longest), g.longest_lease)
                                     ELSE g.longest_lease END
         FROM judged RETURNING reset",
    )
    .bind(GAP_SECONDS)
    .bind(gathered)
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
