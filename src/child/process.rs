//! A child process that leads a session, and so a process group, of its own: signalled without a race, its end noticed by a
//! thread.
//!
//! A child that has exited stays a zombie until its parent reaps it (`waitpid`). As long as it is one, its process id, and
//! the id of its group, name nobody else. So the thread that waits for the exit only *looks* (`waitid` with `WNOWAIT`);
//! signals go out under the lock under which the child is reaped, and none is sent afterwards, when the ids may already
//! belong to a stranger.
//!
//! When to reap is the owner's decision: [`Spawned::when_exited`] runs the owner's code in the waiting thread, which may
//! reap at once; or the owner reaps later, when it has read what the group's other processes still print.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};
use tokio::sync::watch;

use super::ours;
use super::spawn::{SpawnTerms, Spawner};
use crate::turn::cause::process::ProcessEnd;
use crate::turn::terminal::Exit;

/// The stack of a waiting thread, in bytes: there is one for each child, and it does little.
const STACK: usize = 256 * 1024;

/// A handle on one child. Clones name the same child; none of them ends it when dropped.
#[derive(Debug, Clone)]
pub struct ChildProcess {
    pid: Pid,
    /// `None` once it was reaped.
    child: Arc<Mutex<Option<Child>>>,
    exited: watch::Receiver<bool>,
}

/// A child that was started and that nobody waits for yet. Dropped without [`when_exited`](Self::when_exited), it is killed
/// with its group and reaped.
#[derive(Debug)]
pub struct Spawned {
    child: Unattended,
    /// Our ends of the pipes that the command asked for.
    pub stdin: Option<ChildStdin>,
    pub stdout: Option<ChildStdout>,
    pub stderr: Option<ChildStderr>,
    waiter: Waiter,
}

/// Kills and reaps a child on drop, unless somebody waits for it.
#[derive(Debug)]
struct Unattended {
    process: ChildProcess,
    attended: bool,
}

/// The thread that is going to wait, until it is told what for.
#[derive(Debug)]
struct Waiter {
    thread: JoinHandle<()>,
    orders: mpsc::Sender<Box<dyn FnOnce() + Send>>,
    exited: watch::Sender<bool>,
}

impl ChildProcess {
    /// Starts `command` as the leader of a new session, so that a terminal's Ctrl-C does not reach it. The rest is as
    /// `terms` say, see [`Spawner::spawn`]. Blocks for about a millisecond.
    ///
    /// # Errors
    /// Those of [`Spawner::spawn`], and that of a thread that cannot be started. Then nothing runs.
    pub fn spawn(command: Command, terms: SpawnTerms) -> io::Result<Spawned> {
        // The thread is started first, so that no child is started that nobody can wait for.
        let (orders, inbox) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let thread = thread::Builder::new().name("child-wait".into()).stack_size(STACK);
        let thread = thread.spawn(move || {
            if let Ok(order) = inbox.recv() {
                order();
            }
        })?;
        let mut child = Spawner::global().spawn(command, SpawnTerms { session: true, ..terms })?;
        let (tell, exited) = watch::channel(false);
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let process = ChildProcess { pid: Pid::from_child(&child), child: Arc::new(Mutex::new(Some(child))), exited };
        let child = Unattended { process, attended: false };
        Ok(Spawned { child, stdin, stdout, stderr, waiter: Waiter { thread, orders, exited: tell } })
    }

