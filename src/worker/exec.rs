//! The adapter `exec`: it runs a program for each turn. The program gets the message on its stdin; what it prints is the reply.
//! Whatever the program started is gone when its turn is (see [`crate::child::keeper`]).

use std::io;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::adapter::{OutputSink, TurnAdapter};
use super::environment::agent_command;
use super::error::WorkerError;
use super::input;
use super::oom;
use super::options::CommonArgs;
use super::output_log::Stopped;
use super::process::AgentProcess;
use super::start::{self, Wants};
use super::text::{FrameLines, LineTooLong};
use crate::child::keeper::Keep;
use crate::child::output::copy_stderr;
use crate::turn::cause;
use crate::turn::cause::process::ProcessEnd;
use crate::turn::frame::{Frame, storable};
use crate::turn::keys::TurnId;
use crate::turn::terminal::{Failure, Outcome};
use crate::utf8::Decoder;
use crate::wire::{TurnPush, env};

/// How long the ends of stdout and stderr are waited for after the program has ended: a child of the program may still print,
/// or only hold them open. Then it is killed.
const AFTER_EXIT: Duration = Duration::from_millis(500);
/// How long a read may take of a pipe that is expected to hold something.
const IN_THE_PIPE: Duration = Duration::from_millis(50);
/// How many past turns a program is given that reads JSON.
const HISTORY: u32 = 50;
/// The most that a pipe can hold under Linux's default limit (`fs.pipe-max-size`), in bytes: what the program printed before it
/// ended and was not yet read.
const PIPE_BYTES: usize = 1024 * 1024;

/// `lastword worker exec`
#[derive(Debug, Clone, clap::Args)]
pub struct ExecArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Give the message as the last argument, not on stdin (128 KiB at most; one that begins with `-` only behind a `--` that
    /// ends the command)
    #[arg(long, env = "LASTWORD_TURN_ARG_MESSAGE")]
    pub arg_message: bool,
    /// What the program gets on stdin: the message, or one JSON object with the message, the history, the user and more
    #[arg(long, env = "LASTWORD_TURN_INPUT", value_enum, default_value = "text")]
    pub input: InputFormat,
    /// What the program prints: text, or a frame in JSON on each line (a line that is none is text)
    #[arg(long, env = "LASTWORD_TURN_OUTPUT", value_enum, default_value = "text")]
    pub output: OutputFormat,
    /// Processes that a program has detached (setsid) live on until the worker ends, not only until the turn does
    #[arg(long, env = env::KEEP_DETACHED)]
    pub keep_detached: bool,
    /// After SIGTERM, a program that is still there is killed after this time
    #[arg(long, env = env::KILL_SECONDS, value_name = "SECONDS", default_value_t = 2)]
    pub kill_seconds: u32,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub program: Vec<String>,
}

/// What a program reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum InputFormat {
    /// The message.
    Text,
    /// One JSON object: see [`input::json`].
    Json,
}

/// What a program prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OutputFormat {
    /// The reply's text.
    Text,
    /// One frame in JSON per line.
    JsonLines,
}

/// Serves turns until the worker ends.
pub(super) async fn run(args: ExecArgs, shutdown: CancellationToken) -> Result<ExitCode, WorkerError> {
    let common = args.common.clone();
    let history = if args.input == InputFormat::Json { HISTORY } else { 0 };
    start::serve(&common, Wants { history, together: false }, ExecAdapter { args }, shutdown).await
}

struct ExecAdapter {
    args: ExecArgs,
}

impl TurnAdapter for ExecAdapter {
    async fn run(&self, turns: Vec<TurnPush>, out: OutputSink, cancel: CancellationToken) -> Outcome {
        let turn = &turns[0];
        let kills = oom::kills();
        let program = match self.start(turn).await {
            Ok(program) => program,
            Err(failure) => return Outcome::Error(failure),
        };
        let Program { process, stdin, stdout, stderr } = program;
        let input = match self.args.input {
            InputFormat::Text => turn.message.clone(),
            InputFormat::Json => input::json(turn),
        };
        let _stdin = stdin.map(|stdin| AbortOnDropHandle::new(tokio::spawn(feed(stdin, input))));
        let turn_id = turn.turn_id;
        let (tail, copying) = copy_stderr(stderr, move |line| log_line(turn_id, &line.bytes));
        let _stderr = AbortOnDropHandle::new(tokio::spawn(copying));
        let copied = tokio::select! {
            copied = copy(stdout, &out, self.args.output, process.exited()) => copied,
            () = cancel.cancelled() => Err(Stopped),
        };
        let exited = process.exited();
        tokio::select! {
            biased;
            () = exited, if copied.is_ok() => {}
            () = cancel.cancelled() => {
                process.stop(Duration::from_secs(u64::from(self.args.kill_seconds))).await;
                return Outcome::Error(cause::rule::cancelled());
            }
        }
        let ended = process.wait().await.map_or(ProcessEnd::Unknown(None), ProcessEnd::from);
        // Until the rest of stderr was read, unless somebody who lives on still holds it open.
        let _ = tokio::time::timeout(AFTER_EXIT, tail.closed()).await;
        cause::program::answer(&ended, out.has_text(), oom::kills() > kills, &tail.text())
    }
}

