//! OpenAI's Responses and Chat Completions, by OpenAI's own libraries for Python and Node.

use lastword::gateway::AuthMode;
use lastword::store::keys::KeyRole;
use lastword::turn::keys::TurnId;
use lastword::turn::reason::Reason;
use lastword::wire::Finish;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::process::Command;

use super::{EACH_KIND, fail_with, of_each_kind};
use crate::support::Db;
use crate::support::client::Client;
use crate::support::fake_worker::{FakeWorker, whole_reply};
use crate::support::gateway::{AGENT, Gateway, ORGANIZATION, api_key};
use crate::support::node::node_clients;
use crate::support::program::ClientProgram;
use crate::support::wait::{eventually, within};
use crate::support::{python_clients, repository};

mod again;
mod calls;

crate::newest! {
    a_reply_is_shown_by_both_protocols,
    a_failure_is_what_the_libraries_raise,
    a_cancelled_turn_is_no_reply,
    a_response_goes_on_at_another_gateway,
    a_response_in_the_background_is_found_and_cancelled,
    a_conversation_goes_on,
}

/// OpenAI's libraries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Library {
    Python,
    Node,
}

/// Those that are installed.
pub(super) fn libraries() -> Vec<Library> {
    let skipped = "OpenAI's library for it makes no call";
    let python = python_clients(skipped).map(|_| Library::Python);
    let node = node_clients(skipped).map(|_| Library::Node);
    python.into_iter().chain(node).collect()
}

impl Library {
    /// Makes a call to the routes below a base URL.
    pub(super) fn call(self, base: &str, call: Value) -> ClientProgram {
        let mut command = match self {
            Library::Python => {
                let mut command = Command::new(repository(".cache/python/bin/python"));
                command.arg(repository("tests/clients/openai_calls.py"));
                command
            }
            Library::Node => {
                let mut command = Command::new("node");
                command.arg(repository("tests/clients/node/openai.mjs"));
                command
            }
        };
        command.args([&format!("{base}/openai/v1"), &call.to_string()]);
        ClientProgram::run(command)
    }
}

pub(super) fn create_response(more: Value) -> Value {
    call("responses.create", json!({"model": AGENT, "input": "hello"}), more)
}

pub(super) fn create_completion(more: Value) -> Value {
    let messages = json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]);
    call("chat.completions.create", json!({"model": AGENT, "messages": messages}), more)
}

pub(super) fn call(name: &str, mut args: Value, more: Value) -> Value {
    if let (Value::Object(args), Value::Object(more)) = (&mut args, more) {
        args.extend(more);
    }
    json!({"call": name, "args": args})
}

/// What a program's lines have under this name.
pub(super) fn lines_with(lines: &[Value], name: &str) -> Vec<Value> {
    lines.iter().filter_map(|line| line.get(name)).cloned().collect()
}

/// How a call ended: `clean`, or the class of what was raised.
pub(super) fn end(lines: &[Value]) -> &str {
    lines.last().and_then(|line| line["end"].as_str()).unwrap_or_else(|| panic!("no end: {lines:#?}"))
}

/// The events' types, without what all of them begin with.
fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|e| e["type"].as_str().unwrap().strip_prefix("response.").expect("an event")).collect()
}

fn said(events: &[Value]) -> String {
    let delta = |event: &Value| {
        let chat = event["choices"][0]["delta"]["content"].as_str();
        let response = event["delta"].as_str().filter(|_| event["type"] == "response.output_text.delta");
        chat.or(response).unwrap_or_default().to_owned()
    };
    events.iter().map(delta).collect()
}

/// The turn of a response.
pub(super) fn turn_of(response: &Value) -> TurnId {
    let id = response["id"].as_str().unwrap_or_else(|| panic!("no id: {response}"));
    id.rsplit(['_', '-']).next().and_then(|hex| hex.parse().ok()).expect("a turn's id")
}

/// Ends a turn with output of each kind, and these words on why the model stopped.
async fn reply_of_each_kind(worker: &FakeWorker, turn: TurnId, finish_reason: Option<&str>) {
    worker.output(turn, 0, of_each_kind()).await.expect("taken");
    let finish_reason = finish_reason.map(str::to_owned);
    let word = Finish { end: EACH_KIND, tail: None, finish_reason, ..whole_reply(&[turn], "") };
    worker.finish(&word).await.expect("taken");
}

