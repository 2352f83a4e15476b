//! The promise: programs and servers that nobody here wrote are agents as they are.
//!
//! LiteLLM's proxy is large; its part runs when it is installed (`scripts/python-litellm`), with `LASTWORD_LITELLM=1`,
//! and in CI.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::api::{End, Watched};
use crate::support::dev::{Dev, agent};
use crate::support::http::free_address;
use crate::support::{count, repository, skipped};

/// Waits for the file `go` between two pieces of its reply.
const PIECES: &str = "import os, sys, time
print('one', flush=True)
while not os.path.exists('go'): time.sleep(0.01)
print('two', sys.stdin.read().strip())";

#[tokio::test]
async fn programs_as_they_are_answer_through_exec() {
    let shared = || json!({"scope": "Agent"});
    let agents = [
        agent("bc", shared(), &["bc", "-l"]),
        agent("sqlite3", shared(), &["sqlite3", "-batch", "-header", ":memory:"]),
        agent("python3", shared(), &["python3", "-c", "import sys; print(sys.stdin.read().strip()[::-1])"]),
        agent("pieces", shared(), &["python3", "-c", PIECES]),
    ];
    let mut dev = Dev::start(&agents.concat()).await;
    for (name, message, reply) in [
        ("bc", "6*7", "42\n"),
        ("bc", "scale=5; 1/3\n2^100", ".33333\n1267650600228229401496703205376\n"),
        ("sqlite3", "select 6*7 as answer", "answer\n42\n"),
        ("python3", "Grüße", "eßürG\n"),
    ] {
        let chat = dev.chat(&["--agent", name, message]).await;
        assert_eq!(chat, (Some(0), reply.to_string(), String::new()), "{name}");
    }

    // The first piece is shown while the program still runs: the second waits for us to have seen it.
    let api = dev.api();
    let turn = api.submit("c", "pieces", "three").await.turn;
    let stream = api.turn(&turn);
    let first = stream.frame("the first piece", |f| f.event == "text").await;
    assert!(first.data["text"].as_str().unwrap().starts_with("one"), "{first:?}");
    assert_eq!(api.record(&turn).await["phase"], "Running");
    std::fs::write(dev.path("go"), "").unwrap();
    assert_eq!(stream.ended().await, End::Clean);
    assert_eq!(stream.text(&turn), "one\ntwo three\n");
    assert_eq!(api.record(&turn).await["reply"]["text"], "one\ntwo three\n");
    assert!(dev.interrupt().await.success());
}

const PARROT: &str = "Polly wants a cracker, said the parrot, and nobody here had written its server.";

#[tokio::test]
async fn a_model_server_that_nobody_here_wrote_streams_its_reply_and_its_error() {
    let Some(litellm) = litellm() else { return };
    // The port is free until LiteLLM takes it; it cannot be told to choose one itself.
    let port = free_address().port();
    let model = |model: &str| {
        json!({
            "adapter": "OpenAI", "scope": "Agent",
            "openai": {
                "baseURL": format!("http://127.0.0.1:{port}/v1"), "model": model,
                "apiKeySecretRef": {"name": "litellm", "key": "master-key"},
            },
        })
    };
    let command =
        [litellm.to_str().unwrap(), "--config", "litellm.yaml", "--host", "127.0.0.1", "--port", &port.to_string()];
    let agents = [
        // One agent has the server beside it; the other only talks to it.
        agent("parrot", with_workers(model("parrot"), 1), &command),
        without_template(agent("broken", model("broken"), &[])),
    ];
    let mut dev = Dev::prepare(&agents.concat(), &[]);
    std::fs::write(dev.path("litellm.yaml"), config()).unwrap();
    dev.env("LITELLM_MASTER_KEY", "sk-loopback");
    let begun = Instant::now();
    dev.restart().await;
    let api = dev.api();

    let turn = api.submit("c-1", "parrot", "hello").await.turn;
    let stream = api.turn(&turn);
    stream.frame("the first token", |f| f.event == "text").await;
    println!("LiteLLM is up and streams {:?} after the start", begun.elapsed());
    assert_eq!(stream.ended().await, End::Clean);
    assert_eq!(stream.text(&turn), PARROT);
    assert_eq!(names(&stream).last(), Some(&"complete".to_string()));
    assert_eq!(api.record(&turn).await["reply"]["text"], PARROT);

    let turn = api.submit("c-2", "broken", "hello").await.turn;
    let stream = api.turn(&turn);
    assert_eq!(stream.ended().await, End::Clean);
    assert_eq!(names(&stream), ["connected", "error", "agent-error", "complete"]);
    let record = api.record(&turn).await;
    assert_eq!(record["error"]["reason"], "ModelUnavailable", "{record}");
    assert!(record["error"]["detail"].as_str().unwrap().contains("mock internal server error"), "{record}");
    assert!(!record["error"]["message"].as_str().unwrap().contains("mock"), "{record}");
    assert!(dev.interrupt().await.success());
    assert!(dev.processes().is_empty(), "the server goes with its worker: {:#?}", dev.processes());
}

fn config() -> String {
    let model = |name: &str, says: &str| {
        json!({"model_name": name,
               "litellm_params": {"model": format!("openai/{name}"), "api_key": "none", "mock_response": says}})
    };
    let config = json!({
        "model_list": [model("parrot", PARROT), model("broken", "litellm.InternalServerError")],
        "router_settings": {"num_retries": 0},
    });
    config.to_string()
}

fn with_workers(mut spec: Value, workers: u32) -> Value {
    spec["limits"] = json!({"maxWorkers": workers, "turnsPerWorker": 8});
    spec
}

fn without_template(document: String) -> String {
    let mut document: Value = serde_json::from_str(document.trim_start_matches("---")).unwrap();
    document["spec"].as_object_mut().unwrap().remove("template");
    format!("---\n{document}\n")
}

fn names(stream: &Watched) -> Vec<String> {
    stream.frames().into_iter().map(|f| f.event).collect()
}

/// LiteLLM's proxy, if it is installed or may be.
fn litellm() -> Option<PathBuf> {
    let program = repository(".cache/litellm/bin/litellm");
    let asked = count("LASTWORD_LITELLM") == Some(1) || count("CI") == Some(true);
    if asked {
        let installed = std::process::Command::new(repository("scripts/python-litellm")).status();
        assert!(installed.is_ok_and(|status| status.success()), "scripts/python-litellm failed");
    }
    if program.exists() {
        return Some(program);
    }
    skipped(
        "LiteLLM is not installed (scripts/python-litellm, or LASTWORD_LITELLM=1), so no foreign model server answers",
    );
    None
}
