//! Which processes descend from one, as /proc shows them, and their end.
//!
//! A list of /proc is no snapshot: while it is read, processes fork, end, and fall to other parents. So whoever ends a tree
//! of processes looks again until nothing is left. A killed process forks no more, and a signal to a process group reaches
//! also who is being forked in it, so a tree that grows is caught up with.

use std::collections::BTreeSet;
use std::fs;

use rustix::process::{Pid, Signal, getpgrp, kill_process, kill_process_group};

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessEntry {
    pub pid: Pid,
    /// `None` if it is outside of our PID namespace.
    pub parent: Option<Pid>,
    /// `None` if its leader is outside of our PID namespace; so with the session.
    pub group: Option<Pid>,
    pub session: Option<Pid>,
    /// It has exited and waits to be reaped.
    pub is_zombie: bool,
}

/// All processes that /proc shows.
pub(super) fn all() -> Vec<ProcessEntry> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)).collect()
}

/// Reads `/proc/PID/stat`: `PID (NAME) STATE PARENT GROUP SESSION …`, where the name may hold any byte.
fn parse(stat: &[u8]) -> Option<ProcessEntry> {
    let name_ends = stat.iter().rposition(|b| *b == b')')?;
    let begin = std::str::from_utf8(&stat[..stat.iter().position(|b| *b == b'(')?]).ok()?;
    let mut fields = std::str::from_utf8(&stat[name_ends + 1..]).ok()?.split_whitespace();
    let is_zombie = matches!(fields.next()?, "Z" | "X");
    let mut id = || fields.next()?.parse().ok().map(Pid::from_raw);
    let (parent, group, session) = (id()?, id()?, id()?);
    Some(ProcessEntry { pid: Pid::from_raw(begin.trim().parse().ok()?)?, parent, group, session, is_zombie })
}

/// Those of `all` that descend from `root`, without itself.
pub(super) fn of(root: Pid, all: &[ProcessEntry]) -> Vec<ProcessEntry> {
    let mut parents = BTreeSet::from([root.as_raw_nonzero().get()]);
    let mut found: Vec<ProcessEntry> = Vec::new();
    // A parent may have a higher id than its child, so one pass over the list is not enough.
    loop {
        let before = found.len();
        for process in all {
            let below = process.parent.is_some_and(|parent| parents.contains(&parent.as_raw_nonzero().get()));
            if below && parents.insert(process.pid.as_raw_nonzero().get()) {
                found.push(*process);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// Sends SIGKILL to these processes and their process groups. Our own group is left out, which a descendant in our session
/// may have joined.
pub(super) fn kill(processes: &[ProcessEntry]) {
    for process in processes.iter().filter(|p| !p.is_zombie) {
        let _ = kill_process(process.pid, Signal::KILL);
    }
    let groups: BTreeSet<i32> =
        processes.iter().filter(|p| !p.is_zombie).filter_map(|p| p.group).map(|g| g.as_raw_nonzero().get()).collect();
    for group in groups.into_iter().filter_map(Pid::from_raw).filter(|group| *group != getpgrp()) {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(id: i32) -> Pid {
        Pid::from_raw(id).expect("not 0")
    }

    #[test]
    fn a_name_may_hold_anything() {
        let stat = b"42 (a) Z 1 (b\n\xff) S 7 8 9 0 -1\n";
        let read = parse(stat).expect("a process");
        assert_eq!((read.pid, read.parent, read.is_zombie), (pid(42), Some(pid(7)), false));
        assert_eq!((read.group, read.session), (Some(pid(8)), Some(pid(9))));
        assert_eq!(parse(b"42 (a) Z 0 0 0").expect("a process").parent, None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn all_generations_are_found_whatever_their_order() {
        let entry = |id, parent| ProcessEntry {
            pid: pid(id),
            parent: Some(pid(parent)),
            group: None,
            session: None,
            is_zombie: false,
        };
        let all = [entry(2, 5), entry(3, 9), entry(5, 7), entry(7, 4), entry(8, 2)];
        let mut found: Vec<i32> = of(pid(7), &all).iter().map(|p| p.pid.as_raw_nonzero().get()).collect();
        found.sort_unstable();
        assert_eq!(found, [2, 5, 8]);
    }
}
