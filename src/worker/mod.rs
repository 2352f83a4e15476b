//! The worker role: the client side of the worker protocol, which all adapters share, and the adapters themselves.
//!
//! - [`run::serve`] speaks the protocol: it keeps the connection to a gateway (`link.rs`; `gateways.rs`
//!   says which one is tried next), and takes turns until the worker leaves. Each
//!   turn, or each group of turns with one reply, is a job (`job.rs`), which reports what its adapter puts into its output log
//!   (`output_log.rs`).
//! - An [`adapter::TurnAdapter`] runs the turns: a program for each (`exec.rs`), a model's completion for each (`openai/`), a run
//!   of an AG-UI agent for each (`agui/`), or the message itself (`echo.rs`). `upstream/` is what the two share that ask a server.
//! - `lastword worker conformance` checks any worker, in any language, against the protocol, which
//!   `docs/worker-protocol.md` describes.

mod adapter;
mod agui;
mod client;
pub mod conformance;
mod credential;
mod echo;
mod environment;
mod error;
mod exec;
mod farewell;
mod gateways;
mod http;
mod input;
mod install;
mod job;
mod link;
mod oom;
mod openai;
mod options;
mod output_log;
mod process;
mod run;
mod start;
mod termination;
mod text;
mod upstream;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

pub use self::error::{EXIT_BROKEN, EXIT_GONE, EXIT_REFUSED, WorkerError};
use crate::child::ours::adopt_orphans;
use crate::telemetry::LogArgs;

/// `lastword worker …`
#[derive(Debug, Args)]
pub struct WorkerArgs {
    #[command(subcommand)]
    pub command: WorkerCommand,
    /// What to log, e.g. `info`; the target `agent` is what programs write to stderr
    #[arg(long, global = true, env = "LASTWORD_LOG", value_name = "FILTER", default_value = "warn,agent=info")]
    pub log: String,
    /// One JSON object a line
    #[arg(long, global = true, env = "LASTWORD_LOG_JSON")]
    pub log_json: bool,
    /// Send traces of turns by OTLP over HTTP to this collector, such as http://collector:4318
    #[arg(long, global = true, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
}

impl WorkerArgs {
    /// How to log.
    pub fn log(&self) -> LogArgs {
        LogArgs { log: self.log.clone(), log_json: self.log_json, otlp_endpoint: self.otlp_endpoint.clone() }
    }
}

/// What runs the turns.
#[derive(Debug, Subcommand)]
pub enum WorkerCommand {
    /// Run a program for each turn: the message on its stdin, the reply on its stdout.
    Exec(exec::ExecArgs),
    /// Ask an OpenAI-compatible server for a streamed chat completion for each turn.
    Openai(Box<openai::OpenAiArgs>),
    /// Run an AG-UI agent of some server for each turn.
    Agui(Box<agui::AgUiArgs>),
    /// Reply with the message, word by word.
    Echo(echo::EchoArgs),
    /// Copy this program to DIR/lastword, for a container whose image has nothing of ours.
    Install(install::InstallArgs),
    /// Check a worker in any language against the protocol.
    Conformance(conformance::ConformanceArgs),
}

/// Runs one of the worker's commands. `shutdown` (SIGTERM, SIGINT) begins the drain.
///
/// # Errors
/// If the worker cannot start. One that has started ends with an exit code.
pub async fn run(args: WorkerArgs, shutdown: CancellationToken) -> Result<ExitCode, WorkerError> {
    adopt_orphans();
    match args.command {
        WorkerCommand::Exec(args) => exec::run(args, shutdown).await,
        WorkerCommand::Echo(args) => echo::run(args, shutdown).await,
        WorkerCommand::Openai(args) => openai::run(*args, shutdown).await,
        WorkerCommand::Agui(args) => agui::run(*args, shutdown).await,
        WorkerCommand::Install(args) => install::run(&args).map(|()| ExitCode::SUCCESS),
        WorkerCommand::Conformance(args) => conformance::run(args, shutdown).await,
    }
}
