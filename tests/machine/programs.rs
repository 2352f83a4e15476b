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
use crate::support::wait::eventually;
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

/// A developer's shell is full of keys, and what a program says goes to whoever chats with it.
#[tokio::test]
async fn a_program_gets_a_small_environment_and_what_its_agent_names() {
    let container = |env: Value| {
        json!({"adapter": "Exec", "scope": "Agent", "template": {"spec": {"containers": [
            {"name": "agent", "command": ["env"], "env": env}]}}})
    };
    let document = |name: &str, spec: Value| {
        format!(
            "---\n{}\n",
            json!({"apiVersion": "lastword.dev/v1alpha1", "kind": "Agent", "metadata": {"name": name}, "spec": spec})
        )
    };
    let from_secret = json!({"secretKeyRef": {"name": "search", "key": "api-key"}});
    let mut with_env_from = container(json!([]));
    with_env_from["template"]["spec"]["containers"][0]["envFrom"] = json!([{"secretRef": {"name": "search"}}]);
    let agents = [
        document("plain", container(json!([]))),
        document(
            "given",
            container(json!([{"name": "GREETING", "value": "hello"}, {"name": "KEY", "valueFrom": from_secret}])),
        ),
        document("all", with_env_from),
    ];
    let mut dev = Dev::prepare(&agents.concat(), &[]);
    for (name, value) in
        [("SEARCH_API_KEY", "s3cret"), ("AWS_SECRET_ACCESS_KEY", "s3cret"), ("LC_TIME", "C"), ("TZ", "UTC")]
    {
        dev.env(name, value);
    }
    dev.restart().await;
    let (code, plain, _) = dev.chat(&["--agent", "plain", "m"]).await;
    assert_eq!(code, Some(0));
    let names: Vec<&str> = plain.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    for name in ["PATH", "HOME", "LC_TIME", "TZ", "LASTWORD_TURN_ID"] {
        assert!(names.contains(&name) || (name == "HOME" && std::env::var_os("HOME").is_none()), "{name} in {names:?}");
    }
    assert!(!plain.contains("s3cret"), "{plain}");
    let known = ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR"];
    let strangers: Vec<&&str> = names
        .iter()
        .filter(|name| !known.contains(name) && !["LC_", "LASTWORD_TURN_"].iter().any(|p| name.starts_with(p)))
        .collect();
    assert!(strangers.is_empty(), "{strangers:?}");
    let (_, given, _) = dev.chat(&["--agent", "given", "m"]).await;
    assert!(given.contains("GREETING=hello\n") && given.contains("\nKEY=s3cret\n"), "{given}");
    assert!(!given.contains("AWS_"), "{given}");
    let refused = dev.api().submit("c", "all", "m").await.turn;
    let record = eventually("the turn of the agent with envFrom ends", async || {
        let record = dev.api().record(&refused).await;
        (record["phase"] == "Failed").then_some(record)
    })
    .await;
    assert_eq!(record["error"]["reason"], "StartFailed");
    assert!(record["error"]["detail"].as_str().unwrap().contains("name each variable in env"), "{record}");
    assert!(dev.interrupt().await.success());
}

#[tokio::test]
async fn a_program_that_reads_json_is_given_the_history() {
    let mut spec = json!({"scope": "Conversation"});
    spec["adapter"] = "Exec".into();
    spec["template"] = json!({"spec": {"containers": [{"name": "agent", "command": ["cat"],
        "env": [{"name": "LASTWORD_TURN_INPUT", "value": "json"}]}]}});
    let agent = json!({"apiVersion": "lastword.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "remembers"}, "spec": spec});
    let mut dev = Dev::start(&format!("---\n{agent}\n")).await;
    let say = async |message: &str| {
        let (code, said, _) = dev.chat(&["--agent", "remembers", "--conversation", "c", message]).await;
        assert_eq!(code, Some(0));
        assert_eq!(said.lines().count(), 1, "one object on one line: {said}");
        (serde_json::from_str::<Value>(&said).expect("JSON"), said)
    };
    let (first, reply) = say("one \"quoted\"\nwith two lines").await;
    assert_eq!(first["message"], "one \"quoted\"\nwith two lines");
    assert_eq!(first["history"], json!([]));
    for field in ["turnId", "messageId", "conversation", "user", "agent", "organization", "platform"] {
        assert!(first[field].is_string(), "{field} in {first}");
    }
    assert!(first.get("metadata").is_some(), "{first}");
    let (second, _) = say("two").await;
    assert_eq!(second["message"], "two");
    assert_eq!(second["history"], json!([{"message": "one \"quoted\"\nwith two lines", "reply": reply}]));
    assert_eq!((&second["conversation"], &second["agent"]), (&json!("c"), &json!("remembers")));
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
