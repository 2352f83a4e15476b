//! One running child of the supervisor: signalled without a race, reaped by a thread of its own.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::watch;

use super::directory::Claim;
use super::identity::Identity;

/// How long a drop waits for a child of an ephemeral cluster.
const DROP: Duration = Duration::from_secs(10);

/// A child. Its reaper keeps the claim on the directory until the child is gone, whoever else lets go of it.
pub(super) struct Process {
    pid: u32,
    /// Names this very process, also after its pid was given to another.
    handle: OwnedFd,
    exit: watch::Receiver<Option<ExitStatus>>,
    reaper: Option<JoinHandle<()>>,
    /// What a drop sends, and whether it waits for the end.
    on_drop: (Signal, bool),
}

impl Process {
    /// Starts `command`. Blocks for a moment.
    pub(super) fn start(
        identity: Identity,
        command: Command,
        on_our_death: Signal,
        on_drop: (Signal, bool),
        claim: Arc<Claim>,
    ) -> io::Result<Process> {
        let mut child = identity.spawn(command, on_our_death)?;
        let (sender, exit) = watch::channel(None);
        let handle = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let handle = match handle {
            Ok(handle) => handle,
            Err(error) => {
                end(&mut child);
                return Err(error.into());
            }
        };
        let pid = child.id();
        let reaper = thread::Builder::new().name("postgres-reaper".into());
        let reaper = reaper.spawn(move || reap(child, claim, &sender))?;
        Ok(Process { pid, handle, exit, reaper: Some(reaper), on_drop })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal; does nothing when the process has ended.
    pub(super) fn signal(&self, signal: Signal) {
        // The only errors are "gone" (the wish is fulfilled) and a sandbox that forbids it (the wait will tell).
        let _ = pidfd_send_signal(&self.handle, signal);
    }

    /// The exit status, if it has ended.
    pub(super) fn status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Becomes ready when the process has been reaped; holds nothing of it.
    pub(super) fn ended(&self) -> impl Future<Output = Option<ExitStatus>> + Send + 'static {
        let mut exit = self.exit.clone();
        async move { exit.wait_for(Option::is_some).await.ok().and_then(|status| *status) }
    }

    /// Waits at most `limit` for the end.
    pub(super) async fn ended_within(&self, limit: Duration) -> Option<ExitStatus> {
        tokio::time::timeout(limit, self.ended()).await.ok().flatten()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let (signal, wait) = self.on_drop;
        let Some(reaper) = self.reaper.take() else {
            return;
        };
        if self.status().is_none() {
            self.signal(signal);
        } else if !wait {
            return;
        }
        let since = Instant::now();
        while wait && !reaper.is_finished() && since.elapsed() < DROP {
            thread::sleep(Duration::from_millis(1)); // a drop cannot await
        }
    }
}

fn reap(mut child: Child, claim: Arc<Claim>, sender: &watch::Sender<Option<ExitStatus>>) {
    match child.wait() {
        Ok(status) => {
            drop(claim); // before the news: who hears it may start again at once
            let _ = sender.send(Some(status)); // nobody listens any more: fine
        }
        Err(error) => tracing::error!(%error, pid = child.id(), "cannot wait for a child process"),
    }
}

fn end(child: &mut Child) {
    // It may have ended by itself; either way it is reaped here.
    let _ = child.kill();
    let _ = child.wait();
}
