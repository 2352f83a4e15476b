//! The calls themselves: whose they are, and what is refused, in OpenAI's shape.

use lastword::store::keys;
use lastword::turn::keys::TurnId;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{end, libraries, post, strangers};
use crate::support::Db;
use crate::support::client::Client;
use crate::support::fake_worker::FakeWorker;
use crate::support::forwarder::Forwarder;
use crate::support::gateway::{AGENT, Gateway, put_agent};
use crate::support::wait::{eventually, within};

crate::newest! {
    a_response_is_its_owners_alone,
    every_refusal_has_openais_shape,
    agents_are_models,
    without_a_database_nothing_is_promised,
}

/// A call's status, kind and JSON.
async fn raw(client: &Client, method: Method, path: &str, body: Option<&str>) -> (StatusCode, String, Value) {
    let mut request = client.request(method, path);
    if let Some(body) = body {
        request = request.header("content-type", "application/json").body(body.to_owned());
    }
    let answer = within(path, request.send()).await.expect("an answer");
    let status = answer.status();
    let kind = answer.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let body = within("the body", answer.bytes()).await.expect("a body");
    (status, kind, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

fn is_openais((status, kind, body): &(StatusCode, String, Value), wanted: u16, of: &str) {
    assert_eq!((status.as_u16(), kind.as_str()), (wanted, "application/json"), "{body}");
    let error = &body["error"];
    assert!(error["message"].is_string() && error["type"] == of, "{body}");
    for key in ["param", "code"] {
        assert!(error.get(key).is_some(), "{body}");
    }
}

async fn a_response_is_its_owners_alone(db: Db) {
    let (gateway, [ada, bob, eve], key) = strangers(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let body = json!({"model": AGENT, "input": "hello", "background": true});
    let (status, _, response) = post(&ada, "/openai/v1/responses", &[], body).await;
    assert_eq!(status, StatusCode::OK, "{response}");
    let id = response["id"].as_str().unwrap();
    let turn = worker.turn().await.turn_id;
    for stranger in [&bob, &eve] {
        for (method, path) in [
            (Method::GET, format!("/openai/v1/responses/{id}")),
            (Method::GET, format!("/openai/v1/responses/{id}?stream=true&starting_after=3")),
            (Method::GET, format!("/openai/v1/responses/{id}/input_items")),
            (Method::POST, format!("/openai/v1/responses/{id}/cancel")),
            (Method::DELETE, format!("/openai/v1/responses/{id}")),
        ] {
            let body = (method == Method::POST).then_some("{}");
            is_openais(&raw(stranger, method, &path, body).await, 404, "not_found_error");
        }
        let body = json!({"model": AGENT, "input": "hello", "previous_response_id": id}).to_string();
        let refused = raw(stranger, Method::POST, "/openai/v1/responses", Some(&body)).await;
        is_openais(&refused, 400, "invalid_request_error");
        assert_eq!(refused.2["error"]["code"], "previous_response_not_found");
    }
    assert_eq!(db.phase(turn).await.as_deref(), Some("claimed"), "nobody has cancelled it");
    is_openais(&raw(&gateway.client(), Method::GET, "/openai/v1/models", None).await, 401, "authentication_error");
    // A turn that was not asked for here is no response; neither is one that was not to be stored.
    let native = ada.submit("c", "m", "hello").await.turn_id;
    let body = json!({"model": AGENT, "input": "hi", "store": false, "stream": true});
    let opened = ada.request(Method::POST, "/openai/v1/responses").json(&body).send().await.expect("an answer");
    let unstored = opened.headers()["x-lastword-turn"].to_str().unwrap().parse().unwrap();
    let turns: [TurnId; 2] = [native, unstored];
    for turn in turns {
        let path = format!("/openai/v1/responses/resp_{}", turn.0.simple());
        is_openais(&raw(&ada, Method::GET, &path, None).await, 404, "not_found_error");
    }
    // A key that is revoked breaks what is open and opens nothing.
    let path = format!("/openai/v1/responses/{id}?stream=true");
    let mut open = ada.request(Method::GET, &path).send().await.expect("an answer");
    assert_eq!(open.status(), StatusCode::OK);
    assert!(keys::revoke(db.store.pool(), key).await.expect("revokes"));
    db.store.notify_keys_changed().await;
    let broken = loop {
        match within("the break", open.chunk()).await {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    assert!(broken.is_err(), "the stream is broken off");
    is_openais(&raw(&ada, Method::GET, &path, None).await, 401, "authentication_error");
    for library in libraries() {
        let call = json!({"call": "models.list", "key": "lwk_no_key"});
        let lines = library.call(&gateway.clients, call).rest().await;
        assert_eq!(end(&lines), "AuthenticationError", "{library:?}");
    }
}

async fn every_refusal_has_openais_shape(db: Db) {
    let gateway = Gateway::with(db.options(), |c| {
        c.quotas.requests_per_second = std::num::NonZeroU32::new(40);
    })
    .await;
    let client = gateway.client();
    let wrong = "invalid_request_error";
    let completions = "/openai/v1/chat/completions";
    for (method, path, body, status, of) in [
        (Method::GET, "/openai/v1/nothing", None, 404, "not_found_error"),
        (Method::GET, "/openai", None, 404, "not_found_error"),
        (Method::GET, completions, None, 405, wrong),
        (Method::PUT, "/openai/v1/responses", Some("{}"), 405, wrong),
        (Method::POST, completions, Some("{"), 400, wrong),
        (Method::POST, completions, Some("[]"), 400, wrong),
        (Method::POST, completions, Some(r#"{"model":"bot","messages":[]}"#), 400, wrong),
        (
            Method::POST,
            completions,
            Some(r#"{"model":"bot","messages":[{"role":"user","content":"a"}],"n":2}"#),
            400,
            wrong,
        ),
        (
            Method::POST,
            completions,
            Some(r#"{"model":"elsewhere/bot","messages":[{"role":"user","content":"a"}]}"#),
            404,
            "not_found_error",
        ),
        (Method::POST, "/openai/v1/responses", Some(r#"{"input":"a"}"#), 400, wrong),
        (Method::GET, "/openai/v1/responses/resp_x", None, 404, "not_found_error"),
        (Method::GET, "/openai/v1/responses/resp_x?stream=maybe", None, 400, wrong),
        (Method::GET, "/openai/v1/models/nobody", None, 404, "not_found_error"),
    ] {
        let answer = raw(&client, method, path, body).await;
        println!("{path}: {answer:?}");
        is_openais(&answer, status, of);
    }
    let long = format!(r#"{{"model":"bot","input":"{}"}}"#, "x".repeat(3 << 20));
    is_openais(&raw(&client, Method::POST, "/openai/v1/responses", Some(&long)).await, 413, wrong);
    let text = client.request(Method::POST, completions).header("content-type", "text/plain").body("a");
    assert_eq!(text.send().await.expect("an answer").status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let foreign = client.request(Method::GET, "/openai/v1/models").header("origin", "https://evil.example");
    let answer = foreign.send().await.expect("an answer");
    assert_eq!(answer.headers()["content-type"], "application/json");
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    // A limit tells how long to wait.
    // Many at once, since one after the other may be slower than the limit.
    let asked = (0..400).map(|_| client.request(Method::GET, "/openai/v1/models").send());
    let answers = within("the answers", futures::future::try_join_all(asked)).await.expect("answers");
    let limited = answers.into_iter().find(|answer| answer.status() == StatusCode::TOO_MANY_REQUESTS);
    let limited = limited.expect("one beyond the limit");
    assert!(limited.headers().contains_key("retry-after"));
    let body: Value = limited.json().await.expect("JSON");
    assert_eq!(body["error"]["type"], "rate_limit_error");
    // Lastword's own routes stay as they are.
    assert_eq!(client.get("/v1/nothing").await.0, StatusCode::NOT_FOUND);
    assert_eq!(client.get("/openaix").await.0, StatusCode::NOT_FOUND);
}

async fn agents_are_models(db: Db) {
    put_agent(&db.store, "cat", json!({})).await;
    db.store.put_agent("elsewhere", "dog", &json!({"scope": "Agent", "adapter": "Custom"})).await.expect("put");
    let gateway = Gateway::start(&db).await;
    for library in libraries() {
        let lines = library.call(&gateway.clients, json!({"call": "models.list"})).rest().await;
        let models = &lines[0]["result"]["data"];
        let models = if models.is_null() { &lines[0]["result"]["body"]["data"] } else { models };
        let ids: Vec<&str> = models.as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["bot", "cat"], "{library:?}: {lines:#?}");
        for name in ["cat", "default/cat"] {
            let lines = library.call(&gateway.clients, json!({"call": "models.retrieve", "on": [name]})).rest().await;
            assert_eq!(lines[0]["result"]["id"], name, "{library:?}: {lines:#?}");
        }
        for name in ["dog", "elsewhere/dog"] {
            let lines = library.call(&gateway.clients, json!({"call": "models.retrieve", "on": [name]})).rest().await;
            assert_eq!(end(&lines), "NotFoundError", "{library:?}");
        }
    }
}

/// An arm whose outcome is not known is not told as one that was not: whoever can find it again is told to come again.
async fn without_a_database_nothing_is_promised(db: Db) {
    let forwarder = Forwarder::start(db.options());
    let gateway = Gateway::with(forwarder.options(), |_| {}).await;
    let client = gateway.client();
    eventually("the gateway is there", async || client.get("/openai/v1/models").await.1["data"][0]["id"] == AGENT)
        .await;
    forwarder.cut();
    let body = json!({"model": AGENT, "input": "hello"});
    for (headers, retry) in [(vec![("x-stainless-retry-count", "0")], "true"), (vec![], "false")] {
        let (status, answered, error) = post(&client, "/openai/v1/responses", &headers, body.clone()).await;
        assert_eq!((status, &error["error"]["type"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("server_error")));
        assert_eq!(answered["x-should-retry"], retry, "{error}");
        assert!(answered.contains_key("retry-after"));
    }
    forwarder.mend();
}
