//! The promise: from nothing to a reply with one command, an end without traces, and a failure that everybody hears of.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{ChildStdout, Command};

use crate::support::dev::{Dev, agent};
use crate::support::wait::{eventually, within};
use crate::support::{python_clients, repository};

#[tokio::test]
async fn from_nothing_to_a_reply_and_back_to_nothing_and_the_data_stays() {
    let begun = Instant::now();
    let mut dev = Dev::start(&agent("calc", json!({"scope": "Agent"}), &["bc", "-l"])).await;
    let ready = begun.elapsed();
    let chat = dev.chat(&["--agent", "calc", "--conversation", "c", "6*7"]).await;
    assert_eq!(chat, (Some(0), "42\n".into(), String::new()));
    println!("ready after {ready:?}, first reply after {:?}", begun.elapsed());

    let begun = Instant::now();
    assert!(dev.interrupt().await.success(), "SIGINT is a proper end:\n{}", dev.log());
    // At once, not in a while: nothing outlives a dev that ended by itself.
    let left = dev.processes();
    assert!(left.is_empty(), "left behind: {left:#?}");
    println!("stopped within {:?}", begun.elapsed());

    let begun = Instant::now();
    dev.restart().await;
    println!("ready again after {:?}", begun.elapsed());
    let (_, history) = dev.api().get("/v1/conversations/c/turns").await;
    let turns = history["turns"].as_array().unwrap();
    assert_eq!(turns.len(), 1, "{history}");
    assert_eq!((&turns[0]["message"], &turns[0]["reply"]["text"]), (&json!("6*7"), &json!("42\n")));
    let chat = dev.chat(&["--agent", "calc", "--conversation", "c", "2^10"]).await;
    assert_eq!(chat, (Some(0), "1024\n".into(), String::new()));
}

/// Whoever cannot start is told why, and disturbs nobody.
#[tokio::test]
async fn a_second_dev_and_a_taken_port_are_clear_errors() {
    let mut dev = Dev::start(&agent("calc", json!({"scope": "Agent"}), &["bc", "-l"])).await;
    let (code, error) = fails(dev.command(&[])).await;
    assert_eq!(code, Some(1), "{error}");
    let line = error.lines().last().unwrap_or_default();
    assert!(line.starts_with("error: ") && line.contains("in use by another lastword"), "{error}");
    assert!(line.contains(&dev.pid().to_string()), "names the other one's pid: {error}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--listen", "--worker-listen", "--admin-listen"] {
        let (code, error) = fails(dev.command(&[flag, &address])).await;
        assert_eq!(code, Some(1), "{error}");
        let line = error.lines().last().unwrap_or_default();
        assert!(line.contains(&address) && line.contains(&format!("choose another with {flag}")), "{error}");
    }
    assert_eq!(dev.chat(&["--agent", "calc", "1+1"]).await.1, "2\n", "the first one is undisturbed");
    assert!(dev.interrupt().await.success());
}

