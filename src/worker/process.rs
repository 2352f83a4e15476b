//! One running program of the agent, with all that it starts: it ends with its turn, and with the worker.

use std::io;
use std::path::Path;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};
use std::time::Duration;

use rustix::process::Signal;

use crate::child::keeper::{self, Keep, KeptProcess};

/// This binary, which is the keeper as well. The file that runs, not the one that is at its path by now: it may have been
/// replaced.
const OURSELVES: &str = "/proc/self/exe";

/// A command that runs a program under a keeper: what [`AgentProcess::start`] starts.
pub(super) fn kept_command(program: &str) -> Command {
    keeper::command(Path::new(OURSELVES), program)
}

/// A program under a [keeper]. When this is dropped before the program has come to its end, everything
/// is killed.
pub(super) struct AgentProcess {
    process: KeptProcess,
    /// Our ends of the pipes that the command asked for.
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
}

impl AgentProcess {
    /// Starts a command that [`kept_command`] made.
    pub(super) async fn start(command: Command) -> io::Result<AgentProcess> {
        Self::start_kept(command, Keep::UntilTold).await
    }

    /// The same with a choice of what lives on after [`wait`](Self::wait) and [`stop`](Self::stop).
    pub(super) async fn start_kept(command: Command, keep: Keep) -> io::Result<AgentProcess> {
        let spawn = move || KeptProcess::spawn(command, keep, |_| {});
        let mut spawned = tokio::task::spawn_blocking(spawn).await.map_err(io::Error::other)??;
        let process = spawned.process().clone();
        let (stdin, stdout, stderr) = (spawned.stdin.take(), spawned.stdout.take(), spawned.stderr.take());
        spawned.when_over(|_| {});
        Ok(AgentProcess { process, stdin, stdout, stderr })
    }

    /// A future that completes when the program has ended; it borrows nothing.
    pub(super) fn exited(&self) -> impl Future<Output = ()> + Send + 'static {
        self.process.exited()
    }

    /// Sends a signal to the program alone.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = self.process.signal(signal);
    }

    /// Sends SIGTERM to the program's process group. When the program has ended, or after `grace`, all that is left of it is
    /// killed. `None` if the exit status is unknown.
    pub(super) async fn stop(self, grace: Duration) -> Option<ExitStatus> {
        let _ = self.process.signal_group(Signal::TERM);
        self.process.exited_within(grace).await;
        self.process.end().await;
        self.process.status()
    }

    /// Waits until the program ends by itself, then kills what is left of it. `None` if the exit status is unknown.
    pub(super) async fn wait(self) -> Option<ExitStatus> {
        self.process.exited().await;
        self.process.end().await;
        self.process.status()
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        // What is left once it is over, if anything, may live on until the worker ends.
        if !self.process.is_over() {
            self.process.drop_all();
        }
    }
}
