//! `lastword chat`: one message and its reply, or a conversation at the terminal.

mod follow;
mod repl;
mod view;

use std::io::{self, IsTerminal, Read};
use std::process::ExitCode;

use self::follow::{ResumableStream, TurnEnd};
use self::view::{Mode, View};
use super::args::ClientArgs;
use super::client::ApiClient;
use super::error::CliError;
use super::stream::StreamSource;
use super::types::SubmitRequest;

/// The longest message that a gateway takes, in bytes.
const MAX_MESSAGE_BYTES: u64 = 1024 * 1024;
/// The exit code that shells report for a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Talk to an agent.
///
/// With a message: sends it, prints the reply as it comes, and exits 0; 1 if the turn ended in an error. Without one: a
/// conversation, if stdin is a terminal; else stdin is the message. Piped, it prints the reply's text alone.
#[derive(Debug, Clone, clap::Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub gateway: ClientArgs,
    /// The agent: `NAME`, or `NAMESPACE/NAME` within your organization.
    #[arg(long, short, env = "LASTWORD_AGENT", value_name = "NAME")]
    pub agent: Option<String>,
    /// The conversation to go on with [default: a new one].
    #[arg(long, short, env = "LASTWORD_CONVERSATION", value_name = "NAME")]
    pub conversation: Option<String>,
    /// Print every event as a line of JSON.
    #[arg(long, env = "LASTWORD_JSON")]
    pub json: bool,
    /// The message; `-` reads it from stdin.
    pub message: Option<String>,
}

/// Runs `lastword chat`.
pub async fn run(args: ChatArgs) -> Result<ExitCode, CliError> {
    let agent = args
        .agent
        .clone()
        .filter(|agent| !agent.is_empty())
        .ok_or_else(|| CliError::Usage("which agent? name it with --agent NAME, or set LASTWORD_AGENT".into()))?;
    let client = args.gateway.client()?;
    let message = match args.message.as_deref() {
        None if io::stdin().is_terminal() => {
            if args.json || !io::stdout().is_terminal() {
                return Err(CliError::Usage("what to say? give a message, or `-` to read it from stdin".into()));
            }
            return repl::run(client, agent, args.conversation).await;
        }
        None | Some("-") => from_stdin()?,
        Some(message) => message.to_string(),
    };
    if message.trim().is_empty() {
        return Err(CliError::Usage("the message is empty".into()));
    }
    let conversation = args.conversation.unwrap_or_else(new_conversation);
    one_shot(&client, &conversation, &SubmitRequest::new(agent, message), Mode::detect(args.json)).await
}

fn from_stdin() -> Result<String, CliError> {
    let mut message = String::new();
    let read = io::stdin().lock().take(MAX_MESSAGE_BYTES + 1).read_to_string(&mut message);
    read.map_err(|source| CliError::Io { doing: "read the message from stdin".into(), source })?;
    if message.len() as u64 > MAX_MESSAGE_BYTES {
        return Err(CliError::Usage(format!("the message is longer than {MAX_MESSAGE_BYTES} bytes")));
    }
    Ok(message)
}

async fn one_shot(
    client: &ApiClient,
    conversation: &str,
    submit: &SubmitRequest,
    mode: Mode,
) -> Result<ExitCode, CliError> {
    let mut view = View::new(mode);
    view.begin();
    let Some(armed) = follow::submit(client, conversation, submit, &mut view).await? else {
        view.rest()?;
        eprintln!("left before the gateway answered; the message {} may still be answered", submit.message_id);
        return Ok(ExitCode::from(INTERRUPTED));
    };
    view.expect(armed.turn_id);
    let mut stream = ResumableStream::new(client.clone(), StreamSource::Turn(armed.turn_id));
    let ended = follow::follow(client, &mut stream, armed.turn_id, &mut view).await;
    match ended {
        Ok(TurnEnd::Reply) => {
            view.end(None)?;
            Ok(ExitCode::SUCCESS)
        }
        Ok(TurnEnd::Error(failure)) => {
            view.end(Some(&failure))?;
            Ok(ExitCode::FAILURE)
        }
        Ok(TurnEnd::Left) => {
            view.rest()?;
            eprintln!("left; see `lastword turns show {}`", armed.turn_id);
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) => {
            view.rest()?;
            if !error.is_broken_pipe() {
                eprintln!("the turn goes on: `lastword turns show {}`", armed.turn_id);
            }
            Err(error)
        }
    }
}

/// A random name for a new conversation.
fn new_conversation() -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("chat-{}", &random[..12])
}
