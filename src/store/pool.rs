//! Connections under a deadline of our own. A network that swallows what is sent tells nobody: without one, a call would
//! wait until TCP gives up, which takes a quarter of an hour.
//!
//! - A statement that is run on the [`Pool`] itself has [`DEADLINE`].
//! - Several statements on one connection are run by [`bounded`]; a transaction by
//!   [`transaction!`](super::transaction::transaction), which uses it.
//! - A connection that did not answer in time is closed, and its place in the pool is free. sqlx alone would wait for it,
//!   because it asks a connection that is given back whether it lives, without a deadline.
//!
//! Whether the database is behind a pooler (see [`route`]) is found out here, by the first connection.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::TryStreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Describe, Either, Error, Execute, Executor, PgConnection, PgPool, Postgres, Row, SqlStr};
use tokio::time::{Instant, timeout, timeout_at};

use super::StoreError;
use super::connection::DbConnection;
use super::route::{self, MARK, Pooler, Route};

/// How long a caller waits for a connection before it is told that the database is unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that is older than this is closed when it is given back.
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 60);
/// The longest that a statement or a transaction may take, whatever the network does. It is longer than the server's own
/// `statement_timeout` (8 s, see [`route`]), whose error tells the cause.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// Connections to the database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pool {
    /// Each a session of its own.
    sessions: PgPool,
    /// Through a pooler, of which each transaction may get another session.
    transactions: PgPool,
    route: Arc<OnceLock<Route>>,
}

/// The way to the database, which all pools of a store share: unknown before the first connection, unless it is given.
pub(super) fn way(pooler: Pooler) -> Arc<OnceLock<Route>> {
    match pooler {
        Pooler::Auto => Arc::default(),
        Pooler::None => Arc::new(Route::Sessions.into()),
        Pooler::Transaction => Arc::new(Route::Transactions.into()),
    }
}

impl Pool {
    /// A pool of at most `size` connections, which are opened when they are needed. `keep` are settings that only sessions
    /// have.
    pub(super) fn open(
        size: u32,
        options: PgConnectOptions,
        keep: &[(&str, &str)],
        route: Arc<OnceLock<Route>>,
    ) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(size)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .max_lifetime(MAX_LIFETIME);
        let sessions = route::session(options.clone()).options(keep.iter().copied());
        Pool {
            sessions: pool.clone().connect_lazy_with(sessions),
            transactions: pool.connect_lazy_with(route::plain(options).statement_cache_capacity(0)),
            route,
        }
    }

    /// A connection for several statements that only read; it is in a transaction where it must be. The caller bounds them,
    /// see [`bounded`].
    pub(super) async fn acquire(&self) -> Result<DbConnection, Error> {
        match self.route.get() {
            Some(Route::Sessions) => Ok(DbConnection::new(self.sessions.acquire().await?, Route::Sessions)),
            Some(Route::Transactions) => self.acquire_transaction().await,
            None => self.find_out().await,
        }
    }

    /// A connection with an open transaction, which is rolled back if it is dropped without a commit.
    pub(super) async fn begin(&self) -> Result<DbConnection, Error> {
        let mut connection = self.acquire().await?;
        connection.begin().await?;
        Ok(connection)
    }

    async fn acquire_transaction(&self) -> Result<DbConnection, Error> {
        let mut connection = DbConnection::new(self.transactions.acquire().await?, Route::Transactions);
        match timeout(DEADLINE, connection.begin()).await {
            Ok(begun) => begun.map(|()| connection),
            Err(_) => {
                connection.close();
                Err(late())
            }
        }
    }

    /// The first connection, which shows whether there is a pooler.
    async fn find_out(&self) -> Result<DbConnection, Error> {
        match self.sessions.acquire().await {
            Ok(mut connection) => {
                if timeout(DEADLINE, has_settings(&mut connection)).await.unwrap_or_else(|_| Err(late()))? {
                    let _ = self.route.set(Route::Sessions);
                    return Ok(DbConnection::new(connection, Route::Sessions));
                }
                drop(connection.detach());
            }
            Err(error) if route::refused_by_pooler(&error) => {
                tracing::debug!(%error, "the database takes no settings at the beginning of a connection: {error}");
            }
            Err(error) => return Err(error),
        }
        if self.route.set(Route::Transactions).is_ok() {
            tracing::info!(
                "the database is behind a pooler in transaction mode; docs/operations.md says what that costs"
            );
        }
        self.acquire_transaction().await
    }

    /// The way to the database.
    ///
    /// # Errors
    /// It is not known yet, and no connection can be made now.
    pub(super) async fn route(&self) -> Result<Route, Error> {
        let known = self.route.get().copied();
        match known {
            Some(route) => Ok(route),
            None => {
                self.acquire().await?;
                Ok(*self.route.get().expect("the first connection has shown it"))
            }
        }
    }

    /// Closes the pool; calls that are under way finish.
    pub(super) async fn close(&self) {
        self.sessions.close().await;
        self.transactions.close().await;
    }
}

