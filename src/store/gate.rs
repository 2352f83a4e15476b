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
//!   for [`GAP_SECONDS`] at the most. Verdicts on a lease wait no longer than until the sum is five of its lengths. Leases
//!   of any length have a count of their own: it begins with the last gap before which their length had passed without one.
//!   The table `gap` has what is needed for that.
//! - A deadline is no verdict of silence. It waits for [`WORDS_SECONDS`] after a gap only, in which words that waited arrive.
//!
//! Beside the gate each gateway's row says how that gateway has ticked, since silence is judged by the gateway that a worker spoke
//! to ([`crate::turn::silence`]).
//!
//! Only time that was ticked counts. While no gateway can write, `seen` stands still, and with it every verdict.

use sqlx::Row;
use time::OffsetDateTime;

use super::connection::DbConnection;
use super::replica::Replica;
use super::{Store, StoreError};
use crate::turn::silence::{Gap, GateTicks};

/// More than this many seconds between two ticks are a gap. A gateway ticks twice a second (`heartbeat::TICK`), so
/// about seven ticks in a row are missing.
pub const GAP_SECONDS: f64 = 3.5;

/// After a gap deadlines wait for so many seconds: replies that could not be written during the gap are sent again well
/// within, and beat the deadline.
pub const WORDS_SECONDS: f64 = 15.0;

/// The ticks of all gateways, as verdicts go by them.
pub(super) struct ReadGate {
    /// When the beats of the last tick were gathered: what ran out behind this is not judged.
    pub seen: OffsetDateTime,
    pub ticks: GateTicks,
}

impl ReadGate {
    /// Whether a deadline before [`seen`](Self::seen) is over.
    pub fn judges_deadlines(&self) -> bool {
        self.ticks.settled(WORDS_SECONDS)
    }
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

    /// Reads what verdicts go by.
    pub(super) async fn read_gate(&self) -> Result<ReadGate, StoreError> {
        let row = sqlx::query(
            "SELECT seen, extract(epoch FROM seen - since)::float8 AS steady, ticked_seconds,
                    ARRAY(SELECT steady_seconds::float8 FROM gap ORDER BY steady_seconds) AS steadies,
                    ARRAY(SELECT ticked_seconds FROM gap ORDER BY steady_seconds) AS tickeds FROM gate",
        )
        .fetch_one(self.vital())
        .await?;
        let (steadies, tickeds): (Vec<f64>, Vec<f64>) = (row.try_get("steadies")?, row.try_get("tickeds")?);
        let gaps = steadies.into_iter().zip(tickeds).map(|(steady, ticked)| Gap { steady, ticked }).collect();
        let ticks = GateTicks { steady: row.try_get("steady")?, ticked: row.try_get("ticked_seconds")?, gaps };
        Ok(ReadGate { seen: row.try_get("seen")?, ticks })
    }
}

/// The time before the beats of a tick are gathered, for [`tick`].
pub(super) async fn before_gathering(tx: &mut DbConnection) -> Result<OffsetDateTime, StoreError> {
    Ok(sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(tx).await?)
}

/// One gateway's tick, whose beats were gathered at `gathered` or later: renews the gateway's row, which counts as lost after
/// `expires_seconds`, and moves the gate. Afterwards no expiry lies further ahead than it may: a clock that stepped back cannot
/// keep a dead worker alive.
pub(super) async fn tick(
    tx: &mut DbConnection,
    gateway: &Replica,
    expires_seconds: f64,
    gathered: OffsetDateTime,
) -> Result<(), StoreError> {
    // The row is locked in a statement of its own, so that the time which the next statement reads is younger than every
    // tick before it. Of two gateways' ticks the one that gathered later may commit first. Gateways' rows are written under
    // this lock alone.
    sqlx::query("SELECT FROM gate FOR UPDATE").execute(&mut *tx).await?;
    let (reset, steady, ticked): (bool, f64, f64) = sqlx::query_as(
        "WITH before AS (SELECT seen, since, server_started FROM gate),
              now AS (SELECT clock_timestamp() AS at, least($2, clock_timestamp()) AS gathered),
              own AS (
                INSERT INTO gateway AS g (id, url, secret, since, seen_before, seen, expires_at)
                SELECT $3, $4, $5, gathered, gathered, gathered, at + make_interval(secs => $6) FROM now
                ON CONFLICT (id) DO UPDATE SET url = excluded.url, expires_at = excluded.expires_at, seen = excluded.seen,
                  since = CASE WHEN excluded.seen - g.seen > make_interval(secs => $1) OR excluded.seen < g.seen
                               THEN excluded.seen ELSE g.since END,
                  seen_before = least(g.seen, excluded.seen),
                  returned_at = CASE WHEN g.expires_at <= excluded.seen THEN excluded.seen ELSE g.returned_at END),
              judged AS (
                SELECT gathered, greatest(0, extract(epoch FROM seen - since)) AS steady,
                       least($1, greatest(0, extract(epoch FROM gathered - seen))) AS ticked, at < seen AS back,
                       (gathered - seen > make_interval(secs => $1) OR at < seen OR since > at
                        OR server_started <> pg_postmaster_start_time()) AS reset
                FROM before, now)
         UPDATE gate g SET seen = CASE WHEN back THEN gathered ELSE greatest(g.seen, gathered) END,
                since = CASE WHEN reset THEN gathered ELSE g.since END,
                server_started = pg_postmaster_start_time(), ticked_seconds = ticked_seconds + ticked
         FROM judged RETURNING reset, steady::float8, ticked_seconds",
    )
    .bind(GAP_SECONDS)
    .bind(gathered)
    .bind(gateway.id.0)
    .bind(&gateway.url)
    .bind(&gateway.secret)
    .bind(expires_seconds)
    .fetch_one(&mut *tx)
    .await?;
    if reset {
        tracing::warn!("the database was away or its clock stepped: verdicts of silence wait for one lease");
        note_gap(tx, steady, ticked).await?;
        cap_expiries(tx, expires_seconds).await?;
    }
    Ok(())
}

/// Keeps a gap for the counts of all leases that are no longer than the time without one before it.
async fn note_gap(tx: &mut DbConnection, steady: f64, ticked: f64) -> Result<(), StoreError> {
    let steady = steady.floor() as i64;
    sqlx::query("DELETE FROM gap WHERE steady_seconds <= $1").bind(steady).execute(&mut *tx).await?;
    // No lease is shorter than a second.
    if steady >= 1 {
        sqlx::query("INSERT INTO gap (steady_seconds, ticked_seconds) VALUES ($1, $2)")
            .bind(steady)
            .bind(ticked)
            .execute(tx)
            .await?;
    }
    Ok(())
}

/// Where a clock stepped back: brings times that lie in the future to what they may be now.
async fn cap_expiries(tx: &mut DbConnection, expires_seconds: f64) -> Result<(), StoreError> {
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
    .execute(&mut *tx)
    .await?;
    // A gateway that ticked in the future, and not again since, has not ticked for any time.
    sqlx::query(
        "UPDATE gateway SET since = CASE WHEN seen > at THEN at ELSE since END, seen = least(seen, at),
                seen_before = least(seen_before, at),
                returned_at = CASE WHEN returned_at > at THEN at ELSE returned_at END,
                expires_at = least(expires_at, at + make_interval(secs => $1))
         FROM (SELECT clock_timestamp() AS at) AS now
         WHERE seen > at OR returned_at > at OR expires_at > at + make_interval(secs => $1)",
    )
    .bind(expires_seconds)
    .execute(tx)
    .await?;
    Ok(())
}
