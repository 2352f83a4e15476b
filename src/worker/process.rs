//! One running program of the agent: a process group that ends with its turn, and with the worker.

use std::io;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};
use std::time::Duration;

use rustix::process::Signal;

use crate::child::process::ChildProcess;

/// A program in a process group of its own, which is killed when this is dropped.
pub(super) struct AgentProcess {
    process: ChildProcess,
    /// Our ends of the pipes that the command asked for.
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
}

impl AgentProcess {
    /// Starts a program.
    pub(super) async fn start(command: Command) -> io::Result<AgentProcess> {
        let spawn = move || ChildProcess::spawn(command, Signal::KILL);
        let mut spawned = tokio::task::spawn_blocking(spawn).await.map_err(io::Error::other)??;
        let process = spawned.process().clone();
        let (stdin, stdout, stderr) = (spawned.stdin.take(), spawned.stdout.take(), spawned.stderr.take());
        // The program is reaped by `end` and not at its exit: until then its process group can be signalled, and other
        // processes of the group may still print.
        spawned.when_exited(|_| {});
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

    /// Sends SIGTERM to the group, and SIGKILL if the program has not ended after `grace`. What is left of the group when the
    /// program has ended is killed, too. `None` if the exit status is unknown.
    pub(super) async fn stop(self, grace: Duration) -> Option<ExitStatus> {
        let _ = self.process.signal_group(Signal::TERM);
        let _ = self.process.kill_after(grace).await;
        self.wait().await
    }

    /// Waits until the program ends by itself, then kills what is left of the group. `None` if the exit status is unknown.
    pub(super) async fn wait(self) -> Option<ExitStatus> {
        self.exited().await;
        self.end()
    }

    /// Kills what is left of the group and reaps the leader. `None` if that was done before.
    fn end(&self) -> Option<ExitStatus> {
        let _ = self.process.signal_group(Signal::KILL);
        self.process.reap().ok()
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        self.end();
    }
}
