//! `lastword worker agui` against servers that do byte by byte what a test says.

use lastword::wire::Exchange;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::*;
use crate::support::http::free_address;
use crate::support::model::{ModelAnswer, ModelServer, Then, answer, status};
use crate::support::{python_clients, repository};

/// A worker of this server.
async fn bench(server: &ModelServer, flags: &[&str]) -> Bench {
    let url = format!("{}/agent", server.base);
    Bench::start(&[&["agui", &url], flags].concat()).await
}

/// The events of a run, each ended like this.
fn events(events: &[Value], end: &str) -> String {
    events.iter().map(|event| format!("data: {event}{end}{end}")).collect()
}

fn said(text: &str) -> Vec<Value> {
    vec![
        json!({"type": "RUN_STARTED", "threadId": "t", "runId": "r"}),
        json!({"type": "TEXT_MESSAGE_START", "messageId": "1", "role": "assistant"}),
        json!({"type": "TEXT_MESSAGE_CONTENT", "messageId": "1", "delta": text}),
        json!({"type": "TEXT_MESSAGE_END", "messageId": "1"}),
        json!({"type": "RUN_FINISHED", "threadId": "t", "runId": "r"}),
    ]
}

fn run(body: &str) -> ModelAnswer {
    status("200 OK", "Content-Type: text/event-stream\r\n", body)
}

/// Runs one turn; its failure, as reason and detail.
async fn failed(bench: &Bench, message: &str) -> (String, String) {
    let failure = failure(bench.turn(message).await.1);
    (failure.reason.to_string(), failure.detail.unwrap_or_default())
}

#[tokio::test]
async fn an_agui_server_is_sent_the_conversation_and_what_it_says_is_the_reply() {
    let server = ModelServer::start(|request| run(&events(&said(&format!("to {}", request.message())), "\n"))).await;
    let bench = bench(&server, &[]).await;
    let history = vec![Exchange { message: "a".into(), reply: "b".into() }];
    let turn = bench.gateway.push_with("hello", "c", |turn| turn.history = history);
    let (frames, outcome) = bench.over(turn).await;
    assert_eq!((text(&frames).as_str(), outcome), ("to hello", Outcome::Reply));
    let request = &server.requests()[0];
    assert!(request.head.starts_with("POST /v1/agent HTTP/1.1"), "{}", request.head);
    assert!(request.header("accept").is_some_and(|kinds| kinds.contains("text/event-stream")));
    assert_eq!(request.body["runId"], json!(turn));
    assert!(request.body["threadId"].is_string() && request.body["tools"] == json!([]), "{}", request.body);
    let told: Vec<_> = request.messages().iter().map(|m| (m["role"].as_str(), m["content"].as_str())).collect();
    assert_eq!(told, [(Some("user"), Some("a")), (Some("assistant"), Some("b")), (Some("user"), Some("hello"))]);
    assert!(request.messages().iter().all(|message| message["id"].is_string()));
}

#[tokio::test]
async fn lines_may_end_in_any_way_and_what_comes_behind_the_end_is_not_waited_for() {
    let server = ModelServer::start(|request| {
        let end = if request.message() == "crlf" { "\r\n" } else { "\n" };
        let body = format!(": hello{end}{end}{}", events(&said("hello"), end));
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
        answer(format!("{head}{body}"), Then::Held)
    })
    .await;
    let bench = bench(&server, &[]).await;
    for message in ["lf", "crlf"] {
        let (frames, outcome) = bench.turn(message).await;
        assert_eq!((text(&frames).as_str(), outcome), ("hello", Outcome::Reply), "{message}");
    }
}

