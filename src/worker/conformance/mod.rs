//! `lastword worker conformance`: acts as a gateway, starts a worker in any language, and checks what it does.

mod checks;
mod endpoints;
pub mod gateway;

use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

use self::gateway::Gateway;
use super::WorkerError;
use super::echo::SLOW_MESSAGE;
use super::process::Process;
use crate::turn::keys::StartId;
use crate::wire::{Credential, env};

/// The lease that the checks grant, in seconds.
const LEASE_SECONDS: u32 = 8;
/// The drain time that the worker finds in its environment, in seconds.
const DRAIN_SECONDS: u32 = 20;

/// `lastword worker conformance`
#[derive(Debug, Clone, clap::Args)]
pub struct ConformanceArgs {
    /// How long each step may take
    #[arg(long, env = "LASTWORD_CONFORMANCE_TIMEOUT", value_name = "SECONDS", default_value_t = 30)]
    pub timeout: u64,
    /// Show what the worker prints
    #[arg(long, env = "LASTWORD_CONFORMANCE_VERBOSE")]
    pub verbose: bool,
    /// A message that the worker replies to with some text
    #[arg(long, env = "LASTWORD_CONFORMANCE_MESSAGE", default_value = "gr\u{fc}\u{df}e \u{4e16}\u{754c} \u{1f642}!")]
    pub message: String,
    /// A message that keeps the worker busy for some seconds (2 to 10) before it replies
    #[arg(long, env = "LASTWORD_CONFORMANCE_SLOW_MESSAGE", default_value = SLOW_MESSAGE)]
    pub slow_message: String,
    /// No message keeps this worker busy: skip the checks that need one
    #[arg(long, env = "LASTWORD_CONFORMANCE_NO_SLOW")]
    pub no_slow: bool,
    /// The worker and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub program: Vec<String>,
}

/// Runs all checks; the exit code is 1 if one failed.
pub(super) async fn run(args: ConformanceArgs, shutdown: CancellationToken) -> Result<ExitCode, WorkerError> {
    let mut report = Report::default();
    tokio::select! {
        done = checks::all(&args, &mut report) => done?,
        () = shutdown.cancelled() => return Ok(ExitCode::FAILURE),
    }
    println!("{} passed, {} failed, {} skipped", report.passed, report.failed, report.skipped);
    Ok(if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints a line for each check.
#[derive(Default)]
struct Report {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Report {
    fn tell(&mut self, name: &str, result: Result<(), String>) -> bool {
        match &result {
            Ok(()) => {
                self.passed += 1;
                println!("ok      {name}");
            }
            Err(expected) => {
                self.failed += 1;
                println!("FAILED  {name}: {expected}");
            }
        }
        result.is_ok()
    }

    fn skip(&mut self, name: &str, why: &str) {
        self.skipped += 1;
        println!("SKIPPED {name}: {why}");
    }
}

/// A worker under test and its gateway.
struct Bench {
    gateway: Gateway,
    worker: Process,
    limit: Duration,
}

impl Bench {
    async fn start(args: &ConformanceArgs, prepare: impl FnOnce(&mut gateway::State)) -> Result<Self, WorkerError> {
        let credential = Credential::new(StartId::new()).reveal();
        let gateway = Gateway::start(credential.clone(), LEASE_SECONDS).await.map_err(WorkerError::Listen)?;
        gateway.with(prepare);
        let mut command = Command::new(&args.program[0]);
        command
            .args(&args.program[1..])
            .env(env::GATEWAY, gateway.url().as_str().trim_end_matches('/'))
            .env(env::CREDENTIAL, credential)
            .env(env::CAPACITY, "1")
            .env(env::DRAIN_SECONDS, DRAIN_SECONDS.to_string())
            .stdin(Stdio::null());
        if !args.verbose {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        let worker = Process::start(command)
            .await
            .map_err(|error| WorkerError::Start { program: args.program[0].clone(), error })?;
        Ok(Bench { gateway, worker, limit: Duration::from_secs(args.timeout) })
    }

    /// Waits for what a check expects.
    async fn expect<T>(&self, what: &str, f: impl Fn(&gateway::State) -> Option<T>) -> Result<T, String> {
        self.gateway
            .wait(self.limit, f)
            .await
            .ok_or_else(|| format!("expected within {} s: {what}", self.limit.as_secs()))
    }

    fn sigterm(&self) {
        self.worker.signal(Signal::TERM);
    }

    /// Waits for the worker's exit; says with which code.
    async fn exit(self) -> Result<Option<i32>, String> {
        match tokio::time::timeout(self.limit, self.worker.exited()).await {
            Err(_) => Err(format!("expected within {} s: the process exits", self.limit.as_secs())),
            Ok(()) => Ok(self.worker.wait().await.and_then(|status| status.code())),
        }
    }
}
