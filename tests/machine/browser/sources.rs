//! Streams as the clients that people have read them: npm's `eventsource`, Python's httpx-sse, `curl -N`, and a browser's own
//! EventSource on a page of another origin. In order, each frame once, over a connection that breaks, and an end that is one.

use std::path::Path;
use std::process::Stdio;

use axum::Router;
use axum::response::Html;
use axum::routing::get;
use lastword::gateway::AuthMode;
use lastword::store::keys::KeyRole;
use lastword::turn::keys::TurnId;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::network::Network;
use super::page::has_browser;
use crate::support::client::Client;
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::{Gateway, ORGANIZATION, api_key};
use crate::support::wait::within;
use crate::support::{Db, http, python_clients, repository};

crate::newest! {
    npms_eventsource_comes_back_by_itself_and_stops_at_the_end,
    httpx_sse_and_curl_show_every_frame,
    a_browser_on_another_origin_follows_by_tickets,
}

/// A program whose lines of JSON are read.
struct Reader {
    _process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Reader {
    fn start(program: impl AsRef<Path>, args: &[&str]) -> Reader {
        let mut command = Command::new(program.as_ref());
        let mut process = command.args(args).stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("it runs");
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        Reader { _process: process, lines }
    }

    async fn line(&mut self) -> Option<String> {
        within("a line", self.lines.next_line()).await.expect("lines")
    }

    async fn json(&mut self) -> Option<Value> {
        self.line().await.map(|line| serde_json::from_str(&line).expect("JSON"))
    }
}

/// A turn that a worker has in hand.
async fn begun(client: &Client, worker: &mut FakeWorker) -> TurnId {
    let turn = client.submit("c", "m", "hello").await.turn_id;
    worker.this_turn(turn).await;
    turn
}

/// The text of events, and whether no id came twice.
fn shown(events: &[Value]) -> String {
    let ids: Vec<&str> = events.iter().filter(|e| e["event"] != "connected").filter_map(|e| e["id"].as_str()).collect();
    let unique: std::collections::HashSet<&&str> = ids.iter().collect();
    assert_eq!(unique.len(), ids.len(), "each frame once: {events:?}");
    events.iter().filter(|e| e["event"] == "text").filter_map(|e| e["data"]["text"].as_str()).collect()
}

async fn npms_eventsource_comes_back_by_itself_and_stops_at_the_end(db: Db) {
    if !has_browser("npm's eventsource is not tried") {
        return;
    }
    let gateway = Gateway::with(db.options(), |config| config.auth = AuthMode::Keys).await;
    let key = api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await.1;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let turn = begun(&gateway.client_with(&key), &mut worker).await;
    let network = Network::to(&gateway.clients).await;
    let url = format!("{}/v1/turns/{turn}/events", network.url);
    let program = repository("tests/clients/browser/eventsource.mjs");
    let mut source = Reader::start("node", &[program.to_str().expect("text"), &url, &key]);
    let mut events = Vec::new();
    let mut end = worker.say(turn, 0, "one ").await;
    let last = loop {
        let line = source.json().await.expect("a line");
        if line["event"] == "text" {
            events.push(line.clone());
            break line["id"].clone();
        }
        assert!(line["event"] == "connected" || line["status"] == 200, "{line}");
    };
    network.cut();
    assert_eq!(source.json().await, Some(json!({"closed": false})), "it will come back");
    end = worker.say(turn, end, "two ").await;
    network.mend();
    let mut statuses = Vec::new();
    loop {
        let line = source.json().await.expect("a line");
        if line["status"].is_number() {
            if line["status"] == 200 {
                assert_eq!(line["lastEventId"], last, "behind what it has");
                end = worker.say(turn, end, "three").await;
                worker.end(turn, end).await.expect("accepted");
            }
            statuses.push(line["status"].clone());
        } else if line["closed"] == true {
            break;
        } else if line["event"].is_string() {
            events.push(line);
        }
    }
    assert_eq!(statuses, [200, 204], "back once, and told that there is nothing more");
    assert_eq!(shown(&events), "one two three");
    assert_eq!(events.last().map(|e| e["event"].clone()), Some(json!("complete")));
    assert_eq!(source.line().await, None, "it has stopped");
}

async fn httpx_sse_and_curl_show_every_frame(db: Db) {
    let Some(python) = python_clients("httpx-sse is not tried") else { return };
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let turn = begun(&gateway.client(), &mut worker).await;
    let url = format!("{}/v1/turns/{turn}/events", gateway.clients);
    let program = repository("tests/clients/session.py");
    let mut httpx = Reader::start(python, &[program.to_str().expect("text"), &url]);
    let mut curl = Reader::start("curl", &["-sN", "--noproxy", "*", &url]);
    assert_eq!(httpx.json().await.expect("a frame")["event"], "connected");
    let mut seen = Vec::new();
    for said in ["retry: 1000", "event: connected"] {
        assert_eq!(curl.line().await.as_deref(), Some(said), "the first frame");
    }
    let mut end = 0;
    for word in ["one ", "two ", "three"] {
        end = worker.say(turn, end, word).await;
        let event = httpx.json().await.expect("at once");
        assert_eq!(event["data"]["text"], word);
        seen.push(event);
        while curl.line().await.as_deref() != Some("event: text") {}
    }
    worker.end(turn, end).await.expect("accepted");
    seen.push(httpx.json().await.expect("the end"));
    assert_eq!((shown(&seen).as_str(), &seen[3]["event"]), ("one two three", &json!("complete")));
    assert_eq!(httpx.line().await, None, "a clean end");
    while curl.line().await.as_deref() != Some("event: complete") {}
    while curl.line().await.is_some() {}
}

async fn a_browser_on_another_origin_follows_by_tickets(db: Db) {
    if !has_browser("a browser's EventSource is not tried") {
        return;
    }
    let page = http::serve(Router::new().route("/", get(|| async { Html("<!doctype html><title>x</title>") }))).await;
    let origin = page.parse().expect("an origin");
    let gateway = Gateway::with(db.options(), |c| (c.auth, c.origins) = (AuthMode::Keys, vec![origin])).await;
    let key = api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await.1;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let turn = begun(&gateway.client_with(&key), &mut worker).await;
    let network = Network::to(&gateway.clients).await;
    let end = worker.say(turn, 0, "one ").await;
    let program = repository("tests/clients/browser/other-origin.mjs");
    let id = turn.to_string();
    let mut driver = Reader::start("node", &[program.to_str().expect("text"), &page, &network.url, &key, &id]);
    assert_eq!(driver.line().await.as_deref(), Some("cut"));
    network.cut();
    let end = worker.say(turn, end, "two").await;
    worker.end(turn, end).await.expect("accepted");
    network.mend();
    let seen = driver.json().await.expect("what it saw");
    let seen = seen.as_array().expect("a list");
    let events: Vec<Value> = seen.iter().filter(|e| e["id"].is_string()).cloned().collect();
    assert_eq!(shown(&events), "one two", "{seen:?}");
    let names: Vec<&str> = seen.iter().filter_map(|e| e["event"].as_str()).collect();
    assert_eq!(names, ["connected", "text", "lost", "connected", "text", "complete", "stopped", "session"], "{seen:?}");
    assert_eq!(seen[6]["state"], 2, "closed by 204");
    assert_eq!(seen[7]["refused"], "refused");
}
