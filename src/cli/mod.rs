//! The commands for people: `chat` and `turns` speak the client API of a gateway (`docs/api.md`), `keys` and `init`
//! work on the database.
//!
//! Every command is an `…Args` (clap) with `run`, which prints its result and returns the exit code; what goes wrong
//! is a [`CliError`], printed by `main` through [`report`].

use std::process::ExitCode;

use console::style;

pub mod chat;
pub mod client;
pub mod env_file;
mod error;
pub mod init;
pub mod keys;
pub mod stream;
pub mod text;
pub mod turns;
pub mod types;

pub use error::{CliError, ClientError, Problem};

/// How a command finds its gateway.
#[derive(Debug, Clone, clap::Args)]
pub struct GatewayArgs {
    /// The gateway's URL.
    #[arg(long, env = "LASTWORD_GATEWAY_URL", value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub gateway: url::Url,
    /// The API key (`lwk_…`); none for a gateway with `--auth none`.
    #[arg(long, env = "LASTWORD_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// How long to go on trying while the gateway cannot be reached, in seconds.
    #[arg(long, env = "LASTWORD_RETRY_SECONDS", value_name = "SECONDS", default_value_t = 30)]
    pub retry_seconds: u64,
}

impl GatewayArgs {
    /// The client that these arguments describe.
    pub fn client(&self) -> Result<client::Client, ClientError> {
        let client = client::Client::new(self.gateway.clone(), self.api_key.clone())?;
        Ok(client.with_patience(std::time::Duration::from_secs(self.retry_seconds)))
    }
}

/// How a command prints its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Columns for people.
    Table,
    /// The same with more columns.
    Wide,
    /// JSON for programs.
    Json,
}

/// Prints a command's failure on stderr and gives the exit code, 1.
pub fn report(error: &CliError) -> ExitCode {
    if !error.is_broken_pipe() {
        eprintln!("{} {error}", style("error:").for_stderr().red().bold());
        if let Some(hint) = error.hint() {
            eprintln!("{} {hint}", style("hint:").for_stderr().dim());
        }
    }
    ExitCode::FAILURE
}
