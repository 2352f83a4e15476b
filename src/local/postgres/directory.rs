//! The data directory: who may use it, what lies where, what an earlier run left behind.
//!
//! ```text
//! DATA/lock           flock of the process that serves it; holds its pid
//! DATA/postgres/      the cluster (PGDATA), owned by the user that the server runs as
//! DATA/postgres.new/  a cluster that initdb has not finished; removed at the next start
//! DATA/postgres.log   what initdb and the server print
//! DATA/run/           the socket, mode 0700; below the system's temporary directory if DATA's path is too long
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::{Error, at};

/// The longest path of a Unix socket, in bytes (`sun_path` is 108 with its NUL).
const SOCKET_PATH: usize = 107;
/// The socket's file name, as Postgres makes it from the port.
const SOCKET: &str = ".s.PGSQL.5432";
/// A log longer than this is emptied at start.
const LOG_BYTES: u64 = 10 << 20;
/// How long the server of an earlier run may take to shut down.
const LEFTOVER: Duration = Duration::from_secs(30);

/// The right to use one data directory: an flock, which the kernel ends with us, however we end.
///
/// The descriptor is close-on-exec, so no child holds it on. A child that is between its fork and its exec still does, so
/// the drop unlocks explicitly: that frees the directory for every copy of the descriptor. An ephemeral directory is removed
/// with its claim.
pub(super) struct Claim {
    /// The data directory, absolute.
    pub(super) root: PathBuf,
    /// Where the server makes its socket.
    pub(super) socket_dir: PathBuf,
    ephemeral: bool,
    lock: File,
}

impl Claim {
    /// Takes the directory, or says who has it. Creates it when it is not there.
    pub(super) fn take(directory: &Path, ephemeral: bool) -> Result<Claim, Error> {
        fs::create_dir_all(directory).map_err(at("create", directory))?;
        let root = directory.canonicalize().map_err(at("enter", directory))?;
        let path = root.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(at("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Who holds it is a courtesy of the message; the lock itself has spoken.
                let _ = lock.read_to_string(&mut holder);
                return Err(Error::Locked { directory: root, holder: holder.trim().parse().ok() });
            }
            Err(TryLockError::Error(error)) => return Err(at("lock", &path)(error)),
        }
        lock.set_len(0)
            .and_then(|()| lock.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(lock, "{}", std::process::id()))
            .map_err(at("write", &path))?;
        let socket_dir = socket_dir(&root)?;
        Ok(Claim { root, socket_dir, ephemeral, lock })
    }

    /// The cluster itself, PGDATA.
    pub(super) fn cluster(&self) -> PathBuf {
        self.root.join("postgres")
    }

    /// The file that the server's output goes to.
    pub(super) fn log(&self) -> PathBuf {
        self.root.join("postgres.log")
    }

    /// The major version that made the cluster, if there is one.
    pub(super) fn cluster_major(&self) -> Option<u32> {
        let text = fs::read_to_string(self.cluster().join("PG_VERSION")).ok()?;
        text.trim().parse().ok()
    }

    /// Opens the log for appending, emptied if it has grown too long; also where this run's part begins.
    pub(super) fn open_log(&self) -> Result<(File, u64), Error> {
        let path = self.log();
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(at("open", &path))?;
        let mut length = file.metadata().map_err(at("read", &path))?.len();
        if length > LOG_BYTES {
            file.set_len(0).map_err(at("truncate", &path))?;
            length = 0;
        }
        Ok((file, length))
    }