async fn a_reply_is_shown_by_both_protocols(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    for library in libraries() {
        for (finish, chat, status) in [(None, "stop", "completed"), (Some("length"), "length", "incomplete")] {
            let usage = json!({"stream": true, "stream_options": {"include_usage": true}});
            let running = library.call(&gateway.clients, create_completion(usage));
            let pushed = worker.turn().await;
            assert_eq!(pushed.message, "hello", "the agent is sent what is new");
            reply_of_each_kind(&worker, pushed.turn_id, finish).await;
            let lines = running.rest().await;
            let chunks = lines_with(&lines, "event");
            assert_eq!((end(&lines), said(&chunks).as_str()), ("clean", "see 3"), "{library:?}: {lines:#?}");
            assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
            let reasons: Vec<&str> = chunks.iter().filter_map(|c| c["choices"][0]["finish_reason"].as_str()).collect();
            assert_eq!(reasons, [chat]);
            assert_eq!(chunks.last().unwrap()["usage"]["total_tokens"], 0);
            assert!(chunks.iter().all(|c| c["choices"][0]["delta"]["tool_calls"].is_null()), "{chunks:#?}");

            let running = library.call(&gateway.clients, create_completion(json!({})));
            let turn = worker.turn().await.turn_id;
            reply_of_each_kind(&worker, turn, finish).await;
            let lines = running.rest().await;
            let completion = &lines[0]["result"];
            assert_eq!((end(&lines), turn_of(completion)), ("clean", turn), "{lines:#?}");
            let choice = &completion["choices"][0];
            assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!("see 3"), &json!(chat)));

            for helper in [false, true] {
                let asked = match helper {
                    true => call("responses.stream", json!({"model": AGENT, "input": "hello"}), json!({})),
                    false => create_response(json!({"stream": true})),
                };
                let running = library.call(&gateway.clients, asked);
                let turn = worker.turn().await.turn_id;
                reply_of_each_kind(&worker, turn, finish).await;
                let lines = running.rest().await;
                let events = lines_with(&lines, "event");
                // The helper for Python has a final response only where all is well.
                let cut_off = helper && library == Library::Python && status == "incomplete";
                let ended = if cut_off { "RuntimeError" } else { "clean" };
                assert_eq!((end(&lines), said(&events).as_str()), (ended, "see 3"), "{library:?}: {lines:#?}");
                let last = events.last().unwrap();
                assert_eq!(last["type"], format!("response.{status}"));
                assert_eq!((&last["response"]["status"], turn_of(&last["response"])), (&json!(status), turn));
                if helper && !cut_off {
                    let result = &lines_with(&lines, "text")[0];
                    assert_eq!(result, "see 3", "{library:?}: {lines:#?}");
                } else if !helper {
                    let mut order = kinds(&events);
                    order.dedup();
                    let of_text = ["output_text.delta", "output_text.done", "content_part.done", "output_item.done"];
                    let begin = ["created", "in_progress", "output_item.added", "content_part.added"];
                    assert_eq!(order, [&begin[..], &of_text, &[status]].concat());
                }
            }

            let running = library.call(&gateway.clients, create_response(json!({"metadata": {"a": "b"}})));
            let turn = worker.turn().await.turn_id;
            reply_of_each_kind(&worker, turn, finish).await;
            let lines = running.rest().await;
            let response = &lines[0]["result"];
            assert_eq!((turn_of(response), &response["status"]), (turn, &json!(status)), "{library:?}: {lines:#?}");
            assert_eq!((&lines[0]["text"], &response["metadata"]), (&json!("see 3"), &json!({"a": "b"})));
        }
    }
}

