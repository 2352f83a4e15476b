//! A request that is sent again finds its turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use lastword::turn::keys::TurnId;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{create_completion, create_response, end, libraries, post};
use crate::support::Db;
use crate::support::client::Client;
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::{AGENT, Gateway};
use crate::support::wait::{eventually, within};

crate::newest! {
    a_post_that_the_library_repeats_makes_one_turn,
    a_wait_that_a_stopping_gateway_ends_goes_on_at_another,
    a_repeat_is_told_from_an_equal_request,
    a_repeat_may_overtake_what_it_repeats,
    equal_requests_at_once_are_each_a_turn,
    a_key_stands_for_one_turn,
}

/// A network that passes the first request on to one gateway, and breaks before any of the answer; then it passes all on to
/// another one.
struct BreaksOnce {
    url: String,
    connections: Arc<AtomicU32>,
}

impl BreaksOnce {
    async fn start(first: &Gateway, then: &Gateway, db: &Db) -> BreaksOnce {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let host = |gateway: &Gateway| gateway.clients.strip_prefix("http://").expect("HTTP").to_owned();
        let (first, then, store) = (host(first), host(then), db.store.clone());
        let connections = Arc::new(AtomicU32::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let nth = count.fetch_add(1, Ordering::SeqCst);
                let (first, then, store) = (first.clone(), then.clone(), store.clone());
                tokio::spawn(async move {
                    if nth > 0 {
                        let mut server = TcpStream::connect(then).await.expect("the gateway is there");
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                        return;
                    }
                    let before = store.list_turns("default", &all()).await.expect("turns").len();
                    let mut server = TcpStream::connect(first).await.expect("the gateway is there");
                    let mut buffer = [0; 4096];
                    while store.list_turns("default", &all()).await.expect("turns").len() == before {
                        tokio::select! {
                            read = client.read(&mut buffer) => {
                                let length = read.expect("a request");
                                server.write_all(&buffer[..length]).await.expect("passed on");
                            }
                            () = crate::support::wait::pause() => {}
                        }
                    }
                });
            }
        });
        BreaksOnce { url, connections }
    }
}

fn all() -> lastword::store::ListFilter {
    lastword::store::ListFilter { limit: 100, ..Default::default() }
}

/// Whatever the call: the answer is that of the turn that the first attempt made, at another gateway.
async fn a_post_that_the_library_repeats_makes_one_turn(db: Db) {
    let (first, then) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let mut worker = FakeWorker::on(&db.store, &first).await;
    let mut turns = 0;
    for library in libraries() {
        for mut asked in [
            create_completion(json!({})),
            create_completion(json!({"stream": true})),
            create_response(json!({})),
            create_response(json!({"stream": true})),
            create_response(json!({"background": true})),
        ] {
            asked["retries"] = json!(2);
            let network = BreaksOnce::start(&first, &then, &db).await;
            let running = library.call(&network.url, asked.clone());
            let turn = worker.turn().await.turn_id;
            eventually("the library comes again", async || network.connections.load(Ordering::SeqCst) > 1).await;
            worker.reply(&[turn], "once").await.expect("taken");
            let lines = running.rest().await;
            assert_eq!(end(&lines), "clean", "{library:?}: {asked}: {lines:#?}");
            let told = serde_json::to_string(&lines).unwrap();
            assert!(told.contains(&turn.0.simple().to_string()), "{library:?}: {asked}: {told}");
            turns += 1;
            assert_eq!(db.count("turn").await, turns, "{library:?}: {asked}");
            assert!(worker.pushed().is_empty());
        }
    }
}