    /// Up to the last 20 lines that were logged after `start`.
    pub(super) fn log_tail(&self, start: u64) -> String {
        let mut bytes = Vec::new();
        let read = File::open(self.log()).and_then(|mut file| {
            let end = file.metadata()?.len();
            file.seek(SeekFrom::Start(start.max(end.saturating_sub(8 << 10))))?;
            file.take(8 << 10).read_to_end(&mut bytes)
        });
        if let Err(error) = read {
            return format!("(unreadable: {error})");
        }
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Waits until nothing of an earlier run serves the cluster, then removes what that run left behind.
    ///
    /// A server whose parent was killed gets its parent-death signal and needs a moment to shut down.
    pub(super) async fn clear_leftovers(&self) -> Result<(), Error> {
        let cluster = self.cluster();
        let since = Instant::now();
        let mut logged = false;
        while let Some(pid) = serving(&cluster).or_else(|| self.ending()) {
            if !logged {
                tracing::info!(pid, "waiting for the Postgres of an earlier run to shut down in {}", cluster.display());
                logged = true;
            }
            if since.elapsed() > LEFTOVER {
                return Err(Error::StillRunning { directory: cluster, pid, seconds: LEFTOVER.as_secs() });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.remove_stale_pid_file()?;
        // The directory is this cluster's alone, and nobody serves the cluster.
        for name in [SOCKET.to_owned(), format!("{SOCKET}.lock")] {
            remove_file(&self.socket_dir.join(name))?;
        }
        remove_dir(&self.root.join("postgres.new"))
    }

    /// The pid in the pid file, if it is a Postgres whose working directory does not show: one that is just
    /// ending, or that another user runs.
    fn ending(&self) -> Option<u32> {
        let pid = self.recorded_pid()?;
        matches!(look_at(pid), Holder::Unknown).then_some(pid)
    }

    fn recorded_pid(&self) -> Option<u32> {
        let text = fs::read_to_string(self.cluster().join("postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    /// Nobody serves the cluster, so the pid in its file is dead, or meanwhile another program's. Postgres
    /// handles the first, but refuses to start for the second when that program is the same user's.
    fn remove_stale_pid_file(&self) -> Result<(), Error> {
        let path = self.cluster().join("postmaster.pid");
        let Some(pid) = self.recorded_pid() else {
            return Ok(()); // none, or a mangled one, for which Postgres has its own words
        };
        match look_at(pid) {
            Holder::Gone | Holder::Unknown => Ok(()), // Postgres decides
            Holder::Foreign(program) => {
                tracing::info!(pid, program, "removing a stale postmaster.pid");
                remove_file(&path)
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Only what we made: the directory may hold more than the cluster.
        let mut removed = Ok(());
        if self.ephemeral {
            removed = removed
                .and(remove_dir(&self.cluster()))
                .and(remove_dir(&self.root.join("postgres.new")))
                .and(remove_file(&self.log()))
                .and(remove_file(&self.root.join("lock")));
        }
        if self.ephemeral || !self.socket_dir.starts_with(&self.root) {
            removed = removed.and(remove_dir(&self.socket_dir));
        }
        if let Err(error) = removed {
            tracing::warn!(%error, "left something behind");
        }
        if self.ephemeral {
            let _ = fs::remove_dir(&self.root); // fails when it holds something of others, as it should
        }
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, "could not unlock {}", self.root.display());
        }
    }
}

/// Where the socket goes: into the data directory, or if its path is too long, a private directory elsewhere.
pub(super) fn socket_dir(root: &Path) -> Result<PathBuf, Error> {
    let inside = root.join("run");
    if fits(&inside) {
        private_dir(&inside)?;
        return Ok(inside);
    }
    let mut hasher = DefaultHasher::new();
    (root, rustix::process::geteuid().as_raw()).hash(&mut hasher);
    let name = format!("lastword-{:016x}", hasher.finish());
    let mut outside = std::env::temp_dir().join(&name);
    if !fits(&outside) {
        outside = Path::new("/tmp").join(&name);
    }
    private_dir(&outside)?;
    Ok(outside)
}

fn fits(directory: &Path) -> bool {
    directory.join(SOCKET).as_os_str().as_bytes().len() <= SOCKET_PATH
}

/// Creates a directory of mode 0700, or takes one that nobody else can have prepared for us.
fn private_dir(path: &Path) -> Result<(), Error> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other.map_err(at("create", path)),
    }
    let metadata = fs::symlink_metadata(path).map_err(at("read", path))?;
    let us = rustix::process::geteuid();
    // Root may have given it to the user that its server runs as.
    if metadata.is_dir() && metadata.mode() & 0o077 == 0 && (us.is_root() || metadata.uid() == us.as_raw()) {
        return Ok(());
    }
    let foreign = io::Error::other("it exists, and is not a private directory of this user: remove it");
    Err(at("use", path)(foreign))
}

/// A process of Postgres (the postmaster, or a child of it) whose cluster this is: all of them work in PGDATA.
fn serving(cluster: &Path) -> Option<u32> {
    let cluster = cluster.canonicalize().ok()?;
    let processes = fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let here = fs::read_link(entry.path().join("cwd")).ok()? == cluster;
        let comm = || fs::read_to_string(entry.path().join("comm")).ok();
        (here && is_postgres(&comm()?)).then_some(pid)
    })
}

/// What a pid that was written down by an earlier run names now.
enum Holder {
    /// Nothing.
    Gone,
    /// Nothing that serves the cluster: another program, or a dead server that its new parent has not reaped.
    Foreign(String),
    /// A Postgres that we may not look into.
    Unknown,
}

fn look_at(pid: u32) -> Holder {
    let Ok(program) = fs::read_to_string(format!("/proc/{pid}/comm")) else {
        return Holder::Gone;
    };
    let hidden = || fs::read_link(format!("/proc/{pid}/cwd")).is_err();
    if is_postgres(&program) && !is_zombie(pid) && hidden() {
        return Holder::Unknown;
    }
    Holder::Foreign(program.trim().to_owned())
}

/// A process that has ended, memory and files released, and waits to be reaped. `kill(pid, 0)`, which is what
/// Postgres asks, still finds it.
fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses and may contain some.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
}

fn is_postgres(comm: &str) -> bool {
    comm.trim() == "postgres"
}

fn remove_file(path: &Path) -> Result<(), Error> {
    absent_is_fine(fs::remove_file(path)).map_err(at("remove", path))
}

fn remove_dir(path: &Path) -> Result<(), Error> {
    absent_is_fine(fs::remove_dir_all(path)).map_err(at("remove", path))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A copy of the descriptor stands for a child that has forked and not yet executed its program.
    #[test]
    fn a_dropped_claim_frees_the_directory_though_a_child_still_has_its_descriptor() {
        let directory = tempfile::tempdir().expect("a directory");
        let claim = Claim::take(directory.path(), false).expect("free");
        assert!(matches!(Claim::take(directory.path(), false), Err(Error::Locked { .. })));
        let forked = claim.lock.try_clone().expect("a copy");
        drop(claim);
        Claim::take(directory.path(), false).map(drop).expect("free again");
        drop(forked);
    }
}
