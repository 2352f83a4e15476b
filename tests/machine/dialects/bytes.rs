//! No stream of any dialect ends cleanly without its terminal, whatever becomes of the gateway, the database, the worker or the
//! turn's log: every client library takes a clean end for success.
//!
//! Each scene is played for all dialects at once, over HTTP/1.1 and over HTTP/2, a turn for each. What is looked at are the bytes of the body, and how it ended.

use std::time::Duration;

use lastword::store::NewStart;
use lastword::turn::keys::TurnId;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::Db;
use crate::support::client::{Client, End};
use crate::support::fake_worker::FakeWorker;
use crate::support::forwarder::Forwarder;
use crate::support::gateway::{AGENT, Gateway, Sweeper};
use crate::support::wait::{eventually, within};

crate::newest! {
    a_gateway_that_is_killed_ends_no_stream,
    a_gateway_that_is_drained_breaks_what_owes_a_terminal,
    a_gateway_without_its_database_breaks_its_streams,
    a_worker_that_is_lost_is_a_terminal_and_then_the_end,
    a_reply_without_its_log_is_broken_off_and_then_gone,
    a_terminal_is_the_last_that_is_said,
}

/// The same key is the same turn, where a dialect has no ids of messages.
const KEY: &str = "idempotency-key";

/// A way to see a turn.
#[derive(Clone)]
pub(super) struct Dialect {
    /// It stands for the conversation's name, the message id and the message of the turn.
    pub name: &'static str,
    pub method: Method,
    pub path: fn(&str, TurnId) -> String,
    pub body: fn(&str) -> Option<Value>,
    /// What is in the bytes of each terminal, and nowhere else.
    terminals: &'static [&'static str],
    /// What the last bytes are, behind a reply.
    last: &'static str,
    /// Whether a turn that is over is answered by no stream.
    open_only: bool,
    /// What another user of the organization is answered, and a user of another one. A stream is one of a turn of their own.
    pub to_others: [u16; 2],
    /// Whether it is asked for over HTTP/2.
    http2: bool,
    /// How its turn is asked for, if it shows no others. By a key the turn is found again.
    asked: Option<OwnRequest>,
}

/// The dialects whose answer is a turn's stream, over each protocol.
pub(super) fn dialects() -> Vec<Dialect> {
    let by_http2 = |dialect: &Dialect| {
        let name: &'static str = format!("{}-http2", dialect.name).leak();
        Dialect { name, http2: true, ..dialect.clone() }
    };
    let by_http1 = by_http1();
    by_http1.iter().map(by_http2).chain(by_http1.clone()).collect()
}

fn by_http1() -> Vec<Dialect> {
    const UI: &[&str] = &["\"type\":\"finish\"", "\"type\":\"error\"", "\"type\":\"abort\""];
    vec![
        Dialect {
            name: "native",
            method: Method::GET,
            path: |_, turn| format!("/v1/turns/{turn}/events"),
            body: |_| None,
            terminals: &["event: complete"],
            last: "\n\n",
            open_only: false,
            http2: false,
            asked: None,
            to_others: [404, 404],
        },
        Dialect {
            name: "agui",
            method: Method::POST,
            path: |_, _| format!("/agui/{AGENT}"),
            body: |name| {
                let messages = json!([{"id": "1", "role": "user", "content": name}]);
                Some(json!({"threadId": name, "runId": name, "messages": messages}))
            },
            terminals: &["\"type\":\"RUN_FINISHED\"", "\"type\":\"RUN_ERROR\""],
            last: "\n\n",
            open_only: false,
            http2: false,
            asked: None,
            to_others: [200, 404],
        },
        Dialect {
            name: "ui",
            method: Method::POST,
            path: |_, _| format!("/ui/{AGENT}"),
            body: |name| {
                let parts = json!([{"type": "text", "text": name}]);
                Some(json!({"id": name, "messages": [{"id": name, "role": "user", "parts": parts}]}))
            },
            terminals: UI,
            last: "data: [DONE]\n\n",
            open_only: false,
            http2: false,
            asked: None,
            to_others: [200, 404],
        },
        Dialect {
            name: "ui-resumed",
            method: Method::GET,
            path: |name, _| format!("/ui/{AGENT}/{name}/stream"),
            body: |_| None,
            terminals: UI,
            last: "data: [DONE]\n\n",
            open_only: true,
            http2: false,
            asked: None,
            to_others: [204, 204],
        },
        Dialect {
            name: "openai-chat",
            method: Method::POST,
            path: |_, _| CHAT.into(),
            body: |name| Some(completion(name)),
            terminals: &["\"finish_reason\":\"", "\"error\":{"],
            last: "\n\n",
            open_only: false,
            http2: false,
            asked: Some((CHAT, completion)),
            to_others: [200, 404],
        },
        Dialect {
            name: "openai-responses",
            method: Method::POST,
            path: |_, _| RESPONSES.into(),
            body: |name| Some(response(name)),
            terminals: RESPONSE_ENDS,
            last: "data: [DONE]\n\n",
            open_only: false,
            http2: false,
            asked: Some((RESPONSES, response)),
            to_others: [200, 404],
        },
        Dialect {
            name: "openai-retrieved",
            method: Method::GET,
            path: |_, turn| format!("{RESPONSES}/resp_{}?stream=true", turn.0.simple()),
            body: |_| None,
            terminals: RESPONSE_ENDS,
            last: "data: [DONE]\n\n",
            open_only: false,
            http2: false,
            asked: Some((RESPONSES, response)),
            to_others: [404, 404],
        },
    ]
}

