//! `docs/clients.md`: each client of it does what it says, word for word, against `dev` with the example agents.

use std::process::Stdio;

use tokio::process::Command;

use crate::support::dev::Dev;
use crate::support::node::{node_clients, run_module};
use crate::support::wait::within;
use crate::support::{python_clients, repository};

/// Where `make dev` serves.
const ADDRESS: &str = "http://localhost:8080";

/// `dev` with the example `calc`.
pub(super) async fn calculator() -> Dev {
    let examples = std::fs::read_to_string(repository("examples/agents.yaml")).unwrap();
    let calc = examples.split("\n---").find(|agent| agent.contains("name: calc")).expect("an example").to_owned();
    Dev::start(&calc).await
}

/// The code under a heading of `docs/clients.md`, for this `dev`.
pub(super) fn code(heading: &str, dev: &Dev) -> String {
    let page = std::fs::read_to_string(repository("docs/clients.md")).unwrap();
    let section = page.split("\n## ").find_map(|section| section.strip_prefix(&format!("{heading}\n")));
    let section = section.unwrap_or_else(|| panic!("no section {heading}"));
    let block = section.split("```").nth(1).expect("code");
    let (_language, code) = block.split_once('\n').expect("lines");
    assert!(code.contains(ADDRESS), "{code}");
    code.replace(ADDRESS, dev.url())
}

async fn shell(script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::null()).kill_on_drop(true);
    let output = within("the end of the script", command.output()).await.unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn every_documented_client_shows_the_reply() {
    let dev = calculator().await;
    let said = shell(&code("curl", &dev)).await;
    assert!(said.contains("42") && said.contains("event: complete"), "{said}");
    if let Some(python) = python_clients("OpenAI's library does not run as documented") {
        let mut command = Command::new(python);
        command.arg("-c").arg(code("openai, for Python", &dev)).kill_on_drop(true);
        let output = within("the end of the program", command.output()).await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(said.trim(), "42", "{}", String::from_utf8_lossy(&output.stderr));
    }
    if node_clients("none of them runs as documented").is_none() {
        return;
    }
    for heading in ["EventSource", "AG-UI", "useChat", "openai, for Node"] {
        let said = run_module(&code(heading, &dev)).await;
        assert_eq!(said.trim(), "42", "{heading}");
    }
}
