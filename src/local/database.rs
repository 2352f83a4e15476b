//! Opens the database that `--database-url` names: one of an external Postgres, or an embedded Postgres in a directory.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::postgres::{self, Embedded, Options, PostgresError};
use crate::store::server::in_cleartext;
use crate::store::{ConnectOptions, DatabaseReach, PoolSizes, Pooler};

/// The flags that say where the state is kept.
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
    /// The same database past a pooler in transaction mode (pgbouncer and the like), if `--database-url` names one: for
    /// LISTEN and for migrations. Without it, replicas look once a second for what others did.
    #[arg(long, global = true, env = "LASTWORD_DATABASE_DIRECT_URL", value_name = "URL", hide_env_values = true)]
    pub database_direct_url: Option<String>,
    /// Whether `--database-url` names a pooler in transaction mode.
    #[arg(long, global = true, env = "LASTWORD_DATABASE_POOLER", value_name = "MODE", default_value = "auto")]
    pub database_pooler: Pooler,
    /// For an embedded Postgres: use the programs in this directory, no others.
    // The hint tells `cli::env_file` too that no file may set it; so for the next.
    #[arg(long, global = true, env = "LASTWORD_POSTGRES_BIN", value_name = "DIR", value_hint = ValueHint::ExecutablePath)]
    pub postgres_bin: Option<PathBuf>,
    /// For an embedded Postgres: where its programs are kept once fetched [default: lastword in the user's cache
    /// directory].
    #[arg(long, global = true, env = "LASTWORD_CACHE_DIR", value_name = "DIR", value_hint = ValueHint::ExecutablePath)]
    pub cache_dir: Option<PathBuf>,
    /// Let the database's password, workers' credentials and messages go to other machines in cleartext: without TLS to
    /// Postgres, or on the worker port. For a network that nobody else is on, or that encrypts by itself.
    #[arg(long, global = true, env = "LASTWORD_ALLOW_CLEARTEXT")]
    pub allow_cleartext: bool,
    /// Connections for submits, reads and output; a third of them for reads by key, whose plans are kept.
    #[arg(long, global = true, env = "LASTWORD_POOL_GENERAL", value_name = "COUNT", default_value_t = 12, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub pool_general: u32,
    /// Connections that terminals and heartbeats have for themselves.
    #[arg(long, global = true, env = "LASTWORD_POOL_VITAL", value_name = "COUNT", default_value_t = 6, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub pool_vital: u32,
}

impl DatabaseArgs {
    /// The sizes of the connection pools.
    pub fn pools(&self) -> PoolSizes {
        PoolSizes { general: self.pool_general, vital: self.pool_vital }
    }

    /// How connections reach the database.
    ///
    /// # Errors
    /// The direct URL is none of a Postgres, or leads to another machine in cleartext.
    pub fn reach(&self) -> Result<DatabaseReach, DatabaseError> {
        let direct = self.database_direct_url.as_deref().filter(|url| !url.is_empty());
        let direct = match direct.map(|url| locate(url, self.allow_cleartext)) {
            None => None,
            Some(Err(error @ DatabaseError::Cleartext(_))) => return Err(error),
            Some(Ok(DatabaseLocation::External(options))) => Some(options),
            // The URL is not repeated: it has a password.
            Some(_) => return Err(DatabaseError::Direct),
        };
        Ok(DatabaseReach { pooler: self.database_pooler, direct })
    }
}

/// A database to open a [`crate::store::Store`] on.
pub struct Database {
    pub options: ConnectOptions,
    /// The embedded server, if this process runs it: it ends when this value is dropped.
    pub embedded: Option<Embedded>,
    /// The data directory of an embedded one, also when another process runs it.
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
    #[error(
        "the connection to Postgres at {0} may be in cleartext: say sslmode=verify-full (with sslrootcert=FILE for an \
         authority of your own) in its URL, or allow it with --allow-cleartext (LASTWORD_ALLOW_CLEARTEXT)"
    )]
    Cleartext(String),
    #[error("--database-direct-url is not postgres://USER:PASSWORD@HOST:PORT/DATABASE")]
    Direct,
    #[error("--database-url cannot be read: {0}")]
    Malformed(String),
    #[error(transparent)]
    Embedded(#[from] PostgresError),
}

/// What `--database-url` names.
enum DatabaseLocation {
    External(Box<ConnectOptions>),
    Directory(PathBuf),
}

fn locate(url: &str, allow_cleartext: bool) -> Result<DatabaseLocation, DatabaseError> {
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        let options: ConnectOptions = url.parse().map_err(|error| DatabaseError::Malformed(format!("{error}")))?;
        return match in_cleartext(&options) {
            Some(host) if !allow_cleartext => Err(DatabaseError::Cleartext(host.to_owned())),
            _ => Ok(DatabaseLocation::External(Box::new(options))),
        };
    }
    match url.strip_prefix("file://") {
        Some(dir) if !dir.is_empty() => Ok(DatabaseLocation::Directory(dir.into())),
        None if !url.is_empty() && !url.contains("://") => Ok(DatabaseLocation::Directory(url.into())),
        _ => Err(DatabaseError::Url(url.to_string())),
    }
}

/// How to connect to the external database that replicas share; it may be away now.
///
/// # Errors
/// [`DatabaseError::NotShared`] if the URL names a directory: an embedded Postgres belongs to one process.
pub fn external(args: &DatabaseArgs) -> Result<ConnectOptions, DatabaseError> {
    match locate(&args.database_url, args.allow_cleartext)? {
        DatabaseLocation::External(options) => Ok(*options),
        DatabaseLocation::Directory(_) => Err(DatabaseError::NotShared(args.database_url.clone())),
    }
}

/// Opens the database. An embedded Postgres is started, and is this process's alone.
///
/// # Errors
/// Those of the URL, and for an embedded Postgres those of [`Embedded::start`]. Whether an external one is there is not asked.
pub async fn open(args: &DatabaseArgs) -> Result<Database, DatabaseError> {
    match locate(&args.database_url, args.allow_cleartext)? {
        DatabaseLocation::External(options) => Ok(Database { options: *options, embedded: None, directory: None }),
        DatabaseLocation::Directory(directory) => {
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

/// [`open`] for a command that is soon done: if another process runs the embedded Postgres, this connects to it there.
///
/// # Errors
/// As [`open`].
pub async fn visit(args: &DatabaseArgs) -> Result<Database, DatabaseError> {
    match (open(args).await, locate(&args.database_url, args.allow_cleartext)?) {
        (Err(DatabaseError::Embedded(PostgresError::Locked { .. })), DatabaseLocation::Directory(directory)) => {
            let options = postgres::running(&directory)?;
            Ok(Database { options, embedded: None, directory: Some(directory) })
        }
        (opened, _) => opened,
    }
}

/// The directory in which the fetched programs of an embedded Postgres are kept.
pub fn cache_dir(args: &DatabaseArgs) -> PathBuf {
    args.cache_dir.clone().unwrap_or_else(|| {
        let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache"));
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
        base.unwrap_or_else(std::env::temp_dir).join("lastword")
    })
}
