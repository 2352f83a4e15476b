//! The processes that evaluate CEL expressions, and who may use them.
//!
//! An expression may take any time and any memory, and cannot be interrupted. So it is evaluated in a process that can be: see
//! [`evaluator`](super::evaluator), whose limits the kernel keeps. Processor time is limited, not time: a machine that is
//! busy with something else breaks nobody's guardrail.
//!
//! There are few such processes, places in them are shared fairly by organizations ([`Places`]), and one that serves an
//! organization now serves another one afterwards. So whatever an expression did to its process, only the death of a process
//! that had served nobody before is the expression's doing; after any other, the question is asked again.
//!
//! What Lastword lacks (a place, memory for a process, a process that answers) is never the expression's fault. It is waited
//! for, for [`PATIENCE`] at most, and then told as what it is ([`GuardrailAnswer::Lacking`]).

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::oneshot;

use super::cel::Question;
use super::evaluator::{Answer, CPU_SECONDS, MAX_ANSWER_BYTES, MAX_QUESTION_BYTES, MEMORY_BYTES};
use super::guardrail::GuardrailAnswer;
use super::places::Places;
use crate::child::process::ChildProcess;
use crate::child::spawn::SpawnTerms;

/// The most evaluations at a time, each in a process of its own.
pub const MAX_EVALUATIONS: usize = 4;
/// The most evaluations of one organization at a time.
pub const MAX_EVALUATIONS_EACH: usize = 2;
/// How long a question waits for what Lastword lacks.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The pause after a process could not be started, or ended for no reason of the expression's.
const RETRY: Duration = Duration::from_millis(200);
/// The subcommand that is such a process.
pub const SUBCOMMAND: &str = "evaluate";

/// The evaluating processes of this one; they are started at need, and end with it. Clones share them.
#[derive(Clone, Debug)]
pub struct Evaluators {
    /// The binary `lastword`.
    program: PathBuf,
    patience: Duration,
    places: Places,
    idle: Arc<Mutex<Vec<Evaluator>>>,
}

/// Why there is no answer.
#[derive(Debug)]
enum NoAnswer {
    /// It is the expression's own doing.
    Expression(String),
    /// It is not, or that is not certain. `at_once`: another try needs no pause.
    Lacking { cause: String, at_once: bool },
}

impl Default for Evaluators {
    /// Those of this very binary.
    fn default() -> Self {
        Evaluators::new("/proc/self/exe")
    }
}

impl Evaluators {
    /// Those of this binary `lastword`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let places = Places::new(MAX_EVALUATIONS, MAX_EVALUATIONS_EACH);
        Evaluators { program: program.into(), patience: PATIENCE, places, idle: Arc::default() }
    }

    /// The same with another [`PATIENCE`].
    pub fn with_patience(self, patience: Duration) -> Self {
        Evaluators { patience, ..self }
    }

    /// Evaluates an expression for a message of this organization.
    pub(super) async fn ask(&self, organization: &str, question: &Question) -> GuardrailAnswer {
        let frame = match frame(question) {
            Ok(frame) => frame,
            Err(cause) => return GuardrailAnswer::Broken(cause),
        };
        let mut lack = "no place for its evaluation was free".to_owned();
        let asking = async {
            let mut fresh = false;
            loop {
                match self.attempt(organization, &frame, fresh).await {
                    Ok(Answer::Allow) => return GuardrailAnswer::Allow,
                    Ok(Answer::Reject) => return GuardrailAnswer::Reject(None),
                    Ok(Answer::Broken(cause)) | Err(NoAnswer::Expression(cause)) => {
                        return GuardrailAnswer::Broken(cause);
                    }
                    Err(NoAnswer::Lacking { cause, at_once }) => {
                        lack = cause;
                        // What ended a process that had served before is found out in one that has not.
                        fresh = true;
                        if !at_once {
                            tokio::time::sleep(RETRY).await;
                        }
                    }
                }
            }
        };
        let answer = tokio::time::timeout(self.patience, asking).await;
        answer.unwrap_or_else(|_| GuardrailAnswer::Lacking(format!("{lack} within {:?}", self.patience)))
    }

    async fn attempt(&self, organization: &str, frame: &[u8], fresh: bool) -> Result<Answer, NoAnswer> {
        let _place = self.places.take(organization).await;
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut evaluator = match idle.filter(|_| !fresh) {
            Some(idle) => idle,
            None => Evaluator::start(self.program.clone()).await.map_err(|error| NoAnswer::Lacking {
                cause: format!("no process for its evaluation could be started: {error}"),
                at_once: false,
            })?,
        };
        // If this future is dropped here, so is the process, which may be busy for long.
        let answer = evaluator.exchange(frame).await;
        let Ok(answer) = answer else { return Err(evaluator.why().await) };
        evaluator.fresh = false;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(evaluator);
        Ok(answer)
    }
}

