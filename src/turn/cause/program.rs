//! Why the end of an agent program, or of the model server that an adapter runs, is no reply.

use std::fmt::Display;

use super::process::ProcessEnd;
use super::signal;
use crate::turn::reason::Reason;
use crate::turn::terminal::{Exit, Failure, Outcome};

/// The exit code with which a shell says that its program was killed by SIGKILL: 128 and the signal's number.
const SHELL_SAYS_KILLED: i32 = 128 + signal::KILL;

/// What a program's end means for the turn that it worked on. `said`: the program printed text that can be a reply.
/// `out_of_memory`: the kernel killed something for want of memory while the program ran. `stderr`: the end of what the
/// program wrote to stderr.
pub fn answer(ended: &ProcessEnd, said: bool, out_of_memory: bool, stderr: &str) -> Outcome {
    let success = *ended == ProcessEnd::Exit(Exit::Code(0));
    if success && said {
        return Outcome::Reply;
    }
    let mut failure = end(ended, out_of_memory);
    if success {
        let exit = failure.exit;
        failure = Failure { exit, ..Failure::detailed(Reason::AgentError, "exit code 0, but nothing on stdout") }
            .with_message("The agent gave no answer.");
    }
    if !stderr.is_empty() {
        failure.detail = Some(format!("{}\n{stderr}", failure.detail.unwrap_or_default()));
    }
    Outcome::Error(failure)
}

/// Why a program ended that should not have. `out_of_memory` as for [`answer`].
pub fn end(ended: &ProcessEnd, out_of_memory: bool) -> Failure {
    let (reason, what) = match ended {
        ProcessEnd::Exit(Exit::Code(SHELL_SAYS_KILLED)) if out_of_memory => {
            (Reason::OutOfMemory, "exit code 137, and the kernel killed for want of memory".into())
        }
        ProcessEnd::Exit(Exit::Code(code)) => (Reason::AgentError, format!("exit code {code}")),
        ProcessEnd::Exit(Exit::Signal(signal::KILL)) if out_of_memory => {
            (Reason::OutOfMemory, "killed by the kernel for want of memory".into())
        }
        ProcessEnd::Exit(Exit::Signal(signal)) => (Reason::WorkerExited, format!("killed by {}", named(*signal))),
        ProcessEnd::Otherwise(how) => (Reason::WorkerExited, how.clone()),
        ProcessEnd::Unknown(_) => (Reason::Internal, ended.to_string()),
    };
    let exit = if let ProcessEnd::Exit(exit) = ended { Some(*exit) } else { None };
    Failure { exit, ..Failure::detailed(reason, what) }
}

/// Why a model server ended. It serves many turns, and whatever its exit code, its end breaks off all of them. So the
/// reason is `WorkerExited` and not `AgentError`.
pub fn server_end(ended: &ProcessEnd, out_of_memory: bool) -> Failure {
    let failure = end(ended, out_of_memory);
    if failure.reason != Reason::AgentError {
        return failure;
    }
    Failure { reason: Reason::WorkerExited, ..failure }.with_message(Reason::WorkerExited.client_message())
}

/// The failure of a program that could not be started.
pub fn not_started(program: &str, error: impl Display) -> Failure {
    Failure::detailed(Reason::StartFailed, format!("cannot start {program}: {error}"))
}

/// The failure of a turn whose output is longer than a turn's log may be: `bytes` of text.
pub fn too_long(bytes: u64) -> Failure {
    let detail = format!("a turn's output may have at most {bytes} bytes of text");
    Failure::detailed(Reason::AgentError, detail).with_message("the agent's output is too long")
}

/// The failure of a turn with a piece of output that is too large. `why` names the limit.
pub fn output_too_large(why: impl Display) -> Failure {
    Failure::detailed(Reason::AgentError, why.to_string())
        .with_message("A piece of the agent's output is too large to be shown.")
}

/// The failure of a turn whose program takes its message as an argument, and whose message is longer than that can be.
pub fn argument_too_long(bytes: usize, max: usize) -> Failure {
    let said = format!("The message has {bytes} bytes; this agent takes at most {max}.");
    Failure::detailed(Reason::AgentError, "the kernel takes no longer argument: have the message on stdin")
        .with_message(said)
}

/// The failure of a turn whose program takes its message as an argument, and would take this one for an option.
pub fn looks_like_an_option() -> Failure {
    let detail = "a message that begins with - is given as an argument only behind a -- that ends the command";
    Failure::detailed(Reason::AgentError, detail)
        .with_message("This agent takes no message that begins with a dash. Please put something in front of it.")
}

/// The failure of a turn whose output no gateway took. `why` is a gateway's answer.
pub fn output_refused(why: impl Into<String>) -> Failure {
    Failure::detailed(Reason::Internal, why)
}

/// The failure of a turn that the adapter itself could not run.
pub fn adapter_failed(error: impl Display) -> Failure {
    Failure::detailed(Reason::Internal, format!("the adapter failed: {error}"))
}

/// The failure of a turn that was to be answered together with another, which was cancelled.
pub fn stopped_together() -> Failure {
    let message = "A message that was answered together with this one was cancelled. Send this one again.";
    Failure::new(Reason::AgentError).with_message(message)
}

/// The failure of a turn in which the echo adapter was sent nothing but space.
pub fn nothing_to_echo() -> Failure {
    Failure::new(Reason::AgentError).with_message("There is nothing to echo.")
}

/// The outcome that a worker reports for a turn whose log ends at `log_end`. A reply without output becomes an error,
/// since nobody is to be shown an empty answer.
pub fn reply(outcome: Outcome, log_end: u64) -> Outcome {
    match outcome {
        Outcome::Reply if log_end == 0 => {
            Outcome::Error(Failure::detailed(Reason::AgentError, "the worker sent a reply without any output"))
        }
        outcome => outcome,
    }
}

/// A signal by name and number, as in `SIGSEGV (signal 11)`.
fn named(signal: i32) -> String {
    match signal::name(signal) {
        Some(name) => format!("{name} (signal {signal})"),
        None => format!("signal {signal}"),
    }
}
