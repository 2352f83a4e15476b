//! A real Postgres for the whole process, and a fresh database for each test.
//!
//! `LASTWORD_TEST_POSTGRES` is 15, 18 or both (the default). With `LASTWORD_TEST_POOLER` the stores and gateways under test are
//! behind a pgbouncer in transaction mode; what is about sessions of its own then fails, such as tests of kept plans. Time is made to pass by moving timestamps in the database.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::Duration;

use lastword::local::postgres::{Embedded, Options, Version};
use lastword::store::{PoolSizes, Store};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use super::pgbouncer::{self, PgBouncer};

/// The longest that one test may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Makes a test on the oldest and on the newest supported Postgres of each `async fn name(db: Db)`.
#[macro_export]
macro_rules! both {
    ($($name:ident),* $(,)?) => {$(
        mod $name {
            #[test]
            fn on_15() {
                $crate::support::db::run(lastword::local::postgres::Version::V15, super::$name);
            }
            #[test]
            fn on_18() {
                $crate::support::db::run(lastword::local::postgres::Version::V18, super::$name);
            }
        }
    )*};
}

/// Runs a test's body on a fresh database of this version, unless the environment leaves the version out.
pub fn run<F: Future<Output = ()>>(version: Version, body: fn(Db) -> F) {
    if !wanted(version) {
        return;
    }
    runtime().block_on(async {
        let db = Db::on(server(version)).await;
        let name = db.name.clone();
        tokio::time::timeout(LIMIT, body(db)).await.expect("the test ends in time");
        // A hundred databases that stay are a gigabyte that the next run has to remove.
        let admin = PgPoolOptions::new().max_connections(1).connect_with(server(version)).await.expect("connects");
        let drop = format!("DROP DATABASE {name} WITH (FORCE)");
        sqlx::query(AssertSqlSafe(drop)).execute(&admin).await.expect("drops the database");
    });
}

