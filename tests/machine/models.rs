//! The promise: what a model server says reaches whom it concerns. The person hears a cause that it can act on, the operator
//! the server's own words, in the turn's record and in the log. `lastword dev`, Agents of the adapter `OpenAI`, and a server
//! that does what a test says.

use std::fs;

use serde_json::{Value, json};

use crate::support::api::End;
use crate::support::dev::{Dev, agent};
use crate::support::http::free_address;
use crate::support::model::{ModelAnswer, ModelRequest, ModelServer, said, status};
use crate::support::wait::eventually;
use crate::support::{crypto, repository};

/// An Agent of the adapter `OpenAI` without a model server beside it.
fn model_agent(name: &str, openai: Value) -> String {
    let spec = json!({"adapter": "OpenAI", "scope": "Agent", "openai": openai});
    let document = json!({
        "apiVersion": "lastword.dev/v1alpha1", "kind": "Agent", "metadata": {"name": name}, "spec": spec
    });
    format!("---\n{document}\n")
}

fn by_message(request: &ModelRequest) -> ModelAnswer {
    let finish = |reason: &str| {
        let chunk = json!({"choices": [{"delta": {"content": "as far as it goes"}, "finish_reason": reason}]});
        status("200 OK", "", &format!("data: {chunk}\n\n"))
    };
    match request.message() {
        "rejected" => status("401 Unauthorized", "", r#"{"error":{"message":"Incorrect API key provided"}}"#),
        "unavailable" => status("503 Service Unavailable", "", "no healthy upstream"),
        "wait" => status("429 Too Many Requests", "Retry-After: 300\r\n", "slow down"),
        "broken" => status(
            "200 OK",
            "",
            "data: {\"choices\":[{\"delta\":{\"content\":\"half\"}}]}\n\ndata: {\"error\":\"boom 7\"}\n\n",
        ),
        reason @ ("length" | "content_filter") => finish(reason),
        message => said(&format!("to {message}")),
    }
}

#[tokio::test]
async fn the_servers_words_reach_the_record_and_the_log_and_no_person() {
    let server = ModelServer::start(by_message).await;
    let nobody = format!("http://{}/v1", free_address());
    let agents = [
        model_agent("model", json!({"baseURL": server.base, "model": "m"})),
        model_agent("nobody", json!({"baseURL": nobody, "model": "m", "retries": 0})),
    ];
    let mut dev = Dev::start(&agents.concat()).await;
    let api = dev.api();
    for (agent, message, reason, retryable, words) in [
        ("model", "rejected", "ModelRejected", false, "Incorrect API key provided"),
        ("model", "unavailable", "ModelUnavailable", true, "no healthy upstream"),
        ("model", "broken", "AgentError", true, "boom 7"),
        ("nobody", "hello", "ModelUnavailable", true, &nobody),
    ] {
        let turn = api.submit(&format!("c-{agent}-{message}"), agent, message).await.turn;
        let stream = api.turn(&turn);
        assert_eq!(stream.ended().await, End::Clean);
        let told = stream.frames().into_iter().find(|frame| frame.event == "error").expect("an error").data;
        assert_eq!((told["reason"].as_str(), told["retryable"].as_bool()), (Some(reason), Some(retryable)), "{told}");
        assert!(!told.to_string().contains(words), "{told}");
        let record = api.record(&turn).await;
        assert_eq!(record["error"]["reason"], reason, "{record}");
        assert!(record["error"]["detail"].as_str().unwrap().contains(words), "{record}");
        eventually("the log has the words", async || {
            let log = dev.log();
            let line = log.lines().find(|line| line.contains(words) && line.contains(&turn) && line.contains(reason));
            line.map(|_| ()).ok_or(log.clone())
        })
        .await;
    }
    assert!(dev.interrupt().await.success());
}

#[tokio::test]
async fn a_pause_that_is_longer_than_the_turn_is_told_at_once() {
    let server = ModelServer::start(by_message).await;
    let spec = json!({"baseURL": server.base, "model": "m"});
    let hasty = model_agent("hasty", spec).replace(r#""scope""#, r#""timing":{"turnSeconds":45},"scope""#);
    let mut dev = Dev::start(&hasty).await;
    let api = dev.api();
    let turn = api.submit("c", "hasty", "wait").await.turn;
    let record = api.phase(&turn, "Failed").await;
    assert_eq!(record["error"]["reason"], "ModelUnavailable", "{record}");
    let detail = record["error"]["detail"].as_str().unwrap();
    assert!(detail.contains("it asks for a pause of 300 s") && detail.contains("slow down"), "{detail}");
    assert_eq!(server.requests().len(), 1);
    assert!(dev.interrupt().await.success());
}

#[tokio::test]
async fn why_the_model_stopped_stands_in_the_record_and_on_complete() {
    let server = ModelServer::start(by_message).await;
    let mut dev = Dev::start(&model_agent("model", json!({"baseURL": server.base, "model": "m"}))).await;
    let api = dev.api();
    for (message, reason, text) in [
        ("length", "length", "as far as it goes"),
        ("content_filter", "content_filter", "as far as it goes"),
        ("hello", "stop", "to hello"),
    ] {
        let turn = api.submit(&format!("c-{message}"), "model", message).await.turn;
        let stream = api.turn(&turn);
        assert_eq!(stream.ended().await, End::Clean);
        let complete = stream.frames().pop().expect("frames");
        assert_eq!((complete.event.as_str(), &complete.data["finishReason"]), ("complete", &json!(reason)));
        let record = api.record(&turn).await;
        assert_eq!((&record["finishReason"], &record["reply"]["text"]), (&json!(reason), &json!(text)), "{record}");
    }
    let (code, out, err) = dev.chat(&["--agent", "model", "length"]).await;
    assert_eq!((code, out.as_str()), (Some(0), "as far as it goes"));
    assert!(err.contains("note: the reply is cut off"), "{err:?}");
    let (code, out, err) = dev.chat(&["--agent", "model", "hello"]).await;
    assert_eq!((code, out.as_str(), err.as_str()), (Some(0), "to hello", ""));
    assert!(dev.interrupt().await.success());
}

#[tokio::test]
async fn an_agent_says_how_its_model_server_is_asked() {
    crypto();
    let file = |name: &str| repository("tests/tls").join(name);
    let tls = lastword::tls::server(&file("first.crt"), &file("first.key"), lastword::tls::HTTP1)
        .expect("a pair")
        .borrow()
        .clone();
    let server = ModelServer::with_tls(tls, by_message).await;
    let model = |authority: &str| {
        json!({
            "baseURL": server.base, "model": "m", "historyTurns": 1, "caSecretRef": {"name": authority, "key": "ca.crt"},
            "headers": [{"name": "X-Team", "value": "$red"}, {"name": "api-key", "valueSecretRef": {"name": "key", "key": "v"}}],
        })
    };
    let agents = [
        model_agent("trusting", model("first")),
        model_agent("mistaken", model("second")),
        model_agent("public", json!({"baseURL": server.base, "model": "m"})),
    ];
    let mut dev = Dev::prepare(&agents.concat(), &["--secrets", "secrets"]);
    for (name, key, value) in [
        ("first", "ca.crt", fs::read(file("first-ca.crt")).unwrap()),
        ("second", "ca.crt", fs::read(file("second-ca.crt")).unwrap()),
        ("key", "v", b"k-1".to_vec()),
    ] {
        let directory = dev.path("secrets").join(name);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(key), value).unwrap();
    }
    dev.restart().await;
    for message in ["one", "two", "three"] {
        let chat = dev.chat(&["--agent", "trusting", "--conversation", "c", message]).await;
        assert_eq!(chat, (Some(0), format!("to {message}"), String::new()));
    }
    let last = server.requests().pop().unwrap();
    assert_eq!((last.header("x-team"), last.header("api-key")), (Some("$red"), Some("k-1")));
    let sent: Vec<_> = last.messages().iter().map(|m| m["content"].as_str().unwrap()).collect();
    assert_eq!(sent, ["two", "to two", "three"], "one past turn");
    let api = dev.api();
    for agent in ["mistaken", "public"] {
        let turn = api.submit(agent, agent, "hello").await.turn;
        let record = api.phase(&turn, "Failed").await;
        assert_eq!(record["error"]["reason"], "ModelRejected", "{record}");
        let detail = record["error"]["detail"].as_str().unwrap();
        assert!(detail.contains("the certificate of the model server at https://localhost"), "{detail}");
    }
    assert_eq!(server.requests().len(), 3);
    assert!(dev.interrupt().await.success());
}

#[tokio::test]
async fn a_model_server_that_never_becomes_ready_is_named_as_the_cause() {
    let nobody = format!("http://{}/v1", free_address());
    let spec = json!({
        "adapter": "OpenAI", "scope": "Agent", "timing": {"startSeconds": 6},
        "openai": {"baseURL": nobody, "model": "m"},
    });
    let mut dev = Dev::start(&agent("slow", spec, &["sleep", "1000"])).await;
    let api = dev.api();
    let turn = api.submit("c", "slow", "hello").await.turn;
    let record = api.phase(&turn, "Failed").await;
    assert_eq!(record["error"]["reason"], "StartFailed", "{record}");
    let detail = record["error"]["detail"].as_str().unwrap();
    assert!(detail.contains(&nobody) && detail.contains("was not ready within 5 s"), "{detail}");
    assert!(dev.interrupt().await.success());
}
