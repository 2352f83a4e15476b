//! The UI message stream, by the Vercel AI SDK's own chat and transport (`ai`).

use lastword::gateway::AuthMode;
use lastword::store::keys::KeyRole;
use lastword::turn::keys::TurnId;
use lastword::turn::reason::Reason;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{EACH_KIND, fail_with, named, of_each_kind, types};
use crate::support::Db;
use crate::support::client::Client;
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::{AGENT, Gateway, ORGANIZATION, api_key};
use crate::support::node::node_clients;
use crate::support::program::ClientProgram;

crate::newest! {
    a_chat_is_shown_all_that_the_agent_did,
    every_failure_is_an_error_of_the_chat,
    a_cancelled_turn_is_an_abort,
    a_page_that_is_loaded_again_goes_on_at_another_replica,
    a_chat_whose_gateway_is_killed_is_disconnected_and_goes_on_elsewhere,
    an_answer_is_made_again_and_an_edited_message_is_another_turn,
    a_chat_is_its_owners_alone,
}

const SKIPPED: &str = "none of them runs a chat of the AI SDK";

fn api(gateway: &Gateway) -> String {
    format!("{}/ui/{AGENT}", gateway.clients)
}

/// A chat that sends `hello`.
fn send(gateway: &Gateway, chat: &str, message: &str) -> ClientProgram {
    ClientProgram::start("ui.mjs", &["send", &api(gateway), chat, message, "hello"])
}

fn resume(gateway: &Gateway, chat: &str) -> ClientProgram {
    ClientProgram::start("ui.mjs", &["resume", &api(gateway), chat])
}

/// The lines of a chat up to the beginning of an answer, and the answer's turn.
async fn begun(client: &mut ClientProgram) -> TurnId {
    let lines = client.until("the answer begins", |line| line["part"]["type"] == "start").await;
    lines.last().unwrap()["part"]["messageId"].as_str().and_then(|id| id.parse().ok()).expect("a turn")
}

async fn texted(client: &mut ClientProgram) {
    client.until("its text", |line| line["part"]["type"] == "text-delta").await;
}

async fn a_chat_is_shown_all_that_the_agent_did(db: Db) {
    if node_clients(SKIPPED).is_none() {
        return;
    }
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let mut chat = send(&gateway, "c", "m");
    let turn = begun(&mut chat).await;
    let pushed = worker.turn().await;
    assert_eq!((pushed.turn_id, pushed.message.as_str()), (turn, "hello"));
    worker.output(turn, 0, of_each_kind()).await.expect("taken");
    worker.end(turn, EACH_KIND).await.expect("taken");
    let lines = chat.rest().await;
    let parts = named(&lines, "part");
    let expected = [
        "start-step",
        "text-start",
        "text-delta",
        "text-end",
        "tool-input-available",
        "tool-output-available",
        "data-progress",
        "data-chart",
        "text-start",
        "text-delta",
        "text-end",
        "finish-step",
        "finish",
    ];
    assert_eq!(types(&parts), expected, "{parts:#?}");
    let end = lines.last().unwrap();
    assert_eq!((&end["end"], &end["finish"]["finishReason"]), (&json!("ready"), &json!("stop")), "{end:#}");
    let answer = &end["messages"][1];
    let kinds = types(answer["parts"].as_array().unwrap());
    assert_eq!(kinds, ["step-start", "text", "dynamic-tool", "data-chart", "text"], "{answer:#}");
    let call = &answer["parts"][2];
    assert_eq!((&call["state"], &call["providerExecuted"]), (&json!("output-available"), &json!(true)));
    assert_eq!((&call["input"], &call["output"]), (&json!({"a": 1, "b": 2}), &json!(3)));
    assert_eq!(answer["metadata"], json!({"turnId": turn, "messageId": "m", "conversation": "c"}));
}

async fn every_failure_is_an_error_of_the_chat(db: Db) {
    if node_clients(SKIPPED).is_none() {
        return;
    }
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    for reason in Reason::ALL.into_iter().filter(|reason| *reason != Reason::Cancelled) {
        let mut chat = send(&gateway, &reason.to_string(), "m");
        let turn = begun(&mut chat).await;
        worker.this_turn(turn).await;
        fail_with(&worker, turn, reason).await;
        let lines = chat.rest().await;
        let error = gateway.client().record(turn).await["error"].clone();
        let parts = named(&lines, "part");
        assert_eq!(types(&parts), ["start-step", "data-error", "error"], "{reason}");
        assert_eq!(parts[1]["data"], error, "{reason}");
        let end = lines.last().unwrap();
        assert_eq!((&end["end"], &end["finish"]["isError"]), (&json!("error"), &json!(true)), "{end}");
        assert_eq!(end["error"], json!(format!("Error: {}", error["message"].as_str().unwrap())));
    }
}

async fn a_cancelled_turn_is_an_abort(db: Db) {
    if node_clients(SKIPPED).is_none() {
        return;
    }
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let mut chat = send(&gateway, "c", "m");
    let turn = begun(&mut chat).await;
    worker.this_turn(turn).await;
    worker.say(turn, 0, "half").await;
    texted(&mut chat).await;
    assert_eq!(gateway.client().cancel(turn).await.0, StatusCode::OK);
    let lines = chat.rest().await;
    assert_eq!(types(&named(&lines, "part")), ["text-end", "abort"]);
    let end = lines.last().unwrap();
    assert_eq!((&end["end"], &end["error"]), (&json!("ready"), &Value::Null), "{end:#}");
    assert_eq!(end["messages"][1]["parts"][1]["text"], json!("half"));
}

