//! `lastword worker openai` against servers that do byte by byte what a test says.

use lastword::wire::Exchange;
use serde_json::json;

use super::*;
use crate::support::http::free_address;
use crate::support::model::{ModelServer, Then, answer, said, status};
use crate::support::repository;

mod recorded;
mod tries;

/// A worker of this server, with these flags besides.
async fn bench(server: &ModelServer, flags: &[&str]) -> Bench {
    let args = ["openai", "--base-url", &server.base, "--model", "m", "--wait-ready", "0"];
    Bench::start(&[&args[..], flags].concat()).await
}

/// Runs one turn; its failure, as reason and detail.
async fn failed(bench: &Bench, message: &str) -> (String, String) {
    let failure = failure(bench.turn(message).await.1);
    assert_eq!(failure.retryable(), failure.reason.as_str() != "ModelRejected", "{failure:?}");
    (failure.reason.to_string(), failure.detail.unwrap_or_default())
}

#[tokio::test]
async fn a_model_is_sent_the_conversation_and_what_it_says_is_the_reply() {
    let server = ModelServer::start(|request| said(&format!("to {}", request.message()))).await;
    let bench = bench(&server, &["--system-prompt", "be nice"]).await;
    let (frames, outcome) = bench.turn("hello").await;
    assert_eq!((text(&frames).as_str(), outcome), ("to hello", Outcome::Reply));
    let request = &server.requests()[0];
    assert!(request.head.starts_with("POST /v1/chat/completions HTTP/1.1"), "{}", request.head);
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert!(request.header("traceparent").is_some());
    let messages = json!([{"role": "system", "content": "be nice"}, {"role": "user", "content": "hello"}]);
    assert_eq!(request.body, json!({"model": "m", "messages": messages, "stream": true}));
}

#[tokio::test]
async fn what_is_sent_is_valid_whatever_the_conversation_was() {
    let server = ModelServer::start(|_| said("ok")).await;
    let bench = bench(&server, &[]).await;
    let exchange = |message: &str, reply: &str| Exchange { message: message.into(), reply: reply.into() };
    let history = vec![exchange("a", "b"), exchange("tool calls alone", ""), exchange("c", " \n"), exchange("d", "e")];
    let turn = bench.gateway.push_with("now", "c", |turn| turn.history = history);
    assert_eq!(bench.over(turn).await.1, Outcome::Reply);
    let sent = server.requests().remove(0);
    let told: Vec<_> = sent.messages().iter().map(|m| m["content"].as_str().unwrap()).collect();
    assert_eq!(told, ["a", "b", "d", "e", "now"]);
}

/// Too long for a model that takes two messages, as one server says it.
fn short_sighted(count: usize) -> crate::support::model::ModelAnswer {
    match count {
        0..=3 => said("ok"),
        _ => status(
            "400 Bad Request",
            "",
            r#"{"error":{"message":"maximum context length is 2","code":"context_length_exceeded"}}"#,
        ),
    }
}

#[tokio::test]
async fn a_conversation_that_is_too_long_is_halved_once_and_then_told() {
    let server = ModelServer::start(|request| short_sighted(request.messages().len())).await;
    let bench = bench(&server, &[]).await;
    let past = |count: usize| {
        move |turn: &mut lastword::wire::TurnPush| {
            turn.history = (0..count).map(|n| Exchange { message: format!("m{n}"), reply: format!("r{n}") }).collect();
        }
    };
    let turn = bench.gateway.push_with("two past", "c", past(2));
    let (frames, outcome) = bench.over(turn).await;
    assert_eq!((text(&frames).as_str(), outcome), ("ok", Outcome::Reply));
    let counts = |message: &str| server.asked(message).iter().map(|r| r.messages().len()).collect::<Vec<_>>();
    assert_eq!(counts("two past"), [5, 3]);
    assert_eq!(server.asked("two past")[1].messages()[0]["content"], "m1", "the newer half");

    let turn = bench.gateway.push_with("many past", "c", past(20));
    let failure = failure(bench.over(turn).await.1);
    assert_eq!(counts("many past"), [41, 21], "halved once");
    assert_eq!((failure.reason.as_str(), failure.retryable()), ("ModelRejected", false));
    assert_eq!(failure.message, "This conversation is too long for the agent's model. Please start a new one.");
    assert!(failure.detail.unwrap().contains("maximum context length is 2"));
}

#[tokio::test]
async fn a_message_that_alone_is_too_long_is_told() {
    let server = ModelServer::start(|_| status("413 Payload Too Large", "", "")).await;
    let bench = bench(&server, &[]).await;
    let failure = failure(bench.turn("long").await.1);
    assert_eq!(server.requests().len(), 1);
    assert_eq!(failure.message, "This message is too long for the agent's model. Please send a shorter one.");
    assert_eq!(failure.reason.as_str(), "ModelRejected");
}