/// The question as the process reads it: its length in four bytes, then JSON.
fn frame(question: &Question) -> Result<Vec<u8>, String> {
    let json = serde_json::to_vec(question).map_err(|error| error.to_string())?;
    if json.len() > MAX_QUESTION_BYTES {
        return Err(format!("message and metadata are larger than {MAX_QUESTION_BYTES} bytes"));
    }
    let mut frame = u32::try_from(json.len()).map_err(|error| error.to_string())?.to_be_bytes().to_vec();
    frame.extend_from_slice(&json);
    Ok(frame)
}

/// One process. It is killed when this is dropped.
#[derive(Debug)]
struct Evaluator {
    process: ChildProcess,
    questions: ChildStdin,
    answers: ChildStdout,
    /// How it ended, once it did.
    ended: oneshot::Receiver<io::Result<ExitStatus>>,
    /// Whether it has answered nothing yet.
    fresh: bool,
}

impl Evaluator {
    async fn start(program: PathBuf) -> io::Result<Evaluator> {
        // A fork takes about a millisecond.
        tokio::task::spawn_blocking(move || {
            let mut command = Command::new(program);
            command.arg0("lastword").arg(SUBCOMMAND).env_clear().current_dir("/");
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
            ChildProcess::spawn(command, SpawnTerms::new(Signal::KILL))
        })
        .await?
        .and_then(|mut spawned| {
            let process = spawned.process().clone();
            let missing = || io::Error::other("the process has no pipe");
            let questions = ChildStdin::from_std(spawned.stdin.take().ok_or_else(missing)?)?;
            let answers = ChildStdout::from_std(spawned.stdout.take().ok_or_else(missing)?)?;
            let (tell, ended) = oneshot::channel();
            spawned.when_exited(move |process| drop(tell.send(process.reap())));
            Ok(Evaluator { process, questions, answers, ended, fresh: true })
        })
    }

    async fn exchange(&mut self, frame: &[u8]) -> io::Result<Answer> {
        self.questions.write_all(frame).await?;
        let length = self.answers.read_u32().await? as usize;
        if length > MAX_ANSWER_BYTES {
            return Err(io::Error::other("the answer is too large"));
        }
        let mut answer = vec![0; length];
        self.answers.read_exact(&mut answer).await?;
        serde_json::from_slice(&answer).map_err(io::Error::other)
    }

    /// Why the process gave no answer. One that has not ended is killed.
    async fn why(mut self) -> NoAnswer {
        // Its pipe broke, so that it ends; if it does not, that is no doing of the expression's.
        let killed = self.process.kill_after(Duration::from_secs(1)).await.unwrap_or(true);
        let ended = (&mut self.ended).await;
        match ended {
            Ok(Ok(status)) if !killed => cause_of_death(status, self.fresh),
            _ => NoAnswer::Lacking { cause: "the process for its evaluation gave no answer".into(), at_once: false },
        }
    }
}

impl Drop for Evaluator {
    fn drop(&mut self) {
        // It has ended already, or the signal ends it.
        let _ = self.process.signal_group(Signal::KILL);
    }
}

/// Whose doing the end of a process was; `fresh`: it had answered nothing before.
fn cause_of_death(status: ExitStatus, fresh: bool) -> NoAnswer {
    let signal = status.signal();
    let is = |signals: &[Signal]| signals.iter().any(|s| Some(s.as_raw()) == signal);
    if is(&[Signal::XCPU]) {
        return NoAnswer::Expression(format!("it takes more than {CPU_SECONDS} s of processor time"));
    }
    if fresh && is(&[Signal::ABORT, Signal::SEGV, Signal::BUS]) {
        return NoAnswer::Expression(format!("it takes more than {} MiB of memory", MEMORY_BYTES >> 20));
    }
    NoAnswer::Lacking { cause: format!("the process for its evaluation ended by itself ({status})"), at_once: !fresh }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_limit_or_the_death_of_a_fresh_process_is_the_expressions_doing() {
        let killed = |signal: Signal| ExitStatus::from_raw(signal.as_raw());
        let expression = |status, fresh| matches!(cause_of_death(status, fresh), NoAnswer::Expression(_));
        for fresh in [true, false] {
            assert!(expression(killed(Signal::XCPU), fresh));
            assert!(!expression(killed(Signal::KILL), fresh), "by the kernel for want of memory, or by a person");
            assert!(!expression(killed(Signal::TERM), fresh));
            assert!(!expression(ExitStatus::from_raw(0), fresh));
            assert_eq!(expression(killed(Signal::ABORT), fresh), fresh);
            assert_eq!(expression(killed(Signal::SEGV), fresh), fresh);
        }
    }
}
