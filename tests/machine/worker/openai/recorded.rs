//! Recorded answers of model servers, `tests/model-streams`: what a turn becomes by each; and answers of the same kinds.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::*;
use crate::support::model::ModelAnswer;
use crate::support::wait::eventually;

/// What a recorded answer is to become.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Expected {
    then: String,
    outcome: String,
    reason: Option<String>,
    text: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<(String, Value)>>,
    finish_reason: Option<String>,
    #[serde(default)]
    detail_has: Vec<String>,
    retryable: Option<bool>,
}

/// Holds what a turn became against what it is to become; what is wrong, or nothing.
async fn wrong(bench: &Bench, name: &str, turn: lastword::turn::keys::TurnId, expected: &Expected) -> Vec<String> {
    let (frames, outcome) = bench.over(turn).await;
    let mut wrong = Vec::new();
    let mut check = |what: &str, found: Value, expected: Value| {
        if found != expected {
            wrong.push(format!("{name}: {what}: {found} instead of {expected}"));
        }
    };
    check("outcome", outcome.as_str().into(), expected.outcome.clone().into());
    if let Some(expected) = &expected.text {
        check("text", text(&frames).into(), expected.clone().into());
    }
    if let Some(expected) = &expected.tool_calls {
        let calls = frames.iter().filter_map(|frame| match frame {
            Frame::ToolCall { name, arguments, .. } => Some(json!([name, arguments])),
            _ => None,
        });
        check("tool calls", calls.collect(), json!(expected));
    }
    if let Some(expected) = &expected.finish_reason {
        let finish = bench.gateway.with(|state| state.turns[&turn].finishes.last().cloned());
        check("finish reason", json!(finish.and_then(|finish| finish.finish_reason)), json!(expected));
    }
    if let Outcome::Error(failure) = outcome {
        check("reason", failure.reason.as_str().into(), json!(expected.reason));
        check("retryable", failure.retryable().into(), expected.retryable.unwrap_or(failure.retryable()).into());
        let detail = failure.detail.unwrap_or_default();
        for words in &expected.detail_has {
            check(&format!("{detail:?} has {words:?}"), detail.contains(words).into(), true.into());
            check("the person is told internals", failure.message.contains(words).into(), false.into());
        }
    }
    wrong
}

/// Each of these answers, replayed to a turn of its own.
async fn replayed(answers: BTreeMap<String, (ModelAnswer, Expected)>) {
    let script: BTreeMap<String, ModelAnswer> =
        answers.iter().map(|(name, (answer, _))| (name.clone(), answer.clone())).collect();
    let server = ModelServer::start(move |request| script[request.message()].clone()).await;
    let bench = bench(&server, &["--turns-per-worker", "8"]).await;
    let mut all_wrong = Vec::new();
    for (name, (answer, expected)) in &answers {
        let begun = std::time::Instant::now();
        let turn = bench.gateway.push(name);
        if answer.then == Then::Reset {
            // What came before it has to be taken first.
            eventually("a text", async || bench.gateway.with(|state| !state.turns[&turn].span.is_empty())).await;
            server.reset();
        }
        all_wrong.extend(wrong(&bench, name, turn, expected).await);
        if answer.then == Then::Held && begun.elapsed().as_secs() > 10 {
            all_wrong.push(format!("{name}: held open for {:?}", begun.elapsed()));
        }
    }
    assert!(all_wrong.is_empty(), "{} of {}:\n{}", all_wrong.len(), answers.len(), all_wrong.join("\n"));
}

