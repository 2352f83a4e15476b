//! How a turn looks: text alone in a pipe, JSON lines for programs, and for a person text, dim lines for tools and
//! progress, and a spinner while nothing comes.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use console::{Term, style};

use crate::cli::text::{one_line, printable, width};
use crate::cli::types::{Event, EventKind, Failure};
use crate::turn::frame::Frame;
use crate::turn::keys::TurnId;

/// How often the spinner turns.
pub const TICK: Duration = Duration::from_millis(100);
/// Stands above output that answers nothing of what was just typed.
pub const OF_ANOTHER: &str = "\u{2500}\u{2500} of another turn in this conversation";
const SPINNER: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/// What the output is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The reply's text, byte for byte.
    Text,
    /// Every event as a line of JSON: `{event, id, data}`.
    Json,
    /// A person's terminal.
    Terminal,
}

impl Mode {
    /// JSON if asked for, else by what stdout is.
    pub fn detect(json: bool) -> Self {
        match (json, io::stdout().is_terminal()) {
            (true, _) => Mode::Json,
            (false, true) => Mode::Terminal,
            (false, false) => Mode::Text,
        }
    }
}

/// Prints one turn after the other.
pub struct View {
    mode: Mode,
    /// Where the spinner is; none in a pipe, or on a terminal that cannot go back in a line.
    spinner: Option<Term>,
    spinning: bool,
    /// Output is awaited, so a spinner may stand.
    waiting: bool,
    since: Instant,
    /// What else to say beside the spinner, such as a lost connection.
    note: Option<String>,
    /// Stdout stands at the start of a line.
    fresh_line: bool,
    /// Whose output came last.
    turn: Option<TurnId>,
}

impl View {
    pub fn new(mode: Mode) -> Self {
        let stderr = Term::stderr();
        let spins = mode == Mode::Terminal && stderr.is_term() && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
        View {
            mode,
            spinner: spins.then_some(stderr),
            spinning: false,
            waiting: false,
            since: Instant::now(),
            note: None,
            fresh_line: true,
            turn: None,
        }
    }

    /// Something is awaited from now on.
    pub fn begin(&mut self) {
        self.since = Instant::now();
        self.waiting = true;
        self.turn = None;
    }

    /// Whose output follows; that of another turn gets a line which says so.
    pub fn expect(&mut self, turn: TurnId) {
        self.turn = Some(turn);
    }

    /// Shows one event.
    pub fn event(&mut self, event: &Event) -> io::Result<()> {
        self.clear()?;
        self.note = None;
        match self.mode {
            Mode::Json => {
                let line = serde_json::json!({"event": event.name, "id": event.cursor, "data": event.data});
                writeln!(io::stdout(), "{line}")?;
            }
            Mode::Text => {
                if let EventKind::Output(Frame::Text { text }) = &event.kind {
                    io::stdout().write_all(text.as_bytes())?;
                }
            }
            Mode::Terminal => self.for_a_person(event)?,
        }
        io::stdout().flush()
    }

    fn for_a_person(&mut self, event: &Event) -> io::Result<()> {
        let EventKind::Output(frame) = &event.kind else { return Ok(()) };
        if self.turn.is_some() && event.turn_id != self.turn {
            self.dim(OF_ANOTHER)?;
        }
        self.turn = event.turn_id.or(self.turn);
        match frame {
            Frame::Text { text } => {
                let text = printable(text);
                if !text.is_empty() {
                    io::stdout().write_all(text.as_bytes())?;
                    self.fresh_line = text.ends_with('\n');
                    self.waiting = false;
                }
                return Ok(());
            }
            Frame::ToolCall { name, arguments, .. } if arguments.is_null() => self.dim(&format!("\u{2192} {name}")),
            Frame::ToolCall { name, arguments, .. } => self.dim(&format!("\u{2192} {name} {arguments}")),
            Frame::ToolResult { result, .. } => self.dim(&format!("\u{2190} {}", plain(result))),
            Frame::Progress { message } => self.dim(&format!("\u{b7} {message}")),
            Frame::Data { name, value } => self.dim(&format!("\u{b7} {name}: {}", plain(value))),
        }?;
        self.waiting = true;
        Ok(())
    }

    /// One dim line of what is not the reply.
    fn dim(&mut self, line: &str) -> io::Result<()> {
        self.newline()?;
        let line = one_line(line, width(&Term::stdout()).saturating_sub(1));
        writeln!(io::stdout(), "{}", style(line).dim())
    }

    /// Says something beside the reply: with the spinner on a terminal, else on stderr.
    pub fn note(&mut self, note: &str) -> io::Result<()> {
        if self.note.as_deref() == Some(note) {
            return Ok(());
        }
        if self.spinner.is_none() {
            writeln!(io::stderr(), "note: {}", printable(note))?;
        } else if !self.waiting {
            self.newline()?;
            self.waiting = true;
        }
        self.note = Some(note.to_string());
        self.tick()
    }

    /// Turns the spinner, if one may stand.
    pub fn tick(&mut self) -> io::Result<()> {
        let (Some(term), true, true) = (&self.spinner, self.waiting, self.fresh_line) else { return Ok(()) };
        let elapsed = self.since.elapsed();
        let frame = SPINNER[(elapsed.as_millis() / TICK.as_millis()) as usize % SPINNER.len()];
        let note = self.note.as_deref().unwrap_or("thinking\u{2026}");
        let line = one_line(&format!("{frame} {note} {}s", elapsed.as_secs()), width(term).saturating_sub(1));
        let _ = term.hide_cursor();
        term.clear_line()?;
        term.write_str(&style(line).for_stderr().dim().to_string())?;
        self.spinning = true;
        Ok(())
    }

    /// Shows how the turn ended, and leaves the terminal at the start of a line.
    pub fn end(&mut self, failure: Option<&Failure>) -> io::Result<()> {
        self.rest()?;
        let Some(failure) = failure else { return Ok(()) };
        let mut stderr = io::stderr().lock();
        let (reason, message) = (printable(&failure.reason), printable(&failure.message));
        writeln!(stderr, "{} {reason}: {message}", style("error:").for_stderr().red().bold())?;
        if failure.retryable {
            writeln!(stderr, "{} sending it again may help", style("hint:").for_stderr().dim())?;
        }
        Ok(())
    }

    /// Takes the spinner away and ends the line, so that others may print.
    pub fn rest(&mut self) -> io::Result<()> {
        self.clear()?;
        (self.waiting, self.note) = (false, None);
        self.newline()
    }

    fn newline(&mut self) -> io::Result<()> {
        if self.mode == Mode::Terminal && !self.fresh_line {
            self.fresh_line = true;
            writeln!(io::stdout())?;
        }
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        if let (Some(term), true) = (&self.spinner, self.spinning) {
            self.spinning = false;
            term.clear_line()?;
            term.show_cursor()?;
        }
        Ok(())
    }
}

/// The cursor comes back even when an error ends the command.
impl Drop for View {
    fn drop(&mut self) {
        let _ = self.clear();
    }
}

/// A string without its quotes, anything else as JSON.
fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}