    /// The process id, which is also the id of its group.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a signal to the child alone; does nothing once it was reaped.
    ///
    /// # Errors
    /// Those of `kill`: a sandbox may forbid it.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        self.unless_reaped(|| kill_process(self.pid, signal))
    }

    /// Sends a signal to the child and all of its group; does nothing once the child was reaped.
    ///
    /// # Errors
    /// Those of `kill`.
    pub fn signal_group(&self, signal: Signal) -> io::Result<()> {
        self.unless_reaped(|| kill_process_group(self.pid, signal))
    }

    fn unless_reaped(&self, send: impl FnOnce() -> rustix::io::Result<()>) -> io::Result<()> {
        match *self.child() {
            Some(_) => send().map_err(io::Error::from),
            None => Ok(()),
        }
    }

    /// Becomes ready when the child has exited, reaped or not. The future borrows nothing.
    pub fn exited(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut exited = self.exited.clone();
        async move {
            // An error means that the thread that waited is gone, and with it the child.
            let _ = exited.wait_for(|exited| *exited).await;
        }
    }

    /// Waits at most `limit` for the exit; false if the child is still there.
    pub async fn exited_within(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.exited()).await.is_ok()
    }

    /// Gives the child `grace` to exit by itself, then sends SIGKILL to its group. True if that was needed.
    ///
    /// # Errors
    /// Those of `kill`, when it was needed.
    pub async fn kill_after(&self, grace: Duration) -> io::Result<bool> {
        if self.exited_within(grace).await {
            return Ok(false);
        }
        self.signal_group(Signal::KILL).map(|()| true)
    }

    /// Reaps the child and gives its exit status: to the first caller only. Blocks until the child has exited, and keeps
    /// signals waiting for as long; so it is called after the exit, or after SIGKILL.
    ///
    /// # Errors
    /// Those of `waitpid`, and that it was reaped before.
    pub fn reap(&self) -> io::Result<ExitStatus> {
        let mut child = self.child();
        let mut child = child.take().ok_or_else(|| io::Error::other("the process was reaped before"))?;
        let status = child.wait();
        ours::forget(self.pid);
        status
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spawned {
    /// The child, to be signalled and waited for.
    pub fn process(&self) -> &ChildProcess {
        &self.child.process
    }

    /// Begins to wait for the exit. When the child has exited, `then` runs in the waiting thread; the child is still a
    /// zombie, for `then` to reap or to leave to the owner. The handle is finished when `then` has run. Pipes that were not
    /// taken are closed.
    pub fn when_exited(self, then: impl FnOnce(&ChildProcess) + Send + 'static) -> JoinHandle<()> {
        self.attend(|| {}, then)
    }

    /// [`when_exited`](Self::when_exited) in a thread that first runs `meanwhile`, which returns when the child has exited
    /// or is about to.
    pub(super) fn attend(
        mut self,
        meanwhile: impl FnOnce() + Send + 'static,
        then: impl FnOnce(&ChildProcess) + Send + 'static,
    ) -> JoinHandle<()> {
        let Waiter { thread, orders, exited } = self.waiter;
        let process = self.child.process.clone();
        let order = move || {
            meanwhile();
            wait_for_exit(process.pid);
            exited.send_replace(true);
            then(&process);
        };
        // The thread takes the order, since it waits for nothing else.
        let _ = orders.send(Box::new(order));
        self.child.attended = true;
        thread
    }
}

impl Drop for Unattended {
    fn drop(&mut self) {
        if !self.attended {
            // It may have exited by itself; either way it is reaped here.
            let _ = self.process.signal_group(Signal::KILL);
            let _ = self.process.reap();
        }
    }
}

/// Returns when the child has exited, and leaves it a zombie.
fn wait_for_exit(pid: Pid) {
    // Another error than an interruption shows again when the child is reaped.
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(pid), options) {}
}

/// An exit status in the words that reasons are picked by.
impl From<ExitStatus> for ProcessEnd {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => ProcessEnd::Exit(Exit::Code(code)),
            (None, Some(signal)) => ProcessEnd::Exit(Exit::Signal(signal)),
            (None, None) => ProcessEnd::Otherwise(status.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::process::Stdio;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    #[tokio::test]
    async fn an_exited_child_keeps_its_id_until_it_is_reaped() {
        let spawned = ChildProcess::spawn(shell("exit 3"), SpawnTerms::new(Signal::KILL)).expect("starts");
        let process = spawned.process().clone();
        spawned.when_exited(|_| {});
        assert!(process.exited_within(Duration::from_secs(10)).await);
        let stat = format!("/proc/{}/stat", process.pid().as_raw_nonzero());
        assert!(fs::read_to_string(&stat).expect("a zombie").contains(") Z "));
        process.signal(Signal::TERM).expect("a zombie takes signals");
        assert_eq!(process.reap().expect("reaped").code(), Some(3));
        process.signal(Signal::KILL).expect("nothing is sent");
        process.reap().expect_err("once");
    }

    #[tokio::test]
    async fn a_child_that_ignores_sigterm_is_killed_after_its_grace() {
        let mut command = shell("trap '' TERM; echo; sleep 60 & wait");
        command.stdout(Stdio::piped());
        let mut spawned = ChildProcess::spawn(command, SpawnTerms::new(Signal::KILL)).expect("starts");
        // From its first output on, the shell ignores the signal.
        spawned.stdout.take().expect("a pipe").read_exact(&mut [0]).expect("a line");
        let process = spawned.process().clone();
        let (tell, told) = tokio::sync::oneshot::channel();
        spawned.when_exited(move |process| drop(tell.send(process.reap())));
        process.signal(Signal::TERM).expect("sent");
        assert!(process.kill_after(Duration::from_millis(100)).await.expect("sent"));
        let status = told.await.expect("reaped").expect("a status");
        assert_eq!(status.signal(), Some(9));
        assert!(!process.kill_after(Duration::ZERO).await.expect("nothing is sent"));
    }

    #[test]
    fn a_child_that_nobody_waits_for_does_not_stay() {
        let spawned = ChildProcess::spawn(shell("sleep 60"), SpawnTerms::new(Signal::KILL)).expect("starts");
        let pid = spawned.process().pid().as_raw_nonzero();
        drop(spawned);
        assert!(!fs::exists(format!("/proc/{pid}")).expect("answers"));
    }
}
