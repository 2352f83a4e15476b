//! A Postgres server that is just starting: whether it takes connections, and making a database in it. The supervisor of the
//! embedded server asks this, before there is a schema or a pool.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{ConnectOptions as _, Connection};

/// How to connect to a database: what [`Store::open`](super::Store::open) takes. Made of a `postgres://` URL by `parse`.
pub type ConnectOptions = PgConnectOptions;

/// SQLSTATE `cannot_connect_now`: the server is starting up, recovering, or shutting down.
const CANNOT_CONNECT_NOW: &str = "57P03";

/// How to connect to a server of this machine by its Unix socket, without a password.
pub fn by_socket(directory: &Path, user: &str, database: &str) -> ConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host("localhost")
        .port(5432)
        .socket(directory)
        .username(user)
        .database(database)
        .ssl_mode(PgSslMode::Disable)
}

/// The host that a connection may be made to in cleartext: it is another machine, and TLS is not required. `None` if there is no
/// such danger.
pub fn in_cleartext(options: &ConnectOptions) -> Option<&str> {
    let host = options.get_host();
    let is_here = options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    // `allow` and `prefer` fall back to cleartext, at the word of whoever answers.
    let is_encrypted =
        matches!(options.get_ssl_mode(), PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull);
    (!is_here && !is_encrypted).then_some(host)
}

/// Why a server takes no connections.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct NotUp {
    /// The server answers, and says that it is starting up, recovering, or shutting down.
    pub answers: bool,
    why: String,
}

/// A database that could not be created.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct CannotCreate(#[from] sqlx::Error);

/// A connection to a server that has just become ready.
pub struct ServerConnection(PgConnection);

impl ServerConnection {
    /// Connects once; the answer is waited for at most `within`.
    ///
    /// # Errors
    /// [`NotUp`] for whatever reason; it may be tried again.
    pub async fn open(options: &ConnectOptions, within: Duration) -> Result<Self, NotUp> {
        let options = options.clone().disable_statement_logging();
        match tokio::time::timeout(within, PgConnection::connect_with(&options)).await {
            Ok(Ok(connection)) => Ok(ServerConnection(connection)),
            Ok(Err(error)) => Err(NotUp { answers: is_starting(&error), why: error.to_string() }),
            Err(_) => Err(NotUp { answers: false, why: format!("no answer within {within:?}") }),
        }
    }

    /// Creates a database unless there is one of this name, which must be a plain identifier.
    ///
    /// # Errors
    /// Whatever the server refuses.
    pub async fn ensure_database(&mut self, name: &str) -> Result<(), CannotCreate> {
        let there: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(name)
            .fetch_one(&mut self.0)
            .await?;
        if !there {
            sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut self.0).await?;
        }
        Ok(())
    }

    /// Closes the connection politely. Not needed: the server notices anyway.
    pub async fn close(self) {
        let _ = self.0.close().await;
    }
}

fn is_starting(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.as_deref() == Some(CANNOT_CONNECT_NOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tls_that_is_required_keeps_cleartext_away() {
        for (url, clear) in [
            ("postgres://h/d?sslmode=require", None),
            ("postgres://h/d?sslmode=verify-ca", None),
            ("postgres://h/d?sslmode=verify-full", None),
            ("postgres://h/d?sslmode=prefer", Some("h")),
            ("postgres://h/d?sslmode=allow", Some("h")),
            ("postgres://h/d?sslmode=disable", Some("h")),
            ("postgres://10.0.0.1:5432/d?sslmode=disable", Some("10.0.0.1")),
            ("postgres://localhost.example/d?sslmode=disable", Some("localhost.example")),
            ("postgres://127.0.0.1/d?sslmode=disable", None),
            ("postgres://localhost/d?sslmode=disable", None),
            ("postgres://localhost/d?host=/run/postgresql&sslmode=disable", None),
            ("postgres://h/d?host=/run/postgresql&sslmode=disable", None),
        ] {
            let options: ConnectOptions = url.parse().expect("a URL");
            assert_eq!(in_cleartext(&options), clear, "{url}");
        }
    }
}
