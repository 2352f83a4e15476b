//! All SQL, a file a verb. Nothing outside this module knows sqlx.
//!
//! # How a verb is written
//!
//! - A transaction that holds locks waits on nothing but Postgres; locks are taken in key order; every statement after a
//!   lock is a statement of its own, so that its snapshot is younger than the lock.
//! - `arm`, `claim`, `finish` and `output` are batched (see [`batch`]): what is waiting goes into one transaction, each
//!   waiter is answered after its commit, nothing waits for a timer. A batch that the database refuses for a row's
//!   content is bisected, so that one bad row fails alone.
//! - Everything has a deadline (see [`mod@pool`]): a network that falls silent holds nobody.
//! - Terminals and heartbeats have connections of their own ([`Store::vital`]), so that no load of submits or reads can
//!   starve them.
//! - Time is the database's: `clock_timestamp()` to write, `statement_timestamp()` to compare.
//! - After an error in or behind a COMMIT nobody knows whether it happened. Such an error is [`StoreError::Unavailable`],
//!   and every verb can be called again with the same keys.

mod agent;
mod arm;
mod batch;
mod claim;
mod conversation;
mod deliver;
mod elect;
mod fail;
mod fail_start;
mod failures;
mod figures;
mod finish;
mod gate;
mod guard;
mod heartbeat;
pub mod keys;
mod lease;
mod notify;
mod object;
mod output;
mod pod;
mod pool;
mod post;
pub mod probe;
mod problem;
mod read;
mod retention;
pub mod server;
mod session;
mod stop;
mod sweep;

use std::sync::Arc;
use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

pub use agent::{AgentCounts, StoredAgent};
pub use arm::{Arm, ArmError, Armed, Backlog};
pub use claim::{ClaimFor, Claimed};
pub use conversation::{Conversation, Erased};
pub use deliver::DueDelivery;
pub use fail::FailedWorker;
pub use failures::{Failed, FutileStarts};
pub use finish::{FinishError, WorkerWord};
pub use gate::GateState;
pub use guard::GuardedTurn;
pub use heartbeat::{Beat, BeatAnswer, Replica};
pub use lease::{ConnectError, Connected, Lease, NewStart, WorkerGroupDemand};
pub use notify::{Heard, Hearing, Notice};
pub use object::{MAX_STATUS_TEXT, ObjectRef, ObjectRow, ObjectState, Standing};
pub use output::{Append, AppendError};
pub use pod::{PodSession, RecordedPod};
pub use pool::Pool;
pub use post::{DuePost, Place};
pub(crate) use read::MAX_VIEWED;
pub use read::{Head, ListFilter, Record, RecordedReply, Terminal, TurnView};
pub use retention::Retention;
pub use server::ConnectOptions;
pub use session::OtherSession;
pub use sweep::Swept;

use batch::Batcher;

/// The oldest Postgres that is supported.
pub const MIN_POSTGRES: u32 = 15;
/// How long a caller waits for a connection before it is told that the database is unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a verb did not happen, or is not known to have happened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No connection, a timeout, an error around COMMIT: the verb may or may not have happened. Call it again.
    #[error("the database is unavailable: {0}")]
    Unavailable(Arc<str>),
    /// The database refused the content of a row (SQLSTATE classes 22 and 23).
    #[error("the database refused the content: {0}")]
    Refused(Arc<str>),
    /// The transaction lost a deadlock or a serialization race; nothing happened.
    #[error("the database chose another transaction: {0}")]
    Raced(Arc<str>),
    /// The schema is older than this program needs.
    #[error("{0}")]
    Schema(Arc<str>),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let text: Arc<str> = error.to_string().into();
        match error.as_database_error().and_then(|e| e.code()) {
            Some(code) if code.starts_with("22") || code.starts_with("23") => StoreError::Refused(text),
            Some(code) if code == "40001" || code == "40P01" => StoreError::Raced(text),
            _ => match error {
                // What cannot be encoded or decoded is a matter of content, not of the connection.
                sqlx::Error::Encode(_) | sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                    StoreError::Refused(text)
                }
                _ => StoreError::Unavailable(text),
            },
        }
    }
}

impl From<sqlx::migrate::MigrateError> for StoreError {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        StoreError::Schema(format!("migration failed: {error}").into())
    }
}

/// Sizes of the pools; the sum is what one replica takes of `max_connections`.
#[derive(Debug, Clone, Copy)]
pub struct PoolSizes {
    /// Submits, reads, output. A third of them, one at the least, is for reads by key.
    pub general: u32,
    /// Terminals, heartbeats, sweeps.
    pub vital: u32,
}