/// One session of its own, in a pool because that is what sqlx's listener takes. What it is asked has no deadline.
pub(super) fn one_session(options: PgConnectOptions) -> PgPool {
    PgPoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE_TIMEOUT).connect_lazy_with(options)
}

/// Whether a connection has the settings that it began with.
async fn has_settings(connection: &mut PgConnection) -> Result<bool, Error> {
    // By the simple protocol, in one step: what is prepared behind a pooler may be gone when it is to be run.
    let row = connection.fetch_one(sqlx::AssertSqlSafe(format!("SELECT current_setting('{MARK}', true)"))).await?;
    Ok(row.try_get::<Option<String>, _>(0)?.is_some_and(|mark| !mark.is_empty()))
}

/// Runs something that holds a connection under [`DEADLINE`]; what is late is [`StoreError::Unavailable`].
pub(super) async fn bounded<T>(body: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout(DEADLINE, body).await.unwrap_or_else(|_| Err(late().into()))
}

fn late() -> Error {
    Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no answer within {DEADLINE:?}")))
}

impl<'p> Executor<'p> for &'_ Pool {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>
    where
        E: 'q + Execute<'q, Postgres>,
    {
        let pool = self.clone();
        Box::pin(async_stream::try_stream! {
            let deadline = Instant::now() + DEADLINE;
            let mut held = pool.acquire().await?;
            let mut in_time = true;
            {
                let mut steps = (&mut held).fetch_many(query);
                while in_time {
                    match timeout_at(deadline, steps.try_next()).await {
                        Ok(next) => match next? {
                            Some(step) => yield step,
                            None => break,
                        },
                        Err(_) => in_time = false,
                    }
                }
            }
            // Behind a pooler the statement is in a transaction.
            if in_time {
                match timeout_at(deadline, held.commit()).await {
                    Ok(committed) => committed?,
                    Err(_) => in_time = false,
                }
            }
            if !in_time {
                held.close();
                Err(late())?;
            }
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(in_time(self.clone(), async move |connection: &mut DbConnection| {
            connection.fetch_optional(query).await
        }))
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'p: 'e,
    {
        Box::pin(in_time(self.clone(), async move |connection: &mut DbConnection| {
            connection.prepare_with(sql, parameters).await
        }))
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'p: 'e,
    {
        Box::pin(in_time(self.clone(), async move |connection: &mut DbConnection| connection.describe(sql).await))
    }
}

/// One call on a connection of the pool; a connection whose call is late is closed.
async fn in_time<T>(pool: Pool, call: impl AsyncFnOnce(&mut DbConnection) -> Result<T, Error>) -> Result<T, Error> {
    let mut held = pool.acquire().await?;
    let done = timeout(DEADLINE, async {
        let done = call(&mut held).await?;
        held.commit().await?;
        Ok(done)
    })
    .await;
    done.unwrap_or_else(|_| {
        held.close();
        Err(late())
    })
}
