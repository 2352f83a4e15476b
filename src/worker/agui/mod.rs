//! The adapter `agui`: an AG-UI server is the agent. For each turn it posts a run to the server's URL, and passes on what the run
//! says.
//!
//! | file | does |
//! |---|---|
//! | `ask.rs` | posts the run, and again where the server could not be reached; says why there is no reply |
//! | `events.rs` | what the events of a run mean |

mod ask;
mod events;

use std::process::ExitCode;

use tokio_util::sync::CancellationToken;
use url::Url;

use self::ask::Run;
use super::adapter::{OutputSink, TurnAdapter};
use super::environment::hide_environment;
use super::error::WorkerError;
use super::options::CommonArgs;
use super::start::{self, Wants};
use super::upstream::route::{RouteOptions, ServerRoute};
use crate::turn::cause;
use crate::turn::defaults;
use crate::turn::terminal::Outcome;
use crate::wire::{MAX_HISTORY, TurnPush};

/// The longest time that a flag takes, in seconds: a turn lasts no longer.
const LONGEST: u64 = 604_800;

/// `lastword worker agui`
#[derive(Debug, Clone, clap::Args)]
pub struct AgUiArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Where the agent takes runs, e.g. http://127.0.0.1:8000/agent
    #[arg(env = "LASTWORD_AGUI_URL", value_name = "URL")]
    pub url: Url,
    /// Environment variable that holds a key to send as `Authorization: Bearer`; none is sent without
    #[arg(long, env = "LASTWORD_AGUI_API_KEY_ENV", value_name = "NAME")]
    pub api_key_env: Option<String>,
    /// Header of each request, with the environment variable that holds its value; may be repeated
    #[arg(long, env = "LASTWORD_AGUI_HEADER_ENV", value_name = "NAME=VARIABLE,…", value_delimiter = ',')]
    pub header_env: Vec<String>,
    /// Environment variable that holds certificates (PEM) of the authorities to trust, in place of the system's
    #[arg(long, env = "LASTWORD_AGUI_CA_ENV", value_name = "NAME")]
    pub ca_env: Option<String>,
    /// Past turns of the conversation that are sent as messages
    #[arg(
        long,
        env = "LASTWORD_AGUI_HISTORY",
        value_name = "TURNS",
        default_value_t = defaults::MODEL_HISTORY_TURNS,
        value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_HISTORY))
    )]
    pub history: u32,
    /// Time to connect to the server
    #[arg(
        long,
        env = "LASTWORD_AGUI_CONNECT_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = u64::from(defaults::MODEL_CONNECT_SECONDS),
        value_parser = clap::value_parser!(u64).range(1..=LONGEST)
    )]
    pub connect_timeout: u64,
    /// The turn fails when the server says nothing for this long
    #[arg(
        long,
        env = "LASTWORD_AGUI_IDLE_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = u64::from(defaults::MODEL_SILENCE_SECONDS),
        value_parser = clap::value_parser!(u64).range(1..=LONGEST)
    )]
    pub idle_timeout: u64,
    /// New tries when the server cannot be reached, or refuses for now; a run that may have begun is not posted again
    #[arg(long, env = "LASTWORD_AGUI_RETRIES", value_name = "TRIES", default_value_t = defaults::MODEL_RETRIES)]
    pub retries: u32,
}

/// Serves turns until the worker ends.
pub(super) async fn run(args: AgUiArgs, shutdown: CancellationToken) -> Result<ExitCode, WorkerError> {
    hide_environment();
    let route = ServerRoute::new(&RouteOptions {
        base: &args.url,
        connect_timeout: args.connect_timeout,
        api_key_env: args.api_key_env.as_deref(),
        header_env: &args.header_env,
        ca_env: args.ca_env.as_deref(),
        fresh_connections: true,
    })?;
    let wants = Wants { history: args.history, ..Wants::default() };
    start::serve(&args.common, wants, AgUiAdapter { route, args: args.clone() }, shutdown).await
}

/// Posts runs to the server.
struct AgUiAdapter {
    route: ServerRoute,
    args: AgUiArgs,
}

impl TurnAdapter for AgUiAdapter {
    async fn run(&self, turns: Vec<TurnPush>, out: OutputSink, cancel: CancellationToken) -> Outcome {
        let run = Run { args: &self.args, route: &self.route, turn: &turns[0], out: &out };
        tokio::select! {
            result = run.complete() => match result {
                Ok(()) => Outcome::Reply,
                Err(failure) => Outcome::Error(failure),
            },
            () = cancel.cancelled() => Outcome::Error(cause::rule::cancelled()),
        }
    }
}
