//! One worker process: signals, its end, and why it ended.

use std::process::Child;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};
use tokio_util::sync::CancellationToken;

use super::process::Shared;
use crate::child::cgroup::Group;
use crate::child::output::Tail;
use crate::turn::cause;
use crate::turn::cause::process::Ended;
use crate::turn::keys::StartId;
use crate::turn::terminal::Failure;

/// After the end, a process outside the worker's group may still hold its stderr: how long its end is waited for.
const READING: Duration = Duration::from_millis(200);

/// A worker that was not reaped yet, as those who signal it know it.
pub(super) struct Worker {
    pid: Pid,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    state: Mutex<State>,
    gone: CancellationToken,
}

#[derive(Default)]
struct State {
    stopping: bool,
    /// Once it was reaped, its process id may be a stranger's.
    reaped: bool,
}

impl Worker {
    pub fn new(pid: Pid, grace: Duration) -> Self {
        Worker { pid, grace, state: Mutex::default(), gone: CancellationToken::new() }
    }

    /// SIGTERM to the worker now, SIGKILL to its group after the grace. Once.
    pub fn stop(self: &Arc<Self>, start: StartId) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.reaped || std::mem::replace(&mut state.stopping, true) {
            return;
        }
        undelivered(start, kill_process(self.pid, Signal::TERM));
        drop(state);
        let worker = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = worker.gone.cancelled() => {}
                () = tokio::time::sleep(worker.grace) => {
                    tracing::warn!(%start, "the worker did not end within its drainSeconds; killing it");
                    worker.kill(start);
                }
            }
        });
    }

    /// SIGKILL to the worker and its group.
    pub fn kill(&self, start: StartId) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.reaped {
            undelivered(start, kill_process_group(self.pid, Signal::KILL));
        }
    }
}

/// Only reaping is proof of death, so a signal that did not arrive changes nothing.
fn undelivered(start: StartId, sent: rustix::io::Result<()>) {
    if let Err(error) = sent {
        tracing::warn!(%start, %error, "cannot signal a worker");
    }
}

/// Waits for one child, in a thread of its own.
pub(super) struct Reaper {
    pub start_id: StartId,
    pub child: Child,
    pub worker: Arc<Worker>,
    pub group: Option<Group>,
    pub tail: Tail,
    /// Told when stderr was read to its end.
    pub errors_read: Receiver<()>,
}

impl Reaper {
    /// Hands the child to a thread that reports its death to `shared`.
    pub fn start(self, shared: Arc<Shared>) {
        let start_id = self.start_id;
        let (give, take) = std::sync::mpsc::channel::<Reaper>();
        let reap = move |reaper: Reaper, shared: &Shared| {
            let cause = reaper.reap();
            shared.dead(start_id, cause);
        };
        let theirs = shared.clone();
        let thread = thread::Builder::new().name("reaper".into()).stack_size(256 * 1024).spawn(move || {
            if let Ok(reaper) = take.recv() {
                reap(reaper, &theirs);
            }
        });
        match thread {
            // The thread takes it: it does nothing else.
            Ok(_) => drop(give.send(self)),
            Err(error) => {
                // Without a thread nobody would notice its end: it ends now, and this (blocking) thread waits.
                tracing::error!(%error, start = %start_id, "cannot start a thread to wait for a worker; killing it");
                self.worker.kill(start_id);
                let cause = self.reap();
                shared.dead(start_id, cause);
            }
        }
    }

    fn reap(mut self) -> Failure {
        wait_for_exit(self.worker.pid);
        // What the worker left in its process group has nobody to work for.
        let _ = kill_process_group(self.worker.pid, Signal::KILL);
        let oom = self.group.as_ref().and_then(Group::oom_kills).is_some_and(|kills| kills > 0);
        let status = {
            let mut state = self.worker.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.reaped = true;
            self.child.wait()
        };
        self.worker.gone.cancel();
        if let Some(group) = self.group.take() {
            // Not before the report: it may take a while.
            thread::spawn(move || group.remove());
        }
        let _ = self.errors_read.recv_timeout(READING);
        let ended = status.map_or_else(|error| Ended::Unknown(Some(error.to_string())), Ended::from);
        cause::process::end(&ended, oom, &self.tail.text())
    }
}

/// Returns when the child has ended, and leaves it a zombie.
fn wait_for_exit(pid: Pid) {
    loop {
        match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Err(rustix::io::Errno::INTR) => {}
            // The wait that reaps tells what is wrong.
            _ => return,
        }
    }
}
