//! The start of a worker process, what it prints, and its end.
//!
//! A start has three steps in this order: the process is started, it is added to the table, its exit is waited for. So the
//! table hears of a worker's end after it has heard of the worker, and no process is left that nobody waits for.

use std::io;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::process::{ChildStderr, ChildStdout};
use tokio::runtime::Handle;

use super::table::ProcessTable;
use super::worker::WorkerProcess;
use crate::child::cgroup::Cgroup;
use crate::child::keeper::{Keep, KeptProcess, KeptSpawned};
use crate::child::output::{StderrTail, copy_lines, copy_stderr, printable};
use crate::turn::cause::process::{self, ProcessEnd};
use crate::turn::keys::StartId;
use crate::turn::terminal::Failure;

/// How long the rest of a dead worker's stderr is waited for: what is still in the pipe is read in another task.
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
    /// Those of [`KeptProcess::spawn`]; then the cgroup is removed.
    pub fn run(self, command: Command, cgroup: Option<Cgroup>) -> io::Result<()> {
        let limit = |keeper| {
            if let Some(Err(error)) = cgroup.as_ref().map(|cgroup| cgroup.add(keeper)) {
                tracing::warn!(start = %self.start_id, %error, "a worker runs without its memory limit");
            }
        };
        let mut spawned = match KeptProcess::spawn(command, Keep::WithProgram, limit) {
            Ok(spawned) => spawned,
            Err(error) => {
                cgroup.into_iter().for_each(Cgroup::remove);
                return Err(error);
            }
        };
        let worker = Arc::new(WorkerProcess::new(spawned.process().clone(), self.grace));
        self.table.add(self.start_id, worker);
        let stderr = self.copy_output(&mut spawned);
        spawned.when_over(move |status| {
            let cause = cause(status, cgroup, &stderr);
            self.table.remove(self.start_id, cause);
        });
        Ok(())
    }

    /// Copies what the process prints to the log, in tasks of their own.
    fn copy_output(&self, spawned: &mut KeptSpawned) -> StderrTail {
        let _entered = self.runtime.enter();
        let (agent, start) = (self.agent.clone(), self.start_id);
        if let Some(Ok(stdout)) = spawned.stdout.take().map(ChildStdout::from_std) {
            tokio::spawn(copy_lines(stdout, move |piece| {
                if let Some(line) = printable(piece) {
                    tracing::info!(target: "worker", agent, %start, "{line}");
                }
            }));
        }
        let Some(Ok(stderr)) = spawned.stderr.take().map(ChildStderr::from_std) else { return StderrTail::default() };
        let agent = self.agent.clone();
        let (tail, copying) = copy_stderr(stderr, move |piece| {
            if let Some(line) = printable(piece) {
                tracing::info!(target: "worker", agent, %start, stderr = true, "{line}");
            }
        });
        tokio::spawn(copying);
        tail
    }
}

/// Why a worker ended of which nothing is left.
fn cause(status: io::Result<ExitStatus>, cgroup: Option<Cgroup>, stderr: &StderrTail) -> Failure {
    let oom = cgroup.as_ref().and_then(Cgroup::oom_kills).is_some_and(|kills| kills > 0);
    if let Some(cgroup) = cgroup {
        // The cgroup is removed in another thread, since that may take a second and the death is to be reported now.
        thread::spawn(move || cgroup.remove());
    }
    stderr.wait_closed(READING);
    let ended = status.map_or_else(|error| ProcessEnd::Unknown(Some(error.to_string())), ProcessEnd::from);
    process::end(&ended, oom, &stderr.text())
}
