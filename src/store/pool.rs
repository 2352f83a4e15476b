//! Connections under a deadline of our own. A network that swallows what is sent tells nobody: without one, a call would
//! wait until TCP gives up, which takes a quarter of an hour.
//!
//! - A statement that is run on the [`Pool`] itself has [`DEADLINE`].
//! - Several statements on one connection are run by [`bounded`]; a transaction by
//!   [`transaction!`](super::transaction::transaction), which uses it.
//! - A connection that did not answer in time is closed, and its place in the pool is free. sqlx alone would wait for it,
//!   because it asks a connection that is given back whether it lives, without a deadline.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use futures::TryStreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{
    Connection, Describe, Either, Error, Execute, Executor, PgConnection, PgPool, PgTransaction, Postgres, SqlStr,
};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout, timeout_at};

use super::StoreError;

/// How long a caller waits for a connection before it is told that the database is unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that is older than this is closed when it is given back.
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 60);
/// The longest that a statement or a transaction may take, whatever the network does. It is longer than the server's own
/// `statement_timeout` (8 s, see [`Store::open`](super::Store::open)), whose error tells the cause.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// A connection that is given back to the pool answers within this time, or is closed.
const RETURN: Duration = Duration::from_secs(5);

/// Connections to the database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pool(PgPool);

impl Pool {
    /// A pool of at most `size` connections, which are opened when they are needed.
    pub(super) fn open(size: u32, options: PgConnectOptions) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(size)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .max_lifetime(MAX_LIFETIME);
        Pool(pool.connect_lazy_with(options))
    }

    /// A connection for several statements. The caller bounds them, see [`bounded`].
    pub(super) async fn acquire(&self) -> Result<PooledConnection, Error> {
        Ok(PooledConnection(Some(self.0.acquire().await?)))
    }

    /// The pool of sqlx, whose calls have no deadline: for migrations, which may take long, and for the listener, which waits.
    pub(super) fn unbounded(&self) -> &PgPool {
        &self.0
    }

    /// Closes the pool; calls that are under way finish.
    pub(super) async fn close(&self) {
        self.0.close().await;
    }
}

/// Runs something that holds a connection under [`DEADLINE`]; what is late is [`StoreError::Unavailable`].
pub(super) async fn bounded<T>(body: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout(DEADLINE, body).await.unwrap_or_else(|_| Err(late().into()))
}

fn late() -> Error {
    Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no answer within {DEADLINE:?}")))
}

/// A connection of the pool. When it is dropped it goes back there, if it answers.
pub(super) struct PooledConnection(Option<PoolConnection<Postgres>>);

impl PooledConnection {
    /// Begins a transaction, which is rolled back if it is dropped without a commit.
    pub async fn begin(&mut self) -> Result<PgTransaction<'_>, Error> {
        Connection::begin(&mut **self).await
    }

    /// Closes the connection now, without a word to the server.
    fn close(&mut self) {
        drop(self.0.take().map(PoolConnection::detach));
    }
}

const NOT_TAKEN: &str = "a connection is taken only when it is dropped or closed";

impl Deref for PooledConnection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.0.as_ref().expect(NOT_TAKEN)
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect(NOT_TAKEN)
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        let Some(mut connection) = self.0.take() else { return };
        match Handle::try_current() {
            // A connection that is not back in time is closed with the future that holds it.
            Ok(runtime) => drop(runtime.spawn(timeout(RETURN, connection.return_to_pool()))),
            Err(_) => drop(connection.detach()),
        }
    }
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
                let connection: &mut PgConnection = &mut held;
                let mut steps = connection.fetch_many(query);
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
        Box::pin(in_time(self.clone(), async move |connection: &mut PgConnection| {
            connection.fetch_optional(query).await
        }))
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'p: 'e,
    {
        Box::pin(in_time(self.clone(), async move |connection: &mut PgConnection| {
            connection.prepare_with(sql, parameters).await
        }))
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'p: 'e,
    {
        Box::pin(in_time(self.clone(), async move |connection: &mut PgConnection| connection.describe(sql).await))
    }
}

/// One call on a connection of the pool; a connection whose call is late is closed.
async fn in_time<T>(pool: Pool, call: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>) -> Result<T, Error> {
    let mut held = pool.acquire().await?;
    let done = timeout(DEADLINE, call(&mut held)).await;
    done.unwrap_or_else(|_| {
        held.close();
        Err(late())
    })
}