#[tokio::test]
async fn only_the_end_of_a_run_is_its_end() {
    let server = ModelServer::start(|request| {
        let half = &said("half")[..3];
        let with = |last: Value| run(&events(&[half, &[last]].concat(), "\n"));
        match request.message() {
            "ends" => run(&events(half, "\n")),
            "error" => with(json!({"type": "RUN_ERROR", "message": "on fire", "code": "E1"})),
            "interrupt" => with(json!({"type": "RUN_FINISHED", "outcome": {"type": "interrupt", "interrupts": [{}]}})),
            "cancelled" => with(json!({"type": "RUN_FINISHED", "outcome": {"type": "cancelled"}})),
            "malformed" => run("data: {\"type\": \n\n"),
            "page" => run("<html>wrong door</html>"),
            "silent" => run(&events(&[said("")[0].clone(), json!({"type": "RUN_FINISHED"})], "\n")),
            other => panic!("{other}"),
        }
    })
    .await;
    let bench = bench(&server, &[]).await;
    for (message, reason, words) in [
        ("ends", "AgentError", "ended before the run did"),
        ("error", "AgentError", "E1: on fire"),
        ("interrupt", "AgentError", "interrupts are not supported"),
        ("cancelled", "Cancelled", ""),
        ("malformed", "AgentError", "malformed"),
        ("page", "AgentError", "wrong door"),
        ("silent", "AgentError", "without text"),
    ] {
        let (got, detail) = failed(&bench, message).await;
        assert_eq!(got, reason, "{message}: {detail}");
        assert!(detail.contains(words), "{message}: {detail}");
        assert_eq!(server.asked(message).len(), 1, "a run that began is not posted again: {message}");
    }
}

#[tokio::test]
async fn a_refusal_is_classified_by_its_status_and_asked_again_where_it_may_pass() {
    let server = ModelServer::start(|request| match request.message() {
        "key" => status("401 Unauthorized", "", "no such key"),
        "moved" => status("307 Temporary Redirect", "Location: http://127.0.0.1:9/\r\n", ""),
        "busy" => status("503 Service Unavailable", "Retry-After: 0.05\r\n", "later"),
        "broken" => status("500 Internal Server Error", "Retry-After: 0.05\r\n", "oh no"),
        other => panic!("{other}"),
    })
    .await;
    let bench = bench(&server, &["--retries", "1"]).await;
    for (message, reason, words, asked) in [
        ("key", "ModelRejected", "no such key", 1),
        ("moved", "ModelRejected", "not followed", 1),
        ("busy", "ModelUnavailable", "later", 2),
        ("broken", "ModelUnavailable", "oh no", 2),
    ] {
        let (got, detail) = failed(&bench, message).await;
        assert_eq!(got, reason, "{message}: {detail}");
        assert!(detail.contains(words), "{message}: {detail}");
        assert_eq!(server.asked(message).len(), asked, "{message}");
    }
    let nobody = format!("http://{}/agent", free_address());
    let away = Bench::start(&["agui", &nobody, "--retries", "0"]).await;
    let (reason, detail) = failed(&away, "hello").await;
    assert_eq!(reason, "ModelUnavailable");
    assert!(detail.contains("cannot be reached"), "{detail}");
}

#[tokio::test]
async fn a_connection_that_breaks_fails_the_turn_once() {
    let server = ModelServer::start(|_| {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        let body = events(&said("half")[..3], "\n");
        answer(format!("{head}{:x}\r\n{body}\r\n", body.len()), Then::Eof)
    })
    .await;
    let bench = bench(&server, &[]).await;
    let (frames, outcome) = bench.turn("hello").await;
    assert_eq!((text(&frames).as_str(), failure(outcome).reason.as_str()), ("half", "AgentError"));
    assert_eq!(server.asked("hello").len(), 1);
}

/// The server reads what it is sent by the public models of AG-UI, which refuse what is no run.
#[tokio::test]
async fn a_server_with_the_public_library_is_an_agent() {
    let Some(python) = python_clients("none of them is an AG-UI agent") else { return };
    let mut server = Command::new(python)
        .arg(repository("tests/clients/agui_server.py"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let port = within("the server's port", lines.next_line()).await.unwrap().expect("a line");
    let bench = Bench::start(&["agui", &format!("http://127.0.0.1:{port}/run")]).await;
    let history = vec![Exchange { message: "a".into(), reply: "b".into() }];
    let turn = bench.gateway.push_with("hello", "c", |turn| turn.history = history);
    let (frames, outcome) = bench.over(turn).await;
    assert_eq!((text(&frames).as_str(), outcome), ("you said hello", Outcome::Reply));
    let call = Frame::ToolCall { id: "call".into(), name: "count".into(), arguments: json!({"of": "messages"}) };
    assert_eq!(frames[..2], [call, Frame::ToolResult { id: "call".into(), result: json!("3") }]);
    let (reason, detail) = failed(&bench, "fail").await;
    assert_eq!(reason, "AgentError");
    assert!(detail.contains("E1: told to"), "{detail}");
}
