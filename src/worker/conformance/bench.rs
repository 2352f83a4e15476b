//! A worker under test, with the fake gateway that it is connected to.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;

use super::fake_gateway::FakeGateway;
use super::state::GatewayState;
use crate::turn::keys::StartId;
use crate::wire::{Credential, env};
use crate::worker::echo::SLOW_MESSAGE;
use crate::worker::error::WorkerError;
use crate::worker::process::{AgentProcess, kept_command};

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

/// A worker under test and its gateway.
pub(super) struct Bench {
    pub gateway: FakeGateway,
    worker: AgentProcess,
    /// How long a step may take.
    limit: Duration,
}

impl Bench {
    /// Starts the gateway, lets `prepare` set its faults, and starts the worker.
    pub(super) async fn start(
        args: &ConformanceArgs,
        prepare: impl FnOnce(&mut GatewayState),
    ) -> Result<Self, WorkerError> {
        let credential = Credential::new(StartId::new()).reveal();
        let gateway = FakeGateway::start(credential.clone(), LEASE_SECONDS).await.map_err(WorkerError::Listen)?;
        gateway.with(prepare);
        let mut command = kept_command(&args.program[0]);
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
        let worker = AgentProcess::start(command)
            .await
            .map_err(|error| WorkerError::Start { program: args.program[0].clone(), error })?;
        Ok(Bench { gateway, worker, limit: Duration::from_secs(args.timeout) })
    }

    /// Waits until `f` finds what a check expects; the error says `what` that is.
    pub(super) async fn expect<T>(&self, what: &str, f: impl Fn(&GatewayState) -> Option<T>) -> Result<T, String> {
        self.gateway
            .wait(self.limit, f)
            .await
            .ok_or_else(|| format!("expected within {} s: {what}", self.limit.as_secs()))
    }

    pub(super) fn sigterm(&self) {
        self.worker.signal(Signal::TERM);
    }

    /// Waits until the worker exits; returns its exit code, `None` after a signal.
    pub(super) async fn exit(self) -> Result<Option<i32>, String> {
        match tokio::time::timeout(self.limit, self.worker.exited()).await {
            Err(_) => Err(format!("expected within {} s: the process exits", self.limit.as_secs())),
            Ok(()) => Ok(self.worker.wait().await.and_then(|status| status.code())),
        }
    }
}
