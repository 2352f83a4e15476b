//! A conversation at the terminal.
//!
//! One session is open all the time, so that everything of the conversation is shown once and in order: what was not shown
//! before, the replies to what is typed here, and, above the prompt, what other windows do meanwhile. The line editor
//! blocks, so it runs on a thread of its own, which reads a line whenever it is asked for one.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use console::style;
use rustyline::error::ReadlineError;
use rustyline::{DefaultEditor, ExternalPrinter};
use tokio::sync::mpsc;

use super::follow::{self, ResumableStream, TurnEnd};
use super::view::{Mode, OF_ANOTHER, View};
use super::{INTERRUPTED, new_conversation};
use crate::cli::client::ApiClient;
use crate::cli::error::{CliError, ClientError, report};
use crate::cli::stream::{StreamSource, Streamed};
use crate::cli::text::{one_line, printable, width};
use crate::cli::types::{EventKind, StreamEvent, SubmitRequest, TurnRecord};
use crate::private::{self, Others};
use crate::turn::cause::rule::TEXT_GONE;
use crate::turn::frame::Frame;
use crate::turn::keys::TurnId;

/// When a session is silent for this long, what was not shown before counts as shown. What comes later appears above the
/// prompt.
const LEFTOVERS: Duration = Duration::from_millis(300);
/// How many turns `/history` shows, and how many `/cancel` looks at.
const HISTORY: u32 = 20;

const HELP: &str = "\
/new [NAME]   start another conversation, or go on with NAME
/history      show the last turns of this conversation
/cancel       cancel what is still open in this conversation
/quit         leave (Ctrl-D)
While a turn runs, Ctrl-C cancels it; a second one leaves.
What is pasted may have several lines.";

/// Runs the conversation until the person leaves.
pub async fn run(client: ApiClient, agent: String, conversation: Option<String>) -> Result<ExitCode, CliError> {
    let (mut editor, mut printer) = Editor::start()?;
    let conversation_is_new = conversation.is_none();
    let mut chat = Chat::new(client, agent, conversation.unwrap_or_else(new_conversation));
    chat.greet();
    if !conversation_is_new {
        chat.leftovers().await?;
    }
    loop {
        editor.ask();
        let line = loop {
            tokio::select! {
                line = editor.answers.recv() => break line.unwrap_or(Typed::End),
                item = chat.session.next(), if !chat.is_lost => chat.meanwhile(item, &mut *printer)?,
            }
        };
        let next = match line {
            Typed::Text(text) => chat.line(text.trim()).await,
            Typed::Interrupted => {
                println!("{}", style("Ctrl-D or /quit leaves").dim());
                Ok(AfterLine::Go)
            }
            Typed::End => Ok(AfterLine::Quit(ExitCode::SUCCESS)),
            Typed::Failed(error) => return Err(CliError::Io { doing: "read from the terminal".into(), source: error }),
        };
        match next {
            Ok(AfterLine::Go) => {}
            Ok(AfterLine::Quit(code)) => return Ok(code),
            Err(CliError::Client(error)) => {
                chat.view.rest()?;
                report(&CliError::Client(error));
            }
            Err(error) => return Err(error),
        }
    }
}

/// What to do after a line was typed.
enum AfterLine {
    Go,
    Quit(ExitCode),
}

struct Chat {
    client: ApiClient,
    agent: String,
    conversation: String,
    session: ResumableStream,
    /// The session broke for good. The next line that is typed opens it again.
    is_lost: bool,
    view: View,
    /// The text of turns that other windows began, until each turn is complete.
    background: HashMap<TurnId, String>,
}

impl Chat {
    fn new(client: ApiClient, agent: String, conversation: String) -> Self {
        let session = ResumableStream::new(client.clone(), StreamSource::Session(conversation.clone()));
        let (view, background) = (View::new(Mode::Terminal), HashMap::new());
        Chat { client, agent, conversation, session, is_lost: false, view, background }
    }

    fn greet(&self) {
        let (agent, conversation) = (printable(&self.agent), printable(&self.conversation));
        println!("{} {}", style(agent).bold(), style(format!("\u{b7} conversation {conversation} \u{b7} /help")).dim());
    }

    /// Goes on in another conversation with the same agent: a new one, or the one of this name.
    async fn switch(&mut self, conversation: Option<String>) -> Result<(), CliError> {
        let is_new = conversation.is_none();
        let conversation = conversation.unwrap_or_else(new_conversation);
        *self = Chat::new(self.client.clone(), self.agent.clone(), conversation);
        self.greet();
        if is_new { Ok(()) } else { self.leftovers().await }
    }