async fn a_failure_is_what_the_libraries_raise(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    for library in libraries() {
        for (reason, status, class) in [
            (Reason::OutOfMemory, 500, "InternalServerError"),
            (Reason::GuardrailRejected, 400, "BadRequestError"),
            (Reason::QuotaExceeded, 429, "RateLimitError"),
        ] {
            // Not streamed, with the retries that the library makes by itself: it makes none.
            for mut asked in [create_completion(json!({})), create_response(json!({}))] {
                asked["retries"] = json!(2);
                let running = library.call(&gateway.clients, asked);
                let turn = worker.turn().await.turn_id;
                fail_with(&worker, turn, reason).await;
                let lines = running.rest().await;
                let recorded = gateway.client().record(turn).await["error"].clone();
                let raised = &lines[0];
                assert_eq!((end(&lines), &raised["status"]), (class, &json!(status)), "{library:?}: {lines:#?}");
                assert_eq!(raised["code"], recorded["reason"]);
                let message = recorded["message"].as_str().unwrap();
                assert!(raised["message"].as_str().unwrap().contains(message), "{raised}");
            }
            // In a stream of completions it is raised.
            let running = library.call(&gateway.clients, create_completion(json!({"stream": true})));
            let turn = worker.turn().await.turn_id;
            fail_with(&worker, turn, reason).await;
            let lines = running.rest().await;
            let code = lines.last().unwrap()["code"].as_str().unwrap().to_owned();
            assert_eq!((end(&lines), code.as_str()), ("APIError", reason.as_str()), "{library:?}: {lines:#?}");
            // A stream of a response says it in its last event, and so does the response that is made of it.
            for (asked, result) in [
                (create_response(json!({"stream": true})), false),
                (call("responses.stream", json!({"model": AGENT, "input": "hello"}), json!({})), true),
            ] {
                let running = library.call(&gateway.clients, asked);
                let turn = worker.turn().await.turn_id;
                fail_with(&worker, turn, reason).await;
                let lines = running.rest().await;
                let events = lines_with(&lines, "event");
                let last = events.last().unwrap_or_else(|| panic!("{library:?}: {lines:#?}"));
                assert_eq!(last["type"], "response.failed", "{library:?}: {lines:#?}");
                let error = &last["response"]["error"];
                assert_eq!(error["code"], "server_error");
                assert!(error["message"].as_str().unwrap().starts_with(reason.as_str()), "{error}");
                if result && end(&lines) == "clean" {
                    assert_eq!(lines_with(&lines, "result")[0]["status"], "failed", "{library:?}: {lines:#?}");
                }
            }
        }
    }
}

async fn a_cancelled_turn_is_no_reply(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let cancel = async |turn: TurnId| assert_eq!(gateway.client().cancel(turn).await.0, StatusCode::OK);
    for library in libraries() {
        for (asked, class) in
            [(create_completion(json!({"stream": true})), "APIError"), (create_completion(json!({})), "ConflictError")]
        {
            let running = library.call(&gateway.clients, asked);
            cancel(worker.turn().await.turn_id).await;
            let lines = running.rest().await;
            assert_eq!((end(&lines), &lines.last().unwrap()["code"]), (class, &json!("Cancelled")), "{lines:#?}");
        }
        let running = library.call(&gateway.clients, create_response(json!({"stream": true})));
        let turn = worker.turn().await.turn_id;
        worker.say(turn, 0, "half").await;
        eventually("it is written", async || db.count(&format!("output WHERE turn_id = '{turn}'")).await == 1).await;
        cancel(turn).await;
        let lines = running.rest().await;
        let events = lines_with(&lines, "event");
        let last = events.last().unwrap();
        assert_eq!((end(&lines), &last["type"]), ("clean", &json!("response.incomplete")), "{lines:#?}");
        assert_eq!(last["response"]["incomplete_details"]["reason"], "cancelled");
        let asked = json!({"call": "responses.retrieve", "on": [last["response"]["id"]]});
        let lines = library.call(&gateway.clients, asked).rest().await;
        let found = &lines[0]["result"];
        assert_eq!((&found["status"], &found["output"]), (&json!("cancelled"), &json!([])), "{lines:#?}");
        let running = library.call(&gateway.clients, create_response(json!({})));
        cancel(worker.turn().await.turn_id).await;
        let lines = running.rest().await;
        assert_eq!((end(&lines), &lines[0]["result"]["status"]), ("clean", &json!("cancelled")), "{lines:#?}");
    }
}

