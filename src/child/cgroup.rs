//! A worker's memory limit on one machine: a cgroup of its own, where the system lets this process make one.
//!
//! | cgroups | where the worker's group is made | limit | counter of kills for want of memory |
//! |---|---|---|---|
//! | v1 | below our own group of the memory hierarchy | `memory.limit_in_bytes` | `memory.oom_control` |
//! | v2 | below our own group if it hands the controller `memory` down, else beside it | `memory.max` | `memory.events` |
//!
//! In v2 a group that holds processes cannot hand controllers down to groups below it, so our own usually cannot. Its
//! parent does, and systemd lets the user of a session make a group there. The worker and the agent program that it runs
//! share one group; the kernel kills the biggest process in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::turn::keys::StartId;

/// A killed process needs a moment to leave its group, which cannot be removed before: the pause between two tries.
const EMPTYING: Duration = Duration::from_millis(20);
const EMPTYING_TRIES: u32 = 50;

/// The place where this process can make cgroups with a memory limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    version: CgroupVersion,
    parent: PathBuf,
    /// The beginning of the name of every group that this node (this data directory) makes, in this run or an earlier one.
    prefix: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CgroupVersion {
    V1,
    V2,
}

impl Cgroups {
    /// Finds a place by trying, and removes the groups that earlier runs of this node left. `None` where no group with a
    /// memory limit can be made.
    pub fn detect(node: &str) -> Option<Cgroups> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let prefix = format!("lastword-{node}-");
        let found = candidates(&own)
            .into_iter()
            .map(|(version, parent)| Cgroups { version, parent, prefix: prefix.clone() })
            .find(Cgroups::works)?;
        found.clean();
        Some(found)
    }

    /// Whether a group can be made here, limited, and asked for its kills.
    fn works(&self) -> bool {
        let probe = self.parent.join(format!("{}probe", self.prefix));
        if fs::create_dir(&probe).is_err_and(|e| e.kind() != io::ErrorKind::AlreadyExists) {
            return false;
        }
        let group = Cgroup { version: self.version, path: probe };
        let works = group.limit(1 << 40).is_ok() && group.oom_kills().is_some();
        let _ = fs::remove_dir(&group.path);
        works
    }

    /// Removes the empty groups of this node; the kernel refuses to remove one that still holds a process.
    fn clean(&self) {
        let Ok(entries) = fs::read_dir(&self.parent) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&self.prefix) {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }

    /// Makes the group of one worker, with a limit in bytes.
    ///
    /// # Errors
    /// Those of the file system. No group is left then.
    pub fn create(&self, start: StartId, memory_bytes: u64) -> io::Result<Cgroup> {
        let path = self.parent.join(format!("{}{start}", self.prefix));
        fs::create_dir(&path)?;
        let group = Cgroup { version: self.version, path };
        if let Err(error) = group.limit(memory_bytes) {
            group.remove();
            return Err(error);
        }
        Ok(group)
    }
}

/// The groups below which a worker's may be made, best first, from the text of `/proc/self/cgroup`.
fn candidates(own: &str) -> Vec<(CgroupVersion, PathBuf)> {
    let mut found = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let below = path.trim_start_matches('/');
        if controllers.split(',').any(|c| c == "memory") {
            // Inside a container the path may be the host's, while the mount shows the container's group as its root.
            found.push((CgroupVersion::V1, Path::new("/sys/fs/cgroup/memory").join(below)));
            found.push((CgroupVersion::V1, PathBuf::from("/sys/fs/cgroup/memory")));
        } else if controllers.is_empty() {
            let group = Path::new("/sys/fs/cgroup").join(below);
            let beside = group.parent().filter(|p| p.starts_with("/sys/fs/cgroup")).map(Path::to_path_buf);
            found.push((CgroupVersion::V2, group));
            found.extend(beside.map(|parent| (CgroupVersion::V2, parent)));
        }
    }
    found
}

/// One worker's cgroup. To be removed when the worker was reaped: a drop leaves it.
#[derive(Debug)]
pub struct Cgroup {
    version: CgroupVersion,
    path: PathBuf,
}

impl Cgroup {
    fn limit(&self, bytes: u64) -> io::Result<()> {
        let (limit, swap, swap_bytes) = match self.version {
            CgroupVersion::V1 => ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", bytes),
            CgroupVersion::V2 => ("memory.max", "memory.swap.max", 0),
        };
        fs::write(self.path.join(limit), bytes.to_string())?;
        // Without swap, as in Kubernetes, or the limit would bound nothing. A kernel that does not count swap has no such file.
        let _ = fs::write(self.path.join(swap), swap_bytes.to_string());
        Ok(())
    }

    /// Moves a process into the group; what it starts from then on is born there.
    ///
    /// # Errors
    /// Those of the file system; also when the process was reaped.
    pub fn add(&self, process: Pid) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), process.as_raw_nonzero().to_string())
    }

    /// How many processes of the group the kernel has killed for want of memory; `None` if it does not tell.
    pub fn oom_kills(&self) -> Option<u64> {
        let file = match self.version {
            CgroupVersion::V1 => "memory.oom_control",
            CgroupVersion::V2 => "memory.events",
        };
        count(&fs::read_to_string(self.path.join(file)).ok()?)
    }

    /// Kills the processes that are left in the group, and removes it. Blocks for up to a second.
    pub fn remove(self) {
        for _ in 0..EMPTYING_TRIES {
            let left = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
            for process in left.lines().filter_map(|l| Pid::from_raw(l.trim().parse().ok()?)) {
                let _ = kill_process(process, Signal::KILL);
            }
            match fs::remove_dir(&self.path) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                Err(_) => thread::sleep(EMPTYING),
            }
        }
        tracing::warn!(path = %self.path.display(), "a worker's cgroup is left behind: a process in it does not end");
    }
}

/// The counter `oom_kill` in a file that has a name and a number on each line.
fn count(file: &str) -> Option<u64> {
    file.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_groups_may_be_made() {
        let root = Path::new("/sys/fs/cgroup");
        assert_eq!(
            candidates("0::/user.slice/app.slice/term.scope\n"),
            [
                (CgroupVersion::V2, root.join("user.slice/app.slice/term.scope")),
                (CgroupVersion::V2, root.join("user.slice/app.slice")),
            ]
        );
        assert_eq!(
            candidates("5:cpu:/y\n4:memory:/y\n"),
            [(CgroupVersion::V1, root.join("memory/y")), (CgroupVersion::V1, root.join("memory"))]
        );
        assert_eq!(candidates("0::/\n"), [(CgroupVersion::V2, root.to_path_buf())], "never above the root");
    }

    #[test]
    fn kills_are_counted_in_both_versions() {
        assert_eq!(count("oom 3\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), Some(7));
        assert_eq!(count("low 0\n"), None);
    }
}
