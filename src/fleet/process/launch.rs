//! The start of a worker process, what it prints, and its end.
//!
//! A start has three steps in this order: the process is started, it is added to the table, its exit is waited for. So the
//! table hears of a worker's end after it has heard of the worker, and no process is left that nobody waits for.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::{ChildStderr, ChildStdout};
use tokio::runtime::Handle;

use super::table::ProcessTable;
use super::worker::WorkerProcess;
use crate::child::cgroup::Cgroup;
use crate::child::output::{StderrTail, copy_lines, copy_stderr};
use crate::child::process::{ChildProcess, Spawned};
use crate::turn::keys::StartId;
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// How long the rest of a dead worker's stderr is waited for: a process outside of the worker's group may still hold it
/// open.
const READING: Duration = Duration::from_millis(200);

/// What is known of a worker before its process is started.
pub(super) struct WorkerLaunch {
    pub start_id: StartId,
    /// The Agent's name, for the log.
    pub agent: String,
    /// The time between SIGTERM and SIGKILL.
    pub grace: Duration,
    pub table: Arc<ProcessTable>,
    /// Where the tasks run that read what the worker prints.
    pub runtime: Handle,
}

impl WorkerLaunch {
    /// Starts the process, within `cgroup` if there is one. Blocks for a moment.
    ///
    /// # Errors
    /// Those of [`ChildProcess::spawn`]; then the cgroup is removed.
    pub fn run(self, command: Command, cgroup: Option<Cgroup>) -> io::Result<()> {
        let mut spawned = match ChildProcess::spawn(command, Signal::KILL) {
            Ok(spawned) => spawned,
            Err(error) => {
                cgroup.into_iter().for_each(Cgroup::remove);
                return Err(error);
            }
        };
        // Right after the start: what the process allocates before this is not counted, which harms nobody.
        if let Some(cgroup) = &cgroup
            && let Err(error) = cgroup.add(spawned.process().pid())
        {
            tracing::warn!(start = %self.start_id, %error, "a worker runs without its memory limit");
        }
        let worker = Arc::new(WorkerProcess::new(spawned.process().clone(), self.grace));
        self.table.add(self.start_id, worker);
        let stderr = self.copy_output(&mut spawned);
        spawned.when_exited(move |process| {
            let cause = reap(process, cgroup, &stderr);
            self.table.remove(self.start_id, cause);
        });
        Ok(())
    }

    /// Copies what the process prints to the log, in tasks of their own.
    fn copy_output(&self, spawned: &mut Spawned) -> StderrTail {
        let _entered = self.runtime.enter();
        let (agent, start) = (self.agent.clone(), self.start_id);
        if let Some(Ok(stdout)) = spawned.stdout.take().map(ChildStdout::from_std) {
            let say = move |line: &str| tracing::info!(target: "worker", agent, %start, "{line}");
            tokio::spawn(copy_lines(stdout, say));
        }
        let Some(Ok(stderr)) = spawned.stderr.take().map(ChildStderr::from_std) else { return StderrTail::default() };
        let agent = self.agent.clone();
        let say = move |line: &str| tracing::info!(target: "worker", agent, %start, stderr = true, "{line}");
        let (tail, copying) = copy_stderr(stderr, say);
        tokio::spawn(copying);
        tail
    }
}

/// Reaps a worker that has exited, kills what it left in its process group, and says why it ended.
fn reap(process: &ChildProcess, cgroup: Option<Cgroup>, stderr: &StderrTail) -> Failure {
    let _ = process.signal_group(Signal::KILL);
    let oom = cgroup.as_ref().and_then(Cgroup::oom_kills).is_some_and(|kills| kills > 0);
    let status = process.reap();
    if let Some(cgroup) = cgroup {
        // In another thread: it may take a second, and the death is to be reported now.
        thread::spawn(move || cgroup.remove());
    }
    stderr.wait_closed(READING);
    cause(status, oom, &stderr.text())
}

/// Why a worker ended, from its exit status and the kernel's count of kills for want of memory.
fn cause(status: io::Result<ExitStatus>, oom: bool, stderr: &str) -> Failure {
    let (how, abnormal) = match status {
        Err(error) => (format!("its exit status could not be had: {error}"), false),
        Ok(status) => match (status.signal(), status.code()) {
            (Some(signal), _) => (described(signal), signal == Signal::KILL.as_raw()),
            (None, Some(code)) => (format!("exit code {code}"), code != 0),
            (None, None) => (status.to_string(), false),
        },
    };
    let reason = if oom && abnormal { Reason::OutOfMemory } else { Reason::WorkerExited };
    let detail = if stderr.is_empty() { how } else { format!("{how}; stderr ends:\n{stderr}") };
    Failure::detailed(reason, detail)
}

fn described(signal: i32) -> String {
    let name = match Signal::from_named_raw(signal) {
        Some(Signal::KILL) => "SIGKILL",
        Some(Signal::TERM) => "SIGTERM",
        Some(Signal::INT) => "SIGINT",
        Some(Signal::HUP) => "SIGHUP",
        Some(Signal::ABORT) => "SIGABRT",
        Some(Signal::SEGV) => "SIGSEGV",
        Some(Signal::BUS) => "SIGBUS",
        Some(Signal::ILL) => "SIGILL",
        Some(Signal::FPE) => "SIGFPE",
        Some(Signal::PIPE) => "SIGPIPE",
        Some(Signal::QUIT) => "SIGQUIT",
        Some(Signal::TRAP) => "SIGTRAP",
        Some(Signal::SYS) => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal} ({name})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_of_an_end() {
        let exit = |code: i32| Ok(ExitStatus::from_raw(code << 8));
        let signal = |signal: i32| Ok(ExitStatus::from_raw(signal));
        use Reason::*;
        for (status, oom, stderr, reason, detail) in [
            (exit(0), false, "", WorkerExited, "exit code 0"),
            (exit(1), false, "no such file", WorkerExited, "exit code 1; stderr ends:\nno such file"),
            (signal(9), false, "", WorkerExited, "signal 9 (SIGKILL)"),
            (signal(9), true, "", OutOfMemory, "signal 9 (SIGKILL)"),
            (signal(15), true, "", WorkerExited, "signal 15 (SIGTERM)"),
            (exit(137), true, "", OutOfMemory, "exit code 137"),
            (exit(5), true, "", OutOfMemory, "exit code 5"),
            (exit(0), true, "", WorkerExited, "exit code 0"),
        ] {
            let failure = cause(status, oom, stderr);
            assert_eq!((failure.reason, failure.detail.as_deref()), (reason, Some(detail)));
        }
    }
}