/// A started program with its pipes.
struct Program {
    process: AgentProcess,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    stderr: ChildStderr,
}

impl ExecAdapter {
    async fn start(&self, turn: &TurnPush) -> Result<Program, Failure> {
        let mut command = agent_command(&self.args.program[0]);
        command.args(&self.args.program[1..]);
        if self.args.arg_message {
            command.arg(input::argument(&self.args.program, storable(turn.message.clone()))?);
        }
        command
            // What agents are told has names of its own, LASTWORD_TURN_…: no command of `lastword` that a program may run
            // takes them for its flags (roles/tests.rs).
            .env("LASTWORD_TURN_CONVERSATION", storable(turn.conversation.clone()))
            .env("LASTWORD_TURN_ID", turn.turn_id.to_string())
            .env("LASTWORD_TURN_USER", storable(turn.user.clone()))
            .env("LASTWORD_TURN_MESSAGE_ID", storable(turn.message_id.clone()))
            .env_remove("TRACEPARENT")
            .stdin(if self.has_stdin() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(parent) = &turn.traceparent {
            command.env("TRACEPARENT", storable(parent.clone()));
        }
        let keep = if self.args.keep_detached { Keep::ButDetached } else { Keep::UntilTold };
        Self::started(command, keep).await.map_err(|error| cause::program::not_started(&self.args.program[0], error))
    }

    /// With the message as an argument, stdin has what is not in it, if anything.
    fn has_stdin(&self) -> bool {
        !self.args.arg_message || self.args.input == InputFormat::Json
    }

    async fn started(command: Command, keep: Keep) -> io::Result<Program> {
        let mut process = AgentProcess::start_kept(command, keep).await?;
        let missing = || io::Error::other("a pipe is missing");
        let stdin = process.stdin.take().map(ChildStdin::from_std).transpose()?;
        let stdout = ChildStdout::from_std(process.stdout.take().ok_or_else(missing)?)?;
        let stderr = ChildStderr::from_std(process.stderr.take().ok_or_else(missing)?)?;
        Ok(Program { process, stdin, stdout, stderr })
    }
}

/// Writes the message to the program's stdin. Errors are ignored: a program need not read its message.
async fn feed(mut stdin: ChildStdin, mut message: String) {
    // Programs such as bc ignore a last line without a line end.
    if !message.ends_with('\n') {
        message.push('\n');
    }
    let _ = stdin.write_all(message.as_bytes()).await;
    let _ = stdin.shutdown().await;
}

/// Passes stdout on until its end. A child of the program may hold stdout open for longer than the program lives: then, once
/// the program has ended, only what is still in the pipe is read.
async fn copy(
    mut stdout: ChildStdout,
    out: &OutputSink,
    format: OutputFormat,
    exited: impl Future<Output = ()>,
) -> Result<(), Stopped> {
    let over = async {
        exited.await;
        tokio::time::sleep(AFTER_EXIT).await;
    };
    tokio::pin!(over);
    let (mut decoder, mut lines) = (Decoder::default(), FrameLines::default());
    let mut buffer = vec![0; 64 * 1024];
    // Once the program has ended: how many bytes may still be read. What the program itself printed is among them.
    let mut left = None;
    loop {
        let read = match left {
            None => tokio::select! {
                biased;
                () = &mut over => {
                    left = Some(PIPE_BYTES);
                    continue;
                }
                read = stdout.read(&mut buffer) => read.unwrap_or(0),
            },
            Some(0) => 0,
            Some(ref mut left) => match tokio::time::timeout(IN_THE_PIPE, stdout.read(&mut buffer)).await {
                Ok(Ok(read)) => {
                    *left = left.saturating_sub(read);
                    read
                }
                _ => 0,
            },
        };
        if read == 0 {
            break;
        }
        match format {
            OutputFormat::Text => out.send(Frame::text(decoder.push(&buffer[..read]))).await?,
            OutputFormat::JsonLines => send_all(out, lines.push(&buffer[..read])).await?,
        }
    }
    out.send(Frame::text(decoder.finish())).await?;
    send_all(out, lines.finish()).await
}

/// Sends frames, and has the turn fail at a line that is too long to be one.
async fn send_all(out: &OutputSink, frames: Vec<Result<Frame, LineTooLong>>) -> Result<(), Stopped> {
    for frame in frames {
        match frame {
            Ok(frame) => out.send(frame).await?,
            Err(error) => return Err(out.refuse(cause::program::output_too_large(error))),
        }
    }
    Ok(())
}

/// Writes a line of stderr, or a part of a long one, into the worker's log.
fn log_line(turn: TurnId, line: &[u8]) {
    let text = String::from_utf8_lossy(line);
    if !text.trim().is_empty() {
        tracing::info!(target: "agent", %turn, "{}", text.trim_end());
    }
}
