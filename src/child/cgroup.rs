//! A worker's memory limit on one machine: a cgroup of its own, where we may make one.
//!
//! | | where | limit | counter of kills |
//! |---|---|---|---|
//! | v1 | below our own group of the memory hierarchy | `memory.limit_in_bytes` | `memory.oom_control` |
//! | v2 | below our own group if it hands `memory` down, else beside it | `memory.max` | `memory.events` |
//!
//! In v2 a group with processes cannot hand controllers down, so ours usually cannot; its parent does, and a user's
//! session lets us make a group there. Adapter and program share the group; the kernel kills the biggest.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::turn::keys::StartId;

/// How long the kernel is given to empty a group of killed processes.
const EMPTYING: Duration = Duration::from_millis(20);
const EMPTYING_TRIES: u32 = 50;

/// Where groups can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    version: Version,
    parent: PathBuf,
    /// Begins the name of every group of this node.
    prefix: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Cgroups {
    /// Finds out whether and where groups with a memory limit can be made, and removes what former boots of this node
    /// left. `None` where it is not permitted.
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

    /// Tries it out.
    fn works(&self) -> bool {
        let probe = self.parent.join(format!("{}probe", self.prefix));
        if fs::create_dir(&probe).is_err_and(|e| e.kind() != io::ErrorKind::AlreadyExists) {
            return false;
        }
        let group = Group { version: self.version, path: probe };
        let works = group.limit(1 << 40).is_ok() && group.oom_kills().is_some();
        let _ = fs::remove_dir(&group.path);
        works
    }

    /// Removes empty groups of this node. A group that still holds a process cannot be removed.
    fn clean(&self) {
        let Ok(entries) = fs::read_dir(&self.parent) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&self.prefix) {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }

    /// A group for one worker.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(&self, start: StartId, memory_bytes: u64) -> io::Result<Group> {
        let path = self.parent.join(format!("{}{start}", self.prefix));
        fs::create_dir(&path)?;
        let group = Group { version: self.version, path };
        if let Err(error) = group.limit(memory_bytes) {
            group.remove();
            return Err(error);
        }
        Ok(group)
    }
}

/// Parents of groups, best first, from the text of `/proc/self/cgroup`.
fn candidates(own: &str) -> Vec<(Version, PathBuf)> {
    let mut found = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let below = path.trim_start_matches('/');
        if controllers.split(',').any(|c| c == "memory") {
            // Inside a container the path may be the host's, while the mount shows the container's group as its root.
            found.push((Version::V1, Path::new("/sys/fs/cgroup/memory").join(below)));
            found.push((Version::V1, PathBuf::from("/sys/fs/cgroup/memory")));
        } else if controllers.is_empty() {
            let group = Path::new("/sys/fs/cgroup").join(below);
            let beside = group.parent().filter(|p| p.starts_with("/sys/fs/cgroup")).map(Path::to_path_buf);
            found.push((Version::V2, group));
            found.extend(beside.map(|parent| (Version::V2, parent)));
        }
    }
    found
}

/// One worker's group. Remove it when the worker was reaped.
#[derive(Debug)]
pub struct Group {
    version: Version,
    path: PathBuf,
}

impl Group {
    fn limit(&self, bytes: u64) -> io::Result<()> {
        let (limit, swap, swap_bytes) = match self.version {
            Version::V1 => ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", bytes),
            Version::V2 => ("memory.max", "memory.swap.max", 0),
        };
        fs::write(self.path.join(limit), bytes.to_string())?;
        // As in Kubernetes, what is over the limit is not swapped out. Where swap is not counted, it stays as it is.
        let _ = fs::write(self.path.join(swap), swap_bytes.to_string());
        Ok(())
    }

    /// Puts a process in.
    ///
    /// # Errors
    /// Those of the file system; also when the process has ended.
    pub fn add(&self, process: Pid) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), process.as_raw_nonzero().to_string())
    }

    /// How often the kernel has killed here for want of memory.
    pub fn oom_kills(&self) -> Option<u64> {
        let file = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        count(&fs::read_to_string(self.path.join(file)).ok()?)
    }

    /// Kills what is left in the group, and removes it.
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
                (Version::V2, root.join("user.slice/app.slice/term.scope")),
                (Version::V2, root.join("user.slice/app.slice")),
            ]
        );
        assert_eq!(
            candidates("5:cpu:/y\n4:memory:/y\n"),
            [(Version::V1, root.join("memory/y")), (Version::V1, root.join("memory"))]
        );
        assert_eq!(candidates("0::/\n"), [(Version::V2, root.to_path_buf())], "never above the root");
    }

    #[test]
    fn kills_are_counted_in_both_versions() {
        assert_eq!(count("oom 3\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), Some(7));
        assert_eq!(count("low 0\n"), None);
    }
}