/// The library is told that its connection broke. With the last number that it has, it goes on at another gateway, to which it
/// makes no difference how the log was cut; and later at one that has nothing in memory.
async fn a_response_goes_on_at_another_gateway(db: Db) {
    let second = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &second).await;
    for library in libraries() {
        let first = Gateway::start(&db).await;
        let mut running = library.call(&first.clients, create_response(json!({"stream": true})));
        let turn = worker.turn().await.turn_id;
        worker.say(turn, 0, "Grüße, ").await;
        worker.say(turn, 9, "a h").await;
        let is_second = |line: &Value| said(&[line["event"].clone()]).ends_with('h');
        let mut seen = running.until("the text", is_second).await;
        first.kill();
        let broken = running.rest().await;
        assert_ne!(end(&broken), "clean", "{library:?}: {broken:#?}");
        seen.extend(broken);
        let seen = lines_with(&seen, "event");
        let id = seen[0]["response"]["id"].clone();
        let after = seen.last().unwrap()["sequence_number"].clone();
        let asked =
            json!({"call": "responses.retrieve", "on": [id], "args": {"stream": true, "starting_after": after}});
        let going_on = library.call(&second.clients, asked.clone());
        worker.say(turn, 12, "alf and ").await;
        worker.say(turn, 20, "whole").await;
        worker.end(turn, 25).await.expect("taken");
        let lines = going_on.rest().await;
        let rest = lines_with(&lines, "event");
        assert_eq!(end(&lines), "clean", "{library:?}: {lines:#?}");
        assert_eq!(said(&seen) + &said(&rest), "Grüße, a half and whole");
        assert!(rest.iter().all(|e| e["sequence_number"].as_u64() > after.as_u64()), "{rest:#?}");
        assert_eq!(rest.last().unwrap()["type"], "response.completed");
        let third = Gateway::start(&db).await;
        let lines = library.call(&third.clients, asked).rest().await;
        let replayed = lines_with(&lines, "event");
        assert_eq!((said(&replayed), replayed.last()), (said(&rest), rest.last()), "{library:?}");
        let whole = library.call(&third.clients, json!({"call": "responses.retrieve", "on": [id]})).rest().await;
        assert_eq!(whole[0]["text"], "Grüße, a half and whole");
    }
}

async fn a_response_in_the_background_is_found_and_cancelled(db: Db) {
    let (gateway, other) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    for library in libraries() {
        let lines = library.call(&gateway.clients, create_response(json!({"background": true}))).rest().await;
        let response = lines[0]["result"].clone();
        assert_eq!((end(&lines), &response["background"]), ("clean", &json!(true)), "{library:?}: {lines:#?}");
        assert!(["queued", "in_progress"].contains(&response["status"].as_str().unwrap()), "{response}");
        let turn = worker.turn().await.turn_id;
        let on = |call: &str, gateway: &Gateway| {
            library.call(&gateway.clients, json!({"call": call, "on": [response["id"]]}))
        };
        let found = on("responses.retrieve", &other).rest().await;
        assert_eq!((turn_of(&found[0]["result"]), &found[0]["result"]["status"]), (turn, &json!("in_progress")));
        let items = on("responses.input_items.list", &other).rest().await;
        assert!(items.iter().any(|line| line.to_string().contains("hello")), "{items:#?}");
        reply_of_each_kind(&worker, turn, None).await;
        let found = on("responses.retrieve", &other).rest().await;
        assert_eq!((&found[0]["text"], &found[0]["result"]["status"]), (&json!("see 3"), &json!("completed")));
        assert!(found[0]["result"]["completed_at"].is_number());
        // What is over stays as it was.
        let found = on("responses.cancel", &other).rest().await;
        assert_eq!(
            (end(&found), &found[0]["result"]["status"]),
            ("clean", &json!("completed")),
            "{library:?}: {found:#?}"
        );

        let lines = library.call(&gateway.clients, create_response(json!({"background": true}))).rest().await;
        let response = lines[0]["result"].clone();
        let turn = worker.turn().await.turn_id;
        for gateway in [&other, &gateway] {
            let call = json!({"call": "responses.cancel", "on": [response["id"]]});
            let lines = library.call(&gateway.clients, call).rest().await;
            assert_eq!(
                (end(&lines), &lines[0]["result"]["status"]),
                ("clean", &json!("cancelled")),
                "{library:?}: {lines:#?}"
            );
        }
        assert_eq!(db.ending(turn).await, "Cancelled");

        // Only one in the background is cancelled here.
        let running = library.call(&gateway.clients, create_response(json!({})));
        let turn = worker.turn().await.turn_id;
        let call = json!({"call": "responses.cancel", "on": [format!("resp_{}", turn.0.simple())]});
        assert_eq!(end(&library.call(&gateway.clients, call).rest().await), "BadRequestError");
        reply_of_each_kind(&worker, turn, None).await;
        let lines = running.rest().await;
        let id = lines[0]["result"]["id"].clone();

        // A deleted response is found nowhere; its conversation has the turn.
        let lines = library.call(&gateway.clients, json!({"call": "responses.delete", "on": [id]})).rest().await;
        assert_eq!(end(&lines), "clean", "{library:?}: {lines:#?}");
        for gateway in [&other, &gateway] {
            let call = json!({"call": "responses.retrieve", "on": [id]});
            assert_eq!(end(&library.call(&gateway.clients, call).rest().await), "NotFoundError", "{library:?}");
        }
        assert_eq!(gateway.client().record(turn).await["phase"], "Succeeded");
    }
}

