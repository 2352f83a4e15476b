//! How a process ended, and why a worker process ended that the runtime `process` reaped.

use std::fmt;

use super::signal;
use crate::turn::reason::Reason;
use crate::turn::terminal::{Exit, Failure};

/// How a process ended, as whoever waited for it read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessEnd {
    Exit(Exit),
    /// It ended neither by an exit code nor by a signal; this is the system's description.
    Otherwise(String),
    /// Its exit status could not be read; with the error, if there was one.
    Unknown(Option<String>),
}

impl fmt::Display for ProcessEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProcessEnd::Exit(Exit::Code(code)) => write!(f, "exit code {code}"),
            ProcessEnd::Exit(Exit::Signal(signal)) => match signal::name(*signal) {
                Some(name) => write!(f, "signal {signal} ({name})"),
                None => write!(f, "signal {signal}"),
            },
            ProcessEnd::Otherwise(how) => f.write_str(how),
            ProcessEnd::Unknown(Some(error)) => write!(f, "its exit status could not be had: {error}"),
            ProcessEnd::Unknown(None) => f.write_str("the exit status is unknown"),
        }
    }
}

/// Why a worker process ended. `out_of_memory`: the kernel killed in the worker's cgroup for want of memory. That
/// explains a SIGKILL, and every exit code but 0, since a parent reports its killed child by an exit code that it
/// chooses. It explains neither an exit code 0 nor another signal, which somebody else sent.
pub fn end(ended: &ProcessEnd, out_of_memory: bool, stderr: &str) -> Failure {
    let abnormal = match ended {
        ProcessEnd::Exit(Exit::Code(code)) => *code != 0,
        ProcessEnd::Exit(Exit::Signal(signal)) => *signal == signal::KILL,
        ProcessEnd::Otherwise(_) | ProcessEnd::Unknown(_) => false,
    };
    let reason = if out_of_memory && abnormal { Reason::OutOfMemory } else { Reason::WorkerExited };
    let detail = if stderr.is_empty() { ended.to_string() } else { format!("{ended}; stderr ends:\n{stderr}") };
    Failure::detailed(reason, detail)
}

/// The failure of a worker that an earlier run of this `lastword` process had started. The worker died with that run.
pub fn of_a_former_run() -> Failure {
    Failure::detailed(Reason::WorkerExited, "lastword was restarted")
}
