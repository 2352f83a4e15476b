//! One running program of the agent: a process group that ends with its turn, and with the worker.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::sync::watch;

use crate::child::spawn::Spawner;

/// A program in a process group of its own, which is killed when this is dropped.
pub(super) struct AgentProcess {
    /// `None` once it was waited for.
    child: Option<Child>,
    pid: Pid,
    exited: watch::Receiver<bool>,
}

impl AgentProcess {
    /// Starts a program.
    pub(super) async fn start(mut command: Command) -> io::Result<AgentProcess> {
        command.process_group(0);
        let spawn = move || Spawner::global().spawn(command, Signal::KILL);
        let child = tokio::task::spawn_blocking(spawn).await.map_err(io::Error::other)??;
        let pid = Pid::from_child(&child);
        let (tell, exited) = watch::channel(false);
        let mut process = AgentProcess { child: Some(child), pid, exited };
        // Waits without reaping. As long as the group's leader is a zombie, the kernel gives its number to no other process,
        // so that a signal to the group reaches this group and no other.
        let watcher = std::thread::Builder::new().name("wait".into()).spawn(move || {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while let Err(rustix::io::Errno::INTR) = rustix::process::waitid(WaitId::Pid(pid), options) {}
            let _ = tell.send(true);
        });
        match watcher {
            Ok(_) => Ok(process),
            Err(error) => {
                process.end();
                Err(error)
            }
        }
    }

    /// The child with its pipes, until it was waited for.
    pub(super) fn child(&mut self) -> Option<&mut Child> {
        self.child.as_mut()
    }

    /// A future that completes when the program has ended; it borrows nothing.
    pub(super) fn exited(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut exited = self.exited.clone();
        async move {
            let _ = exited.wait_for(|exited| *exited).await;
        }
    }

    /// Sends a signal to the program alone.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process(self.pid, signal);
    }

    /// Sends SIGTERM to the group, and SIGKILL if the program has not ended after `grace`. What is left of the group when the
    /// program has ended is killed, too. `None` if the exit status is unknown.
    pub(super) async fn stop(mut self, grace: Duration) -> Option<ExitStatus> {
        let _ = rustix::process::kill_process_group(self.pid, Signal::TERM);
        if tokio::time::timeout(grace, self.exited()).await.is_err() {
            let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
            self.exited().await;
        }
        self.end()
    }

    /// Waits until the program ends by itself, then kills what is left of the group. `None` if the exit status is unknown.
    pub(super) async fn wait(mut self) -> Option<ExitStatus> {
        self.exited().await;
        self.end()
    }

    /// Kills what is left of the group and reaps the leader.
    fn end(&mut self) -> Option<ExitStatus> {
        let mut child = self.child.take()?;
        let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
        child.wait().ok()
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        self.end();
    }
}
