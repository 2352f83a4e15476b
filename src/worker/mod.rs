//! The worker role: an adapter beside an agent program, and the worker protocol's client side, which all adapters share.
//!
//! [`run::serve`] is the protocol; an [`adapter::Adapter`] turns a message into frames. `docs/worker-protocol.md` tells
//! the protocol, `lastword worker conformance` checks any worker against it.

pub mod adapter;
mod client;
pub mod conformance;
mod echo;
mod exec;
mod farewell;
mod identity;
mod install;
mod job;
mod lines;
mod link;
mod log;
mod oom;
mod openai;
mod options;
mod process;
pub mod run;
mod termination;
mod text;

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use self::adapter::Adapter;
use self::client::CallError;
use self::identity::NoSession;
use self::options::Common;
use self::run::Ended;
use crate::telemetry::LogArgs;

/// Exit code: the gateway says that this worker's lease is dead (410).
pub const EXIT_GONE: u8 = 3;
/// Exit code: the gateway refuses the credential (401, 403).
pub const EXIT_REFUSED: u8 = 4;
/// Exit code: the model server that the worker supervises ended.
pub const EXIT_BROKEN: u8 = 5;

/// `lastword worker …`
#[derive(Debug, Args)]
pub struct WorkerArgs {
    #[command(subcommand)]
    pub command: Command,
    /// What to log, e.g. `info`; the target `agent` is what programs write to stderr
    #[arg(long, global = true, env = "LASTWORD_LOG", value_name = "FILTER", default_value = "warn,agent=info")]
    pub log: String,
    /// One JSON object a line
    #[arg(long, global = true, env = "LASTWORD_LOG_JSON")]
    pub log_json: bool,
}

impl WorkerArgs {
    /// How to log.
    pub fn log(&self) -> LogArgs {
        LogArgs { log: self.log.clone(), log_json: self.log_json }
    }
}

/// What runs the turns.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a program for each turn: the message on its stdin, the reply on its stdout.
    Exec(exec::ExecArgs),
    /// Ask an OpenAI-compatible server for a streamed chat completion for each turn.
    Openai(openai::OpenAiArgs),
    /// Reply with the message, word by word.
    Echo(echo::EchoArgs),
    /// Copy this program to DIR/lastword, for a container whose image has nothing of ours.
    Install(install::InstallArgs),
    /// Check a worker in any language against the protocol.
    Conformance(conformance::ConformanceArgs),
}

/// Why a worker did not start, or did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("{0} is not set; the runtime that starts a worker gives it its credential there")]
    NoCredential(&'static str),
    #[error("no credential for the pod's token: {0}")]
    NoSession(#[from] identity::NoSession),
    #[error("{0} holds characters that no credential has")]
    BadCredential(&'static str),
    #[error("the gateway's URL {0} is neither http:// nor https://")]
    BadGateway(url::Url),
    #[error(transparent)]
    GatewayCa(#[from] crate::tls::TlsError),
    #[error("no HTTP client: {0}")]
    Http(#[from] reqwest::Error),
    #[error("cannot install into {path}: {error}; the directory must exist and be writable")]
    Install { path: std::path::PathBuf, error: std::io::Error },
    #[error("cannot start {program}: {error}")]
    Start { program: String, error: std::io::Error },
    #[error("the environment variable {0}, which --api-key-env names, holds no API key")]
    NoApiKey(String),
    #[error("the server at {url} was not ready within {seconds} s: {why}")]
    NotReady { url: url::Url, seconds: u64, why: String },
    #[error("conformance needs a loopback port: {0}")]
    Listen(std::io::Error),
}

/// Runs one of the worker's commands. `shutdown` (SIGTERM, SIGINT) begins the drain.
pub async fn run(args: WorkerArgs, shutdown: CancellationToken) -> Result<ExitCode, WorkerError> {
    match args.command {
        Command::Exec(args) => {
            let (common, adapter) = args.adapter();
            work(common, 0, false, adapter, shutdown).await
        }
        Command::Echo(args) => work(args.common.clone(), 0, args.together, echo::Echo::new(&args), shutdown).await,
        Command::Openai(args) => openai::run(args, shutdown).await,
        Command::Install(args) => install::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Conformance(args) => conformance::run(args, shutdown).await,
    }
}

/// Serves turns with an adapter, until the end.
async fn work(
    common: Common,
    history: u32,
    together: bool,
    adapter: impl Adapter,
    shutdown: CancellationToken,
) -> Result<ExitCode, WorkerError> {
    process::hide_environment();
    let settings = match common.settings(history, together, &shutdown).await {
        Ok(settings) => settings,
        Err(WorkerError::NoSession(NoSession::Stopped)) => return Ok(ExitCode::SUCCESS),
        Err(WorkerError::NoSession(NoSession::Final(error))) => {
            tracing::error!("{error}: the worker stops");
            return Ok(exit_code(&error).into());
        }
        Err(error) => return Err(error),
    };
    let ended = run::serve(settings, Arc::new(adapter), shutdown).await;
    Ok(match ended {
        Ended::Drained => ExitCode::SUCCESS,
        Ended::Dead(error) => exit_code(&error).into(),
        Ended::Broken(_) => EXIT_BROKEN.into(),
    })
}

/// What this process says of why Lastword wants nothing of it any more.
fn exit_code(error: &CallError) -> u8 {
    match error {
        CallError::Refused(_) => EXIT_REFUSED,
        _ => EXIT_GONE,
    }
}
