//! AG-UI, by `@ag-ui/client` with its verifier.

use lastword::gateway::AuthMode;
use lastword::store::keys::{self, KeyRole};
use lastword::turn::frame::Frame;
use lastword::turn::keys::TurnId;
use lastword::turn::reason::Reason;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{EACH_KIND, fail_with, named, of_each_kind, types};
use crate::support::Db;
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::{AGENT, Gateway, ORGANIZATION, api_key};
use crate::support::node::node_clients;
use crate::support::program::ClientProgram;

crate::newest! {
    a_run_is_shown_with_all_that_the_agent_did,
    every_failure_is_an_error_with_its_reason,
    a_cancelled_run_is_finished_and_no_error,
    a_run_whose_gateway_is_killed_breaks_and_goes_on_elsewhere,
    a_run_is_known_by_its_id_and_its_message,
    a_run_is_its_owners_alone,
}

const SKIPPED: &str = "none of them runs an AG-UI agent";

/// A client that runs `bot` with the message `hello`.
fn client(gateway: &Gateway, thread: &str, run: &str) -> ClientProgram {
    ClientProgram::start("agui.mjs", &[&format!("{}/agui/{AGENT}", gateway.clients), thread, run, "hello"])
}

/// The lines of a client up to the beginning of its run, and the run's turn.
async fn begun(client: &mut ClientProgram) -> TurnId {
    let lines = client.until("the run begins", |line| line["event"]["type"] == "RUN_STARTED").await;
    let started = &lines.last().unwrap()["event"];
    started["metadata"]["turnId"].as_str().and_then(|id| id.parse().ok()).expect("a turn")
}

/// The body of a run.
fn input(thread: &str, run: &str, message: &str) -> Value {
    json!({"threadId": thread, "runId": run, "messages": [{"id": "1", "role": "user", "content": message}]})
}

async fn a_run_is_shown_with_all_that_the_agent_did(db: Db) {
    if node_clients(SKIPPED).is_none() {
        return;
    }
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let mut running = client(&gateway, "t", "r");
    let turn = begun(&mut running).await;
    let pushed = worker.turn().await;
    assert_eq!((pushed.turn_id, pushed.message.as_str()), (turn, "hello"));
    worker.output(turn, 0, of_each_kind()).await.expect("taken");
    worker.end(turn, EACH_KIND).await.expect("taken");
    let lines = running.rest().await;
    let events = named(&lines, "event");
    let expected = [
        "TEXT_MESSAGE_START",
        "TEXT_MESSAGE_CONTENT",
        "TEXT_MESSAGE_END",
        "TOOL_CALL_START",
        "TOOL_CALL_ARGS",
        "TOOL_CALL_END",
        "TOOL_CALL_RESULT",
        "ACTIVITY_SNAPSHOT",
        "CUSTOM",
        "TEXT_MESSAGE_START",
        "TEXT_MESSAGE_CONTENT",
        "TEXT_MESSAGE_END",
        "RUN_FINISHED",
    ];
    assert_eq!(types(&events), expected, "{events:#?}");
    let end = lines.last().unwrap();
    assert_eq!((&end["end"], &end["finished"], &end["error"]), (&json!("resolved"), &json!(1), &json!(0)), "{end}");
    let messages = end["messages"].as_array().unwrap();
    let roles: Vec<_> = messages.iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "tool", "activity", "assistant"], "{messages:#?}");
    assert_eq!((&messages[1]["content"], &messages[4]["content"]), (&json!("see "), &json!("3")));
    assert_eq!(messages[1]["toolCalls"][0]["function"], json!({"name": "sum", "arguments": "{\"a\":1,\"b\":2}"}));
    assert_eq!((&messages[2]["toolCallId"], &messages[2]["content"]), (&json!("call"), &json!("3")));
}

