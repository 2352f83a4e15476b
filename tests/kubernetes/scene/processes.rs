//! The processes of pods, as the host sees them: found by cgroup and environment, signalled one by one.
//!
//! On the local cluster everything runs in PID namespaces below this process's own. A row that needs this asks for
//! `Cluster::connect_local`.

use std::fs;

use k8s_openapi::api::core::v1::Pod;
use rustix::process::Signal;

use super::until;
use crate::support::process::{self, environment_has};

/// A process of a pod.
#[derive(Debug, Clone)]
pub struct Process {
    pub pid: u32,
    /// Its id in the innermost PID namespace: 1 is the container's first process.
    inner: u32,
    parent: u32,
    /// Its command line.
    command: String,
    cgroup: String,
}

impl Process {
    pub fn signal(&self, signal: Signal) {
        process::signal(self.pid, signal);
    }

    pub fn is_gone(&self) -> bool {
        !process::is_alive(self.pid)
    }
}

/// All processes that run in a pod now.
pub fn of_pod(pod: &Pod) -> Vec<Process> {
    let uid = pod.metadata.uid.as_deref().expect("a pod of the API server has a UID");
    // The systemd driver writes the UID with underscores.
    let other = uid.replace('-', "_");
    all(|cgroup| cgroup.contains(uid) || cgroup.contains(&other))
}

/// The first process of a pod's container: in `agent`, the adapter.
pub fn first_of(pod: &Pod, container: &str) -> Process {
    find_first(pod, container)
        .unwrap_or_else(|| panic!("no first process of {container} in {:?}: {:?}", pod.metadata.name, of_pod(pod)))
}

/// The same, if it runs: a killed one may not have been started again.
pub fn find_first(pod: &Pod, container: &str) -> Option<Process> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let id = statuses.iter().find(|s| s.name == container)?.container_id.as_deref()?.rsplit('/').next()?;
    of_pod(pod).into_iter().find(|p| p.inner == 1 && p.cgroup.contains(id))
}

/// The program that an adapter runs for a turn, and the adapter: the first process of the same container. Between the two
/// stands the program's keeper, which has the same environment and is skipped.
pub async fn program_of(turn: &str) -> (Process, Process) {
    let wanted = format!("LASTWORD_TURN_ID={turn}");
    until(&format!("the program of turn {turn}"), async || {
        let all = all(|_| true);
        let runs = |p: &&Process| !p.command.starts_with("lastword-keeper") && environment_has(p.pid, &wanted);
        let mine: Vec<&Process> = all.iter().filter(runs).collect();
        // The topmost: what a program starts inherits its environment.
        let program = mine.iter().find(|p| !mine.iter().any(|other| other.pid == p.parent));
        let program = program.ok_or("no process has it in its environment")?;
        let adapter = all.iter().find(|p| p.inner == 1 && p.cgroup == program.cgroup).ok_or("no first process")?;
        Ok(((*program).clone(), adapter.clone()))
    })
    .await
}

fn all(of: impl Fn(&str) -> bool) -> Vec<Process> {
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| read(pid).filter(|p| of(&p.cgroup))).collect()
}

fn read(pid: u32) -> Option<Process> {
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().last()?.parse().ok());
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    Some(Process { pid, inner: field("NSpid:")?, parent: field("PPid:")?, command, cgroup })
}
