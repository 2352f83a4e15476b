//! What the keeper does, as a process of its own.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::Duration;

use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, getpid, getsid, kill_process, kill_process_group, set_child_subreaper,
    set_dumpable_behavior, wait,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};

use super::messages::{CONTROL, Keep, LENGTH, Order, Report};
use crate::child::descendants;
use crate::child::spawn::{SpawnTerms, Spawner};

/// The pauses between two looks at processes that were killed: the first, which doubles, and the longest. A process that ends
/// is noticed at once.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// Is the keeper of the program that the arguments name: `main` calls it when the binary was started as
/// [`NAME`](super::NAME).
pub fn keep() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}; lastword starts it by itself", super::NAME);
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let (control, keep) = inherited()?;
    let _ = rustix::thread::set_name(c"lastword-keeper");
    // The program has the same user. It cannot trace or read a process that is not dumpable.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    set_child_subreaper(Some(getpid()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        control.set_nonblocking(true)?;
        let control = UnixStream::from_std(control)?;
        let ended = signal(SignalKind::child())?;
        Keeper { control, keep, ended, program: None, told: false, reported: false }.run().await
    })
}

/// The control connection that this process was started with.
#[expect(unsafe_code, reason = "an inherited descriptor is only a number, and nothing else can take it over")]
fn inherited() -> io::Result<(StdStream, Keep)> {
    let missing = || io::Error::other(format!("{CONTROL} does not say what to keep"));
    let text = std::env::var(CONTROL).map_err(|_| missing())?;
    let (number, keep) = text.split_once(' ').ok_or_else(missing)?;
    let number: i32 = number.parse().map_err(|_| missing())?;
    let keep = keep.parse().map_err(|()| missing())?;
    // The number is looked at before it is taken over, for whoever sets the variable by hand.
    let open = std::fs::read_link(format!("/proc/self/fd/{number}"))?;
    if number <= 2 || !open.to_string_lossy().starts_with("socket:") {
        return Err(missing());
    }
    // SAFETY: the descriptor is open and a socket, as was just seen. Whoever started us left it open for us alone, and
    // nothing in this process has taken it: this is the first that the process does.
    let control = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&control, rustix::io::FdFlags::CLOEXEC)?;
    Ok((StdStream::from(control), keep))
}

struct Keeper {
    control: UnixStream,
    keep: Keep,
    /// Children that have ended.
    ended: SignalStream,
    /// The program, until it was reaped.
    program: Option<Pid>,
    /// What is left is to be ended.
    told: bool,
    /// It was said that what was to be ended is gone.
    reported: bool,
}

impl Keeper {
    async fn run(mut self) -> io::Result<()> {
        if self.order().await != Some(Order::Start) {
            return Ok(());
        }
        match start() {
            Ok(program) => self.program = Some(program),
            Err(error) => return self.report(Report::Failed(error.raw_os_error().unwrap_or(0))).await,
        }
        self.report(Report::Started).await?;
        loop {
            if !self.reap().await? {
                return self.say_ended().await;
            }
            if std::mem::take(&mut self.told) {
                self.end(self.keep).await?;
                self.say_ended().await?;
                continue;
            }
            tokio::select! {
                order = order(&mut self.control) => match order {
                    Some(Order::End) => self.told = true,
                    Some(Order::Signal(number)) => self.signal(number, kill_process),
                    Some(Order::SignalGroup(number)) => self.signal(number, kill_process_group),
                    Some(Order::Start) => {}
                    // The process that started us has ended, or wants no more of this.
                    None => return self.end(Keep::UntilTold).await,
                },
                _ = self.ended.recv() => {}
            }
        }
    }

    async fn order(&mut self) -> Option<Order> {
        order(&mut self.control).await
    }

    async fn report(&mut self, report: Report) -> io::Result<()> {
        // Nobody may be there to hear it; that is noticed when the next order is waited for.
        let _ = self.control.write_all(&report.bytes()).await;
        Ok(())
    }

    async fn say_ended(&mut self) -> io::Result<()> {
        if !std::mem::replace(&mut self.reported, true) {
            self.report(Report::Ended).await?;
        }
        Ok(())
    }

    /// Signals the program, unless it was reaped.
    fn signal(&self, number: i32, send: impl FnOnce(Pid, Signal) -> rustix::io::Result<()>) {
        if let (Some(program), Some(signal)) = (self.program, Signal::from_named_raw(number)) {
            let _ = send(program, signal);
        }
    }

    /// Reaps all children that have ended, and reports the program's end. Returns whether any child is left.
    async fn reap(&mut self) -> io::Result<bool> {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if Some(pid) == self.program => {
                    self.program = None;
                    self.told |= self.keep == Keep::WithProgram;
                    self.report(Report::Exited(status.as_raw())).await?;
                }
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) => return Ok(true),
                Err(_) => return Ok(false),
            }
        }
    }

    /// Ends what descends from us, except for what may live on, and returns when it is gone.
    async fn end(&mut self, keep: Keep) -> io::Result<()> {
        let (us, session) = (getpid(), getsid(None).ok());
        let (mut pause, longest) = PAUSES;
        let mut seen_none = false;
        while self.reap().await? {
            let mut found = descendants::of(us, &descendants::all());
            if keep == Keep::ButDetached {
                found.retain(|process| process.session == session && !process.is_zombie);
                // A process whose parent was ending may have been missed once.
                if found.is_empty() && std::mem::replace(&mut seen_none, true) {
                    break;
                }
            }
            seen_none &= found.is_empty();
            descendants::kill(&found);
            let _ = tokio::time::timeout(pause, self.ended.recv()).await;
            pause = (pause * 2).min(longest);
        }
        Ok(())
    }
}

/// The next order; `None` at the end of the connection.
async fn order(control: &mut UnixStream) -> Option<Order> {
    let mut bytes = [0; LENGTH];
    control.read_exact(&mut bytes).await.ok()?;
    Order::parse(bytes)
}

/// Starts the program, and lets go of the pipes that are its own.
fn start() -> io::Result<Pid> {
    let mut words = std::env::args_os().skip(1);
    let program: OsString = words.next().ok_or_else(|| io::Error::other("no program"))?;
    let mut command = Command::new(program);
    command.args(words).env_remove(CONTROL).process_group(0);
    // In our session: a new one could get a terminal.
    let terms = SpawnTerms { session: false, ..SpawnTerms::new(Signal::KILL) };
    let child = Spawner::global().spawn(command, terms)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(Pid::from_child(&child))
}