async fn every_failure_is_an_error_with_its_reason(db: Db) {
    if node_clients(SKIPPED).is_none() {
        return;
    }
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    // Each is a run of its own; one after the other, so that few programs run at a time.
    for reason in Reason::ALL.into_iter().filter(|reason| *reason != Reason::Cancelled) {
        let id = reason.to_string();
        let mut running = client(&gateway, &id, &id);
        let turn = begun(&mut running).await;
        worker.this_turn(turn).await;
        fail_with(&worker, turn, reason).await;
        let lines = running.rest().await;
        let record = gateway.client().record(turn).await;
        assert!(record["error"]["reason"].is_string(), "{record}");
        let events = named(&lines, "event");
        assert_eq!(types(&events), ["RUN_ERROR"], "{reason}");
        assert_eq!(
            (&events[0]["code"], &events[0]["message"]),
            (&record["error"]["reason"], &record["error"]["message"])
        );
        let end = lines.last().unwrap();
        assert_eq!((&end["finished"], &end["error"]), (&json!(0), &json!(1)), "{end}");
    }
}

async fn a_cancelled_run_is_finished_and_no_error(db: Db) {
    if node_clients(SKIPPED).is_none() {
        return;
    }
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let mut running = client(&gateway, "t", "r");
    let turn = begun(&mut running).await;
    worker.this_turn(turn).await;
    worker.say(turn, 0, "half").await;
    running.until("its text", |line| line["event"]["type"] == "TEXT_MESSAGE_CONTENT").await;
    assert_eq!(gateway.client().cancel(turn).await.0, StatusCode::OK);
    let lines = running.rest().await;
    let events = named(&lines, "event");
    assert_eq!(types(&events), ["TEXT_MESSAGE_END", "RUN_FINISHED"]);
    assert_eq!(events[1]["outcome"], json!({"type": "cancelled"}));
    assert_eq!(lines.last().unwrap()["error"], json!(0));
}

/// The client is told that its connection broke, and no end. Posted again to another gateway, the run is shown from its beginning
/// and goes on to its one end; and once more, as it was, to a gateway that started when all was over.
async fn a_run_whose_gateway_is_killed_breaks_and_goes_on_elsewhere(db: Db) {
    if node_clients(SKIPPED).is_none() {
        return;
    }
    let (first, second) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let mut worker = FakeWorker::on(&db.store, &second).await;
    let mut running = client(&first, "t", "r");
    let turn = begun(&mut running).await;
    worker.this_turn(turn).await;
    worker.say(turn, 0, "half ").await;
    running.until("its text", |line| line["event"]["type"] == "TEXT_MESSAGE_CONTENT").await;
    first.kill();
    let lines = running.rest().await;
    // The library leaves a rejection behind, too, which may come later.
    let end = lines.iter().find(|line| line.get("end").is_some()).unwrap();
    assert_eq!((&end["end"], &end["finished"]), (&json!("rejected"), &json!(0)), "{lines:#?}");

    let mut again = client(&second, "t", "r");
    assert_eq!(begun(&mut again).await, turn);
    let mut shown = again.until("its text", |line| line["event"]["type"] == "TEXT_MESSAGE_CONTENT").await;
    worker.say(turn, 5, "whole").await;
    worker.end(turn, 10).await.expect("taken");
    shown.extend(again.rest().await);
    let end = shown.last().unwrap();
    assert_eq!((&end["finished"], &end["error"]), (&json!(1), &json!(0)), "{shown:#?}");
    assert_eq!(end["messages"][1]["content"], json!("half whole"));

    second.stop().await;
    let third = Gateway::start(&db).await;
    let mut later = client(&third, "t", "r");
    assert_eq!(begun(&mut later).await, turn);
    let replayed = later.rest().await;
    assert_eq!(replayed.last().unwrap()["messages"], end["messages"]);
    assert_eq!(named(&replayed, "event").last(), named(&shown, "event").last());
    assert_eq!(db.count("turn").await, 1);
}