/// Runs a test's body with a server of its own, which it may stop, and a fresh database there; both are gone afterwards.
/// `settings` are added to the server's. Such a test may take longer: a million rows are minutes on a busy machine.
pub fn run_with_own_server<F: Future<Output = ()>>(
    version: Version,
    settings: &[(&str, &str)],
    body: impl FnOnce(Embedded, Db) -> F,
) {
    if !wanted(version) {
        return;
    }
    let mut options = ephemeral(&Uuid::now_v7().simple().to_string(), version);
    options.extra_settings = settings.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    runtime().block_on(async {
        let server = Embedded::start(options).await.expect("Postgres starts");
        let db = Db::on(server.connect_options("lastword")).await;
        tokio::time::timeout(10 * LIMIT, body(server, db)).await.expect("the test ends in time");
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// Whether the environment asks for this version.
fn wanted(version: Version) -> bool {
    match std::env::var("LASTWORD_TEST_POSTGRES").as_deref() {
        Ok("15") => version == Version::V15,
        Ok("18") => version == Version::V18,
        Ok("both") | Err(_) => true,
        Ok(other) => panic!("LASTWORD_TEST_POSTGRES is {other:?}: it can be 15, 18 or both"),
    }
}

/// A database with Lastword's schema, of one test alone.
pub struct Db {
    pub store: Store,
    /// For a test's own look at the tables, and to damage them.
    pub pool: PgPool,
    name: String,
    options: PgConnectOptions,
}

impl Db {
    /// A fresh one on a server; `options` connect to any database of it.
    async fn on(options: PgConnectOptions) -> Db {
        let name = format!("t{}", Uuid::now_v7().simple());
        let admin = PgPoolOptions::new().max_connections(1).connect_with(options.clone()).await.expect("connects");
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&admin).await.expect("a database");
        admin.close().await;
        let direct = options.database(&name);
        let options = behind_pooler(&direct);
        let store = Store::open(options.clone(), PoolSizes::default());
        store.migrate().await.expect("migrates");
        let pool = PgPoolOptions::new()
            .max_connections(4)
            .connect_with(direct.options([("search_path", "lastword"), ("timezone", "UTC")]))
            .await
            .expect("connects");
        Db { store, pool, name, options }
    }

    /// How to connect to this database.
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// Another replica's store on the same database.
    pub fn another_store(&self) -> Store {
        Store::open(self.options.clone(), PoolSizes::default())
    }

    /// Runs one statement of the test's own; answers with the number of rows that it touched.
    pub async fn sql(&self, statement: impl Into<String>) -> u64 {
        let statement = statement.into();
        let done = sqlx::query(AssertSqlSafe(statement.clone())).execute(&self.pool).await;
        done.unwrap_or_else(|e| panic!("{statement}: {e}")).rows_affected()
    }

    /// The one number that a query answers.
    pub async fn number(&self, query: impl Into<String>) -> i64 {
        let query = query.into();
        let found = sqlx::query_scalar(AssertSqlSafe(format!("SELECT ({query})::bigint"))).fetch_one(&self.pool).await;
        found.unwrap_or_else(|e| panic!("{query}: {e}"))
    }

    /// Rows of a table, with an optional WHERE behind its name.
    pub async fn count(&self, table: &str) -> i64 {
        self.number(format!("SELECT count(*) FROM {table}")).await
    }

    /// The one text that a query answers, if any.
    pub async fn text(&self, query: impl Into<String>) -> Option<String> {
        let query = query.into();
        let found = sqlx::query_scalar::<_, Option<String>>(AssertSqlSafe(format!("SELECT ({query})::text")));
        found.fetch_one(&self.pool).await.unwrap_or_else(|e| panic!("{query}: {e}"))
    }
}

/// Where downloaded archives are kept, over all test targets.
pub fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("postgres")
}

/// The process's server of this version, started by the first who asks.
fn server(version: Version) -> PgConnectOptions {
    static SERVERS: [OnceLock<PgConnectOptions>; 2] = [const { OnceLock::new() }; 2];
    // One at a time: the first start of all may have to download.
    static STARTING: Mutex<()> = Mutex::new(());
    let slot = match version {
        Version::V15 => &SERVERS[0],
        Version::V18 => &SERVERS[1],
    };
    slot.get_or_init(|| {
        let _one = STARTING.lock().expect("nobody panicked while starting");
        clear_leftovers();
        keep(Options { max_connections: 200, ..ephemeral(&version.major().to_string(), version) })
    })
    .clone()
}

/// The way of a store under test to its database: past nothing, unless the environment asks for a pooler.
fn behind_pooler(direct: &PgConnectOptions) -> PgConnectOptions {
    static POOLERS: Mutex<Vec<(PathBuf, PgBouncer)>> = Mutex::new(Vec::new());
    if std::env::var_os("LASTWORD_TEST_POOLER").is_none() {
        return direct.clone();
    }
    let mut poolers = POOLERS.lock().expect("nobody panicked while starting one");
    let server = direct.get_socket().expect("a socket").clone();
    if !poolers.iter().any(|(of, _)| *of == server) {
        assert!(pgbouncer::installed("no test runs behind it"), "LASTWORD_TEST_POOLER asks for pgbouncer");
        poolers.push((server.clone(), PgBouncer::start(direct, 12, "")));
    }
    let (_, pooler) = poolers.iter().find(|(of, _)| *of == server).expect("it was started");
    pooler.options(direct)
}

/// Starts a server that lives on a thread of its own as long as the process: it outlives every test's runtime.
fn keep(options: Options) -> PgConnectOptions {
    let (ready, started) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let server = Embedded::start(options).await.expect("Postgres starts");
            ready.send(server.connect_options("lastword")).expect("the test waits");
            std::future::pending::<()>().await;
        });
    });
    started.recv().expect("Postgres starts")
}

/// A server of this process whose files are gone when it ends.
fn ephemeral(name: &str, version: Version) -> Options {
    let root = root().join(format!("{}-{name}", std::process::id()));
    Options { version, ephemeral: true, ..Options::new(root, cache()) }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("servers")
}

/// Removes the clusters of processes that are gone: a process's end stops its server, but removes no files.
fn clear_leftovers() {
    let Ok(entries) = std::fs::read_dir(root()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_string_lossy().split('-').next().map(str::to_owned).unwrap_or_default();
        if !Path::new("/proc").join(&pid).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
