//! Programs of `tests/clients/node`: public client libraries of npm, run by Node. Each prints lines of JSON.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::program::ClientProgram;
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

impl ClientProgram {
    /// Starts a program of `tests/clients/node`. It ends with this value.
    pub fn start(program: &str, args: &[&str]) -> ClientProgram {
        let mut command = Command::new("node");
        command.arg(repository("tests/clients/node").join(program)).args(args);
        ClientProgram::run(command)
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
