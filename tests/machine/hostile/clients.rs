//! What clients may send: nothing of it is worse than refused.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use super::{raw, refused};
use crate::support::Db;
use crate::support::client::answer;
use crate::support::gateway::{AGENT, Gateway};
use crate::support::wait::within;

crate::newest! {
    garbage_to_clients_is_refused_in_words,
    a_header_that_trickles_in_is_cut_off,
}

/// Each kind of garbage, on the client port: 4xx, as a problem, and the gateway serves on.
async fn garbage_to_clients_is_refused_in_words(db: Db) {
    let gateway = Gateway::start(&db).await;
    let client = gateway.client();
    let turns = "/v1/conversations/c/turns";
    let post = |path: &str, body: Vec<u8>, kind: &str| {
        client.request(Method::POST, path).header("content-type", kind.to_owned()).body(body)
    };
    let ok = json!({"agent": AGENT, "message": "hello"});
    let with = |key: &str, value: serde_json::Value| {
        let mut body = ok.clone();
        body[key] = value;
        body.to_string().into_bytes()
    };
    let json = "application/json";
    let long = "x".repeat(257);
    let requests = [
        (400, post(turns, b"{".to_vec(), json)),
        (400, post(turns, b"".to_vec(), json)),
        (400, post(turns, b"[]".to_vec(), json)),
        (400, post(turns, b"[\"bot\", \"hello\", null, null, null]".to_vec(), json)),
        (400, post(turns, b"{\"agent\": \"bot\", \"message\": \"\xff\"}".to_vec(), json)),
        (400, post(turns, b"{\"agent\": \"bot\", \"message\": \"\\ud800\"}".to_vec(), json)),
        (400, post(turns, with("message", json!("")), json)),
        (400, post(turns, with("message", json!(7)), json)),
        (400, post(turns, with("messageId", json!("")), json)),
        (400, post(turns, with("messageId", json!("a\nb")), json)),
        (400, post(turns, with("messageId", json!("a\r\nevent: complete")), json)),
        (400, post(turns, with("messageId", json!(long)), json)),
        (400, post(turns, with("platform", json!("slack")), json)),
        (400, post(turns, with("platform", json!("")), json)),
        (400, post(turns, with("unknown", json!(1)), json)),
        (400, post(turns, with("platformMetadata", deep()), json)),
        (400, post(turns, with("platformMetadata", json!("x".repeat(70_000))), json)),
        (400, post(turns, format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000)).into_bytes(), json)),
        (404, post(turns, with("agent", json!("nobody")), json)),
        (404, post(turns, with("agent", json!("elsewhere/bot")), json)),
        (400, post(turns, with("agent", json!("\u{0}")), json)),
        (415, post(turns, with("message", json!("hello")), "text/plain")),
        (415, post(turns, with("message", json!("hello")), "multipart/form-data; boundary=x")),
        (413, post(turns, vec![b'x'; 2 * 1024 * 1024], json)),
        (413, post(turns, vec![b'x'; 5 * 1024 * 1024], json)),
        (400, post("/v1/conversations/a%0Ab/turns", with("message", json!("hello")), json)),
        (400, post("/v1/conversations/%FF/turns", with("message", json!("hello")), json)),
        (400, client.request(Method::GET, "/v1/conversations/a%0Ab/events")),
        (404, client.request(Method::GET, "/v1/conversations/unknown/turns")),
        (400, client.request(Method::GET, "/v1/conversations/c/turns?limit=x")),
        (400, client.request(Method::GET, "/v1/conversations/c/turns?limit=-1")),
        (400, client.request(Method::GET, "/v1/conversations/c/turns?before=9999999999999999999999")),
        (400, client.request(Method::GET, "/v1/turns?phase=Lost")),
        (400, client.request(Method::GET, "/v1/turns?nonsense=1")),
        (400, client.request(Method::GET, "/v1/turns?before=x")),
        (400, client.request(Method::GET, "/v1/turns?user=%00")),
        (400, client.request(Method::GET, "/v1/conversations/c/events?after=garbage")),
        (410, client.request(Method::GET, "/v1/conversations/c/events?after=1.00000000.0")),
        (400, client.request(Method::GET, "/v1/conversations/c/events?nonsense=1")),
        (400, client.request(Method::GET, "/v1/conversations/c/events").header("last-event-id", "1.zz.-5")),
        (404, client.request(Method::GET, "/v1/turns/garbage")),
        (404, client.request(Method::GET, &format!("/v1/turns/{}", Uuid::now_v7()))),
        (404, client.request(Method::GET, &format!("/v1/turns/{}/events", Uuid::now_v7()))),
        (404, client.request(Method::POST, &format!("/v1/turns/{}/cancel", Uuid::now_v7())).json(&json!({}))),
        (415, client.request(Method::POST, &format!("/v1/turns/{}/cancel", Uuid::now_v7()))),
        (404, client.request(Method::DELETE, "/v1/conversations/unknown")),
        (405, client.request(Method::PUT, turns)),
        (405, client.request(Method::DELETE, "/v1/turns")),
        (404, client.request(Method::GET, "/worker/v1/turns")),
        (404, client.request(Method::GET, "/v1/../etc/passwd")),
    ];
    for (i, (wanted, request)) in requests.into_iter().enumerate() {
        let request = request.build().expect("a request");
        let what = format!("{i}: {} {}", request.method(), request.url());
        let (status, problem) = match within(&what, client.http.execute(request)).await {
            Ok(response) => answer(response).await,
            // A body beyond the limit may be cut off before it is sent whole.
            Err(_) if wanted == 413 => continue,
            Err(error) => panic!("{what}: {error}"),
        };
        assert_eq!(status.as_u16(), wanted, "{what}: {problem}");
        assert!(problem["detail"].as_str().is_some_and(|d| !d.is_empty()), "{what}: {problem}");
    }
    assert_eq!(db.count("turn").await, 0, "no turn of any of these");
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/turns HTTP/1.1\r\nhost: localhost\r\nhost: \xff\xff\r\nbad header\r\n\r\n",
        b"POST /v1/conversations/c/turns HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/conversations/c/turns HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ] {
        refused(&raw(&gateway.clients, garbage).await, &String::from_utf8_lossy(garbage));
        refused(&raw(&gateway.workers, garbage).await, &String::from_utf8_lossy(garbage));
    }
    for dots in [".", ".."] {
        let body = r#"{"agent": "bot", "message": "hello"}"#;
        let head = format!("POST /v1/conversations/{dots}/turns HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
        let request = format!("{head}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        assert!(raw(&gateway.clients, request.as_bytes()).await.starts_with("HTTP/1.1 400"), "{dots}");
    }
    // A cursor of another conversation, and one from the future.
    let (a, b) = (client.submit("a", "m", "hello").await, client.submit("b", "m", "hello").await);
    assert_eq!(client.stream("/v1/conversations/a/events", Some(&b.cursor)).await.err(), Some(StatusCode::BAD_REQUEST));
    let turn = format!("/v1/turns/{}/events", a.turn_id);
    assert_eq!(client.stream(&turn, Some(&b.cursor)).await.err(), Some(StatusCode::BAD_REQUEST));
    let ahead = format!("{}9", a.cursor);
    assert_eq!(client.stream("/v1/conversations/a/events", Some(&ahead)).await.err(), Some(StatusCode::BAD_REQUEST));
}

/// Deeper than any reader follows.
fn deep() -> serde_json::Value {
    (0..200).fold(json!(1), |inner, _| json!([inner]))
}

/// A header that comes one byte at a time has the time of a header, no more; so has one that never comes.
async fn a_header_that_trickles_in_is_cut_off(db: Db) {
    let short = Duration::from_millis(700);
    let gateway = Gateway::with(db.options(), |c| (c.header_timeout, c.body_timeout) = (short, short)).await;
    for base in [&gateway.clients, &gateway.workers] {
        let address = base.strip_prefix("http://").expect("http");
        for trickle in [true, false] {
            let connection = TcpStream::connect(address).await.expect("connects");
            let (mut reading, mut writing) = connection.into_split();
            let writer = tokio::spawn(async move {
                for byte in std::iter::repeat(b"GET / HTTP/1.1\r\nx-slow: ".iter()).flatten() {
                    if !trickle || writing.write_all(&[*byte]).await.is_err() {
                        return writing;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                writing
            });
            let mut answer = Vec::new();
            let _ = within("the end of a slow connection", reading.read_to_end(&mut answer)).await;
            refused(&String::from_utf8_lossy(&answer), "a slow header");
            writer.abort();
        }
    }
    // A body that never comes whole has its time too.
    let head = "POST /v1/conversations/c/turns HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                content-length: 9\r\n\r\n{";
    assert!(raw(&gateway.clients, head.as_bytes()).await.starts_with("HTTP/1.1 408"));
    // A stream that is open for longer than that is no slow header.
    let mut session = gateway.client().session("c", None).await;
    assert!(session.next_within(Duration::from_millis(1500)).await.is_none());
    let turn = gateway.client().submit("c", "m", "hello").await;
    gateway.client().cancel(turn.turn_id).await;
    session.until("complete").await;
}