/// The page that sent is gone. Loaded again, at another replica, it is shown the answer from its beginning, and the rest live; when
/// nothing is open, nothing.
async fn a_page_that_is_loaded_again_goes_on_at_another_replica(db: Db) {
    if node_clients(SKIPPED).is_none() {
        return;
    }
    let (first, second) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let mut worker = FakeWorker::on(&db.store, &first).await;
    let mut page = send(&first, "a chat/1", "m");
    let turn = begun(&mut page).await;
    worker.this_turn(turn).await;
    worker.say(turn, 0, "half ").await;
    texted(&mut page).await;
    drop(page);
    let mut loaded = resume(&second, "a chat/1");
    assert_eq!(begun(&mut loaded).await, turn);
    texted(&mut loaded).await;
    worker.say(turn, 5, "whole").await;
    worker.end(turn, 10).await.expect("taken");
    let lines = loaded.rest().await;
    let end = lines.last().unwrap();
    assert_eq!(end["end"], json!("ready"), "{end:#}");
    assert_eq!(end["messages"][0]["parts"][1]["text"], json!("half whole"), "{end:#}");
    for chat in ["a chat/1", "never seen"] {
        let lines = resume(&second, chat).rest().await;
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert_eq!((&lines[0]["end"], &lines[0]["messages"]), (&json!("ready"), &json!([])));
    }
}

async fn a_chat_whose_gateway_is_killed_is_disconnected_and_goes_on_elsewhere(db: Db) {
    if node_clients(SKIPPED).is_none() {
        return;
    }
    let (first, second) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let mut worker = FakeWorker::on(&db.store, &second).await;
    let mut chat = send(&first, "c", "m");
    let turn = begun(&mut chat).await;
    worker.this_turn(turn).await;
    worker.say(turn, 0, "half ").await;
    texted(&mut chat).await;
    first.kill();
    let lines = chat.rest().await;
    let end = lines.last().unwrap();
    assert_eq!((&end["end"], &end["finish"]["isError"]), (&json!("error"), &json!(true)), "{end:#}");
    assert!(!types(&named(&lines, "part")).iter().any(|kind| ["finish", "error", "abort"].contains(kind)));
    // By the message's id, as a page that posts again does.
    let mut again = send(&second, "c", "m");
    assert_eq!(begun(&mut again).await, turn);
    worker.say(turn, 5, "whole").await;
    worker.end(turn, 10).await.expect("taken");
    let lines = again.rest().await;
    assert_eq!(lines.last().unwrap()["messages"][1]["parts"][1]["text"], json!("half whole"));
    assert_eq!(db.count("turn").await, 1);
}

/// What a page sends.
fn request(message: &str, text: &str, more: Value) -> Value {
    let parts = json!([{"type": "text", "text": text}]);
    let mut body = json!({"id": "c", "messages": [{"id": message, "role": "user", "parts": parts}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn post(client: &Client, body: &Value) -> (StatusCode, Option<String>) {
    let path = format!("/ui/{AGENT}");
    let answer = client.request(Method::POST, &path).json(body).send().await.expect("an answer");
    let version = answer.headers().get("x-vercel-ai-ui-message-stream").map(|v| v.to_str().unwrap().to_owned());
    (answer.status(), version)
}

async fn an_answer_is_made_again_and_an_edited_message_is_another_turn(db: Db) {
    let gateway = Gateway::start(&db).await;
    let client = gateway.client();
    let stream = (StatusCode::OK, Some("v1".to_owned()));
    let edited = json!({"trigger": "submit-message", "messageId": "m"});
    let again = json!({"trigger": "regenerate-message"});
    for (body, turns) in [
        (request("m", "hello", json!({"trigger": "submit-message"})), 1),
        (request("m", "hello", json!({})), 1),
        (request("m", "hello", again.clone()), 2),
        (request("m", "hello", again), 3),
        (request("m", "hi", edited.clone()), 4),
        (request("m", "hi", edited), 4),
    ] {
        assert_eq!(post(&client, &body).await, stream, "{body}");
        assert_eq!(db.count("turn").await, turns, "{body}");
    }
    let file = json!([{"type": "file", "mediaType": "image/png", "url": "data:,"}]);
    for (body, status) in [
        (request("m", "something else", json!({})), StatusCode::CONFLICT),
        (request("n", "", json!({})), StatusCode::BAD_REQUEST),
        (json!({"id": "c", "messages": [{"id": "n", "role": "user", "parts": file}]}), StatusCode::BAD_REQUEST),
        (request("n", "hello", json!({"trigger": "unknown"})), StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(post(&client, &body).await.0, status, "{body}");
    }
}

async fn a_chat_is_its_owners_alone(db: Db) {
    let ada = api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await.1;
    let bob = api_key(&db.store, ORGANIZATION, "bob", KeyRole::User).await.1;
    let gateway = Gateway::with(db.options(), |c| c.auth = AuthMode::Keys).await;
    let _worker = FakeWorker::on(&db.store, &gateway).await;
    let (ada, bob) = (gateway.client_with(&ada), gateway.client_with(&bob));
    let turn = ada.submit("c", "m", "hello").await;
    let status = async |client: &Client, chat: &str| {
        let path = format!("/ui/{AGENT}/{chat}/stream");
        client.request(Method::GET, &path).send().await.expect("an answer").status()
    };
    for chat in ["c".to_owned(), turn.conversation_id.to_string()] {
        assert_eq!(status(&ada, &chat).await, StatusCode::OK);
        assert_eq!(status(&bob, &chat).await, StatusCode::NO_CONTENT, "as for one that does not exist");
    }
    assert_eq!(status(&gateway.client(), "c").await, StatusCode::UNAUTHORIZED);
    let path = format!("/ui/elsewhere/{AGENT}/c/stream");
    assert_eq!(ada.get(&path).await.0, StatusCode::NOT_FOUND);
}