const CHAT: &str = "/openai/v1/chat/completions";
const RESPONSES: &str = "/openai/v1/responses";
const RESPONSE_ENDS: &[&str] = &["event: response.completed", "event: response.failed", "event: response.incomplete"];

fn completion(name: &str) -> Value {
    json!({"model": AGENT, "messages": [{"role": "user", "content": name}], "stream": true})
}

fn response(name: &str) -> Value {
    json!({"model": AGENT, "input": name, "stream": true})
}

/// Where a turn is asked for, and the body that asks for the one of this name.
type OwnRequest = (&'static str, fn(&str) -> Value);

/// A dialect's turn, begun by the worker.
pub(super) struct Played {
    pub dialect: Dialect,
    pub turn: TurnId,
}

/// Submits a turn for each dialect; the worker has said `half` in each.
pub(super) async fn play(client: &Client, worker: &mut FakeWorker) -> Vec<Played> {
    let mut played = Vec::new();
    for dialect in dialects() {
        let name = dialect.name;
        let turn = match dialect.asked {
            None => client.submit(name, name, name).await.turn_id,
            Some((path, body)) => {
                let request = client.request(Method::POST, path).header(KEY, name).json(&body(name));
                let answer = within(name, request.send()).await.expect("an answer");
                answer.headers()["x-lastword-turn"].to_str().expect("ASCII").parse().expect("a turn")
            }
        };
        worker.this_turn(turn).await;
        worker.say(turn, 0, "half").await;
        played.push(Played { dialect, turn });
    }
    played
}

impl Played {
    pub async fn open(&self, client: &Client) -> reqwest::Response {
        let name = self.dialect.name;
        let mut client = client.clone();
        if self.dialect.http2 {
            let http = reqwest::Client::builder().no_proxy().http2_prior_knowledge().pool_max_idle_per_host(0);
            client.http = http.build().expect("a client");
        }
        let request = client.request(self.dialect.method.clone(), &(self.dialect.path)(name, self.turn));
        let mut request = request.header(KEY, name);
        if let Some(body) = (self.dialect.body)(name) {
            request = request.json(&body);
        }
        within(name, request.send()).await.expect("an answer")
    }

    /// Opens the stream, reads until it shows `half`, and goes on reading.
    pub async fn watch(&self, client: &Client) -> JoinHandle<(String, End)> {
        let mut answer = self.open(client).await;
        assert_eq!(answer.status(), StatusCode::OK, "{}", self.dialect.name);
        let mut shown = String::new();
        while !shown.contains("half") {
            let chunk = within("the text", answer.chunk()).await.expect("open").expect("open");
            shown += &String::from_utf8_lossy(&chunk);
        }
        tokio::spawn(rest(answer, shown))
    }

    /// How many terminals the bytes hold.
    fn terminals(&self, bytes: &str) -> usize {
        self.dialect.terminals.iter().map(|terminal| bytes.matches(terminal).count()).sum()
    }

    /// The stream was broken off, and showed no terminal.
    pub fn is_broken(&self, (bytes, end): &(String, End)) {
        assert_eq!((*end, self.terminals(bytes)), (End::Aborted, 0), "{}: {bytes}", self.dialect.name);
    }
}

/// All further bytes of an answer, and how it ended.
async fn rest(mut answer: reqwest::Response, mut shown: String) -> (String, End) {
    loop {
        match within("the end of a stream", answer.chunk()).await {
            Ok(Some(chunk)) => shown += &String::from_utf8_lossy(&chunk),
            Ok(None) => return (shown, End::Clean),
            Err(_) => return (shown, End::Aborted),
        }
    }
}

async fn watched(client: &Client, played: &[Played]) -> Vec<JoinHandle<(String, End)>> {
    let mut watched = Vec::new();
    for one in played {
        watched.push(one.watch(client).await);
    }
    watched
}

async fn all_broken(played: &[Played], watched: Vec<JoinHandle<(String, End)>>) {
    for (one, stream) in played.iter().zip(watched) {
        one.is_broken(&within("the break", stream).await.expect("no panic"));
    }
}

async fn a_gateway_that_is_killed_ends_no_stream(db: Db) {
    let (gateway, other) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let mut worker = FakeWorker::on(&db.store, &other).await;
    let played = play(&other.client(), &mut worker).await;
    let watched = watched(&gateway.client(), &played).await;
    gateway.kill();
    all_broken(&played, watched).await;
}

async fn a_gateway_that_is_drained_breaks_what_owes_a_terminal(db: Db) {
    let (gateway, other) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let mut worker = FakeWorker::on(&db.store, &other).await;
    let played = play(&other.client(), &mut worker).await;
    let watched = watched(&gateway.client(), &played).await;
    gateway.stop().await;
    all_broken(&played, watched).await;
}

fn lease(seconds: u32) -> impl FnOnce(&mut NewStart) {
    move |start| (start.lease_seconds, start.heartbeat_seconds) = (seconds, 1)
}

async fn a_gateway_without_its_database_breaks_its_streams(db: Db) {
    let forwarder = Forwarder::start(db.options());
    let gateway = Gateway::with(forwarder.options(), |_| {}).await;
    let other = Gateway::start(&db).await;
    let mut worker = FakeWorker::new(&db.store, lease(6)).await;
    worker.connect(&other, &[]).await;
    let played = play(&other.client(), &mut worker).await;
    let watched = watched(&gateway.client(), &played).await;
    forwarder.cut();
    all_broken(&played, watched).await;
}

async fn a_worker_that_is_lost_is_a_terminal_and_then_the_end(db: Db) {
    let gateway = Gateway::start(&db).await;
    let _sweeper = Sweeper::start(db.store.clone());
    let mut worker = FakeWorker::new(&db.store, lease(5)).await;
    worker.connect(&gateway, &[]).await;
    let played = play(&gateway.client(), &mut worker).await;
    let watched = watched(&gateway.client(), &played).await;
    worker.drop_stream();
    for (one, stream) in played.iter().zip(watched) {
        let (bytes, end) = within("the end", stream).await.expect("no panic");
        let name = one.dialect.name;
        assert_eq!((end, one.terminals(&bytes)), (End::Clean, 1), "{name}: {bytes}");
        assert!(bytes.contains("LeaseLapsed") && bytes.ends_with(one.dialect.last), "{name}: {bytes}");
    }
}

/// A part of the log is lost before the terminal was shown. The first who comes to it is broken off; the next is told.
async fn a_reply_without_its_log_is_broken_off_and_then_gone(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let client = gateway.client();
    for one in play(&client, &mut worker).await.into_iter().filter(|one| !one.dialect.open_only) {
        let written = format!("SELECT coalesce(max(end_at), 0) FROM output WHERE turn_id = '{}'", one.turn);
        eventually("it is written", async || db.number(&written).await == 4).await;
        worker.say(one.turn, 4, " and half").await;
        eventually("it is written", async || db.number(&written).await == 13).await;
        worker.end(one.turn, 13).await.expect("taken");
        db.sql(format!("DELETE FROM output WHERE turn_id = '{}' AND start_at = 4", one.turn)).await;
        // A gateway that has nothing of it in memory.
        let fresh = Gateway::start(&db).await;
        let fresh = fresh.client();
        let answer = one.open(&fresh).await;
        assert_eq!(answer.status(), StatusCode::OK);
        one.is_broken(&rest(answer, String::new()).await);
        let answer = one.open(&fresh).await;
        assert_eq!(answer.status(), StatusCode::GONE, "{}", one.dialect.name);
    }
}

/// One terminal, live and again from the log, and nothing behind it; the replay is what was live.
async fn a_terminal_is_the_last_that_is_said(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let client = gateway.client();
    let played = play(&client, &mut worker).await;
    let watched = watched(&client, &played).await;
    for (one, stream) in played.iter().zip(watched) {
        let name = one.dialect.name;
        worker.end(one.turn, 4).await.expect("taken");
        let (live, end) = within("the end", stream).await.expect("no panic");
        assert_eq!((end, one.terminals(&live)), (End::Clean, 1), "{name}: {live}");
        assert!(live.ends_with(one.dialect.last), "{name}: {live}");
        let answer = one.open(&client).await;
        if one.dialect.open_only {
            assert_eq!(answer.status(), StatusCode::NO_CONTENT);
            continue;
        }
        let (replay, end) = rest(answer, String::new()).await;
        assert_eq!((end, replay), (End::Clean, live), "{name}");
    }
    // Nothing goes out by HTTP/1.0, in which an end and a cut look the same.
    let old = reqwest::Client::builder().no_proxy().http1_only().build().expect("a client");
    for one in &played {
        let mut request = old
            .request(
                one.dialect.method.clone(),
                format!("{}{}", gateway.clients, (one.dialect.path)(one.dialect.name, one.turn)),
            )
            .version(reqwest::Version::HTTP_10)
            .header(KEY, one.dialect.name)
            .timeout(Duration::from_secs(20));
        if let Some(body) = (one.dialect.body)(one.dialect.name) {
            request = request.json(&body);
        }
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::UPGRADE_REQUIRED, "{}", one.dialect.name);
    }
}
