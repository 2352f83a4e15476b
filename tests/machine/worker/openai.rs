//! `lastword worker openai` against a server that misbehaves on command: the last message says how.

use axum::body::Body;
use axum::extract::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::StreamExt;
use serde_json::{Value, json};

use super::*;
use crate::support::http::{free_address, serve};
use crate::support::repository;

async fn stub() -> String {
    let router = axum::Router::new()
        .route("/v1/models", get(|| async { Json(json!({"data": []})) }))
        .route("/v1/chat/completions", post(complete));
    format!("{}/v1", serve(router).await)
}

async fn complete(Json(body): Json<Value>) -> Response {
    let chunk = |delta: Value, reason: Value| {
        format!("data: {}\n\n", json!({"choices": [{"delta": delta, "finish_reason": reason}]}))
    };
    let hi = chunk(json!({"content": "hi"}), Value::Null);
    let end = chunk(json!({}), json!("stop"));
    let messages = body["messages"].as_array().unwrap();
    let chunks: Vec<String> = match messages.last().unwrap()["content"].as_str().unwrap() {
        "500" => return (StatusCode::INTERNAL_SERVER_ERROR, "model exploded").into_response(),
        "cut" => vec![hi],
        "error" => vec![hi, format!("data: {}\n\n", json!({"error": {"message": "overloaded"}}))],
        "empty" => vec![end],
        "stall" => {
            let stream = futures::stream::iter([Ok::<_, std::io::Error>(hi)]).chain(futures::stream::pending());
            return Body::from_stream(stream).into_response();
        }
        "system" => vec![chunk(messages[0].clone(), Value::Null), end],
        _ => vec![hi, end, "data: [DONE]\n\n".into()],
    };
    Body::from(chunks.concat()).into_response()
}

#[tokio::test]
async fn a_completion_is_the_reply_and_what_breaks_is_the_turns_error() {
    let base = stub().await;
    let args = ["openai", "--base-url", &base, "--model", "m", "--system-prompt", "be nice", "--idle-timeout", "1"];
    let bench = Bench::start(&args).await;
    for (message, expected) in [("hello", "hi"), ("system", "be nice")] {
        let (frames, outcome) = bench.turn(message).await;
        assert_eq!((text(&frames).as_str(), outcome), (expected, Outcome::Reply));
    }
    for (message, expected) in [
        ("500", "model exploded"),
        ("cut", "ended before the completion did"),
        ("error", "overloaded"),
        ("empty", "the completion is empty"),
        ("stall", "said nothing for 1 s"),
    ] {
        let failure = failure(bench.turn(message).await.1);
        let detail = failure.detail.unwrap_or_default();
        assert_eq!(failure.reason.to_string(), "AgentError", "{message}");
        assert!(detail.contains(expected), "{message}: {detail}");
        assert!(!failure.message.contains(expected));
    }
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