#[tokio::test]
async fn a_model_that_falls_silent_or_takes_too_long_is_given_up() {
    let half = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n";
    let server = ModelServer::start(move |request| match request.message() {
        "nothing" => answer("", Then::Held),
        "half" => answer(half, Then::Held),
        _ => answer("HTTP/1.1 200 OK\r\n\r\n", Then::Held),
    })
    .await;
    let bench = bench(&server, &["--idle-timeout", "1"]).await;
    for (message, reason) in [("nothing", "ModelUnavailable"), ("headers", "ModelUnavailable"), ("half", "AgentError")]
    {
        let (told, detail) = failed(&bench, message).await;
        assert_eq!(told, reason, "{message}: {detail}");
        assert!(detail.contains("said nothing for 1 s"), "{message}: {detail}");
        assert_eq!(server.asked(message).len(), 1, "{message}: not asked again");
    }
    let bench = Bench::start(&[
        "openai",
        "--base-url",
        &server.base,
        "--model",
        "m",
        "--wait-ready",
        "0",
        "--request-timeout",
        "1",
    ])
    .await;
    for (message, reason) in [("nothing", "ModelUnavailable"), ("half", "AgentError")] {
        let (told, detail) = failed(&bench, message).await;
        assert_eq!(told, reason, "{message}: {detail}");
        assert!(detail.contains("took longer than 1 s"), "{message}: {detail}");
    }
}

/// A server's comments are signs of life: a model that thinks for longer than the silence that is allowed is waited for. Once
/// its answer is whole, they are nothing to wait for.
#[tokio::test]
async fn comments_keep_a_model_that_thinks_from_being_given_up_and_hold_up_no_whole_answer() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/v1", listener.local_addr().unwrap());
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 64 * 1024]).await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut thinks = tokio::time::interval(std::time::Duration::from_millis(250));
        for _ in 0..10 {
            thinks.tick().await;
            stream.write_all(b": PROCESSING\n\n").await.unwrap();
        }
        let whole = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"},\"finish_reason\":\"stop\"}]}\n\n";
        stream.write_all(whole.as_bytes()).await.unwrap();
        loop {
            thinks.tick().await;
            if stream.write_all(b": heartbeat\n\n").await.is_err() {
                return;
            }
        }
    });
    let args = ["openai", "--base-url", &base, "--model", "m", "--wait-ready", "0", "--idle-timeout", "1"];
    let bench = Bench::start(&args).await;
    let (frames, outcome) = bench.turn("think").await;
    assert_eq!((text(&frames).as_str(), outcome), ("hi", Outcome::Reply));
}

/// A model server that ends behind its answer; a process that it leaves keeps the connection open.
const LEAVES: &str = r#"
import http.server, os, time
class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        self.rfile.read(int(self.headers['content-length']))
        self.send_response(200); self.end_headers()
        self.wfile.write(b'data: {"choices":[{"delta":{"content":"whole"},"finish_reason":"stop"}]}\n\n')
        if os.fork() == 0:
            os.setsid(); time.sleep(5)
        os._exit(3)
http.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), Server).serve_forever()
"#;

#[tokio::test]
async fn a_whole_answer_stays_one_though_its_server_ends() {
    let base = format!("http://{}/v1", free_address());
    let args = ["openai", "--base-url", &base, "--model", "m", "--model-server", "--", "python3", "-c", LEAVES];
    let bench = Bench::start(&args).await;
    let (frames, outcome) = bench.turn("hello").await;
    assert_eq!((text(&frames).as_str(), outcome), ("whole", Outcome::Reply));
}

#[tokio::test]
async fn a_model_server_that_dies_fails_its_turns_and_ends_the_worker() {
    let base = format!("http://{}/v1", free_address());
    let server = repository("examples/agents/server.py");
    let args = ["openai", "--base-url", &base, "--model", "tiny", "--model-server", "--", "python3"];
    let args = [&args[..], &[server.to_str().unwrap()]].concat();
    let mut bench = Bench::start(&args).await;
    let (frames, outcome) = bench.turn("one two").await;
    assert_eq!((text(&frames).as_str(), outcome), ("You said: one two", Outcome::Reply));
    let failure = failure(bench.turn("crash").await.1);
    assert_eq!(failure.reason.to_string(), "WorkerExited", "{failure:?}");
    assert_eq!(bench.exit_code().await, Some(5));
    let last = bench.gateway.with(|state| state.goodbyes.last().map(|goodbye| goodbye.phase));
    assert_eq!(last, Some(lastword::wire::GoodbyePhase::Gone));
}
