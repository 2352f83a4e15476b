//! One running agent program: a process group that ends with its turn, and with us.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::sync::watch;

use crate::child::spawn::Spawner;
use crate::wire::env;

/// A program in a process group of its own.
pub(super) struct Process {
    /// `None` once reaped.
    child: Option<Child>,
    pid: Pid,
    exited: watch::Receiver<bool>,
}

impl Process {
    /// Starts it.
    pub(super) async fn start(mut command: Command) -> io::Result<Process> {
        command.process_group(0);
        let spawn = move || Spawner::global().spawn(command, Signal::KILL);
        let child = tokio::task::spawn_blocking(spawn).await.map_err(io::Error::other)??;
        let pid = Pid::from_child(&child);
        let (tell, exited) = watch::channel(false);
        let mut process = Process { child: Some(child), pid, exited };
        // Looks without reaping: as long as the leader is a zombie, its number names this group and no other.
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

    /// The pipes and the number.
    pub(super) fn child(&mut self) -> Option<&mut Child> {
        self.child.as_mut()
    }

    /// A future that ends when the program does; it borrows nothing.
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

    /// SIGTERM to the group, SIGKILL when the program is still there after `grace`. Whatever of the group is left when
    /// the program has ended is killed too.
    pub(super) async fn stop(mut self, grace: Duration) -> Option<ExitStatus> {
        let _ = rustix::process::kill_process_group(self.pid, Signal::TERM);
        if tokio::time::timeout(grace, self.exited()).await.is_err() {
            let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
            self.exited().await;
        }
        self.end()
    }

    /// Waits for the end by itself.
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

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// A command whose environment is ours without what is the worker's own: the credential above all.
pub(super) fn agent_command(program: &str) -> Command {
    let mut command = Command::new(program);
    for name in [env::CREDENTIAL, env::TOKEN_FILE, env::GATEWAY, env::CAPACITY, env::DRAIN_SECONDS] {
        command.env_remove(name);
    }
    command
}

/// Keeps programs of the same user from reading our environment, with the credential, in /proc.
pub(super) fn hide_environment() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!("agent programs may read the worker's environment: {error}");
    }
}
