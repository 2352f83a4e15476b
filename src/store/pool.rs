//! Connections under a deadline of our own. A network that swallows what is sent tells nobody: without one, a call would
//! wait until TCP gives up, a quarter of an hour.
//!
//! - A statement that is run on the [`Pool`] itself has [`DEADLINE`].
//! - Several on one connection, or a transaction, are run by [`bounded`] (transactions by `retry_races`).
//! - A connection that did not answer in time is closed, and its place in the pool is free. sqlx alone would wait for it:
//!   what is given back is asked first whether it lives.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use futures::TryStreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{
    Connection, Describe, Either, Error, Execute, Executor, PgConnection, PgPool, PgTransaction, Postgres, SqlStr,
};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout, timeout_at};

use super::StoreError;

/// The longest that a statement or a transaction may take, whatever the network does. Longer than the server's own
/// `statement_timeout`, which tells the cause.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// A connection that is given back answers within this, or is closed.
const RETURN: Duration = Duration::from_secs(5);

/// Connections to the database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pool(PgPool);

impl From<PgPool> for Pool {
    fn from(pool: PgPool) -> Self {
        Pool(pool)
    }
}

impl Pool {
    /// A connection for several statements; they are the caller's to bound (see [`bounded`]).
    pub(super) async fn acquire(&self) -> Result<Held, Error> {
        Ok(Held(Some(self.0.acquire().await?)))
    }

    /// Without deadlines: for migrations alone.
    pub(super) fn unbounded(&self) -> &PgPool {
        &self.0
    }

    /// Closes it; what is under way finishes.
    pub(super) async fn close(&self) {
        self.0.close().await;
    }
}

/// Runs what holds a connection under the deadline.
pub(super) async fn bounded<T>(body: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout(DEADLINE, body).await.unwrap_or_else(|_| Err(late().into()))
}

fn late() -> Error {
    Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no answer within {DEADLINE:?}")))
}

/// A connection of the pool; back there when it is dropped, if it answers.
pub(super) struct Held(Option<PoolConnection<Postgres>>);

impl Held {
    /// Begins a transaction; rolled back if it is dropped.
    pub async fn begin(&mut self) -> Result<PgTransaction<'_>, Error> {
        Connection::begin(&mut **self).await
    }

    /// Closes it now, without a word to the server.
    fn close(&mut self) {
        drop(self.0.take().map(PoolConnection::detach));
    }
}

const HELD: &str = "it is taken only when it is dropped or closed";

impl Deref for Held {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.0.as_ref().expect(HELD)
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect(HELD)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(mut connection) = self.0.take() else { return };
        match Handle::try_current() {
            // In time, or the connection goes with the future.
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

/// One call on a connection of the pool. One that is late is closed.
async fn in_time<T>(pool: Pool, call: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>) -> Result<T, Error> {
    let mut held = pool.acquire().await?;
    let done = timeout(DEADLINE, call(&mut held)).await;
    done.unwrap_or_else(|_| {
        held.close();
        Err(late())
    })
}
