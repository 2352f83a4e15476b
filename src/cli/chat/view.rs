//! Prints a turn: in a pipe the reply's text alone, for programs JSON lines, and for a person the text with dim lines for
//! tools and progress, and a spinner while nothing comes.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use console::{Term, style};

use crate::cli::text::{one_line, printable, width};
use crate::cli::types::{ApiFailure, EventKind, StreamEvent};
use crate::turn::frame::Frame;
use crate::turn::keys::TurnId;

/// How often the spinner turns.
pub const TICK: Duration = Duration::from_millis(100);
/// The line above output that is no answer to what was just typed.
pub const OF_ANOTHER: &str = "\u{2500}\u{2500} of another turn in this conversation";
const SPINNER: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/// Whom the output is for.
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
    /// Where the spinner is drawn; none in a pipe, or on a terminal that cannot overwrite a line.
    spinner: Option<Term>,
    spinning: bool,
    /// Output is awaited, so the spinner may be drawn.
    waiting: bool,
    since: Instant,
    /// What the spinner's line says instead of "thinking…", such as that the connection was lost.
    note: Option<String>,
    /// The cursor of stdout is at the start of a line.
    fresh_line: bool,
    /// The turn whose output came last.
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

    /// Output is awaited from now on.
    pub fn begin(&mut self) {
        self.since = Instant::now();
        self.waiting = true;
        self.turn = None;
    }

    /// Says which turn's output follows. Output of another turn gets a line above it that says so.
    pub fn expect(&mut self, turn: TurnId) {
        self.turn = Some(turn);
    }

    /// Shows one event.
    pub fn event(&mut self, event: &StreamEvent) -> io::Result<()> {
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
        io::stdout().flush()?;
        match &event.kind {
            EventKind::Complete(complete) if self.mode != Mode::Json => {
                self.warn_of_a_cut(complete.finish_reason.as_deref())
            }
            _ => Ok(()),
        }
    }

    /// Says it when the model stopped before its reply was whole.
    fn warn_of_a_cut(&mut self, finish_reason: Option<&str>) -> io::Result<()> {
        let why = match finish_reason {
            Some("length" | "max_tokens" | "model_length") => {
                "the reply is cut off: the model came to its limit of length"
            }
            Some("content_filter") => "the reply is cut off by the model's content filter",
            _ => return Ok(()),
        };
        self.newline()?;
        writeln!(io::stderr(), "{} {why}", style("note:").for_stderr().dim())
    }

    fn for_a_person(&mut self, event: &StreamEvent) -> io::Result<()> {
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

    /// Prints a dim line of something that is no part of the reply.
    fn dim(&mut self, line: &str) -> io::Result<()> {
        self.newline()?;
        let line = one_line(line, width(&Term::stdout()).saturating_sub(1));
        writeln!(io::stdout(), "{}", style(line).dim())
    }

    /// Says something that is no part of the reply: in the spinner's line on a terminal, else on stderr.
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

    /// Draws the spinner's next frame, if it may be drawn.
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

    /// Shows how the turn ended, and leaves the cursor at the start of a line.
    pub fn end(&mut self, failure: Option<&ApiFailure>) -> io::Result<()> {
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

    /// Removes the spinner and ends the line, so that something else may be printed.
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

/// Shows the terminal's cursor again, also when an error ends the command.
impl Drop for View {
    fn drop(&mut self) {
        let _ = self.clear();
    }
}

/// A JSON value as text: a string without its quotes, anything else as JSON.
fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}