/// A worker of one's own can kill its keeper; then it falls to `dev`, as what the worker has started does.
#[tokio::test]
async fn a_worker_that_kills_its_keeper_leaves_nothing() {
    let script = "setsid sleep 300 < /dev/null > /dev/null 2>&1 & kill -9 $PPID; exec sleep 301";
    let spec = json!({"adapter": "Custom", "timing": {"startSeconds": 60}});
    let mut dev = Dev::start(&agent("rebel", spec, &["sh", "-c", script])).await;
    let (code, _, said) = dev.chat(&["--agent", "rebel", "m"]).await;
    assert_eq!(code, Some(1), "{said}");
    eventually("nothing of the worker is left", async || {
        let left: Vec<_> = dev.processes().into_iter().filter(|p| p.command.contains("sleep 30")).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    assert!(dev.interrupt().await.success());
}

/// A worker that is done makes way for another conversation at once, and not with its next heartbeat.
#[tokio::test]
async fn a_place_is_handed_over_without_waiting_for_a_heartbeat() {
    let timing = json!({"leaseSeconds": 90, "heartbeatSeconds": 30});
    let mut dev =
        Dev::start(&agent("calc", json!({"limits": {"maxWorkers": 1}, "timing": timing}), &["bc", "-l"])).await;
    let begun = Instant::now();
    for conversation in ["a", "b", "c"] {
        let chat = dev.chat(&["--agent", "calc", "--conversation", conversation, "6*7"]).await;
        assert_eq!(chat, (Some(0), "42\n".into(), String::new()));
    }
    let took = begun.elapsed();
    assert!(took.as_secs() < 30, "no heartbeat was waited for: {took:?}");
    println!("three conversations on one place took {took:?}");
    assert!(dev.interrupt().await.success());
}

/// Whatever is edited of an Agent, a running message ends by its own word; the next one goes by the new Agent.
#[tokio::test]
async fn an_edit_ends_no_running_message() {
    for scope in ["Agent", "Conversation"] {
        let of = |words: &str, more: Value| {
            let mut spec = json!({"scope": scope, "timing": {"drainSeconds": 0}});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            agent("bot", spec, &["sh", "-c", &format!("until [ -e {words} ]; do sleep 0.05; done; echo {words}")])
        };
        let mut dev = Dev::start(&of("first", json!({}))).await;
        let running = dev.api().submit("c", "bot", "m").await;
        dev.api().phase(&running.turn, "Running").await;
        for edit in [
            of("first", json!({"limits": {"maxWorkers": 20}})),
            of("first", json!({"timing": {"drainSeconds": 0, "idleSeconds": 7, "leaseSeconds": 30}})),
            of("first", json!({"guardrails": {"input": [{"name": "g", "cel": {"expression": "true"}}]}})),
            of("second", json!({"limits": {"maxWorkers": 3}})),
        ] {
            dev.write_agents(&edit);
        }
        eventually("the edit is known", async || {
            let log = dev.log();
            if log.contains("takes no more turns") { Ok(()) } else { Err(log) }
        })
        .await;
        std::fs::write(dev.path("first"), "").unwrap();
        std::fs::write(dev.path("second"), "").unwrap();
        let ended = dev.api().phase(&running.turn, "Succeeded").await;
        assert_eq!(ended["reply"]["text"], "first\n", "{scope}");
        let next = dev.api().submit("c", "bot", "m").await;
        let ended = dev.api().phase(&next.turn, "Succeeded").await;
        assert_eq!(ended["reply"]["text"], "second\n", "{scope}");
        assert!(dev.interrupt().await.success());
    }
}

async fn fails(mut command: Command) -> (Option<i32>, String) {
    command.kill_on_drop(true);
    let output = within("the end of dev", command.output()).await.unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// The program notes when it exits; the client is Python's httpx-sse.
#[tokio::test]
async fn a_program_that_exits_1_ends_its_turn_for_a_public_client_and_the_cli() {
    let Some(python) = python_clients("none of them sees the stream") else { return };
    let program = "echo half; echo 'disk on fire' >&2; date +%s.%N > exited; exit 1";
    let mut dev = Dev::start(&agent("exits", json!({"scope": "Agent"}), &["sh", "-c", program])).await;
    let url =
        |conversation: &str, after: &str| format!("{}/v1/conversations/{conversation}/events?after={after}", dev.url());

    // A warm worker, then the turn that is measured: with a client that was there before.
    let before = dev.api().submit("measured", "exits", "x").await;
    dev.api().phase(&before.turn, "Failed").await;
    for conversation in ["warm", "measured"] {
        let armed =
            if conversation == "warm" { Some(dev.api().submit(conversation, "exits", "x").await) } else { None };
        let mut client = watch(&python, &url(conversation, &armed.as_ref().unwrap_or(&before).cursor)).await;
        let first = client.next().await;
        assert_eq!(first["event"], "connected");
        let turn = match armed {
            Some(armed) => armed.turn,
            None => {
                let shown = [client.next().await, client.next().await, client.next().await, client.next().await];
                assert_eq!(shown[3]["data"]["turnIds"], json!([before.turn]));
                dev.api().submit(conversation, "exits", "x").await.turn
            }
        };
        let shown = [client.next().await, client.next().await, client.next().await, client.next().await];
        let names: Vec<&str> = shown.iter().map(|e| e["event"].as_str().unwrap()).collect();
        assert_eq!(names, ["text", "error", "agent-error", "complete"]);
        for event in &shown[..3] {
            assert_eq!(event["data"]["turnId"], turn.as_str(), "{event}");
        }
        for event in &shown[1..3] {
            assert_eq!((&event["data"]["reason"], &event["data"]["retryable"]), (&json!("AgentError"), &json!(true)));
            assert!(!event.to_string().contains("disk on fire"), "internals are not for clients: {event}");
        }
        assert_eq!(shown[3]["data"]["outcome"], "error");
        assert_eq!(shown[3]["data"]["turnIds"], json!([turn]));
        let exited: f64 = std::fs::read_to_string(dev.path("exited")).unwrap().trim().parse().unwrap();
        let ms = (shown[1]["at"].as_f64().unwrap() - exited) * 1000.0;
        println!("{conversation}: {ms:.1} ms from the program's exit to the frame in the client");
        assert!(ms < 10_000.0, "within moments");
        let record = dev.api().record(&turn).await;
        assert!(record["error"]["detail"].as_str().unwrap().contains("disk on fire"), "operators learn it: {record}");

        // Once: the next turn's frames are the next that the session shows.
        let next = dev.api().submit(conversation, "exits", "y").await.turn;
        let event = client.next().await;
        assert_eq!((&event["event"], &event["data"]["turnId"]), (&json!("text"), &json!(next)), "{event}");
    }

    let (code, stdout, stderr) = dev.chat(&["--agent", "exits", "x"]).await;
    assert_eq!((code, stdout.as_str()), (Some(1), "half\n"));
    assert!(stderr.starts_with("error: AgentError: The agent failed while answering."), "{stderr}");
    assert!(dev.interrupt().await.success());
}

struct Client {
    _process: tokio::process::Child,
    lines: Lines<BufReader<ChildStdout>>,
}

async fn watch(python: &Path, url: &str) -> Client {
    let script = repository("tests/clients/session.py");
    let mut command = Command::new(python);
    command.arg(script).arg(url).stdout(Stdio::piped()).kill_on_drop(true);
    let mut process = command.spawn().unwrap();
    let lines = BufReader::new(process.stdout.take().unwrap()).lines();
    Client { _process: process, lines }
}

impl Client {
    async fn next(&mut self) -> Value {
        let line = within("an event", self.lines.next_line()).await.unwrap();
        serde_json::from_str(&line.expect("the stream is open")).unwrap()
    }
}
