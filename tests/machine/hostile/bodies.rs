//! Bodies: nothing is read for a stranger, and nobody takes the room of others.

use std::time::{Duration, Instant};

use lastword::edge::bodies::BodyLimits;
use lastword::gateway::{AuthMode, GatewayConfig};
use lastword::store::keys::{ApiKey, KeyRole};
use lastword::turn::frame::Frame;
use lastword::wire::{FinishResult, GoodbyePhase, INCARNATION};
use lastword::worker_port::WorkerBodyLimits;
use reqwest::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::Db;
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::{AGENT, Gateway, ORGANIZATION, api_key, put_agent};
use crate::support::wait::{eventually, within};

crate::newest! {
    nothing_is_read_for_a_stranger,
    a_body_of_unknown_length_is_refused,
    bodies_that_stall_take_the_room_of_their_sender_alone,
    whatever_output_stalls_a_worker_lives_and_finishes,
    a_port_has_so_many_connections_and_no_more,
}

/// A body that does not come within a test's time.
const LONG: Duration = Duration::from_secs(600);

/// Sends the head of a POST that says to have a body of this length, and a byte of it.
async fn begin(base: &str, path: &str, headers: &str, length: usize) -> TcpStream {
    let mut connection = TcpStream::connect(base.strip_prefix("http://").expect("http")).await.expect("connects");
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n{{"
    );
    connection.write_all(head.as_bytes()).await.expect("sent");
    connection
}

/// The status of the answer, which comes while the body does not.
async fn status(connection: &mut TcpStream) -> u16 {
    let mut line = [0; 12];
    within("an answer", connection.read_exact(&mut line)).await.expect("an answer");
    String::from_utf8_lossy(&line[9..]).parse().expect("a status")
}

/// Requests to nowhere, without a key, with a made-up one: each is answered at once, and none of its megabyte is waited for.
async fn nothing_is_read_for_a_stranger(db: Db) {
    let slow = |config: &mut GatewayConfig| (config.auth, config.body_timeout) = (AuthMode::Keys, LONG);
    let gateway = Gateway::with(db.options(), slow).await;
    let bearer = |key: &str| format!("authorization: Bearer {key}\r\n");
    let made_up = bearer(&ApiKey::generate().reveal());
    let turns = "/v1/conversations/c/turns";
    let began = Instant::now();
    for round in 0..50 {
        for (base, path, headers, wanted) in [
            (&gateway.clients, "/nowhere", "", 404),
            (&gateway.clients, "/v1/turns", "", 405),
            (&gateway.clients, turns, "", 401),
            (&gateway.clients, turns, bearer("lwk_x").as_str(), 401),
            (&gateway.clients, turns, &made_up, 401),
            (&gateway.workers, "/nowhere", "", 404),
            (&gateway.workers, "/worker/v1/finish", "", 401),
            (&gateway.workers, "/worker/v1/heartbeat", bearer("lww_x").as_str(), 401),
        ] {
            let mut connection = begin(base, path, headers, 1024 * 1024).await;
            assert_eq!(status(&mut connection).await, wanted, "{round}: {path}, {headers}");
        }
    }
    assert!(began.elapsed() < LONG / 2, "no body was waited for");
}

/// What does not say how long it is cannot be reserved.
async fn a_body_of_unknown_length_is_refused(db: Db) {
    let gateway = Gateway::start(&db).await;
    let worker = FakeWorker::on(&db.store, &gateway).await;
    let credential =
        format!("authorization: Bearer {}\r\n{INCARNATION}: {}\r\n", worker.credential.reveal(), worker.incarnation);
    for (base, path, headers) in [
        (&gateway.clients, "/v1/conversations/c/turns", ""),
        (&gateway.workers, "/worker/v1/heartbeat", credential.as_str()),
    ] {
        let chunked = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{headers}\
             transfer-encoding: chunked\r\nconnection: close\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
        );
        let answer = super::raw(base, chunked.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 411") && answer.contains("Content-Length"), "{path}: {answer}");
    }
}

/// A principal that fills its own room is refused, at once and with the time to try again; others are served. What all may
/// have together has a bound, too.
async fn bodies_that_stall_take_the_room_of_their_sender_alone(db: Db) {
    let gateway = Gateway::with(db.options(), |config| {
        (config.auth, config.body_timeout) = (AuthMode::Keys, LONG);
        config.client_bodies = BodyLimits { body: 1000, account: 4000, total: 10_000 };
    })
    .await;
    let mut keys = Vec::new();
    for user in ["ada", "ada", "bob", "eve", "dan"] {
        keys.push(api_key(&db.store, ORGANIZATION, user, KeyRole::User).await.1);
    }
    let [ada, ada_again, bob, eve, dan] = keys.try_into().expect("five keys");
    let stall = async |key: &str| {
        begin(&gateway.clients, "/v1/conversations/c/turns", &format!("authorization: Bearer {key}\r\n"), 1000).await
    };
    let submitted = async |key: &str, to: &str| gateway.client_with(key).try_submit(to, "m", "hello").await;
    // Waits until all of these stall in their room. One may have come while a look below was in it, and was refused.
    let full = async |stalled: &mut Vec<(&String, TcpStream)>, key: &str, whose: &str| {
        let refused = eventually("the room is full", async || {
            for (key, connection) in stalled.iter_mut() {
                if connection.try_read(&mut [0]).is_ok() {
                    *connection = stall(key).await;
                }
            }
            match submitted(key, "full").await {
                (StatusCode::SERVICE_UNAVAILABLE, problem) => Ok(problem),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        assert!(refused["detail"].as_str().is_some_and(|detail| detail.starts_with(whose)), "{refused}");
    };
    let mut stalled = Vec::new();
    // Two keys of one principal have one room.
    for key in [&ada, &ada, &ada_again, &ada_again] {
        stalled.push((key, stall(key).await));
    }
    full(&mut stalled, &ada, "requests of yours").await;
    full(&mut stalled, &ada_again, "requests of yours").await;
    let mut refused = stall(&ada).await;
    assert_eq!(status(&mut refused).await, 503, "a body that does not fit is not waited for");
    assert_eq!(submitted(&bob, "b").await.0, StatusCode::ACCEPTED, "others are served");
    let too_long = format!("{{\"agent\": \"{AGENT}\", \"message\": \"{}\"}}", "x".repeat(1000));
    let post = gateway.client_with(&bob).request(reqwest::Method::POST, "/v1/conversations/b/turns");
    let answer = post.header("content-type", "application/json").body(too_long).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);

    for key in [&bob, &bob, &bob, &bob, &eve, &eve] {
        stalled.push((key, stall(key).await));
    }
    full(&mut stalled, &dan, "other requests").await;
    // Whoever hangs up gives the room back.
    drop(stalled);
    for (key, name) in [(&ada, "a2"), (&dan, "d2")] {
        eventually("there is room again", async || submitted(key, name).await.0 == StatusCode::ACCEPTED).await;
    }
}

/// A worker whose output has stalled still lives and ends its turns; another worker's output is taken.
async fn whatever_output_stalls_a_worker_lives_and_finishes(db: Db) {
    put_agent(&db.store, AGENT, serde_json::json!({"limits": {"turnsPerWorker": 8}})).await;
    let output = BodyLimits { body: 1000, account: 2000, total: 3000 };
    let gateway = Gateway::with(db.options(), |config| {
        config.body_timeout = LONG;
        config.worker_bodies = WorkerBodyLimits { output, ..WorkerBodyLimits::default() };
    })
    .await;
    let client = gateway.client();
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let turn = client.submit("c", "m", "hello").await.turn_id;
    assert_eq!(worker.turn().await.turn_id, turn);
    let headers =
        format!("authorization: Bearer {}\r\n{INCARNATION}: {}\r\n", worker.credential.reveal(), worker.incarnation);
    let path = format!("/worker/v1/turns/{turn}/output?offset=0");
    let mut stalled = Vec::new();
    for _ in 0..2 {
        stalled.push(begin(&gateway.workers, &path, &headers, 1000).await);
    }
    eventually("its room for output is full", async || {
        let said = worker.output(turn, 0, vec![Frame::text("hi")]).await;
        matches!(said, Err((StatusCode::SERVICE_UNAVAILABLE, _)))
    })
    .await;
    worker.heartbeat(&[turn]).await.expect("it lives");
    let mut mate = FakeWorker::on(&db.store, &gateway).await;
    worker.goodbye(GoodbyePhase::Draining, &[]).await.expect("it drains");
    let other = client.submit("d", "m", "hello").await.turn_id;
    assert_eq!(mate.turn().await.turn_id, other);
    mate.say(other, 0, "hello").await;
    assert_eq!(mate.end(other, 5).await, Ok(FinishResult::Accepted));
    assert_eq!(worker.reply(&[turn], "done").await, Ok(FinishResult::Accepted));
    worker.goodbye(GoodbyePhase::Gone, &[]).await.expect("it leaves");
    drop(stalled);
}

/// Connections beyond the bound wait until another ends, and idle ones end by themselves.
async fn a_port_has_so_many_connections_and_no_more(db: Db) {
    let few = |config: &mut GatewayConfig| {
        (config.max_connections, config.header_timeout) = (3, Duration::from_millis(700));
    };
    let gateway = Gateway::with(db.options(), few).await;
    let address = gateway.clients.strip_prefix("http://").expect("http");
    let mut idle = Vec::new();
    for _ in 0..3 {
        idle.push(TcpStream::connect(address).await.expect("connects"));
    }
    let began = Instant::now();
    assert_eq!(gateway.client().get("/v1/turns").await.0, StatusCode::OK, "served when one of them has ended");
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}: it was beyond the bound", began.elapsed());
    drop(idle);
}
