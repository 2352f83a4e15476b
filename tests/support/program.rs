//! A client in another language, as a program of `tests/clients`: it prints a line of JSON for each thing that it is told.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::wait::within;

/// A running program.
pub struct ClientProgram {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl ClientProgram {
    /// Starts it. It ends with this value.
    pub fn run(mut command: Command) -> ClientProgram {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("it runs");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        ClientProgram { child, lines }
    }

    /// The next line; `None` at the end of the program.
    pub async fn line(&mut self) -> Option<Value> {
        let line = within("a line of the client", self.lines.next_line()).await.expect("UTF-8")?;
        Some(serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}")))
    }

    /// The lines up to the first that is waited for.
    pub async fn until(&mut self, what: &str, is: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut seen = Vec::new();
        while let Some(line) = self.line().await {
            let found = is(&line);
            seen.push(line);
            if found {
                return seen;
            }
        }
        panic!("the client ended before {what}: {seen:#?}");
    }

    /// All further lines, until the program's end, which has to be a good one.
    pub async fn rest(mut self) -> Vec<Value> {
        let mut seen = Vec::new();
        while let Some(line) = self.line().await {
            seen.push(line);
        }
        let status = within("the end of the client", self.child.wait()).await.expect("it ran");
        assert!(status.success(), "{status}: {seen:#?}");
        seen
    }
}