    /// Shows what of the conversation was not shown before, and follows the turns that are open in it.
    async fn leftovers(&mut self) -> Result<(), CliError> {
        self.view.begin();
        let (mut ticker, mut interrupts) = (follow::ticker(), follow::interrupts()?);
        let mut open: Option<TurnId> = None;
        let mut connected = false;
        loop {
            let quiet = tokio::time::sleep(LEFTOVERS);
            tokio::select! {
                item = self.session.next() => match item? {
                    Streamed::Reconnecting { why } => self.view.note(&format!("{why}; reconnecting"))?,
                    Streamed::Event(event) => {
                        connected = true;
                        if let (EventKind::Output(_) | EventKind::Error(_), None) = (&event.kind, open) {
                            open = event.turn_id;
                            self.view.expect(event.turn_id.unwrap_or_else(TurnId::new));
                            self.asked(event.turn_id).await?;
                        }
                        self.view.event(&event)?;
                        match &event.kind {
                            EventKind::AgentError(failure) => self.view.end(Some(failure))?,
                            EventKind::Complete(_) => {
                                self.view.end(None)?;
                                open = None;
                            }
                            _ => {}
                        }
                    }
                },
                _ = quiet, if connected && open.is_none() => break,
                _ = ticker.tick(), if open.is_some() || !connected => self.view.tick()?,
                Some(()) = interrupts.recv() => break,
            }
        }
        Ok(self.view.rest()?)
    }

    /// Prints the message that a turn answers, so that a reply from before can be understood.
    async fn asked(&mut self, turn: Option<TurnId>) -> Result<(), CliError> {
        let Some(turn) = turn else { return Ok(()) };
        if let Some(message) = self.client.turn(turn).await?.message {
            self.view.rest()?;
            question(&message);
        }
        Ok(())
    }

