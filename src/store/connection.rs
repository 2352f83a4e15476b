//! A connection that is borrowed from a pool, with the transaction that is open on it.
//!
//! All statements of the store go through this type, because a statement behind a pooler must have no name: the session of
//! the server that the next transaction gets does not know it, or knows another client's by the same name. And since a
//! statement is prepared and run in two steps, each is in a transaction there, which holds one session for both.

use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use sqlx::error::BoxDynError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Describe, Either, Error, Execute, Executor, PgConnection, Postgres, SqlStr};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::route::{BEGIN_WITH_SETTINGS, Route};
use crate::metrics::METRICS;
use crate::telemetry::turns::TurnEvent;

/// A connection that is given back to the pool answers within this time, or is closed.
const RETURN: Duration = Duration::from_secs(5);

/// A connection of a pool. When it is dropped, an open transaction is rolled back, and it goes back to the pool, if it answers.
#[derive(Debug)]
pub(super) struct DbConnection {
    connection: Option<PoolConnection<Postgres>>,
    route: Route,
    /// A transaction is, or may be, open.
    open: bool,
    /// What the open transaction does to turns, to be told once it is committed.
    events: Vec<TurnEvent>,
}

impl DbConnection {
    pub fn new(connection: PoolConnection<Postgres>, route: Route) -> Self {
        DbConnection { connection: Some(connection), route, open: false, events: Vec::new() }
    }

    /// Begins a transaction, unless one is open: behind a pooler one always is.
    pub async fn begin(&mut self) -> Result<(), Error> {
        if self.open {
            return Ok(());
        }
        // Before it is known to be: if this future is dropped, the transaction has to be rolled back all the same.
        self.open = true;
        let begin = match self.route {
            Route::Sessions => "BEGIN",
            Route::Transactions => BEGIN_WITH_SETTINGS.as_str(),
        };
        self.inner().execute(begin).await?;
        Ok(())
    }

    /// Commits the open transaction, if there is one. After an error nobody knows whether it was committed.
    pub async fn commit(&mut self) -> Result<(), Error> {
        if self.open {
            let began = Instant::now();
            self.inner().execute("COMMIT").await?;
            self.open = false;
            METRICS.commit_seconds.observe(began.elapsed().as_secs_f64());
        }
        self.events.drain(..).for_each(TurnEvent::tell);
        Ok(())
    }

    /// What this transaction has done to a turn. It is told when it is committed.
    pub fn note(&mut self, event: TurnEvent) {
        self.events.push(event);
    }

    /// Closes the connection now, without a word to the server.
    pub fn close(&mut self) {
        drop(self.connection.take().map(PoolConnection::detach));
    }

    fn inner(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("a connection is taken only when it is dropped or closed")
    }
}

impl Drop for DbConnection {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(give_back(connection, self.open))),
            Err(_) => drop(connection.detach()),
        }
    }
}

/// A connection that is not back in time is closed.
async fn give_back(mut connection: PoolConnection<Postgres>, open: bool) {
    if open && !matches!(timeout(RETURN, connection.execute("ROLLBACK")).await, Ok(Ok(_))) {
        drop(connection.detach());
        return;
    }
    let _ = timeout(RETURN, connection.return_to_pool()).await;
}

/// A statement that is prepared without a name, whatever it says itself.
struct Unnamed<E>(E);

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Unnamed<E> {
    fn sql(self) -> SqlStr {
        self.0.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.0.statement()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        self.0.take_arguments()
    }

    fn persistent(&self) -> bool {
        false
    }
}

impl<'c> Executor<'c> for &'c mut DbConnection {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        match self.route {
            Route::Sessions => self.inner().fetch_many(query),
            Route::Transactions => self.inner().fetch_many(Unnamed(query)),
        }
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        match self.route {
            Route::Sessions => self.inner().fetch_optional(query),
            Route::Transactions => self.inner().fetch_optional(Unnamed(query)),
        }
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        self.inner().prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'c: 'e,
    {
        self.inner().describe(sql)
    }
}