/// The library waits for a whole answer at a gateway that stops: it is told to come again, and gets the answer elsewhere.
async fn a_wait_that_a_stopping_gateway_ends_goes_on_at_another(db: Db) {
    let other = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &other).await;
    let body = json!({"model": AGENT, "input": "hello"});
    for (headers, retry) in [(vec![("x-stainless-retry-count", "0")], "true"), (vec![], "false")] {
        let gateway = Gateway::start(&db).await;
        let client = gateway.client();
        let waiting = {
            let (headers, body) = (headers.clone(), body.clone());
            tokio::spawn(async move { post(&client, "/openai/v1/responses", &headers, body).await })
        };
        let turn = worker.turn().await.turn_id;
        gateway.stop().await;
        let (status, answered, error) = waiting.await.expect("no panic");
        assert_eq!((status, &error["error"]["type"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("server_error")));
        assert_eq!(answered["x-should-retry"], retry, "{error}");
        worker.reply(&[turn], "whole").await.expect("taken");
        if retry == "true" {
            let again = [("x-stainless-retry-count", "1")];
            let (status, _, response) = post(&other.client(), "/openai/v1/responses", &again, body.clone()).await;
            assert_eq!((status, super::turn_of(&response)), (StatusCode::OK, turn), "{response}");
        }
    }
}

/// Posts in the background; the turn.
async fn submit(client: &Client, headers: &[(&str, &str)], input: &str) -> TurnId {
    let body = json!({"model": AGENT, "input": input, "background": true});
    let (status, _, response) = post(client, "/openai/v1/responses", headers, body).await;
    assert_eq!(status, StatusCode::OK, "{response}");
    super::turn_of(&response)
}

const FIRST: [(&str, &str); 1] = [("x-stainless-retry-count", "0")];
const AGAIN: [(&str, &str); 1] = [("x-stainless-retry-count", "1")];

async fn a_repeat_is_told_from_an_equal_request(db: Db) {
    let (gateway, other) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let (here, there) = (gateway.client(), other.client());
    let one = submit(&here, &FIRST, "a").await;
    assert_eq!(submit(&there, &AGAIN, "a").await, one);
    let two = submit(&here, &FIRST, "a").await;
    assert_ne!(two, one, "an equal request is another turn");
    assert_eq!(submit(&there, &AGAIN, "a").await, two, "the newest is meant");
    assert_ne!(submit(&here, &AGAIN, "b").await, two);
    assert_eq!(db.count("turn").await, 3);
    // Another route's equal body, and a client that marks nothing.
    let (unmarked, again) = (submit(&here, &[], "a").await, submit(&here, &[], "a").await);
    assert!(unmarked != again && ![one, two].contains(&unmarked));
    // What is older than ten minutes is not meant.
    db.sql("UPDATE request SET armed_at = armed_at - interval '601 seconds'").await;
    let late = submit(&there, &AGAIN, "a").await;
    assert!(late != one && late != two);
    // A deleted response is not asked anew.
    let id = format!("resp_{}", late.0.simple());
    assert_eq!(here.call(reqwest::Method::DELETE, &format!("/openai/v1/responses/{id}"), None).await.0, StatusCode::OK);
    assert_eq!(submit(&there, &AGAIN, "a").await, late);
}

/// The first attempt came before its repeat, and is still being read, or armed, when that is answered at another gateway.
async fn a_repeat_may_overtake_what_it_repeats(db: Db) {
    let (gateway, other) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let (here, there) = (gateway.client(), other.client());
    // Half of it has come.
    let (mut slow, body) = half_sent(&gateway, "a").await;
    let by_repeat = submit(&there, &AGAIN, "a").await;
    slow.write_all(body.as_bytes()).await.expect("written");
    assert_eq!(answered(slow).await, by_repeat, "the late one is the same request");
    let next = submit(&here, &FIRST, "a").await;
    assert_ne!(next, by_repeat, "a further one is not");
    assert_eq!(submit(&there, &AGAIN, "a").await, next);
    assert_eq!(db.count("turn").await, 2);

    // Both have found no turn, and neither can arm one.
    let mut lock = db.pool.begin().await.expect("begins");
    sqlx::query("LOCK TABLE turn IN SHARE MODE").execute(&mut *lock).await.expect("locks");
    let waits = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let mut posts = Vec::new();
    for (client, headers) in [(here.clone(), FIRST), (there.clone(), AGAIN)] {
        posts.push(tokio::spawn(async move { submit(&client, &headers, "b").await }));
        let armed = posts.len() as i64;
        eventually("it waits to arm", async || db.count(waits).await == armed).await;
    }
    lock.rollback().await.expect("unlocks");
    let mut turns = Vec::new();
    for post in posts {
        turns.push(post.await.expect("no panic"));
    }
    assert_eq!((turns[0], db.count("turn").await), (turns[1], 3));

    // The first attempt never came: a request that is made later on is no repeat of it.
    let alone = submit(&there, &AGAIN, "c").await;
    assert_ne!(submit(&here, &FIRST, "c").await, alone);
}

