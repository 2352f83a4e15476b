//! A kept program, as the process that started its keeper knows it.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::sync::watch;

use super::messages::{CONTROL, Keep, Order, Report};
use crate::child::ours::{self, ChildKind};
use crate::child::process::{ChildProcess, Spawned};
use crate::child::spawn::{SpawnTerms, UserNamespace};

/// How long a keeper may take to end what its program left behind, before the keeper is killed itself.
const ENDING: Duration = Duration::from_secs(5);

/// A handle on a kept program. Clones name the same program; none of them ends it when dropped.
#[derive(Debug, Clone)]
pub struct KeptProcess {
    keeper: ChildProcess,
    control: Arc<UnixStream>,
    state: watch::Receiver<KeptState>,
}

/// What is known of a kept program's end.
#[derive(Debug, Clone, Copy, Default)]
struct KeptState {
    /// How the program ended; how the keeper did, if that was lost with it.
    ended: Option<ExitStatus>,
    /// What was to be ended is gone.
    over: bool,
}

/// A kept program that was started and that nobody waits for yet. Dropped without [`when_over`](Self::when_over), it is
/// ended with all that it started.
#[derive(Debug)]
pub struct KeptSpawned {
    process: KeptProcess,
    keeper: Spawned,
    state: watch::Sender<KeptState>,
    /// Our ends of the pipes that the command asked for.
    pub stdin: Option<ChildStdin>,
    pub stdout: Option<ChildStdout>,
    pub stderr: Option<ChildStderr>,
}

impl KeptProcess {
    /// Starts a command that [`command`](super::command) made. `before` is told the keeper's process id before the program
    /// is started, so that a limit which it sets on the keeper holds for the program from its begin. Blocks for some
    /// milliseconds.
    ///
    /// # Errors
    /// Those of [`ChildProcess::spawn`], and the program's: that there is none, say.
    pub fn spawn(mut command: Command, keep: Keep, before: impl FnOnce(Pid)) -> io::Result<KeptSpawned> {
        let (control, theirs) = UnixStream::pair()?;
        let theirs = OwnedFd::from(theirs);
        command.env(CONTROL, format!("{} {keep}", theirs.as_raw_fd()));
        // Without a parent-death signal: at our death, the keeper has something to do.
        let terms = SpawnTerms {
            kind: ChildKind::Keeper,
            on_our_death: None,
            namespace: UserNamespace::Ours,
            session: true,
            inherited: Some(theirs),
        };
        let mut keeper = ChildProcess::spawn(command, terms)?;
        before(keeper.process().pid());
        (&control).write_all(&Order::Start.bytes())?;
        match Report::read(&control) {
            Ok(Report::Started) => {}
            Ok(Report::Failed(number @ 1..)) => return Err(io::Error::from_raw_os_error(number)),
            _ => {
                // The program may have been started, and have killed its keeper before that could say so: what it had
                // started has fallen to us.
                drop(keeper);
                ours::end_orphans();
                return Err(io::Error::other("its keeper ended before it said that it had started the program"));
            }
        }
        let (state, seen) = watch::channel(KeptState::default());
        let (stdin, stdout, stderr) = (keeper.stdin.take(), keeper.stdout.take(), keeper.stderr.take());
        let process = KeptProcess { keeper: keeper.process().clone(), control: Arc::new(control), state: seen };
        Ok(KeptSpawned { process, keeper, state, stdin, stdout, stderr })
    }

    /// Becomes ready when the program has ended. The future borrows nothing.
    pub fn exited(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut state = self.state.clone();
        async move {
            // An error means that the thread which waited is gone, and with it the keeper.
            let _ = state.wait_for(|state| state.ended.is_some()).await;
        }
    }

    /// Waits at most `limit` for the program's end; false if it is still there.
    pub async fn exited_within(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.exited()).await.is_ok()
    }

    /// How the program ended; `None` as long as it runs.
    pub fn status(&self) -> Option<ExitStatus> {
        self.state.borrow().ended
    }

    /// Sends a signal to the program alone; does nothing once it has ended.
    ///
    /// # Errors
    /// That the keeper is gone, or is about to be.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        self.tell(Order::Signal(signal.as_raw()))
    }

    /// Sends a signal to the program and its process group; does nothing once it has ended.
    ///
    /// # Errors
    /// As [`signal`](Self::signal).
    pub fn signal_group(&self, signal: Signal) -> io::Result<()> {
        self.tell(Order::SignalGroup(signal.as_raw()))
    }

    /// Ends what is to be ended, the program too if it still runs, and returns when it is gone.
    pub async fn end(&self) {
        // An error means that the keeper is gone: then what it kept is ended here, and the state tells when it is.
        let _ = self.tell(Order::End);
        let mut state = self.state.clone();
        let gone = async move { state.wait_for(|state| state.over).await.is_ok() };
        tokio::pin!(gone);
        if tokio::time::timeout(ENDING, &mut gone).await.is_err() {
            tracing::warn!(keeper = ?self.keeper.pid(), "a keeper does not come to its end, and is killed");
            let _ = self.keeper.signal(Signal::KILL);
            let _ = tokio::time::timeout(ENDING, gone).await;
        }
    }

    /// Whether what was to be ended is gone.
    pub fn is_over(&self) -> bool {
        self.state.borrow().over
    }

    /// Has everything ended, what would live on too, without waiting for it.
    pub fn drop_all(&self) {
        let _ = self.control.shutdown(Shutdown::Write);
    }

    fn tell(&self, order: Order) -> io::Result<()> {
        (&*self.control).write_all(&order.bytes())
    }
}

impl KeptSpawned {
    /// The program, to be signalled and waited for.
    pub fn process(&self) -> &KeptProcess {
        &self.process
    }

    /// Begins to wait for the program's end. When the keeper has ended as well, `then` runs in the waiting thread, with the
    /// program's exit status. Pipes that were not taken are closed.
    pub fn when_over(self, then: impl FnOnce(io::Result<ExitStatus>) + Send + 'static) {
        let KeptSpawned { process, keeper, state, .. } = self;
        // The thread holds the connection for as long as the keeper lives: a keeper of detached processes outlives all
        // handles, and sees the end of the connection when this process ends.
        let control = process.control;
        let state = Arc::new(state);
        let seen = state.clone();
        let listen = move || {
            while let Ok(report) = Report::read(&*control) {
                state.send_modify(|state| match report {
                    Report::Exited(status) => state.ended = Some(ExitStatus::from_raw(status)),
                    Report::Ended => state.over = true,
                    Report::Started | Report::Failed(_) => {}
                });
            }
        };
        keeper.attend(listen, move |keeper| {
            let status = keeper.reap();
            if !matches!(&status, Ok(status) if status.success()) {
                // It did not come to its end by itself, so what it kept has fallen to us.
                ours::end_orphans();
            }
            let known = seen.borrow().ended;
            seen.send_modify(|state| {
                state.ended = state.ended.or(status.as_ref().ok().copied());
                state.over = true;
            });
            then(known.map_or(status, Ok));
        });
    }
}
