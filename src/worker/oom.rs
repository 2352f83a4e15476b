//! Whether the kernel killed a process for want of memory: the counter of the worker's own cgroup, to which agent programs
//! belong as well.

use std::fs;
use std::path::PathBuf;

/// How often the kernel has killed a process of this cgroup for want of memory. `None` where the system does not say.
pub(super) fn kills() -> Option<u64> {
    let cgroups = fs::read_to_string("/proc/self/cgroup").ok()?;
    candidates(&cgroups).iter().find_map(|path| count(&fs::read_to_string(path).ok()?))
}

/// The files that may hold the counter, the most exact first, for cgroups of version 1 and 2. In a container, the path in
/// /proc/self/cgroup may be that of the host, while /sys/fs/cgroup shows the container's own cgroup as its root.
fn candidates(cgroups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, file) = if controllers.split(',').any(|c| c == "memory") {
            ("/sys/fs/cgroup/memory", "memory.oom_control")
        } else if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.events")
        } else {
            continue;
        };
        files.push(PathBuf::from(format!("{root}{}/{file}", path.trim_end_matches('/'))));
        files.push(PathBuf::from(format!("{root}/{file}")));
    }
    files
}

/// The counter in the text of such a file.
fn count(file: &str) -> Option<u64> {
    file.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_cgroups() {
        assert_eq!(
            candidates("0::/pod/x\n"),
            [PathBuf::from("/sys/fs/cgroup/pod/x/memory.events"), PathBuf::from("/sys/fs/cgroup/memory.events"),]
        );
        assert_eq!(
            candidates("5:cpu:/y\n4:memory:/y\n"),
            [
                PathBuf::from("/sys/fs/cgroup/memory/y/memory.oom_control"),
                PathBuf::from("/sys/fs/cgroup/memory/memory.oom_control"),
            ]
        );
        assert_eq!(count("oom 3\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), Some(7));
        assert_eq!(count("low 0\n"), None);
    }
}
