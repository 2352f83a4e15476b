//! Child processes that never outlive this process, not even when it is killed with SIGKILL.
//!
//! Linux sends a child its *parent-death signal* when the **thread** that forked it ends, not when the process
//! does. A thread of tokio's blocking pool ends after ten idle seconds, so a child forked there would be signalled
//! for no reason. All children are therefore forked by one dedicated thread that lives as long as the process.
//!
//! A command's own settings (process group, uid and gid, working directory, stdio) are set on the [`Command`] as usual;
//! the parent-death signal is set last, because a change of uid clears it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{OnceLock, mpsc};
use std::thread;

use rustix::process::{Pid, Signal};

/// The thread that forks all children. There is one a process: [`Spawner::global`].
pub struct Spawner {
    requests: mpsc::Sender<SpawnRequest>,
}

struct SpawnRequest {
    command: Command,
    on_our_death: Signal,
    namespace: UserNamespace,
    answer: mpsc::SyncSender<io::Result<Child>>,
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

    /// Starts `command`; the child gets `on_our_death` when this process ends, however it ends.
    ///
    /// Blocks for the fork and exec (about a millisecond). The signal also reaches a child whose parent died
    /// between fork and exec: such a child ends itself before the exec.
    ///
    /// # Errors
    /// Those of [`Command::spawn`], and `Other` when the spawner's thread could not be started.
    pub fn spawn(&self, command: Command, on_our_death: Signal) -> io::Result<Child> {
        self.spawn_in(command, on_our_death, UserNamespace::Ours)
    }

    /// [`Spawner::spawn`] with a choice of the user namespace.
    ///
    /// # Errors
    /// As [`Spawner::spawn`].
    pub fn spawn_in(&self, command: Command, on_our_death: Signal, namespace: UserNamespace) -> io::Result<Child> {
        let gone = || io::Error::other("the thread that spawns child processes is not running");
        let (answer, response) = mpsc::sync_channel(1);
        let request = SpawnRequest { command, on_our_death, namespace, answer };
        self.requests.send(request).map_err(|_| gone())?;
        response.recv().map_err(|_| gone())?
    }
}

fn serve(inbox: mpsc::Receiver<SpawnRequest>) {
    for mut request in inbox {
        let answer = fork(&mut request.command, request.on_our_death, request.namespace);
        // A caller waits for its answer until it has it, so the receiver is there.
        let _ = request.answer.send(answer);
    }
}

#[expect(
    unsafe_code,
    reason = "pre_exec runs between fork and exec; nothing else can set a parent-death signal without a race"
)]
fn fork(command: &mut Command, signal: Signal, namespace: UserNamespace) -> io::Result<Child> {
    let us = rustix::process::getpid();
    let maps = IdMaps::new(namespace);
    // SAFETY: the closure runs in the forked child, before exec. It only makes system calls on memory that was
    // allocated before the fork: it takes no lock and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            if let Some(maps) = &maps {
                // SAFETY: a forked child has one thread, and no descriptor table shared with anybody.
                rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWUSER)?;
                maps.write()?;
            }
            die_with(us, signal)
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
            Spawner::global().spawn(command, Signal::KILL)
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
        let error =
            Spawner::global().spawn(Command::new("/nonexistent/program"), Signal::TERM).expect_err("no such program");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
