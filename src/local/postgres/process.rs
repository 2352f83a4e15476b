//! One running program of Postgres: `initdb`, or the server.

use std::io;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::sync::watch;

use super::directory::DataDir;
use super::user::ServerUser;
use crate::child::process::ChildProcess;
use crate::child::spawn::SpawnTerms;

/// How long a drop waits for the end of an ephemeral cluster's server.
const DROP: Duration = Duration::from_secs(10);

/// A running program. The thread that reaps it holds the data directory's lock until the program has ended, even if
/// everybody else has let go of it.
pub(super) struct PostgresProcess {
    process: ChildProcess,
    exit: watch::Receiver<Option<ExitStatus>>,
    reaper: Option<JoinHandle<()>>,
    on_drop: OnDrop,
}

/// What a drop of a program that is still running does.
#[derive(Debug, Clone, Copy)]
pub(super) struct OnDrop {
    pub signal: Signal,
    /// Whether the end is waited for.
    pub wait: bool,
}

impl PostgresProcess {
    /// Starts `command`. Blocks for about a millisecond.
    pub(super) fn start(
        user: ServerUser,
        mut command: Command,
        on_our_death: Signal,
        on_drop: OnDrop,
        data_dir: Arc<DataDir>,
    ) -> io::Result<PostgresProcess> {
        let namespace = user.assume(&mut command);
        let spawned = ChildProcess::spawn(command, SpawnTerms { namespace, ..SpawnTerms::new(on_our_death) })?;
        let process = spawned.process().clone();
        let (tell, exit) = watch::channel(None);
        let reaper = spawned.when_exited(move |process| match process.reap() {
            Ok(status) => {
                // The directory is let go before the exit is told, since whoever hears of the exit may start a server
                // at once.
                drop(data_dir);
                // An error means that nobody waits for the status any more.
                let _ = tell.send(Some(status));
            }
            Err(error) => tracing::error!(%error, pid = ?process.pid(), "cannot wait for a child process"),
        });
        Ok(PostgresProcess { process, exit, reaper: Some(reaper), on_drop })
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid().as_raw_nonzero().get().unsigned_abs()
    }

    /// Sends a signal; does nothing when the program has ended. The server tells its own children what they need to know.
    pub(super) fn signal(&self, signal: Signal) {
        // An error means that a sandbox forbids the signal. Whoever waits for the end notices that.
        let _ = self.process.signal(signal);
    }

    /// The exit status, if the program has ended.
    pub(super) fn status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Waits for the end; `None` if the exit status cannot be had. The future borrows nothing.
    pub(super) fn ended(&self) -> impl Future<Output = Option<ExitStatus>> + Send + 'static {
        let mut exit = self.exit.clone();
        async move { exit.wait_for(Option::is_some).await.ok().and_then(|status| *status) }
    }

    /// Waits for the end, at most `limit`.
    pub(super) async fn ended_within(&self, limit: Duration) -> Option<ExitStatus> {
        tokio::time::timeout(limit, self.ended()).await.ok().flatten()
    }
}

impl Drop for PostgresProcess {
    fn drop(&mut self) {
        let OnDrop { signal, wait } = self.on_drop;
        let Some(reaper) = self.reaper.take() else {
            return;
        };
        if self.status().is_none() {
            self.signal(signal);
        } else if !wait {
            return;
        }
        // A drop cannot await; and a thread cannot be joined within a limit.
        let since = Instant::now();
        while wait && !reaper.is_finished() && since.elapsed() < DROP {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
