//! The adapter `openai`: it asks an OpenAI-compatible server for a streamed chat completion for each turn.
//!
//! | file | does |
//! |---|---|
//! | `messages.rs` | what is sent to the model: the conversation, made valid |
//! | `ask.rs` | asks, and asks again where nothing of an answer has come; says why there is none |
//! | `answer.rs` | reads an answer: a stream of events, or one document |
//! | `completion.rs`, `calls.rs`, `surrogates.rs` | what the chunks mean, and when a completion is whole |
//! | `server.rs` | a model server that the worker itself runs |

mod answer;
mod ask;
mod calls;
mod completion;
mod messages;
mod progress;
mod server;
mod surrogates;

use std::process::ExitCode;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

use self::ask::Ask;
use self::progress::AnswerProgress;
use self::server::ModelServer;
use super::adapter::{OutputSink, TurnAdapter};
use super::environment::hide_environment;
use super::error::{EXIT_BROKEN, WorkerError};
use super::http::causes;
use super::options::CommonArgs;
use super::start::{self, Wants};
use super::termination;
use super::upstream::route::{RouteOptions, ServerRoute};
use crate::turn::cause;
use crate::turn::defaults;
use crate::turn::terminal::{Failure, Outcome};
use crate::wire::{MAX_HISTORY, TurnPush};

/// What the server is called in failures.
const SERVER: &str = "model server";
/// The longest time that a flag takes, in seconds: a turn lasts no longer.
const LONGEST: u64 = 604_800;
/// How long the model server's exit is waited for after a completion failed, since the connection breaks before the exit is seen,
/// and the exit tells more; and how long the rest of a completion is, when the exit was seen first.
const EXIT_SEEN: Duration = Duration::from_millis(500);
/// The pause between two looks whether the model server is ready, and how long one may take.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const LOOK: Duration = Duration::from_secs(5);
/// A server that is not ready after this time is told of in the log; most are by then.
const READY_SOON: Duration = Duration::from_secs(10);

/// `lastword worker openai`
#[derive(Debug, Clone, clap::Args)]
pub struct OpenAiArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// The API's base, e.g. http://127.0.0.1:8000/v1
    #[arg(long, env = "LASTWORD_OPENAI_BASE_URL", value_name = "URL")]
    pub base_url: Url,
    /// Model to ask for
    #[arg(long, env = "LASTWORD_OPENAI_MODEL")]
    pub model: String,
    /// First message of each conversation, in the role of the system
    #[arg(long, env = "LASTWORD_OPENAI_SYSTEM_PROMPT", value_name = "TEXT")]
    pub system_prompt: Option<String>,
    /// Environment variable that holds the API key; none is sent without
    #[arg(long, env = "LASTWORD_OPENAI_API_KEY_ENV", value_name = "NAME")]
    pub api_key_env: Option<String>,
    /// Header of each request, with the environment variable that holds its value; may be repeated
    #[arg(long, env = "LASTWORD_OPENAI_HEADER_ENV", value_name = "NAME=VARIABLE,…", value_delimiter = ',')]
    pub header_env: Vec<String>,
    /// Environment variable that holds certificates (PEM) of the authorities to trust, in place of the system's
    #[arg(long, env = "LASTWORD_OPENAI_CA_ENV", value_name = "NAME")]
    pub ca_env: Option<String>,
    /// Past turns of the conversation that are sent as messages
    #[arg(
        long,
        env = "LASTWORD_OPENAI_HISTORY",
        value_name = "TURNS",
        default_value_t = defaults::MODEL_HISTORY_TURNS,
        value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_HISTORY))
    )]
    pub history: u32,
    /// Time to connect to the server
    #[arg(
        long,
        env = "LASTWORD_OPENAI_CONNECT_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = u64::from(defaults::MODEL_CONNECT_SECONDS),
        value_parser = clap::value_parser!(u64).range(1..=LONGEST)
    )]
    pub connect_timeout: u64,
    /// The turn fails when the server says nothing for this long
    #[arg(
        long,
        env = "LASTWORD_OPENAI_IDLE_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = u64::from(defaults::MODEL_SILENCE_SECONDS),
        value_parser = clap::value_parser!(u64).range(1..=LONGEST)
    )]
    pub idle_timeout: u64,
    /// The turn fails when the whole completion takes longer, new tries and pauses included
    #[arg(
        long,
        env = "LASTWORD_OPENAI_REQUEST_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = u64::from(defaults::MODEL_COMPLETION_SECONDS),
        value_parser = clap::value_parser!(u64).range(1..=LONGEST)
    )]
    pub request_timeout: u64,
    /// New tries when the server cannot be reached or is overloaded, before the first byte of an answer
    #[arg(long, env = "LASTWORD_OPENAI_RETRIES", value_name = "TRIES", default_value_t = defaults::MODEL_RETRIES)]
    pub retries: u32,
    /// Take no turns until GET {base-url}/models answers, for at most this time; 0 asks nothing
    #[arg(long, env = "LASTWORD_OPENAI_WAIT_READY", value_name = "SECONDS", default_value_t = 300)]
    pub wait_ready: u64,
    /// Start the model server CMD, with the base URL's port as PORT, and end when it ends
    #[arg(long, env = "LASTWORD_MODEL_SERVER", requires = "server")]
    pub model_server: bool,
    /// The model server and its arguments
    #[arg(last = true, value_name = "CMD", requires = "model_server")]
    pub server: Vec<String>,
}

