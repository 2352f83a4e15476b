//! A running embedded Postgres, as the rest of the program holds it.

use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use super::archive;
use super::directory::{DataDir, socket_dir};
use super::error::{PostgresError, at};
use super::options::{DATABASE, Options, USER};
use super::process::PostgresProcess;
use super::supervise::{Cluster, percent_encoded};
use super::user::ServerUser;
use crate::store::ConnectOptions;
use crate::store::server::by_socket;

/// How long a fast shutdown may take: it writes a checkpoint.
const FAST: Duration = Duration::from_secs(30);
/// How long an immediate shutdown may take.
const IMMEDIATE: Duration = Duration::from_secs(10);

/// How to end the server; the first two are Postgres' own words (see `pg_ctl stop`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Open transactions are rolled back, and a checkpoint is written. After 30 s this becomes [`Shutdown::Immediate`].
    Fast,
    /// The server ends at once, and recovers when it is started again. After 10 s this becomes [`Shutdown::Kill`].
    Immediate,
    /// SIGKILL to the postmaster alone; for tests of recovery.
    Kill,
}

/// How to connect to the server that another process runs in this data directory.
///
/// # Errors
/// [`PostgresError::Io`] if the directory cannot be read. Whether a server listens there shows when it is connected to.
pub fn running(data_dir: &Path) -> Result<ConnectOptions, PostgresError> {
    let root = data_dir.canonicalize().map_err(at("find", data_dir))?;
    Ok(by_socket(&socket_dir(&root)?, USER, DATABASE))
}

/// A running server, and the lock on its data directory.
///
/// A drop begins a fast shutdown and does not wait for it; that of an ephemeral cluster waits, and then removes the cluster.
/// Others may use the directory as soon as the server has ended.
pub struct Embedded {
    // The order of the fields matters, since they are dropped in it: the server goes before the lock on its directory,
    // which the cluster holds.
    server: PostgresProcess,
    cluster: Cluster,
}

impl Embedded {
    /// Starts the server; makes the cluster and the database `lastword` if there are none.
    ///
    /// The programs come from `bin_dir`, else from the pinned archive (cached, or fetched now), else from the system's
    /// `/usr/lib/postgresql`. If an earlier run was killed, this waits for its server to shut down, at most 30 s.
    /// Cancel-safe: dropping the future ends what it has started.
    ///
    /// # Errors
    /// Each [`PostgresError`] says what to do; a server that does not start shows the last lines of its log.
    pub async fn start(options: Options) -> Result<Embedded, PostgresError> {
        let data_dir = Arc::new(DataDir::lock(&options.data_dir, options.ephemeral)?);
        let made_by = data_dir.cluster_major();
        let bin = archive::find(&options, made_by).await?;
        let (user, binaries) = ServerUser::find(&data_dir, &bin)?;
        if let Some(made_by) = made_by.filter(|made_by| *made_by != binaries) {
            return Err(PostgresError::OtherMajor { directory: data_dir.cluster(), cluster: made_by, bin, binaries });
        }
        data_dir.clear_leftovers().await?;
        let cluster = Cluster { options, data_dir, bin, user };
        cluster.initialise().await?;
        let server = cluster.start().await?;
        tracing::debug!(pid = server.pid(), ?user, "Postgres {binaries} is ready");
        Ok(Embedded { server, cluster })
    }

    /// How to connect to a database of this server. `lastword` is there from the start.
    pub fn connect_options(&self, database: &str) -> ConnectOptions {
        self.cluster.connect_options(database)
    }

    /// The URL of the database `lastword`, as psql and sqlx read it: `postgres://lastword@localhost/lastword?host=SOCKETDIR`.
    pub fn url(&self) -> String {
        let host = percent_encoded(self.cluster.data_dir.socket_dir.as_os_str());
        format!("postgres://{USER}@localhost/{DATABASE}?host={host}")
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Waits until this server has ended, whoever ended it; `None` if its exit status cannot be had.
    ///
    /// The future borrows nothing. It is about this one run: after [`Embedded::resume`] there is another to wait for.
    pub fn exited(&self) -> impl Future<Output = Option<ExitStatus>> + Send + 'static {
        self.server.ended()
    }

    /// Ends the server and unlocks its directory; an ephemeral one is removed. Takes about 45 s at most.
    pub async fn stop(mut self) {
        self.halt(Shutdown::Fast).await;
    }

    /// Ends the server and keeps the directory locked, for [`Embedded::resume`].
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

    /// Starts the server again, with the same directory, socket and URL, after [`Embedded::halt`] or a crash. Does nothing if
    /// it runs.
    ///
    /// # Errors
    /// As [`Embedded::start`].
    pub async fn resume(&mut self) -> Result<(), PostgresError> {
        if self.server.status().is_some() {
            self.server = self.cluster.start().await?;
        }
        Ok(())
    }
}