async fn a_conversation_goes_on(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let conversation = async |turn: TurnId| gateway.client().record(turn).await["conversationId"].clone();
    for library in libraries() {
        let mut previous: Option<(Value, Value)> = None;
        for _ in 0..3 {
            let id = previous.as_ref().map_or(Value::Null, |p| p.0.clone());
            let running = library.call(&gateway.clients, create_response(json!({"previous_response_id": id})));
            let turn = worker.turn().await.turn_id;
            worker.reply(&[turn], "see").await.expect("taken");
            let lines = running.rest().await;
            let response = &lines[0]["result"];
            assert_eq!((end(&lines), &response["previous_response_id"]), ("clean", &id), "{library:?}: {lines:#?}");
            let its = conversation(turn).await;
            assert!(previous.is_none_or(|p| p.1 == its), "one conversation");
            previous = Some((response["id"].clone(), its));
        }
        let name = format!("by {library:?}");
        let mut named = Vec::new();
        for _ in 0..2 {
            let running = library.call(&gateway.clients, create_response(json!({"conversation": name})));
            let turn = worker.turn().await.turn_id;
            worker.reply(&[turn], "see").await.expect("taken");
            assert_eq!(running.rest().await[0]["result"]["conversation"]["id"], name.as_str());
            named.push(conversation(turn).await);
        }
        assert_eq!(named[0], named[1]);
        for (more, class) in [
            (json!({"conversation": name, "previous_response_id": previous.as_ref().unwrap().0}), "BadRequestError"),
            (json!({"previous_response_id": "resp_00000000000000000000000000000000"}), "BadRequestError"),
            (json!({"model": "nobody"}), "NotFoundError"),
            (
                json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}),
                "BadRequestError",
            ),
        ] {
            let lines = library.call(&gateway.clients, create_response(more.clone())).rest().await;
            assert_eq!(end(&lines), class, "{library:?}: {more}: {lines:#?}");
        }

        // Who sends all messages each time goes on where these are what was said, and begins anew where they are not.
        let say = |role: &str, text: &str| json!({"role": role, "content": text});
        let name = format!("{library:?}");
        let mut messages = vec![say("user", &name)];
        let mut turns = Vec::new();
        for edited in [false, false, true] {
            if edited {
                messages[1] = say("assistant", "something else");
            }
            let running = library.call(&gateway.clients, create_completion(json!({"messages": messages})));
            let pushed = worker.turn().await;
            assert_eq!(pushed.message, messages.last().unwrap()["content"].as_str().unwrap());
            worker.reply(&[pushed.turn_id], "see").await.expect("taken");
            assert_eq!(end(&running.rest().await), "clean");
            turns.push(conversation(pushed.turn_id).await);
            messages.extend([say("assistant", "see"), say("user", "and then?")]);
        }
        assert_eq!(turns[0], turns[1], "{library:?}");
        assert_ne!(turns[1], turns[2], "{library:?}");
        let mut named = Vec::new();
        for text in ["one", "two"] {
            let more = json!({"messages": [say("user", text)], "metadata": {"conversation": name}});
            let running = library.call(&gateway.clients, create_completion(more));
            let turn = worker.turn().await.turn_id;
            worker.reply(&[turn], "see").await.expect("taken");
            assert_eq!(end(&running.rest().await), "clean");
            named.push(conversation(turn).await);
        }
        assert_eq!(named[0], named[1]);
    }
}

/// Posts JSON with headers; the status, the headers and the JSON.
pub(super) async fn post(
    client: &Client,
    path: &str,
    headers: &[(&str, &str)],
    body: Value,
) -> (StatusCode, reqwest::header::HeaderMap, Value) {
    let mut request = client.request(Method::POST, path).json(&body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = within(path, request.send()).await.expect("an answer");
    let (status, headers) = (answer.status(), answer.headers().clone());
    let body = within("the body", answer.bytes()).await.expect("a body");
    (status, headers, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

/// Two users of the organization, one of another, and a gateway that asks for keys; and the id of the first one's key.
pub(super) async fn strangers(db: &Db) -> (Gateway, [Client; 3], uuid::Uuid) {
    let mut keys = Vec::new();
    for (organization, user) in [(ORGANIZATION, "ada"), (ORGANIZATION, "bob"), ("elsewhere", "eve")] {
        keys.push(api_key(&db.store, organization, user, KeyRole::User).await);
    }
    let gateway = Gateway::with(db.options(), |c| c.auth = AuthMode::Keys).await;
    let clients = [0, 1, 2].map(|i| gateway.client_with(&keys[i].1));
    (gateway, clients, keys[0].0)
}