/// Starts the model server if there is one, waits until it is ready, and serves turns.
pub(super) async fn run(args: OpenAiArgs, shutdown: CancellationToken) -> Result<ExitCode, WorkerError> {
    hide_environment();
    let route = ServerRoute::new(&route_options(&args))?;
    let server = match args.model_server {
        true => Some(ModelServer::start(&args.server, &args.base_url).await?),
        false => None,
    };
    let adapter = OpenAiAdapter { route, args: args.clone(), ended: server.as_ref().map(ModelServer::ended) };
    let ready = tokio::select! {
        ready = adapter.ready() => Some(ready),
        () = shutdown.cancelled() => None,
    };
    let code = match ready {
        None => Ok(ExitCode::SUCCESS),
        Some(Ok(())) => {
            start::serve(&args.common, Wants { history: args.history, ..Wants::default() }, adapter, shutdown).await
        }
        Some(Err(error)) => {
            tracing::error!("{error}");
            termination::note(&cause::start::impossible(error.to_string()));
            Ok(EXIT_BROKEN.into())
        }
    };
    if let Some(server) = server {
        server.stop().await;
    }
    code
}

fn route_options(args: &OpenAiArgs) -> RouteOptions<'_> {
    RouteOptions {
        base: &args.base_url,
        connect_timeout: args.connect_timeout,
        api_key_env: args.api_key_env.as_deref(),
        header_env: &args.header_env,
        ca_env: args.ca_env.as_deref(),
        fresh_connections: false,
    }
}

/// Asks the server for completions.
struct OpenAiAdapter {
    route: ServerRoute,
    args: OpenAiArgs,
    /// Where the worker started the model server: why that ended, if it did.
    ended: Option<watch::Receiver<Option<Failure>>>,
}

impl OpenAiAdapter {
    /// Waits until the server answers `GET models`. Any answer but a server error (5xx) will do, since not every server lists
    /// models.
    async fn ready(&self) -> Result<(), WorkerError> {
        if self.args.wait_ready == 0 {
            return Ok(());
        }
        let begun = Instant::now();
        let mut why = "no answer".to_string();
        let attempts = async {
            let mut told = String::new();
            loop {
                let request = self.route.request(reqwest::Method::GET, "models").await.timeout(LOOK);
                match request.send().await {
                    Ok(answer) if !answer.status().is_server_error() => return,
                    Ok(answer) => why = format!("status {}", answer.status()),
                    Err(error) => why = causes(&error.without_url()),
                }
                if begun.elapsed() >= READY_SOON && told != why {
                    told.clone_from(&why);
                    tracing::warn!("the model server at {} is not ready yet: {why}", self.route.told());
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            ready = tokio::time::timeout(Duration::from_secs(self.args.wait_ready), attempts) => {
                ready.map_err(|_| self.not_ready(why))
            }
            failure = self.broken() => Err(self.not_ready(failure.detail.unwrap_or_default())),
        }
    }

    fn not_ready(&self, why: String) -> WorkerError {
        WorkerError::NotReady { url: self.route.told(), seconds: self.args.wait_ready, why }
    }
}

impl TurnAdapter for OpenAiAdapter {
    async fn run(&self, turns: Vec<TurnPush>, out: OutputSink, cancel: CancellationToken) -> Outcome {
        let (turn, now) = (&turns[0], Instant::now());
        let progress = AnswerProgress::until(now + Duration::from_secs(self.args.request_timeout));
        let ask = Ask {
            args: &self.args,
            route: &self.route,
            turn,
            out: &out,
            progress: &progress,
            turn_until: turn.seconds_left.map(|seconds| now + Duration::from_secs(seconds)),
        };
        let mut completion = std::pin::pin!(ask.complete());
        let result = tokio::select! {
            result = &mut completion => result,
            // What the server sent before its end is read yet: it does not take a whole answer back.
            failure = self.broken() => match tokio::time::timeout(EXIT_SEEN, &mut completion).await {
                Ok(Ok(())) => Ok(()),
                Err(_) if progress.is_whole() => completion.await,
                Ok(Err(_)) | Err(_) => return Outcome::Error(failure),
            },
            () = cancel.cancelled() => return Outcome::Error(cause::rule::cancelled()),
        };
        match result {
            Ok(()) => Outcome::Reply,
            Err(failure) if self.ended.is_none() => Outcome::Error(failure),
            Err(failure) => match tokio::time::timeout(EXIT_SEEN, self.broken()).await {
                Ok(cause) => Outcome::Error(cause),
                Err(_) => Outcome::Error(failure),
            },
        }
    }

    async fn broken(&self) -> Failure {
        let Some(ended) = &self.ended else { return std::future::pending().await };
        let mut ended = ended.clone();
        let failure = ended.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone());
        match failure {
            Some(failure) => failure,
            None => std::future::pending().await,
        }
    }
}
