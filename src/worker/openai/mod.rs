//! The adapter `openai`: it asks an OpenAI-compatible server for a streamed chat completion for each turn.

mod server;
mod stream;

use std::process::ExitCode;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderValue};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

use self::server::ModelServer;
use self::stream::{Completion, CompletionEvent};
use super::adapter::{OutputSink, TurnAdapter};
use super::environment::hide_environment;
use super::error::{EXIT_BROKEN, WorkerError};
use super::http::{StreamLines, body_of, causes};
use super::options::CommonArgs;
use super::start::{self, Wants};
use super::termination;
use crate::turn::cause;
use crate::turn::terminal::{Failure, Outcome};
use crate::wire::{MAX_HISTORY, TurnPush};

/// The longest line of a model's stream, in bytes.
const LINE_BYTES: usize = 1024 * 1024;
/// The longest body of an error that is read, in bytes.
const ERROR_BYTES: usize = 64 * 1024;
/// How much of the end of such a body is kept for operators, in bytes.
const ERROR_TAIL_BYTES: usize = 4 * 1024;
/// How long the model server's exit is waited for after a completion failed: the connection breaks before the exit is seen, and
/// the exit tells more.
const EXIT_SEEN: Duration = Duration::from_millis(500);

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
    /// Past turns of the conversation that are sent as messages
    #[arg(
        long,
        env = "LASTWORD_OPENAI_HISTORY",
        value_name = "TURNS",
        default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_HISTORY))
    )]
    pub history: u32,
    /// Time to connect to the server
    #[arg(long, env = "LASTWORD_OPENAI_CONNECT_TIMEOUT", value_name = "SECONDS", default_value_t = 10)]
    pub connect_timeout: u64,
    /// The turn fails when the server says nothing for this long
    #[arg(long, env = "LASTWORD_OPENAI_IDLE_TIMEOUT", value_name = "SECONDS", default_value_t = 120)]
    pub idle_timeout: u64,
    /// The turn fails when the whole completion takes longer
    #[arg(long, env = "LASTWORD_OPENAI_REQUEST_TIMEOUT", value_name = "SECONDS", default_value_t = 900)]
    pub request_timeout: u64,
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
    let server = match args.model_server {
        true => Some(ModelServer::start(&args.server, &args.base_url).await?),
        false => None,
    };
    let adapter = OpenAiAdapter::new(&args, server.as_ref().map(ModelServer::ended))?;
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

/// Asks the server for completions.
struct OpenAiAdapter {
    http: reqwest::Client,
    args: OpenAiArgs,
    /// The header `Bearer …` with the API key, if there is one; a secret.
    authorization: Option<HeaderValue>,
    /// Where the worker started the model server: why that ended, if it did.
    ended: Option<watch::Receiver<Option<Failure>>>,
}

impl OpenAiAdapter {
    fn new(args: &OpenAiArgs, ended: Option<watch::Receiver<Option<Failure>>>) -> Result<Self, WorkerError> {
        let mut builder = reqwest::Client::builder().connect_timeout(Duration::from_secs(args.connect_timeout));
        if args.base_url.scheme() == "http" {
            // Without TLS, the system's authorities need not be read; an image may lack them.
            builder = builder.tls_certs_only([]);
        }
        let authorization = match &args.api_key_env {
            None => None,
            Some(name) => Some(bearer(name)?),
        };
        Ok(OpenAiAdapter { http: builder.build()?, args: args.clone(), authorization, ended })
    }

    fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let mut url = self.args.base_url.clone();
        url.set_path(&format!("{}/{path}", url.path().trim_end_matches('/')));
        let request = self.http.request(method, url);
        match &self.authorization {
            Some(authorization) => request.header(AUTHORIZATION, authorization.clone()),
            None => request,
        }
    }

    /// Waits until the server answers `GET models`. Any answer but a server error (5xx) will do, since not every server lists
    /// models.
    async fn ready(&self) -> Result<(), WorkerError> {
        if self.args.wait_ready == 0 {
            return Ok(());
        }
        let mut why = "no answer".to_string();
        let attempts = async {
            loop {
                let request = self.request(reqwest::Method::GET, "models").timeout(Duration::from_secs(5));
                match request.send().await {
                    Ok(answer) if !answer.status().is_server_error() => return,
                    Ok(answer) => why = format!("status {}", answer.status()),
                    Err(error) => why = causes(&error),
                }
                tokio::time::sleep(Duration::from_millis(250)).await;
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
        WorkerError::NotReady { url: self.args.base_url.clone(), seconds: self.args.wait_ready, why }
    }

    /// The body of the request: system prompt, history, and the turn's message.
    fn body(&self, turn: &TurnPush) -> Value {
        let mut messages = Vec::new();
        if let Some(prompt) = &self.args.system_prompt {
            messages.push(json!({"role": "system", "content": prompt}));
        }
        for exchange in &turn.history {
            messages.push(json!({"role": "user", "content": exchange.message}));
            messages.push(json!({"role": "assistant", "content": exchange.reply}));
        }
        messages.push(json!({"role": "user", "content": turn.message}));
        json!({"model": self.args.model, "messages": messages, "stream": true})
    }

    /// Asks for one completion and passes it on, from the request to the last chunk.
    async fn complete(&self, turn: &TurnPush, out: &OutputSink) -> Result<(), Failure> {
        let idle = Duration::from_secs(self.args.idle_timeout);
        let mut request = self.request(reqwest::Method::POST, "chat/completions").json(&self.body(turn));
        if let Some(parent) = &turn.traceparent {
            request = request.header("traceparent", parent);
        }
        let response = tokio::time::timeout(idle, request.send())
            .await
            .map_err(|_| silent(idle))?
            .map_err(|e| failed(format!("the model server cannot be asked: {}", causes(&e))))?;
        let status = response.status();
        if !status.is_success() {
            let body = tokio::time::timeout(idle, body_of(response, ERROR_BYTES)).await;
            let body = body.unwrap_or_else(|_| Ok(Vec::new())).unwrap_or_else(String::into_bytes);
            let tail = String::from_utf8_lossy(&body[body.len().saturating_sub(ERROR_TAIL_BYTES)..]).into_owned();
            return Err(failed(format!("the model server answered {status}: {}", tail.trim())));
        }
        let mut lines = StreamLines::new(response, LINE_BYTES);
        let mut completion = Completion::default();
        loop {
            let line = match tokio::time::timeout(idle, lines.next()).await {
                Err(_) => return Err(silent(idle)),
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None)) if completion.is_finished() => return flush(completion, out).await,
                Ok(Err(_)) if completion.is_finished() => return flush(completion, out).await,
                Ok(Ok(None)) => return Err(failed("the model's stream ended before the completion did".into())),
                Ok(Err(error)) => return Err(failed(format!("the model's stream: {error}"))),
            };
            match completion.line(&line) {
                Ok(CompletionEvent::Frames(frames)) => {
                    for frame in frames {
                        out.send(frame).await.map_err(|stopped| failed(stopped.to_string()))?;
                    }
                }
                Ok(CompletionEvent::Done) => return flush(completion, out).await,
                Err(why) => return Err(failed(why)),
            }
        }
    }
}

/// Passes on the tool calls that are complete now that the stream has ended. A completion without text and tool calls is a
/// failure.
async fn flush(mut completion: Completion, out: &OutputSink) -> Result<(), Failure> {
    for frame in completion.tool_calls() {
        out.send(frame).await.map_err(|stopped| failed(stopped.to_string()))?;
    }
    match completion.is_empty() {
        true => Err(failed(format!("the completion is empty ({})", completion.why_finished()))
            .with_message("The agent gave no answer.")),
        false => Ok(()),
    }
}

impl TurnAdapter for OpenAiAdapter {
    async fn run(&self, turns: Vec<TurnPush>, out: OutputSink, cancel: CancellationToken) -> Outcome {
        let limit = Duration::from_secs(self.args.request_timeout);
        let completion = tokio::time::timeout(limit, self.complete(&turns[0], &out));
        let result = tokio::select! {
            result = completion => result,
            failure = self.broken() => return Outcome::Error(failure),
            () = cancel.cancelled() => return Outcome::Error(cause::rule::cancelled()),
        };
        match result {
            Ok(Ok(())) => Outcome::Reply,
            Ok(Err(failure)) => match tokio::time::timeout(EXIT_SEEN, self.broken()).await {
                Ok(cause) => Outcome::Error(cause),
                Err(_) => Outcome::Error(failure),
            },
            Err(_) => Outcome::Error(failed(format!("the completion took longer than {} s", limit.as_secs()))),
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

fn failed(detail: String) -> Failure {
    cause::program::no_answer(detail)
}

fn silent(idle: Duration) -> Failure {
    failed(format!("the model server said nothing for {} s", idle.as_secs()))
}

/// The header with the API key that the environment variable `name` holds.
fn bearer(name: &str) -> Result<HeaderValue, WorkerError> {
    let key = std::env::var(name).unwrap_or_default();
    if key.is_empty() {
        return Err(WorkerError::NoApiKey(name.into()));
    }
    let mut value =
        HeaderValue::from_str(&format!("Bearer {}", key.trim())).map_err(|_| WorkerError::NoApiKey(name.into()))?;
    value.set_sensitive(true);
    Ok(value)
}
