//! The data directory: its lock, its layout, and what an earlier run left behind in it.
//!
//! ```text
//! DATA/                made for its owner alone (root's may be passed through, for the server's user)
//! DATA/lock           locked (flock) by the process that serves the cluster; holds its pid
//! DATA/postgres/      the cluster (PGDATA), owned by the user that the server runs as
//! DATA/postgres.new/  a cluster that initdb has not finished; removed at the next start
//! DATA/postgres.log   what initdb and the server print
//! DATA/run/           the socket, mode 0700; in the system's temporary directory instead if DATA's path is too long
//! ```

use std::fs::{self, DirBuilder, File, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::{PostgresError, at};
use crate::private::{self, Others};

/// The longest path of a Unix socket, in bytes: `sun_path` of unix(7) has 108, with the NUL at its end.
const SOCKET_PATH: usize = 107;
/// The name of the socket's file, which Postgres makes of the port.
const SOCKET: &str = ".s.PGSQL.5432";
/// A log that is longer than this, in bytes, is emptied when a program is started.
const LOG_BYTES: u64 = 10 << 20;
/// How long the server of an earlier run is waited for.
const LEFTOVER: Duration = Duration::from_secs(30);

/// How long the lock of a process that is gone is waited for. A child that was being forked when the process was killed holds
/// the lock's descriptor until it executes its program.
const INHERITED: Duration = Duration::from_secs(5);

/// A data directory that this process has locked. The lock is an flock, which the kernel releases when this process ends,
/// however it ends.
///
/// The lock's descriptor is close-on-exec, so child processes do not keep the lock. One that is between its fork and its exec
/// still has the descriptor; so a drop unlocks explicitly, which holds for every copy. An ephemeral directory is removed by
/// the drop.
pub(super) struct DataDir {
    /// The data directory, absolute.
    pub(super) root: PathBuf,
    /// The directory in which the server makes its socket.
    pub(super) socket_dir: PathBuf,
    ephemeral: bool,
    lock_file: File,
}

impl DataDir {
    /// Locks the directory, which is created if it does not exist. One that others may have filled is not taken: a directory
    /// whose path is relative was found in the working directory, and so its group may not write it either.
    ///
    /// # Errors
    /// [`PostgresError::Locked`] if another process has locked it, [`PostgresError::Private`] if it may be somebody else's.
    pub(super) fn lock(directory: &Path, ephemeral: bool) -> Result<DataDir, PostgresError> {
        private::directory(directory, if directory.is_absolute() { Others::GroupMayWrite } else { Others::MayRead })?;
        let root = directory.canonicalize().map_err(at("enter", directory))?;
        let path = root.join("lock");
        let mut lock = private::open_or_create(&path)?;
        let begun = Instant::now();
        while let Err(refused) = lock.try_lock() {
            match refused {
                TryLockError::WouldBlock => {}
                TryLockError::Error(error) => return Err(at("lock", &path)(error)),
            }
            let mut holder = String::new();
            // The pid is for the message, which is shorter without it, and to tell whether its process is gone.
            let _ = lock.seek(SeekFrom::Start(0)).and_then(|_| lock.read_to_string(&mut holder));
            let holder: Option<u32> = holder.trim().parse().ok();
            let gone = holder.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
            if !gone || begun.elapsed() > INHERITED {
                return Err(PostgresError::Locked { directory: root, holder });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        lock.set_len(0)
            .and_then(|()| lock.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(lock, "{}", std::process::id()))
            .map_err(at("write", &path))?;
        let socket_dir = socket_dir(&root)?;
        Ok(DataDir { root, socket_dir, ephemeral, lock_file: lock })
    }

    /// The cluster's directory, which Postgres calls PGDATA.
    pub(super) fn cluster(&self) -> PathBuf {
        self.root.join("postgres")
    }

    /// The file that the server's output goes to.
    pub(super) fn log(&self) -> PathBuf {
        self.root.join("postgres.log")
    }

    /// The major version of the Postgres that made the cluster, if there is one.
    pub(super) fn cluster_major(&self) -> Option<u32> {
        let text = fs::read_to_string(self.cluster().join("PG_VERSION")).ok()?;
        text.trim().parse().ok()
    }

    /// Opens the log for appending, and empties it if it has grown too long. Also gives its length, where the part of what is
    /// started now begins.
    pub(super) fn open_log(&self) -> Result<(File, u64), PostgresError> {
        let path = self.log();
        let file = private::open_to_append(&path)?;
        let mut length = file.metadata().map_err(at("read", &path))?.len();
        if length > LOG_BYTES {
            file.set_len(0).map_err(at("truncate", &path))?;
            length = 0;
        }
        Ok((file, length))
    }

    /// The last lines of the log from the byte `start` on, 20 at the most.
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

    /// Waits until no process of an earlier run serves the cluster, then removes the files that such a run left behind.
    ///
    /// If that run was killed, its server got the parent-death signal, and needs a moment to shut down.
    pub(super) async fn clear_leftovers(&self) -> Result<(), PostgresError> {
        let cluster = self.cluster();
        let since = Instant::now();
        let mut logged = false;
        while let Some(pid) = serving(&cluster).or_else(|| self.ending()) {
            if !logged {
                tracing::info!(pid, "waiting for the Postgres of an earlier run to shut down in {}", cluster.display());
                logged = true;
            }
            if since.elapsed() > LEFTOVER {
                return Err(PostgresError::StillRunning { directory: cluster, pid, seconds: LEFTOVER.as_secs() });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.remove_stale_pid_file()?;
        // The socket's directory belongs to this cluster, which nobody serves: these files are left over.
        for name in [SOCKET.to_owned(), format!("{SOCKET}.lock")] {
            remove_file(&self.socket_dir.join(name))?;
        }
        remove_dir(&self.root.join("postgres.new"))
    }

    /// The pid in `postmaster.pid`, if it is that of a Postgres whose working directory cannot be read: it is just ending, or
    /// another user runs it.
    fn ending(&self) -> Option<u32> {
        let pid = self.recorded_pid()?;
        matches!(pid_status(pid), PidStatus::HiddenPostgres).then_some(pid)
    }

    fn recorded_pid(&self) -> Option<u32> {
        let text = fs::read_to_string(self.cluster().join("postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    /// Removes `postmaster.pid` if its pid is another program's by now; nobody serves the cluster. Postgres itself removes a
    /// file whose pid is dead, but refuses to start while the pid is that of any program of the same user.
    fn remove_stale_pid_file(&self) -> Result<(), PostgresError> {
        let path = self.cluster().join("postmaster.pid");
        let Some(pid) = self.recorded_pid() else {
            return Ok(()); // No such file, or one that is damaged, which Postgres itself reports.
        };
        match pid_status(pid) {
            // Postgres decides what to do with these.
            PidStatus::Gone | PidStatus::HiddenPostgres => Ok(()),
            PidStatus::Other(program) => {
                tracing::info!(pid, program, "removing a stale postmaster.pid");
                remove_file(&path)
            }
        }
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        // Our own entries are removed one by one, since the directory may hold files of others.
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
            // An error means that the directory holds files of others.
            let _ = fs::remove_dir(&self.root);
        }
        if let Err(error) = self.lock_file.unlock() {
            tracing::warn!(%error, "could not unlock {}", self.root.display());
        }
    }
}

/// The directory of the socket: in the data directory, or if that path is too long, a private one in the system's temporary
/// directory.
pub(super) fn socket_dir(root: &Path) -> Result<PathBuf, PostgresError> {
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

/// Whether the path of a socket in this directory is short enough.
fn fits(directory: &Path) -> bool {
    directory.join(SOCKET).as_os_str().as_bytes().len() <= SOCKET_PATH
}

/// Creates a directory of mode 0700, or takes an existing one that no other user can have put there.
fn private_dir(path: &Path) -> Result<(), PostgresError> {
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

/// The pid of a Postgres process (the postmaster, or a child of it) that serves this cluster: all of them have PGDATA as
/// their working directory.
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

/// What a pid that an earlier run wrote down belongs to now.
enum PidStatus {
    /// No process.
    Gone,
    /// A process that does not serve the cluster: another program, or a dead server that its new parent has not reaped.
    Other(String),
    /// A Postgres whose working directory we may not read.
    HiddenPostgres,
}

fn pid_status(pid: u32) -> PidStatus {
    let Ok(program) = fs::read_to_string(format!("/proc/{pid}/comm")) else {
        return PidStatus::Gone;
    };
    let hidden = || fs::read_link(format!("/proc/{pid}/cwd")).is_err();
    if is_postgres(&program) && !is_zombie(pid) && hidden() {
        return PidStatus::HiddenPostgres;
    }
    PidStatus::Other(program.trim().to_owned())
}

/// Whether a process has ended and waits to be reaped. `kill(pid, 0)`, by which Postgres looks for a running server, still
/// finds it.
fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state comes after the name, which is in parentheses and may itself contain parentheses.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
}

fn is_postgres(comm: &str) -> bool {
    comm.trim() == "postgres"
}

fn remove_file(path: &Path) -> Result<(), PostgresError> {
    absent_is_fine(fs::remove_file(path)).map_err(at("remove", path))
}

fn remove_dir(path: &Path) -> Result<(), PostgresError> {
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

    /// The copy of the descriptor stands for that of a child between its fork and its exec.
    #[test]
    fn a_dropped_lock_frees_the_directory_though_a_child_still_has_its_descriptor() {
        let directory = tempfile::tempdir().expect("a directory");
        let data_dir = DataDir::lock(directory.path(), false).expect("free");
        assert!(matches!(DataDir::lock(directory.path(), false), Err(PostgresError::Locked { .. })));
        let forked = data_dir.lock_file.try_clone().expect("a copy");
        drop(data_dir);
        DataDir::lock(directory.path(), false).map(drop).expect("free again");
        drop(forked);
    }
}