    /// Collects what comes while the prompt stands, and shows it above the prompt once it is whole.
    fn meanwhile(
        &mut self,
        item: Result<Streamed, ClientError>,
        printer: &mut dyn FnMut(String) -> io::Result<()>,
    ) -> Result<(), CliError> {
        let event = match item {
            Ok(Streamed::Event(event)) => event,
            Ok(Streamed::Reconnecting { .. }) => return Ok(()),
            Err(error) => {
                self.is_lost = true;
                return Ok(printer(format!("{}\n", style(printable(&format!("session lost: {error}"))).dim()))?);
            }
        };
        let StreamEvent { turn_id: Some(turn), kind, .. } = event else { return Ok(()) };
        match kind {
            EventKind::Output(Frame::Text { text }) => self.background.entry(turn).or_default().push_str(&text),
            EventKind::Error(failure) => {
                let text = self.background.entry(turn).or_default();
                text.push_str(&format!("\nerror: {}: {}", failure.reason, failure.message));
            }
            EventKind::Complete(_) => {
                let text = self.background.remove(&turn).unwrap_or_default();
                let header = style(OF_ANOTHER).dim();
                printer(format!("{header}\n{}\n", printable(text.trim())))?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Acts on a line that was typed.
    async fn line(&mut self, line: &str) -> Result<AfterLine, CliError> {
        self.is_lost = false;
        let (command, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match command {
            "" => {}
            "/quit" | "/exit" | "/q" => return Ok(AfterLine::Quit(ExitCode::SUCCESS)),
            "/help" | "/?" => println!("{}", style(HELP).dim()),
            "/new" => self.switch(Some(argument.trim().to_string()).filter(|name| !name.is_empty())).await?,
            "/history" => self.history().await?,
            "/cancel" => self.cancel().await?,
            // A message may begin with a path, which has a second slash. A word with one slash is a misspelt command.
            _ if command.starts_with('/') && !command[1..].contains('/') => {
                println!("{}", style(format!("no command {}; /help lists them", printable(command))).dim());
            }
            _ => return self.say(line).await,
        }
        Ok(AfterLine::Go)
    }

    async fn say(&mut self, message: &str) -> Result<AfterLine, CliError> {
        for text in std::mem::take(&mut self.background).into_values() {
            println!("{}\n{}", style(OF_ANOTHER).dim(), printable(&text));
        }
        self.view.begin();
        let submit = SubmitRequest::new(&self.agent, message);
        let submitted = follow::submit(&self.client, &self.conversation, &submit, &mut self.view).await?;
        let Some(armed) = submitted else {
            self.view.rest()?;
            return Ok(AfterLine::Go);
        };
        self.view.expect(armed.turn_id);
        match follow::follow(&self.client, &mut self.session, armed.turn_id, &mut self.view).await? {
            TurnEnd::Reply => self.view.end(None)?,
            TurnEnd::Error(failure) => self.view.end(Some(&failure))?,
            TurnEnd::Left => {
                self.view.rest()?;
                return Ok(AfterLine::Quit(ExitCode::from(INTERRUPTED)));
            }
        }
        Ok(AfterLine::Go)
    }

    async fn history(&mut self) -> Result<(), CliError> {
        let page = self.client.history(&self.conversation, HISTORY, None).await?;
        if page.next.is_some() {
            println!("{}", style("\u{2026}").dim());
        }
        for record in page.turns.iter().rev() {
            show(record);
        }
        Ok(())
    }

    async fn cancel(&mut self) -> Result<(), CliError> {
        let page = self.client.history(&self.conversation, HISTORY, None).await?;
        let mut cancelled = 0;
        for record in page.turns.iter().filter(|record| record.is_open()) {
            self.client.cancel(record.turn_id).await?;
            cancelled += 1;
        }
        let said = if cancelled == 0 { "nothing is open".to_string() } else { format!("{cancelled} cancelled") };
        println!("{}", style(said).dim());
        Ok(())
    }
}

/// Prints a message in one line, as the person typed it before.
fn question(message: &str) {
    let line = one_line(message, width(&console::Term::stdout()).saturating_sub(4));
    println!("{} {}", style("\u{203a}").cyan().dim(), style(line).dim());
}

fn show(record: &TurnRecord) {
    question(record.message.as_deref().unwrap_or_default());
    match (&record.reply, &record.error) {
        (Some(reply), _) => println!("{}", printable(reply.text.as_deref().unwrap_or(TEXT_GONE).trim_end())),
        (_, Some(error)) => {
            println!("{} {}: {}", style("error:").red(), printable(&error.reason), printable(&error.message));
        }
        _ => println!("{}", style(printable(&record.phase.to_lowercase())).dim()),
    }
}

/// What came from the line editor.
enum Typed {
    Text(String),
    Interrupted,
    End,
    Failed(io::Error),
}

/// The line editor, which runs on a thread of its own.
struct Editor {
    asks: std::sync::mpsc::Sender<()>,
    answers: mpsc::UnboundedReceiver<Typed>,
}

type Printer = Box<dyn FnMut(String) -> io::Result<()> + Send>;

impl Editor {
    fn start() -> Result<(Editor, Printer), CliError> {
        let failed = |error| CliError::Io { doing: "use the terminal".into(), source: io_error(error) };
        let config = rustyline::Config::builder().auto_add_history(true).build();
        let mut editor = DefaultEditor::with_config(config).map_err(failed)?;
        editor.set_helper(Some(())); // without a helper, rustyline shows the prompt without its colours
        let mut external = editor.create_external_printer().map_err(failed)?;
        let history = history_file();
        if let Some(file) = &history {
            let _ = editor.load_history(file); // there is none the first time
        }
        let (asks, asked) = std::sync::mpsc::channel::<()>();
        let (answer, answers) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let prompt = ("\u{203a} ", style("\u{203a} ").cyan().bold().to_string());
            while asked.recv().is_ok() {
                let line = match editor.readline(&prompt) {
                    Ok(text) => Typed::Text(text),
                    Err(ReadlineError::Interrupted) => Typed::Interrupted,
                    Err(ReadlineError::Eof) => Typed::End,
                    Err(error) => Typed::Failed(io_error(error)),
                };
                if let Some(file) = &history {
                    let _ = editor.append_history(file); // a chat works without a history
                }
                if answer.send(line).is_err() {
                    break;
                }
            }
        });
        let printer = Box::new(move |text| external.print(text).map_err(io_error));
        Ok((Editor { asks, answers }, printer))
    }

    fn ask(&self) {
        let _ = self.asks.send(()); // that the thread has ended shows as a closed channel of answers
    }
}

fn io_error(error: ReadlineError) -> io::Error {
    match error {
        ReadlineError::Io(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

/// `$XDG_STATE_HOME/lastword/chat_history`, by default below `~/.local/state`; its directory is made.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let dir = state.or_else(|| Some(std::env::home_dir()?.join(".local/state")))?.join("lastword");
    // What a person has asked is theirs alone.
    private::directory(&dir, Others::MayRead).ok()?;
    Some(dir.join("chat_history"))
}
