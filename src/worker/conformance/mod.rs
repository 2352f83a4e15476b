//! `lastword worker conformance`: acts as a gateway, starts a worker in any language, and checks that the worker keeps
//! the worker protocol.

mod bench;
mod checks;
mod endpoints;
mod fake_gateway;
mod report;
mod state;

use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

pub use self::bench::ConformanceArgs;
pub use self::fake_gateway::FakeGateway;
use self::report::CheckReport;
pub use self::state::{FinishFault, GatewayState, RecordedTurn};
use super::error::WorkerError;

/// Runs all checks; the exit code is 1 if one failed.
pub(super) async fn run(args: ConformanceArgs, shutdown: CancellationToken) -> Result<ExitCode, WorkerError> {
    let mut report = CheckReport::default();
    tokio::select! {
        done = checks::all(&args, &mut report) => done?,
        () = shutdown.cancelled() => return Ok(ExitCode::FAILURE),
    }
    println!("{} passed, {} failed, {} skipped", report.passed, report.failed, report.skipped);
    Ok(if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
