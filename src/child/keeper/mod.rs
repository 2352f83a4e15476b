//! The keeper: a small process between this one and a program, which sees to it that nothing of the program is left.
//!
//! A program starts others, and they leave its process group: `timeout` makes a group of its own, daemons and browsers a
//! session. The kernel knows one bond that they cannot leave by themselves: where a process's parent has ended, it falls to
//! the nearest *subreaper* above it. The keeper is one, for one program. So whatever descends from the program descends from
//! the keeper, and the keeper ends all of it, by looking through /proc until it has no children left.
//!
//! ```text
//!   worker (adapter) ──control──▶ lastword-keeper ──▶ program ──▶ …
//!                    ◀─reports──       ▲                          │ orphaned
//!                                      └──────────────────────────┘
//! ```
//!
//! | who ends | what becomes of the program and its descendants |
//! |---|---|
//! | the program | the keeper tells its status at once; it ends what is left when it is told to, since a child may still print |
//! | the process that started the keeper, by SIGKILL too | the control connection ends, and the keeper ends everything |
//! | the keeper, killed by the program | the program gets its parent-death signal; the rest falls to the starting process, which ends it ([`ours`](super::ours)) |
//! | the keeper, stopped (SIGSTOP) by the program | the starting process kills the keeper |
//!
//! The keeper is this same binary, started as [`NAME`]. It leads a session of its own without a terminal, in which the program
//! leads a process group: a program that asks for a terminal has none, and a `kill 0` does not reach the keeper. It has the
//! environment that the program is to get, and so no secret of the worker's.

mod kept;
mod messages;
mod run;

use std::path::Path;
use std::process::Command;

pub use kept::{KeptProcess, KeptSpawned};
pub use messages::Keep;
pub use run::keep;

/// The name under which the binary is the keeper: its `argv[0]`, and what `ps` shows. 15 bytes are the most that the kernel
/// keeps of a process's name.
pub const NAME: &str = "lastword-keeper";

/// A command for [`KeptProcess::spawn`]: `lastword`, as the keeper of `program`. The program's arguments, environment,
/// working directory and stdio are set on it as on any command.
pub fn command(lastword: &Path, program: impl AsRef<std::ffi::OsStr>) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(lastword);
    command.arg0(NAME).arg(program);
    command
}
