//! The web page, in a headless Chromium: see `tests/clients/browser/page.mjs` for what a person does and sees there.

use std::process::Stdio;
use std::time::Duration;

use lastword::gateway::AuthMode;
use lastword::store::Store;
use lastword::store::keys::KeyRole;
use lastword::turn::frame::Frame;
use lastword::turn::reason::Reason;
use lastword::turn::terminal::{Failure, Outcome};
use lastword::wire::{Finish, TurnPush};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use super::network::Network;
use crate::support::fake_worker::{FakeWorker, Refused, whole_reply};
use crate::support::gateway::{Gateway, ORGANIZATION, api_key};
use crate::support::{Db, repository, skipped};

crate::newest! {
    a_person_chats_and_an_operator_looks_on,
}

/// The tabs of the test, and some: each answer holds one worker.
const WORKERS: usize = 12;
/// The pace of an agent that thinks while it speaks.
const PACE: Duration = Duration::from_millis(50);

const MARKDOWN: &str = "## Two ways\n\nBoth are **good**, and *neither* is `free`.\n\n1. Write it down first.\n2. Say it once.\n\n\
    ```rust\nassert_eq!(turn.terminals(), 1);\n```\n\n| failure | within |\n|---|---|\n| killed | milliseconds |\n| silent | a lease |\n\n\
    > What cannot be proven is decided by the lease.\n\n<script>window.pwned = 1</script>\n\n<b onclick=\"window.pwned = 2\">bold</b> \
    <img src=\"https://evil.example/x.png\" onerror=\"window.pwned = 3\"> [bad](javascript:window.pwned=4) ![pic](https://evil.example/y.png) See the \
    [docs](https://example.com/docs).";

/// Installs what drives a browser; false is told as a skip of `what`.
pub fn has_browser(what: &str) -> bool {
    let installed = std::process::Command::new(repository("scripts/browser-clients")).status();
    let there = installed.is_ok_and(|status| status.success());
    if !there {
        skipped(&format!("a browser and its driver cannot be installed, so {what}"));
    }
    there
}

/// Does what a message asks for.
async fn answer(worker: &FakeWorker, turn: &TurnPush) -> Result<(), Refused> {
    let id = turn.turn_id;
    let text = |text: &str| vec![Frame::text(text)];
    let mut ending = Finish { tail: None, ..whole_reply(&[id], "") };
    let mut words = turn.message.split(' ');
    match words.next().unwrap_or_default() {
        "slow" => {
            let count: usize = words.next().and_then(|n| n.parse().ok()).unwrap_or(10);
            for n in 0..count {
                let word = format!("{}word{n}", if n == 0 { "" } else { " " });
                ending.end = worker.output(id, ending.end, text(&word)).await?.received;
                tokio::time::sleep(PACE).await;
            }
        }
        "markdown" => {
            for piece in MARKDOWN.split_inclusive(' ') {
                ending.end = worker.output(id, ending.end, text(piece)).await?.received;
            }
        }
        "tools" => {
            let (call, name) = ("1".to_owned(), "look_up_weather".to_owned());
            let frames = vec![
                Frame::ToolCall { id: call.clone(), name, arguments: json!({"city": "Basel"}) },
                Frame::ToolResult { id: call, result: json!({"sky": "clear", "celsius": 21}) },
                Frame::text("It is sunny."),
            ];
            ending.end = worker.output(id, 0, frames).await?.received;
        }
        "fail" => {
            ending.end = worker.output(id, 0, text("half an answer")).await?.received;
            ending.outcome = Outcome::Error(Failure::detailed(Reason::AgentError, "by the test's agent"));
        }
        "length" => {
            ending.end = worker.output(id, 0, text("Once upon a")).await?.received;
            ending.finish_reason = Some("length".into());
        }
        _ => ending.end = worker.output(id, 0, text(&format!("You said: {}", turn.message))).await?.received,
    }
    worker.finish(&ending).await.map(drop)
}

/// Starts the agent: workers that answer one turn at a time each.
async fn start_agent(store: &Store, gateway: &Gateway) {
    for _ in 0..WORKERS {
        let mut worker = FakeWorker::new(store, |start| start.lease_seconds = 600).await;
        worker.capacity = 1;
        worker.connect(gateway, &[]).await;
        tokio::spawn(async move {
            loop {
                let Some(turn) = worker.next_turn().await else { return };
                // Refused: somebody has cancelled the turn.
                let _ = answer(&worker, &turn).await;
            }
        });
    }
}

async fn a_person_chats_and_an_operator_looks_on(db: Db) {
    if !has_browser("the web page is not tried") {
        return;
    }
    let gateway = Gateway::with(db.options(), |config| config.auth = AuthMode::Keys).await;
    start_agent(&db.store, &gateway).await;
    let network = Network::to(&gateway.clients).await;
    let user = api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await.1;
    let operator = api_key(&db.store, ORGANIZATION, "boss", KeyRole::Operator).await.1;
    let shots = repository("target/page");
    std::fs::create_dir_all(&shots).expect("a directory");
    let mut driver = Command::new("node")
        .arg(repository("tests/clients/browser/page.mjs"))
        .args([&network.url, &user, &operator])
        .arg(shots)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("node runs");
    let mut lines = BufReader::new(driver.stdout.take().expect("piped")).lines();
    let mut stdin = driver.stdin.take().expect("piped");
    while let Some(line) = lines.next_line().await.expect("lines") {
        match line.as_str() {
            "cut" => network.cut(),
            "mend" => network.mend(),
            said => {
                println!("{said}");
                continue;
            }
        }
        stdin.write_all(b"done\n").await.expect("it listens");
    }
    let ended = driver.wait().await.expect("it ends");
    assert!(ended.success(), "the driver failed: {ended}");
}
