//! What a verb of the store touches, counted by Postgres itself.
//!
//! The statements are the store's own: each verb is called, and the server's statistics tell which tables were scanned and how
//! many pages were touched. So that nothing else is counted, whatever the machine is busy with:
//!
//! - The cluster is this test's own, and nothing is vacuumed but where the test says so.
//! - Statistics are off (`track_counts`) but in the sessions of the store that is measured. What the test prepares, between
//!   the calls or before, is never counted: a session tells its counts late, up to ten seconds after what they count, and by
//!   then another verb is measured.
//! - A session tells everything when it ends: the store is closed before its counts are read.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lastword::local::postgres::Version;
use lastword::store::{PoolSizes, Store};
use sqlx::Row;

use crate::support::Db;
use crate::support::db::run_with_own_server;
use crate::support::wait::eventually_within;

const LARGE: [&str; 7] = ["turn", "marker", "terminal", "delivery", "output", "conversation", "request"];
/// Calls of each verb: more than the five after which Postgres considers a generic plan.
pub const CALLS: usize = 8;
/// Pages that one call of a verb may touch, if nothing else is said of it. A table of a million rows has 10,000 and more.
const PAGES: i64 = 400;

/// Runs a test on a server of its own, where nothing is counted but what a measured store does.
pub fn counted(version: Version, test: impl AsyncFnOnce(&Db)) {
    let settings = [
        ("track_counts", "off"),
        ("autovacuum", "off"),
        ("max_wal_size", "8GB"),
        ("shared_buffers", "512MB"),
        ("wal_level", "minimal"),
        ("max_wal_senders", "0"),
    ];
    run_with_own_server(version, &settings, async |_server, db| test(&db).await);
}

/// What was touched since the server's start.
#[derive(Debug, Clone, Default, PartialEq)]
struct Touched {
    scans: BTreeMap<String, i64>,
    pages: i64,
}

/// The server's processes that work for stores on this database.
pub async fn backends(db: &Db) -> Vec<i32> {
    let query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'lastword'";
    sqlx::query_scalar(query).fetch_all(&db.pool).await.expect("reads")
}

/// The counters of all tables.
async fn counters(db: &Db) -> Touched {
    let rows = sqlx::query(
        "SELECT relname::text, t.seq_scan, coalesce(heap_blks_read, 0) + coalesce(heap_blks_hit, 0) + coalesce(idx_blks_read, 0)
                + coalesce(idx_blks_hit, 0) AS pages
         FROM pg_stat_user_tables t JOIN pg_statio_user_tables USING (relid, relname) WHERE relname = ANY($1)",
    );
    let rows = rows.bind(LARGE.as_slice()).fetch_all(&db.pool).await.expect("statistics");
    let mut touched = Touched::default();
    for row in rows {
        touched.scans.insert(row.get("relname"), row.get("seq_scan"));
        touched.pages += row.get::<i64, _>("pages");
    }
    touched
}

/// A store whose sessions are counted.
pub fn measured(db: &Db, sizes: PoolSizes) -> Store {
    Store::open(db.options().options([("track_counts", "on")]), sizes)
}

/// What `CALLS` calls of a verb on a measured store of their own touch: the tables that were scanned, and pages a call.
pub async fn touched(db: &Db, verb: impl AsyncFn(&Store, usize)) -> (Vec<String>, i64) {
    let others = backends(db).await;
    touched_by(db, &others, measured(db, PoolSizes::default()), verb).await
}

/// The same on this measured store, which has all processes but the others'. It is closed then: only so do they tell what they
/// did.
pub async fn touched_by(
    db: &Db,
    others: &[i32],
    store: Store,
    verb: impl AsyncFn(&Store, usize),
) -> (Vec<String>, i64) {
    let before = counters(db).await;
    for call in 0..CALLS {
        verb(&store, call).await;
    }
    let own: Vec<i32> = backends(db).await.into_iter().filter(|pid| !others.contains(pid)).collect();
    store.close().await;
    eventually_within(Duration::from_secs(120), "the store's connections are gone", async || {
        !backends(db).await.iter().any(|pid| own.contains(pid))
    })
    .await;
    let after = counters(db).await;
    let scanned = after.scans.iter().filter(|(table, n)| before.scans[*table] < **n).map(|(t, _)| t.clone()).collect();
    (scanned, (after.pages - before.pages) / CALLS as i64)
}

/// Collects what went wrong, so that one run tells all.
pub struct Judge<'a> {
    pub db: &'a Db,
    pub faults: Vec<String>,
}

impl Judge<'_> {
    /// Holds a verb against [`PAGES`].
    pub async fn verb(&mut self, name: &str, verb: impl AsyncFn(&Store, usize)) {
        self.within(PAGES, name, verb).await;
    }

    /// Holds a verb against a bound of its own.
    pub async fn within(&mut self, pages: i64, name: &str, verb: impl AsyncFn(&Store, usize)) {
        let begun = Instant::now();
        let (scanned, touched) = touched(self.db, verb).await;
        let time = begun.elapsed() / CALLS as u32;
        println!("{name}: {touched} pages a call, {time:?}; scanned: {scanned:?}");
        if !scanned.is_empty() {
            self.faults.push(format!("{name} scans {scanned:?}"));
        }
        if touched > pages {
            self.faults.push(format!("{name} touches {touched} pages a call, more than {pages}"));
        }
    }
}