/// A request that may be repeated: its head was sent, and its handler waits for the body.
async fn half_sent(gateway: &Gateway, input: &str) -> (TcpStream, String) {
    let body = json!({"model": AGENT, "input": input, "background": true}).to_string();
    let host = gateway.clients.strip_prefix("http://").expect("HTTP");
    let head = format!(
        "POST /openai/v1/responses HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\nconnection: close\r\n\
         x-stainless-retry-count: 0\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
        body.len()
    );
    let mut connection = TcpStream::connect(host).await.expect("connects");
    connection.write_all(head.as_bytes()).await.expect("written");
    // The server says so when the handler begins to read.
    let mut said = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    within("the body is asked for", connection.read_exact(&mut said)).await.expect("a word");
    assert!(said.starts_with(b"HTTP/1.1 100 "), "{}", String::from_utf8_lossy(&said));
    (connection, body)
}

/// The turn of an answer that is read to its end.
async fn answered(mut connection: TcpStream) -> TurnId {
    let mut answer = String::new();
    within("the answer", connection.read_to_string(&mut answer)).await.expect("an answer");
    let (_, id) = answer.split_once("\"id\":\"resp_").unwrap_or_else(|| panic!("{answer}"));
    id[..32].parse().expect("a turn's id")
}

async fn equal_requests_at_once_are_each_a_turn(db: Db) {
    let (gateway, other) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let clients = [gateway.client(), other.client()];
    let posts = (0..40).map(|i| {
        let client = clients[i % 2].clone();
        tokio::spawn(async move { submit(&client, &FIRST, "a").await })
    });
    let mut turns = Vec::new();
    for post in posts.collect::<Vec<_>>() {
        turns.push(post.await.expect("no panic"));
    }
    turns.sort_unstable();
    turns.dedup();
    assert_eq!((turns.len(), db.count("turn").await), (40, 40));
}

async fn a_key_stands_for_one_turn(db: Db) {
    let (gateway, other) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let (here, there) = (gateway.client(), other.client());
    let key = [("idempotency-key", "k-1")];
    let one = submit(&here, &key, "a").await;
    db.sql("UPDATE request SET armed_at = armed_at - interval '2 days'").await;
    assert_eq!(submit(&there, &key, "a").await, one);
    assert_ne!(submit(&there, &[("idempotency-key", "k-2")], "a").await, one);
    let body = |input: &str| json!({"model": AGENT, "input": input, "background": true});
    let (status, headers, error) = post(&there, "/openai/v1/responses", &key, body("b")).await;
    assert_eq!((status, &headers["x-should-retry"]), (StatusCode::CONFLICT, &"false".parse().unwrap()), "{error}");
    // Of many at once one arms it.
    let posts: Vec<_> = (0..10)
        .map(|i| {
            let client = if i % 2 == 0 { here.clone() } else { there.clone() };
            tokio::spawn(async move { submit(&client, &[("idempotency-key", "k-3")], "a").await })
        })
        .collect();
    let mut turns = Vec::new();
    for post in posts {
        turns.push(post.await.expect("no panic"));
    }
    turns.dedup();
    assert_eq!((turns.len(), db.count("turn").await), (1, 3));
    let wrong = [("idempotency-key", "x".repeat(300))];
    let wrong = [(wrong[0].0, wrong[0].1.as_str())];
    let (status, _, error) = post(&here, "/openai/v1/responses", &wrong, body("a")).await;
    assert_eq!((status, error["error"]["message"].is_string()), (StatusCode::BAD_REQUEST, true), "{error}");
    let _: Value = error;
}
