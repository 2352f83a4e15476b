//! Opens what `--database-url` names: an external Postgres, or an embedded one in a directory.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use sqlx::postgres::PgConnectOptions;

use super::postgres::{self, Embedded, Options};
use crate::store::PoolSizes;

/// Where the state is.
#[derive(Debug, Clone, Args)]
pub struct DatabaseArgs {
    /// The database: `postgres://…`, or a directory (`file://DIR` or a path) for an embedded Postgres whose data lives
    /// there.
    #[arg(
        long,
        global = true,
        env = "LASTWORD_DATABASE_URL",
        value_name = "URL",
        default_value = "./.lastword",
        hide_env_values = true
    )]
    pub database_url: String,
    /// For an embedded Postgres: use the programs in this directory, no others.
    #[arg(long, global = true, env = "LASTWORD_POSTGRES_BIN", value_name = "DIR")]
    pub postgres_bin: Option<PathBuf>,
    /// For an embedded Postgres: where its programs are kept once fetched [default: lastword in the user's cache
    /// directory].
    #[arg(long, global = true, env = "LASTWORD_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Connections for submits, reads and output; a third of them for reads by key, whose plans are kept.
    #[arg(long, global = true, env = "LASTWORD_POOL_GENERAL", value_name = "COUNT", default_value_t = 12, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub pool_general: u32,
    /// Connections that terminals and heartbeats have for themselves.
    #[arg(long, global = true, env = "LASTWORD_POOL_VITAL", value_name = "COUNT", default_value_t = 6, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub pool_vital: u32,
}

impl DatabaseArgs {
    /// The pools' sizes.
    pub fn pools(&self) -> PoolSizes {
        PoolSizes { general: self.pool_general, vital: self.pool_vital }
    }
}

/// A database to open a [`crate::store::Store`] on.
pub struct Database {
    pub options: PgConnectOptions,
    /// The server, when it is ours: it ends with this value.
    pub embedded: Option<Embedded>,
    /// Where files of this machine's own lie, for an embedded one.
    pub directory: Option<PathBuf>,
}

/// Why there is no database to open.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("--database-url {0:?} is neither postgres://…, file://DIR nor a directory")]
    Url(String),
    #[error(
        "--database-url {0:?} is a directory of this machine; replicas share a postgres://… (`lastword dev` runs one process)"
    )]
    NotShared(String),
    #[error("--database-url cannot be read: {0}")]
    Malformed(sqlx::Error),
    #[error(transparent)]
    Embedded(#[from] postgres::Error),
}

enum Named {
    External(Box<PgConnectOptions>),
    Directory(PathBuf),
}

fn named(url: &str) -> Result<Named, DatabaseError> {
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        return PgConnectOptions::from_str(url).map(|o| Named::External(Box::new(o))).map_err(DatabaseError::Malformed);
    }
    match url.strip_prefix("file://") {
        Some(dir) if !dir.is_empty() => Ok(Named::Directory(dir.into())),
        None if !url.is_empty() && !url.contains("://") => Ok(Named::Directory(url.into())),
        _ => Err(DatabaseError::Url(url.to_string())),
    }
}

/// What replicas share: an external database, which may be away now.
///
/// # Errors
/// If the URL names a directory: an embedded database belongs to one process.
pub fn external(args: &DatabaseArgs) -> Result<PgConnectOptions, DatabaseError> {
    match named(&args.database_url)? {
        Named::External(options) => Ok(*options),
        Named::Directory(_) => Err(DatabaseError::NotShared(args.database_url.clone())),
    }
}

/// Opens the database; an embedded one is started, and is this process' alone.
pub async fn open(args: &DatabaseArgs) -> Result<Database, DatabaseError> {
    match named(&args.database_url)? {
        Named::External(options) => Ok(Database { options: *options, embedded: None, directory: None }),
        Named::Directory(directory) => {
            let options = Options { bin_dir: args.postgres_bin.clone(), ..Options::new(&directory, cache_dir(args)) };
            let embedded = Embedded::start(options).await?;
            Ok(Database {
                options: embedded.connect_options("lastword"),
                embedded: Some(embedded),
                directory: Some(directory),
            })
        }
    }
}

/// The same for a command that only visits: an embedded database that another process serves is joined.
pub async fn visit(args: &DatabaseArgs) -> Result<Database, DatabaseError> {
    match (open(args).await, named(&args.database_url)?) {
        (Err(DatabaseError::Embedded(postgres::Error::Locked { .. })), Named::Directory(directory)) => {
            let options = postgres::running(&directory)?;
            Ok(Database { options, embedded: None, directory: Some(directory) })
        }
        (opened, _) => opened,
    }
}

/// Where fetched programs are kept.
pub fn cache_dir(args: &DatabaseArgs) -> PathBuf {
    args.cache_dir.clone().unwrap_or_else(|| {
        let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache"));
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
        base.unwrap_or_else(std::env::temp_dir).join("lastword")
    })
}
