//! Programs of `tests/clients/node`: public client libraries of npm, run by Node. Each prints lines of JSON.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::wait::within;
use super::{repository, skipped};

/// The folder that has the public client libraries, which are installed if need be; `None` is told as a skip of `what`.
pub fn node_clients(what: &str) -> Option<PathBuf> {
    let installed = std::process::Command::new(repository("scripts/node-clients")).status();
    if installed.is_ok_and(|status| status.success()) {
        return Some(repository(".cache/node"));
    }
    skipped(&format!("the npm client libraries cannot be installed, so {what}"));
    None
}

/// A running program.
pub struct NodeClient {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl NodeClient {
    /// Starts a program of `tests/clients/node`. It ends with this value.
    pub fn start(program: &str, args: &[&str]) -> NodeClient {
        let mut child = Command::new("node")
            .arg(repository("tests/clients/node").join(program))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("Node runs");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        NodeClient { child, lines }
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

/// Runs a module's text where the libraries are; what it printed, if it ended well.
pub async fn run_module(text: &str) -> String {
    let mut child = Command::new("node")
        .args(["--input-type=module", "-"])
        .current_dir(repository(".cache/node"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("Node runs");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).await.expect("it reads");
    let output = within("the end of the module", child.wait_with_output()).await.expect("it ran");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\nprinted: {said}\n{}", String::from_utf8_lossy(&output.stderr));
    said
}
