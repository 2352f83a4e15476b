//! Memory limits on one machine, through a cgroup of our own below the one that we run in; where that is not permitted,
//! a limit is only noted.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;

/// A cgroup with a memory limit. Removed when dropped.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    /// The file that counts the kernel's kills.
    events: &'static str,
}

impl Cgroup {
    /// Makes a cgroup that may use this much memory; `None` where that is not permitted.
    pub fn limited(name: &str, bytes: u64) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let made = candidates(&own).into_iter().find_map(|c| c.make(name, bytes));
        if made.is_none() {
            static ONCE: Once = Once::new();
            ONCE.call_once(|| {
                tracing::warn!("memory limits are not applied: no cgroup of ours can be made here");
            });
        }
        made
    }

    /// Puts a process, and what it starts from now on, under the limit.
    pub fn add(&self, pid: u32) {
        if let Err(error) = fs::write(self.path.join("cgroup.procs"), pid.to_string()) {
            // The process may have ended already.
            tracing::debug!(pid, %error, "a worker is not under its memory limit");
        }
    }

    /// Whether the kernel killed in it for want of memory.
    pub fn killed(&self) -> bool {
        fs::read_to_string(self.path.join(self.events))
            .is_ok_and(|text| text.lines().filter_map(|l| l.strip_prefix("oom_kill ")).any(|n| n.trim() != "0"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Busy as long as a process is in it, such as a grandchild that outlives its worker; then it stays.
        let _ = fs::remove_dir(&self.path);
    }
}

/// A place where a cgroup could be made.
struct Candidate {
    parent: PathBuf,
    limit: &'static str,
    events: &'static str,
}

impl Candidate {
    fn make(&self, name: &str, bytes: u64) -> Option<Cgroup> {
        let path = self.parent.join(name);
        fs::create_dir(&path).ok()?;
        let cgroup = Cgroup { path, events: self.events };
        fs::write(cgroup.path.join(self.limit), bytes.to_string()).ok()?;
        // Swap would only put the end off; not every kernel accounts for it.
        let _ = fs::write(cgroup.path.join("memory.swap.max"), "0");
        Some(cgroup)
    }
}

fn candidates(own: &str) -> Vec<Candidate> {
    let mut found = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, limit, events) = if controllers.split(',').any(|c| c == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.oom_control")
        } else if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max", "memory.events")
        } else {
            continue;
        };
        for path in [path, "/"] {
            found.push(Candidate { parent: Path::new(root).join(path.trim_start_matches('/')), limit, events });
        }
    }
    found
}
