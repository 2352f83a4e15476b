//! Starts programs that die with us.
//!
//! PDEATHSIG fires when the *thread* that forked ends, not the process. So one thread, which lives as long as the
//! process, does all forking.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{OnceLock, mpsc};
use std::thread;

use rustix::process::Signal;

type Request = (Command, Signal, mpsc::SyncSender<io::Result<Child>>);

/// The thread that forks.
pub struct Spawner {
    requests: mpsc::Sender<Request>,
}

impl Spawner {
    /// The one of this process.
    pub fn global() -> &'static Spawner {
        static SPAWNER: OnceLock<Spawner> = OnceLock::new();
        SPAWNER.get_or_init(|| {
            let (requests, inbox) = mpsc::channel::<Request>();
            thread::Builder::new()
                .name("spawner".into())
                .spawn(move || {
                    for (command, on_our_death, answer) in inbox {
                        let _ = answer.send(fork(command, on_our_death));
                    }
                })
                .expect("a thread can be started while the process starts");
            Spawner { requests }
        })
    }

    /// Starts `command`; when this process dies, however it dies, the child gets `on_our_death`. Blocks for as long as
    /// fork and exec take.
    pub fn spawn(&self, command: Command, on_our_death: Signal) -> io::Result<Child> {
        let (answer, result) = mpsc::sync_channel(1);
        let gone = || io::Error::other("the thread that starts programs is gone");
        self.requests.send((command, on_our_death, answer)).map_err(|_| gone())?;
        result.recv().map_err(|_| gone())?
    }
}

fn fork(mut command: Command, on_our_death: Signal) -> io::Result<Child> {
    let us = rustix::process::getpid();
    let before_exec = move || {
        rustix::process::set_parent_process_death_signal(Some(on_our_death))?;
        // We may have died between fork and the line above; then nobody would send the signal.
        if rustix::process::getppid() != Some(us) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        Ok(())
    };
    #[expect(unsafe_code, reason = "pre_exec: the closure makes system calls only, all async-signal-safe")]
    unsafe {
        command.pre_exec(before_exec);
    }
    command.spawn()
}
