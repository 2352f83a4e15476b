//! What a process tells of itself, beside its metrics ([`crate::metrics`]): logs, traces, and what happened to turns.
//!
//! The rules of logging for all of the code: an error is logged once, where it is handled, and the identifier that it is about is
//! in the message and in a field. A turn that failed is one line at level WARN, whoever ended it: [`turns`].

pub mod traces;
pub mod turns;

use std::io::IsTerminal;

use clap::Args;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How to log, and where traces go.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// What to log, e.g. `info` or `lastword=debug,warn`.
    #[arg(long, env = "LASTWORD_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// One JSON object a line.
    #[arg(long, env = "LASTWORD_LOG_JSON")]
    pub log_json: bool,
    /// Send traces of turns by OTLP over HTTP to this collector, such as http://collector:4318. Further variables of
    /// OpenTelemetry (OTEL_…) are read too.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
}

/// Starts logging to standard error, and sending traces; a second call does nothing. To be called within a runtime.
pub fn init(args: &LogArgs) {
    // sqlx logs every statement at level debug. Whoever wants to see them asks for it: `--log debug,sqlx=debug`.
    let filter = EnvFilter::try_new(format!("sqlx=warn,{}", args.log)).unwrap_or_else(|error| {
        eprintln!("lastword: --log {:?} is no filter ({error}); using info", args.log);
        EnvFilter::new("info")
    });
    let registry = tracing_subscriber::registry().with(filter);
    let plain = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(false);
    let _ = if args.log_json { registry.with(plain.json()).try_init() } else { registry.with(plain).try_init() };
    traces::init(args.otlp_endpoint.as_deref());
}

/// Sends the traces that wait, before the process ends.
pub async fn flush() {
    traces::flush().await;
}
