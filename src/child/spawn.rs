//! Child processes that never outlive this process, not even when it is killed with SIGKILL.
//!
//! Linux sends a child its *parent-death signal* when the **thread** that forked it ends, not when the process
//! does. A thread of tokio's blocking pool ends after ten idle seconds, so a child forked there would be signalled
//! for no reason. All children are therefore forked by one dedicated thread that lives as long as the process.
//!
//! A command's own settings (process group, uid and gid, working directory, stdio) are set on the [`Command`] as usual;
//! the parent-death signal is set last, because a change of uid clears it.
//!
//! What the thread forks, it also enters into the list of [`ours`], in one step for whoever reads the list.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output};
use std::sync::{OnceLock, mpsc};
use std::thread;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal};

use super::ours::{self, ChildKind};

/// The thread that forks all children. There is one a process: [`Spawner::global`].
pub struct Spawner {
    requests: mpsc::Sender<SpawnRequest>,
}

struct SpawnRequest {
    command: Command,
    terms: SpawnTerms,
    answer: mpsc::SyncSender<io::Result<Child>>,
}

/// What a child is started with besides what its [`Command`] says.
#[derive(Debug)]
pub struct SpawnTerms {
    pub kind: ChildKind,
    /// The signal that the child gets when this process ends. `None` for a child that notices the end by itself.
    pub on_our_death: Option<Signal>,
    pub namespace: UserNamespace,
    /// Whether the child leads a new session, and so a process group of its own. A session has no terminal until its leader
    /// opens one: Ctrl-C does not reach the child, and neither it nor what it starts can be stopped for reading a terminal.
    pub session: bool,
    /// A descriptor that the child keeps, under the same number; it is closed here once the child has been forked.
    pub inherited: Option<OwnedFd>,
}

impl SpawnTerms {
    /// Those of a child of no special kind in a session of its own.
    pub fn new(on_our_death: Signal) -> Self {
        SpawnTerms {
            kind: ChildKind::Plain,
            on_our_death: Some(on_our_death),
            namespace: UserNamespace::Ours,
            session: true,
            inherited: None,
        }
    }
}

/// The user namespace that a child runs in (see user_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserNamespace {
    /// This process's own.
    Ours,
    /// A new one, in which our own user has the uid and gid `shown_as`. Outside the namespace the child is still this
    /// process's user, so file permissions do not change, but it has no capabilities there.
    New { shown_as: u32 },
}

impl Spawner {
    /// The process's one spawner; its thread is started by the first call and never ends.
    pub fn global() -> &'static Spawner {
        static GLOBAL: OnceLock<Spawner> = OnceLock::new();
        GLOBAL.get_or_init(|| {
            let (requests, inbox) = mpsc::channel();
            // If the thread cannot be started, the inbox is dropped and every spawn() reports it.
            if let Err(error) = thread::Builder::new().name("spawner".into()).spawn(move || serve(inbox)) {
                tracing::error!(%error, "cannot start the thread that spawns child processes");
            }
            Spawner { requests }
        })
    }

    /// Starts `command` on these terms.
    ///
    /// Blocks for the fork and exec (about a millisecond). The parent-death signal also reaches a child whose parent died
    /// between fork and exec: such a child ends itself before the exec. Whoever reaps the child calls
    /// [`ours::forget`] afterwards.
    ///
    /// # Errors
    /// Those of [`Command::spawn`], and `Other` when the spawner's thread could not be started.
    pub fn spawn(&self, command: Command, terms: SpawnTerms) -> io::Result<Child> {
        let gone = || io::Error::other("the thread that spawns child processes is not running");
        let (answer, response) = mpsc::sync_channel(1);
        self.requests.send(SpawnRequest { command, terms, answer }).map_err(|_| gone())?;
        response.recv().map_err(|_| gone())?
    }

    /// Runs `command` to its end, and gives what it printed to the pipes that the command asked for.
    ///
    /// # Errors
    /// As [`Spawner::spawn`], and those of reading.
    pub fn output(&self, command: Command, terms: SpawnTerms) -> io::Result<Output> {
        let child = self.spawn(command, terms)?;
        let pid = Pid::from_child(&child);
        let output = child.wait_with_output();
        ours::forget(pid);
        output
    }
}

fn serve(inbox: mpsc::Receiver<SpawnRequest>) {
    for mut request in inbox {
        let kind = request.terms.kind;
        let answer = ours::enter(kind, || fork(&mut request.command, request.terms));
        // A caller waits for its answer until it has it, so the receiver is there.
        let _ = request.answer.send(answer);
    }
}

#[expect(
    unsafe_code,
    reason = "pre_exec runs between fork and exec; nothing else can set a parent-death signal without a race"
)]
fn fork(command: &mut Command, terms: SpawnTerms) -> io::Result<Child> {
    let us = rustix::process::getpid();
    let maps = IdMaps::new(terms.namespace);
    let (on_our_death, session, inherited) = (terms.on_our_death, terms.session, terms.inherited);
    // SAFETY: the closure runs in the forked child, before exec. It only makes system calls on memory that was
    // allocated before the fork: it takes no lock and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            if let Some(maps) = &maps {
                // SAFETY: a forked child has one thread, and no descriptor table shared with anybody.
                rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWUSER)?;
                maps.write()?;
            }
            if session {
                rustix::process::setsid()?;
            }
            if let Some(inherited) = &inherited {
                // Only here, in the child: no other child that is forked meanwhile gets the descriptor.
                fcntl_setfd(inherited.as_fd(), FdFlags::empty())?;
            }
            on_our_death.map_or(Ok(()), |signal| die_with(us, signal))
        });
    }
    command.spawn()
}

/// In the child: asks for `signal` at the parent's death, and looks whether that has already happened.
fn die_with(parent: Pid, signal: Signal) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(signal))?;
    if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(io::Error::from(io::ErrorKind::BrokenPipe)) }
}

/// What a child writes about itself after it entered its user namespace.
struct IdMaps {
    uid_map: String,
    gid_map: String,
}

impl IdMaps {
    fn new(namespace: UserNamespace) -> Option<IdMaps> {
        let UserNamespace::New { shown_as } = namespace else {
            return None;
        };
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        Some(IdMaps { uid_map: format!("{shown_as} {uid} 1"), gid_map: format!("{shown_as} {gid} 1") })
    }

    fn write(&self) -> io::Result<()> {
        put(c"/proc/self/setgroups", "deny")?;
        put(c"/proc/self/gid_map", &self.gid_map)?;
        put(c"/proc/self/uid_map", &self.uid_map)
    }
}

/// Writes a file of /proc in one call, without allocating.
fn put(path: &std::ffi::CStr, content: &str) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags};
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, content.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let mut child = thread::spawn(|| {
            let mut command = Command::new("sleep");
            command.arg("30");
            Spawner::global().spawn(command, SpawnTerms::new(Signal::KILL))
        })
        .join()
        .expect("the asking thread ends")
        .expect("sleep starts");
        // A signal would come a moment after the join, so that none comes is seen only by waiting.
        thread::sleep(std::time::Duration::from_millis(200));
        assert_eq!(child.try_wait().expect("wait"), None);
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    #[test]
    fn a_missing_program_is_the_callers_error() {
        let error = Spawner::global().spawn(Command::new("/nonexistent/program"), SpawnTerms::new(Signal::TERM));
        let error = error.expect_err("no such program");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
