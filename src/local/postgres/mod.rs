//! A real Postgres, embedded: fetched once, supervised by us, reached by a Unix socket only.
//!
//! What holds:
//! - One process serves a data directory; a second one gets an error that names the first ([`Error::Locked`]).
//! - The server ends when we do, however we end: it is stopped cleanly ([`Embedded::stop`]), by a drop, or by the
//!   parent-death signal that makes it shut down cleanly after our SIGKILL.
//! - What was committed survives all of these, and a SIGKILL of both, unless the cluster is ephemeral.
//! - Nobody else of the machine reaches it: no TCP, and the socket lies in a directory of mode 0700.
//! - Root is no special case: the server then runs as another user (see `identity`).
//!
//! The parts: `archive` finds the programs, `directory` owns the data directory, `identity` decides as whom they
//! run, `process` holds one child, `supervise` makes a server of it.

mod archive;
mod directory;
mod error;
mod identity;
mod process;
mod supervise;

use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use sqlx::postgres::PgConnectOptions;

use directory::Claim;
pub use error::Error;
use identity::Identity;
use process::Process;
use supervise::Plan;

/// The superuser that owns everything in the server; there is no password.
const USER: &str = "lastword";
/// The database that every cluster has.
const DATABASE: &str = "lastword";
/// How long a fast shutdown may take: it writes a checkpoint.
const FAST: Duration = Duration::from_secs(30);
/// How long an immediate shutdown may take.
const IMMEDIATE: Duration = Duration::from_secs(10);

/// A major version of Postgres whose archive we have pinned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// The oldest that Lastword runs on.
    V15,
    /// The newest; what a new cluster gets.
    #[default]
    V18,
}

impl Version {
    /// The number, such as 18.
    pub const fn major(self) -> u32 {
        match self {
            Version::V15 => 15,
            Version::V18 => 18,
        }
    }
}

/// What to start, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster's parent, such as `.lastword`; created when absent. Its layout is told in `directory`.
    pub data_dir: PathBuf,
    /// For a new cluster. An existing one is served by its own major version.
    pub version: Version,
    /// A directory with `postgres` and `initdb`, to use no other.
    pub bin_dir: Option<PathBuf>,
    /// Where fetched archives are unpacked; may be shared by any number of processes.
    pub cache_dir: PathBuf,
    /// How many connections the server takes.
    pub max_connections: u32,
    /// For tests: fsync is off, and the cluster is removed at drop.
    pub ephemeral: bool,
    /// Further settings of postgresql.conf; they win over ours.
    pub extra_settings: Vec<(String, String)>,
}

impl Options {
    /// A durable cluster below `data_dir`, of the newest version, with 100 connections.
    pub fn new(data_dir: impl Into<PathBuf>, cache_dir: impl Into<PathBuf>) -> Options {
        Options {
            data_dir: data_dir.into(),
            version: Version::default(),
            bin_dir: None,
            cache_dir: cache_dir.into(),
            max_connections: 100,
            ephemeral: false,
            extra_settings: Vec::new(),
        }
    }
}

/// How to end the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Roll back what runs, write a checkpoint, end. At most 30 s, then [`Shutdown::Immediate`].
    Fast,
    /// End now; the next start recovers. At most 10 s, then [`Shutdown::Kill`].
    Immediate,
    /// SIGKILL of the postmaster; for tests of recovery.
    Kill,
}

/// A running server, and the right to its data directory.
///
/// A drop begins a fast shutdown and does not wait for it; an ephemeral cluster's drop waits, then removes it.
/// The directory is free for others once the server is gone.
pub struct Embedded {
    // Dropped in this order: the server goes before the claim (held by the plan) does.
    server: Process,
    plan: Plan,
}

impl Embedded {
    /// Starts the server, and makes the cluster and the database `lastword` when they are not there.
    ///
    /// The programs come from `bin_dir`, else from our pinned archive (cached, or fetched now), else from the
    /// system's `/usr/lib/postgresql`. Waits for the server of an earlier, killed run to shut down, at most 30 s.
    /// Cancellation safe: dropping the future ends what it started.
    ///
    /// # Errors
    /// Each [`Error`] says what to do; a server that does not start shows the last lines of its log.
    pub async fn start(options: Options) -> Result<Embedded, Error> {
        let claim = Arc::new(Claim::take(&options.data_dir, options.ephemeral)?);
        let cluster = claim.cluster_major();
        let bin = archive::find(&options, cluster).await?;
        let (identity, binaries) = Identity::find(&claim, &bin)?;
        if let Some(cluster) = cluster.filter(|cluster| *cluster != binaries) {
            return Err(Error::OtherMajor { directory: claim.cluster(), cluster, bin, binaries });
        }
        claim.clear_leftovers().await?;
        let plan = Plan { options, claim, bin, identity };
        plan.initialise().await?;
        let server = plan.start().await?;
        tracing::debug!(pid = server.pid(), ?identity, "Postgres {binaries} is ready");
        Ok(Embedded { server, plan })
    }

    /// How to connect to a database of this server; [`Embedded::url`]'s is `lastword`.
    pub fn connect_options(&self, database: &str) -> PgConnectOptions {
        self.plan.connect_options(database)
    }

    /// The database `lastword` as a URL for psql and sqlx: `postgres://lastword@localhost/lastword?host=SOCKETDIR`.
    pub fn url(&self) -> String {
        let host = supervise::percent_encoded(self.plan.claim.socket_dir.as_os_str());
        format!("postgres://{USER}@localhost/{DATABASE}?host={host}")
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Becomes ready when this server has ended, asked to or not; `None` if its status could not be had.
    ///
    /// The future holds nothing of the server. After [`Embedded::resume`], ask again.
    pub fn exited(&self) -> impl Future<Output = Option<ExitStatus>> + Send + 'static {
        self.server.ended()
    }

    /// Ends the server and frees its directory (an ephemeral one is removed). At most about 45 s.
    pub async fn stop(mut self) {
        self.halt(Shutdown::Fast).await;
    }

    /// Ends the server and keeps the directory, for [`Embedded::resume`].
    pub async fn halt(&mut self, how: Shutdown) {
        let steps = [
            (Shutdown::Fast, Signal::INT, FAST),
            (Shutdown::Immediate, Signal::QUIT, IMMEDIATE),
            (Shutdown::Kill, Signal::KILL, IMMEDIATE),
        ];
        for (_, signal, limit) in steps.iter().skip_while(|(step, ..)| *step != how) {
            self.server.signal(*signal);
            if self.server.ended_within(*limit).await.is_some() {
                return;
            }
            tracing::warn!(pid = self.pid(), "Postgres did not end within {limit:?} of {signal:?}");
        }
    }

    /// Starts the server again on the same directory, socket and URL, after [`Embedded::halt`] or a crash.
    /// Does nothing when it runs.
    ///
    /// # Errors
    /// As [`Embedded::start`].
    pub async fn resume(&mut self) -> Result<(), Error> {
        if self.server.status().is_some() {
            self.server = self.plan.start().await?;
        }
        Ok(())
    }
}