fn then(name: &str) -> Then {
    match name {
        "eof" => Then::Eof,
        "reset" => Then::Reset,
        "held" => Then::Held,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn recorded_answers_become_what_they_are() {
    let directory = repository("tests/model-streams");
    let expected = std::fs::read_to_string(directory.join("expected.json")).unwrap();
    let expected: BTreeMap<String, Expected> = serde_json::from_str(&expected).unwrap();
    let recorded = std::fs::read_dir(&directory).unwrap().flatten();
    let recorded = recorded.filter(|file| file.path().extension().is_some_and(|end| end == "http")).count();
    assert_eq!((recorded, recorded >= 42), (expected.len(), true), "each has its expectation");
    let answers = expected.into_iter().map(|(name, expected)| {
        let bytes = std::fs::read(directory.join(format!("{name}.http"))).unwrap();
        (name, (answer(bytes, then(&expected.then)), expected))
    });
    replayed(answers.collect()).await;
}

/// A stream of these events; each is the text of its lines.
fn stream(events: &[&str]) -> String {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
    head.to_owned() + &events.iter().map(|event| format!("{event}\n\n")).collect::<String>()
}

fn reply(text: &str) -> Expected {
    Expected {
        then: "eof".into(),
        outcome: "reply".into(),
        reason: None,
        text: Some(text.into()),
        tool_calls: None,
        finish_reason: None,
        detail_has: Vec::new(),
        retryable: None,
    }
}

fn error(reason: &str, detail: &str) -> Expected {
    Expected {
        outcome: "error".into(),
        reason: Some(reason.into()),
        text: None,
        detail_has: vec![detail.into()],
        ..reply("")
    }
}

const HELLO: &str = r#"data: {"choices":[{"delta":{"content":"hello"},"finish_reason":null}]}"#;
const STOP: &str = r#"data: {"choices":[{"delta":{},"finish_reason":"stop"}]}"#;
const DONE: &str = "data: [DONE]";

#[tokio::test]
async fn answers_of_the_same_kinds_become_what_they_are() {
    let finish = |reason: &str| format!(r#"data: {{"choices":[{{"delta":{{}},"finish_reason":{reason}}}]}}"#);
    let json =
        |body: &str| format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{body}");
    let held = |bytes: String, text: &str| (answer(bytes, Then::Held), reply(text));
    let eof = |bytes: String, expected: Expected| (answer(bytes, Then::Eof), expected);
    let cases = [
        // Half an answer.
        ("null-word", eof(stream(&[HELLO, &finish("\"null\""), DONE]), error("AgentError", "null"))),
        ("empty-then-done", eof(stream(&[HELLO, &finish("\"\""), DONE]), error("AgentError", "finish_reason"))),
        ("abort", eof(stream(&[HELLO, &finish("\"abort\""), DONE]), error("AgentError", "abort"))),
        ("event-error", eof(stream(&[HELLO, "event: error\ndata: gone", DONE]), error("AgentError", "gone"))),
        (
            "detail",
            eof(stream(&[HELLO, r#"data: {"detail":"no such thing"}"#, DONE]), error("AgentError", "no such thing")),
        ),
        ("raw-json", eof(stream(&[HELLO, r#"{"error":"boom"}"#, DONE]), error("AgentError", "boom"))),
        (
            "sentence",
            eof(stream(&[HELLO, "Internal Server Error", DONE]), error("AgentError", "Internal Server Error")),
        ),
        (
            "error-field",
            eof(stream(&[HELLO, r#"error: {"code":500,"message":"slot lost"}"#]), error("AgentError", "slot lost")),
        ),
        ("cut-line", eof(stream(&[HELLO]) + "data: {\"choices\":[{\"del", error("AgentError", "not understood"))),
        ("done-alone", eof(stream(&[DONE]), error("AgentError", "empty"))),
        // A whole one.
        ("usage-held", held(stream(&[HELLO, STOP, "data: {\"choices\":[],\"usage\":{}}"]), "hello")),
        ("document-held", held(json(r#"{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}"#), "hi")),
        ("error-afterwards", eof(stream(&[HELLO, STOP, r#"data: {"error":"late"}"#]), reply("hello"))),
        ("garbage-afterwards", eof(stream(&[HELLO, STOP, "oops, a crash", "data: {"]), reply("hello"))),
        (
            "blank-lines-first",
            eof(
                json("\n\n\n{\"choices\":[{\"message\":{\"content\":\"hi\"},\"finish_reason\":\"stop\"}]}"),
                reply("hi"),
            ),
        ),
        ("invalid-utf8", {
            let mut bytes = stream(&[HELLO]).into_bytes();
            bytes.extend_from_slice(b"data: {\"choices\":[{\"delta\":{\"content\":\" \xff!\"}}]}\n\n");
            bytes.extend_from_slice(format!("{STOP}\n\n").as_bytes());
            (answer(bytes, Then::Eof), reply("hello \u{fffd}!"))
        }),
        (
            "limit",
            (
                answer(stream(&[HELLO, &finish("\"max_tokens\""), DONE]), Then::Eof),
                Expected { finish_reason: Some("max_tokens".into()), ..reply("hello") },
            ),
        ),
        // No answer.
        (
            "overloaded",
            eof(
                stream(&[r#"data: {"error":{"message":"overloaded","code":503}}"#]),
                error("ModelUnavailable", "overloaded"),
            ),
        ),
        (
            "no-such-model",
            eof(stream(&[r#"data: {"error":{"message":"no such model"}}"#]), error("ModelRejected", "no such model")),
        ),
        (
            "list-of-errors",
            eof(
                json(r#"[{"error":{"code":400,"message":"API key not valid"}}]"#),
                error("ModelRejected", "API key not valid"),
            ),
        ),
        (
            "page",
            eof(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html>Sign in</html>".into(),
                error("ModelRejected", "Sign in"),
            ),
        ),
        (
            "thoughts-alone",
            eof(
                stream(&[r#"data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}"#, STOP, DONE]),
                error("AgentError", "empty"),
            ),
        ),
        (
            "empty-and-error",
            eof(stream(&[STOP, r#"data: {"error":"ran out of luck"}"#]), error("AgentError", "ran out of luck")),
        ),
        ("nothing", eof("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".into(), error("ModelUnavailable", "empty"))),
    ];
    replayed(cases.into_iter().map(|(name, case)| (name.to_owned(), case)).collect()).await;
}
