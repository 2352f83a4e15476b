//! Whether Lastword can use a database, which `lastword init` asks before it writes the database's URL down.

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, Row};

use super::{MIN_POSTGRES, route};

/// How long a database may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why a database cannot be used. None of these repeats the password.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("not a database URL ({0}); it looks like postgres://USER:PASSWORD@HOST:5432/DATABASE")]
    Url(String),
    #[error("cannot connect to the database: {0}")]
    Connect(String),
    #[error("the database did not answer within {} s; are its host and port right?", TIMEOUT.as_secs())]
    Timeout,
    #[error("the database is Postgres {0}; Lastword needs {MIN_POSTGRES} or newer")]
    TooOld(String),
}

/// Connects once, and gives the server's version as it calls itself (`16.2`).
pub async fn version(url: &str) -> Result<String, ProbeError> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(ProbeError::Url("it does not begin with postgres://".into()));
    }
    let options = PgConnectOptions::from_str(url).map_err(|e| ProbeError::Url(e.to_string()))?;
    tokio::time::timeout(TIMEOUT, ask(options)).await.map_err(|_| ProbeError::Timeout)?
}

async fn ask(options: PgConnectOptions) -> Result<String, ProbeError> {
    let failed = |error: sqlx::Error| {
        ProbeError::Connect(match error {
            sqlx::Error::Database(error) => error.message().to_string(),
            sqlx::Error::Io(error) => error.to_string(),
            error => error.to_string(),
        })
    };
    let mut connection = route::plain(options).connect().await.map_err(failed)?;
    // By the simple protocol, since the database may be behind a pooler.
    let row = connection
        .fetch_one("SELECT current_setting('server_version_num')::int, current_setting('server_version')")
        .await
        .map_err(failed)?;
    let number: i32 = row.try_get(0).map_err(failed)?;
    let name: String = row.try_get(1).map_err(failed)?;
    // The answer is all that was wanted; how the connection ends does not matter.
    let _ = connection.close().await;
    let name = name.split_whitespace().next().unwrap_or_default().to_string();
    // `server_version_num` is 10,000 times the major version, and the minor version.
    if number / 10_000 < MIN_POSTGRES as i32 { Err(ProbeError::TooOld(name)) } else { Ok(name) }
}