impl Default for PoolSizes {
    fn default() -> Self {
        PoolSizes { general: 12, vital: 6 }
    }
}

/// The turns, as they are. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    general: Pool,
    /// Reads by key: what a stream asks for each turn. To plan them would be most of what they cost, so their plans are kept.
    keyed: Pool,
    vital: Pool,
    arm: Batcher<arm::Verb>,
    claim: Batcher<claim::Verb>,
    finish: Batcher<finish::Verb>,
    output: Batcher<output::Verb>,
    listen: Arc<PgConnectOptions>,
    notices: notify::Sender,
}

impl Store {
    /// One whose database is never there.
    #[cfg(test)]
    pub fn away() -> Self {
        Self::open(PgConnectOptions::new().host("127.0.0.1").port(1), PoolSizes::default())
    }

    /// Opens the pools lazily: a database that is away now is found later. Must be called inside a Tokio runtime.
    pub fn open(options: PgConnectOptions, sizes: PoolSizes) -> Self {
        let options = options.application_name("lastword").options([
            ("search_path", "lastword"),
            ("statement_timeout", "8000"),
            ("idle_in_transaction_session_timeout", "4000"),
            ("lock_timeout", "6000"),
            ("tcp_user_timeout", "8000"),
            ("timezone", "UTC"),
            ("jit", "off"),
            // A plan made while the tables were empty would be kept when they are not.
            ("plan_cache_mode", "force_custom_plan"),
        ]);
        // By primary keys alone, which serve tables of any size; never by a scan, which costs nothing while a table is empty.
        let keep = [("plan_cache_mode", "force_generic_plan"), ("enable_seqscan", "off")];
        let keyed = (sizes.general / 3).max(1);
        let general = Pool::from(pool((sizes.general - keyed).max(1)).connect_lazy_with(options.clone()));
        let keyed = Pool::from(pool(keyed).connect_lazy_with(options.clone().options(keep)));
        let vital = Pool::from(pool(sizes.vital).connect_lazy_with(options.clone()));
        Store {
            arm: Batcher::start(general.clone(), arm::Verb),
            claim: Batcher::start(general.clone(), claim::Verb),
            finish: Batcher::start(vital.clone(), finish::Verb),
            output: Batcher::start(general.clone(), output::Verb),
            notices: notify::Sender::start(general.clone()),
            listen: Arc::new(options),
            general,
            keyed,
            vital,
        }
    }

    /// The pool that terminals, heartbeats and sweeps have for themselves.
    fn vital(&self) -> &Pool {
        &self.vital
    }

    /// For `keys`, which needs nothing but the table.
    pub fn pool(&self) -> &Pool {
        &self.general
    }

    /// Creates the schema and applies what is missing; a newer one is left as it is.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let version: String = sqlx::query("SHOW server_version_num").fetch_one(&self.general).await?.try_get(0)?;
        let major = version.parse::<u32>().unwrap_or(0) / 10_000;
        if major < MIN_POSTGRES {
            return Err(StoreError::Schema(
                format!("Postgres {major} is too old: Lastword needs {MIN_POSTGRES} or newer").into(),
            ));
        }
        sqlx::query("CREATE SCHEMA IF NOT EXISTS lastword").execute(&self.general).await?;
        migrations().run(self.general.unbounded()).await?;
        Ok(())
    }

    /// Whether the schema is at least as new as this program.
    pub async fn schema_ready(&self) -> Result<bool, StoreError> {
        let known = migrations().iter().map(|m| m.version).max().unwrap_or(0);
        let exists: bool = sqlx::query_scalar("SELECT to_regclass('lastword._sqlx_migrations') IS NOT NULL")
            .fetch_one(&self.general)
            .await?;
        if !exists {
            return Ok(false);
        }
        let applied: Option<i64> = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations WHERE success")
            .fetch_one(&self.general)
            .await?;
        Ok(applied.unwrap_or(0) >= known)
    }

    /// One cheap round trip.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.general).await?;
        Ok(())
    }

    /// Closes the pools; what is under way finishes.
    pub async fn close(&self) {
        self.general.close().await;
        self.keyed.close().await;
        self.vital.close().await;
    }
}

fn migrations() -> sqlx::migrate::Migrator {
    let mut migrations = sqlx::migrate!("./migrations");
    // What a newer program has added stays, and does not stop an older one: that is a rollback.
    migrations.set_ignore_missing(true);
    migrations
}

fn pool(size: u32) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(size)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .max_lifetime(Duration::from_secs(30 * 60))
}
