//! The process that evaluates CEL expressions, one at a time, for a gateway or controller: `lastword evaluate`, which nobody
//! else starts. It reads questions on stdin and writes answers to stdout, and ends with its stdin.
//!
//! It has no variable of the environment, no key and no connection. What it may use is limited by the kernel: processor time
//! for each question, memory, and no core dump, which would hold messages. What goes beyond a limit ends the process, and
//! whoever asked sees by which signal.

use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::cel::{self, Question};

/// The least processor time for one question, in seconds. The kernel counts whole seconds, so that a question has up to one
/// second more.
pub const CPU_SECONDS: u64 = 1;
/// The most memory for values, in bytes.
pub const MEMORY_BYTES: u64 = 64 << 20;
/// A process that holds more than this after a question ends itself, and another takes its place.
const TIDY_BYTES: u64 = 16 << 20;
/// The largest question: a message of 1 MiB of control characters is six times as large in JSON, and metadata come on top.
pub(super) const MAX_QUESTION_BYTES: usize = 16 << 20;
/// The largest answer: the beginning of an error.
pub(super) const MAX_ANSWER_BYTES: usize = 4096;

/// What the process answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Answer {
    Allow,
    Reject,
    /// The expression cannot be evaluated for this message.
    Broken(String),
}

/// Is the process, until stdin ends.
pub fn run() -> ExitCode {
    let (mut questions, mut answers) = (io::stdin().lock(), io::stdout().lock());
    match limit_process().and_then(|()| serve(&mut questions, &mut answers)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn limit_process() -> io::Result<()> {
    // A panic's message may quote the user's; whoever asks learns that there was one.
    std::panic::set_hook(Box::new(|_| {}));
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    limit(Resource::Core, 0)?;
    limit(Resource::Data, MEMORY_BYTES)?;
    // Where the processor is short, the gateway comes first.
    let _ = rustix::process::nice(10);
    Ok(())
}

/// Lowers a soft limit; a lower one that is there already stays.
fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let maximum = getrlimit(resource).maximum;
    let current = Some(maximum.map_or(most, |maximum| maximum.min(most)));
    Ok(setrlimit(resource, Rlimit { current, maximum })?)
}

fn serve(questions: &mut impl Read, answers: &mut impl Write) -> io::Result<()> {
    while let Some(question) = read_frame(questions)? {
        let used = u64::try_from(clock_gettime(ClockId::ProcessCPUTime).tv_sec).unwrap_or(0);
        limit(Resource::Cpu, used + 1 + CPU_SECONDS)?;
        let evaluation = catch_unwind(AssertUnwindSafe(|| match serde_json::from_slice::<Question>(&question) {
            Ok(question) => cel::evaluate(question),
            Err(error) => Err(format!("the question cannot be read: {error}")),
        }));
        let answer = match evaluation {
            Ok(Ok(true)) => Answer::Allow,
            Ok(Ok(false)) => Answer::Reject,
            // An error may quote values such as the message. Operators get its beginning, which names the operation.
            Ok(Err(cause)) => Answer::Broken(cause.chars().take(200).collect()),
            Err(_) => Answer::Broken("its evaluation panicked".into()),
        };
        let answer = serde_json::to_vec(&answer).map_err(io::Error::other)?;
        answers.write_all(&u32::try_from(answer.len()).map_err(io::Error::other)?.to_be_bytes())?;
        answers.write_all(&answer)?;
        answers.flush()?;
        if resident()? > TIDY_BYTES {
            break;
        }
    }
    Ok(())
}

/// The next question; `None` when there are no more.
fn read_frame(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_QUESTION_BYTES {
        return Err(io::Error::other("the question is too large"));
    }
    let mut frame = vec![0; length];
    from.read_exact(&mut frame)?;
    Ok(Some(frame))
}

/// Memory of this process that no file backs and that is in use, in bytes.
fn resident() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    // A kernel that does not say it: then the process is as good as tidy.
    Ok(kilobytes.unwrap_or(0) * 1024)
}