async fn a_run_is_known_by_its_id_and_its_message(db: Db) {
    let gateway = Gateway::start(&db).await;
    let client = gateway.client();
    let path = format!("/agui/{AGENT}");
    let post = async |path: &str, body: Value| client.call(Method::POST, path, Some(body)).await;
    let first = client.request(Method::POST, &path).json(&input("t", "r", "hello")).send().await.expect("an answer");
    assert_eq!(
        (first.status(), &first.headers()["content-type"]),
        (StatusCode::OK, &"text/event-stream".parse().unwrap())
    );
    drop(first);
    for (body, status) in [
        (input("t", "r", "something else"), StatusCode::CONFLICT),
        (input("t", &"r".repeat(257), "hello"), StatusCode::BAD_REQUEST),
        (input("..", "r", "hello"), StatusCode::BAD_REQUEST),
        (json!([1]), StatusCode::BAD_REQUEST),
        (json!({"threadId": "t", "runId": "r2", "messages": []}), StatusCode::BAD_REQUEST),
    ] {
        let (got, problem) = post(&path, body.clone()).await;
        assert_eq!(got, status, "{body}: {problem}");
    }
    let (status, problem) = post("/agui/nobody", input("t2", "r", "hello")).await;
    assert_eq!((status, &problem["reason"]), (StatusCode::NOT_FOUND, &json!("AgentNotFound")));
    // The agent's namespace may be named, as a part of the path or of the name.
    for path in [format!("/agui/{ORGANIZATION}/{AGENT}"), format!("/agui/{ORGANIZATION}%2F{AGENT}")] {
        let again =
            client.request(Method::POST, &path).json(&input("t", "r", "hello")).send().await.expect("an answer");
        assert_eq!(again.status(), StatusCode::OK, "{path}");
    }
    assert_eq!(post(&format!("/agui/another/{AGENT}"), input("t", "r", "hello")).await.0, StatusCode::NOT_FOUND);
    assert_eq!(db.count("turn").await, 1);
    // An erased conversation's name begins a new one.
    assert_eq!(client.call(Method::DELETE, "/v1/conversations/t", None).await.0, StatusCode::OK);
    let anew = client.request(Method::POST, &path).json(&input("t", "r", "other")).send().await.expect("an answer");
    assert_eq!(anew.status(), StatusCode::OK);
    assert_eq!(db.count("turn").await, 1);
}

/// The same ids are another user's own run. A key that is revoked breaks the stream and opens none.
async fn a_run_is_its_owners_alone(db: Db) {
    let (id, ada) = api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await;
    let bob = api_key(&db.store, ORGANIZATION, "bob", KeyRole::User).await.1;
    let eve = api_key(&db.store, "elsewhere", "eve", KeyRole::User).await.1;
    let gateway = Gateway::with(db.options(), |c| c.auth = AuthMode::Keys).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let (ada, bob, eve) = (gateway.client_with(&ada), gateway.client_with(&bob), gateway.client_with(&eve));
    let path = format!("/agui/{AGENT}");
    let mut open = ada.request(Method::POST, &path).json(&input("t", "r", "hello")).send().await.expect("an answer");
    let turn = worker.turn().await.turn_id;
    worker.output(turn, 0, vec![Frame::text("secret")]).await.expect("taken");
    let mut theirs = bob.request(Method::POST, &path).json(&input("t", "r", "hello")).send().await.expect("an answer");
    assert_eq!(theirs.status(), StatusCode::OK);
    let other = worker.turn().await.turn_id;
    assert_ne!(other, turn, "the same names are another user's own");
    worker.reply(&[other], "for bob").await.expect("taken");
    let mut shown = String::new();
    while let Some(chunk) = theirs.chunk().await.expect("a clean end") {
        shown += &String::from_utf8_lossy(&chunk);
    }
    assert!(shown.contains("for bob") && shown.contains("RUN_FINISHED") && !shown.contains("secret"), "{shown}");
    let (status, problem) = eve.call(Method::POST, &path, Some(input("t", "r", "hello"))).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "another organization has no such agent: {problem}");
    let nobody = gateway.client().call(Method::POST, &path, Some(input("t", "r", "hello"))).await;
    assert_eq!(nobody.0, StatusCode::UNAUTHORIZED);

    assert!(keys::revoke(db.store.pool(), id).await.expect("revokes"));
    db.store.notify_keys_changed().await;
    let end = loop {
        match open.chunk().await {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    assert!(end.is_err(), "the stream is broken off");
    let (status, _) = ada.call(Method::POST, &path, Some(input("t", "r", "hello"))).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}
