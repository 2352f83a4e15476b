//! Garbage and strangers: A18 (whatever comes in is a 4xx or a closed connection; no turn is lost for it) and A19 (what
//! belongs to others does not exist).

mod support;

#[path = "support/gateway.rs"]
mod gateway;
#[path = "hostile/tls.rs"]
mod tls;

use std::time::Duration;

use gateway::client::{Client, answer, text};
use gateway::fake_worker::whole_reply;
use gateway::{AGENT, FakeWorker, Gateway, ORGANIZATION, eventually, within};
use lastword::gateway::{AuthMode, GatewayConfig, GatewayError, Listeners};
use lastword::store::keys::{self, KeyRole, NewKey};
use lastword::turn::frame::Frame;
use lastword::turn::keys::{Incarnation, TurnId};
use lastword::turn::terminal::Outcome;
use lastword::wire::{Credential, Finish, FinishResult, INCARNATION, Tail};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use reqwest::{Method, StatusCode};
use serde_json::json;
use support::Db;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

newest! {
    garbage_to_clients_is_refused_in_words,
    garbage_to_the_worker_port_is_refused_in_words,
    offsets_that_no_log_has_are_refused,
    a_turn_that_is_gone_is_no_reason_to_stop_a_worker,
    nothing_breaks_out_of_a_frame,
    a_header_that_trickles_in_is_cut_off,
    two_thousand_random_requests_lose_nothing,
    what_belongs_to_others_does_not_exist,
    a_worker_says_nothing_of_anothers_turn,
    a_revoked_key_ends_within_a_second,
    without_authentication_only_this_machine_is_served,
}

/// Sends bytes as they are and answers with all that comes back.
async fn raw(base: &str, request: &[u8]) -> String {
    let address = base.strip_prefix("http://").expect("http");
    let mut connection = TcpStream::connect(address).await.expect("connects");
    // The other side may hang up in the middle of it: that is an answer too.
    let _ = connection.write_all(request).await;
    let mut answer = Vec::new();
    let _ = within("an answer or the end", connection.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn refused(answer: &str, of: &str) {
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{of}: {answer}");
}

/// A18: each kind of garbage, on the client port: 4xx, as a problem, and the gateway serves on.
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
        (404, client.request(Method::POST, &format!("/v1/turns/{}/cancel", Uuid::now_v7()))),
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

/// A18: the same on the worker port.
async fn garbage_to_the_worker_port_is_refused_in_words(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let turn = gateway.client().submit("c", "m", "hello").await.turn_id;
    worker.turn().await;
    let bare = Client::new(&gateway.workers, None);
    let good = Client::new(&gateway.workers, Some(&worker.credential.reveal()));
    let stranger = Credential::new(lastword::turn::keys::StartId::new());
    let stranger = Client::new(&gateway.workers, Some(&stranger.reveal()));
    let signed = |client: &Client, method: Method, path: &str, body: &str| {
        let request = client.request(method, path).header(INCARNATION, worker.incarnation.to_string());
        request.body(body.to_owned())
    };
    let beat = "/worker/v1/heartbeat";
    let output = format!("/worker/v1/turns/{turn}/output");
    let at = |offset: &str| format!("{output}?offset={offset}");
    let finish = |more: &str| format!("{{\"turnIds\": [\"{turn}\"], \"replyId\": \"r\", {more}}}");
    let frames = "{\"frames\": [{\"type\": \"text\", \"text\": \"hi\"}]}";
    let post = Method::POST;
    let large = |bytes: usize| format!("{{\"type\": \"data\", \"name\": \"d\", \"value\": \"{}\"}}", "x".repeat(bytes));
    let large = |bytes: usize| format!("{{\"frames\": [{}]}}", large(bytes));
    let requests = [
        (413, signed(&good, post.clone(), &at("0"), &large(1_100_000))),
        (401, signed(&bare, post.clone(), beat, "{\"turns\": []}")),
        (401, signed(&Client::new(&gateway.workers, Some("lww_x")), post.clone(), beat, "{\"turns\": []}")),
        (403, signed(&stranger, post.clone(), beat, "{\"turns\": []}")),
        (403, signed(&stranger, Method::GET, "/worker/v1/turns", "")),
        (403, signed(&stranger, post.clone(), &at("0"), frames)),
        (400, good.request(post.clone(), beat).body("{\"turns\": []}")),
        (400, good.request(post.clone(), beat).header(INCARNATION, "x").body("{\"turns\": []}")),
        (
            403,
            good.request(post.clone(), beat)
                .header(INCARNATION, Incarnation::new().to_string())
                .body("{\"turns\": []}"),
        ),
        (400, signed(&good, post.clone(), beat, "")),
        (400, signed(&good, post.clone(), beat, "{\"turns\": [\"x\"]}")),
        (400, signed(&good, post.clone(), beat, "{\"turns\": [], \"unknown\": 1}")),
        (400, signed(&good, Method::GET, "/worker/v1/turns?turns=x", "")),
        (400, signed(&good, Method::GET, "/worker/v1/turns?capacity=-1", "")),
        (400, signed(&good, Method::GET, "/worker/v1/turns?unknown=1", "")),
        (400, signed(&good, post.clone(), &output, frames)),
        (400, signed(&good, post.clone(), &at("-1"), frames)),
        (400, signed(&good, post.clone(), &at("0"), "{\"frames\": [{\"type\": \"text\"}]}")),
        (400, signed(&good, post.clone(), &at("0"), "{\"frames\": [{\"type\": \"complete\"}]}")),
        (400, signed(&good, post.clone(), &at("0"), "{\"frames\": [{\"type\": \"text\", \"text\": \"\\ud800\"}]}")),
        (409, signed(&good, post.clone(), &at("7"), frames)),
        (400, signed(&good, post.clone(), "/worker/v1/turns/x/output?offset=0", frames)),
        (404, signed(&good, post.clone(), &format!("/worker/v1/turns/{}/output?offset=0", Uuid::now_v7()), frames)),
        (413, signed(&good, post.clone(), &at("0"), &"x".repeat(5 * 1024 * 1024))),
        (400, signed(&good, post.clone(), "/worker/v1/finish", &finish("\"end\": 0"))),
        (
            400,
            signed(&good, post.clone(), "/worker/v1/finish", &finish("\"outcome\": {\"type\": \"done\"}, \"end\": 0")),
        ),
        (
            409,
            signed(&good, post.clone(), "/worker/v1/finish", &finish("\"outcome\": {\"type\": \"reply\"}, \"end\": 5")),
        ),
        (
            400,
            signed(
                &good,
                post.clone(),
                "/worker/v1/finish",
                "{\"turnIds\": [], \"replyId\": \"r\", \"outcome\": {\"type\": \"reply\"}, \"end\": 0}",
            ),
        ),
        (400, signed(&good, post.clone(), "/worker/v1/goodbye", "{\"phase\": \"away\"}")),
        (405, signed(&good, Method::DELETE, beat, "")),
        (404, signed(&good, Method::GET, "/v1/turns", "")),
    ];
    for (i, (wanted, request)) in requests.into_iter().enumerate() {
        let request = request.build().expect("a request");
        let what = format!("{i}: {} {}", request.method(), request.url());
        let (status, problem) = match within(&what, good.http.execute(request)).await {
            Ok(response) => answer(response).await,
            Err(_) if wanted == 413 => continue,
            Err(error) => panic!("{what}: {error}"),
        };
        assert_eq!(status.as_u16(), wanted, "{what}: {problem}");
    }
    // An incarnation that is another start's own.
    let other = FakeWorker::on(&db.store, &gateway).await;
    let mut thief = FakeWorker::new(&db.store, |_| {}).await;
    (thief.gateway, thief.incarnation) = (gateway.workers.clone(), other.incarnation);
    let status = thief.try_connect(&[]).await.map(drop).expect_err("not its own").0;
    assert!(status.is_client_error(), "{status}");
    assert_eq!(worker.reply(&[turn], "unmoved").await, Ok(FinishResult::Accepted));
    assert_eq!(db.lease(other.incarnation).await.as_deref(), Some("live"));
}

/// A18: offsets at the end of their type; the lanes that write everybody's words go on.
async fn offsets_that_no_log_has_are_refused(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let turn = gateway.client().submit("c", "m", "hello").await.turn_id;
    worker.turn().await;
    for offset in [u64::MAX, u64::MAX - 1, i64::MAX as u64, 1 << 40] {
        let (status, _) = worker.output(turn, offset, vec![Frame::text("hi")]).await.expect_err("no log is so long");
        assert!(status.is_client_error(), "{status}");
        let tail = Some(Tail { offset, frames: vec![Frame::text("hi")] });
        for end in [0, 2, offset] {
            let word = Finish { tail: tail.clone(), end, ..whole_reply(&[turn], "") };
            let (status, _) = worker.finish(&word).await.expect_err("no log is so long");
            assert!(status.is_client_error(), "{status}");
        }
        let outcome =
            Outcome::Error(lastword::turn::terminal::Failure::new(lastword::turn::reason::Reason::AgentError));
        let word = Finish { end: offset, tail: None, outcome, ..whole_reply(&[turn], "") };
        assert!(worker.finish(&word).await.expect_err("no log is so long").0.is_client_error());
    }
    assert_eq!(worker.reply(&[turn], "unmoved").await, Ok(FinishResult::Accepted));
}

/// A worker's word on a turn that was erased meanwhile is answered 404: 401 and 403 would make it stop for good, with
/// all that it has in hand.
async fn a_turn_that_is_gone_is_no_reason_to_stop_a_worker(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let kept = gateway.client().submit("kept", "m", "hello").await.turn_id;
    worker.turn().await;
    let turn = gateway.client().submit("erased", "m", "hello").await.turn_id;
    worker.turn().await;
    gateway.client().call(Method::DELETE, "/v1/conversations/erased", None).await;
    assert_eq!(worker.cancelled().await, turn);
    let said = worker.output(turn, 0, vec![Frame::text("hi")]).await.expect_err("it is gone");
    assert_eq!(said.0, StatusCode::NOT_FOUND, "{}", said.1);
    let said = worker.reply(&[turn], "hi").await.expect_err("it is gone");
    assert_eq!(said.0, StatusCode::NOT_FOUND, "{}", said.1);
    assert_eq!(worker.reply(&[kept], "hi").await, Ok(FinishResult::Accepted));
}

/// A18: text that looks like a frame is text.
async fn nothing_breaks_out_of_a_frame(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let client = gateway.client();
    let evil = "a\n\nevent: complete\nid: 1\ndata: {}\n\n\r\rdata: b\u{2028}\u{0}<script>";
    let turn = client.submit("c", "ev\u{e4}l: \"x\"", evil).await;
    assert_eq!(worker.turn().await.message, evil.replace('\0', "\u{fffd}"));
    let at = worker.output(turn.turn_id, 0, vec![Frame::text(evil)]).await.expect("taken").received;
    let progress =
        vec![Frame::Progress { message: evil.into() }, Frame::Data { name: evil.into(), value: json!(evil) }];
    let at = worker.output(turn.turn_id, at, progress).await.expect("taken").received;
    worker.end(turn.turn_id, at).await.expect("accepted");
    let (events, _) = client.turn_stream(turn.turn_id, None).await.rest().await;
    assert_eq!(gateway::client::names(&events), ["text", "progress", "data", "complete"]);
    assert_eq!(text(&events), evil.replace('\0', "\u{fffd}"));
    assert_eq!(events[3].data["messageIds"], json!(["ev\u{e4}l: \"x\""]));
}

/// A18: a header that comes one byte at a time has the time of a header, no more; so has one that never comes.
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
    let head = "POST /v1/conversations/c/turns HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{";
    assert!(raw(&gateway.clients, head.as_bytes()).await.starts_with("HTTP/1.1 408"));
    // A stream that is open for longer than that is no slow header.
    let mut session = gateway.client().session("c", None).await;
    assert!(session.next_within(Duration::from_millis(1500)).await.is_none());
    let turn = gateway.client().submit("c", "m", "hello").await;
    gateway.client().cancel(turn.turn_id).await;
    session.until("complete").await;
}

/// A request made of good and bad pieces.
fn random_request(random: &mut SmallRng, turns: &[TurnId]) -> Vec<u8> {
    let pick = |random: &mut SmallRng, of: &[&str]| of[random.random_range(0..of.len())].to_owned();
    let method = pick(random, &["GET", "GET", "POST", "POST", "POST", "DELETE", "PUT", "HEAD", "OPTIONS", "BREW"]);
    let turn = if random.random_bool(0.5) { turns[random.random_range(0..turns.len())] } else { TurnId::new() };
    let name =
        pick(random, &["f1", "f2", "%00", "%FF", "%0A", "..", "a%2Fb", "%F0%9F%A6%80", "'; DROP TABLE turn; --"]);
    let path = match random.random_range(0..9) {
        0 | 1 => format!("/v1/conversations/{name}/turns"),
        2 => format!("/v1/conversations/{name}"),
        3 => format!("/v1/turns/{turn}"),
        4 => format!("/v1/turns/{turn}/cancel"),
        5 => "/v1/turns".to_owned(),
        6 => format!("/worker/v1/turns/{turn}/output"),
        7 => pick(random, &["/worker/v1/finish", "/worker/v1/heartbeat", "/worker/v1/goodbye"]),
        _ => (0..random.random_range(0..30)).map(|_| random.random_range('!'..'~')).collect(),
    };
    let query = pick(
        random,
        &[
            "",
            "",
            "?limit=0",
            "?limit=1e9",
            "?before=-1",
            "?offset=-1",
            "?offset=18446744073709551615",
            "?%",
            "?a=%FF&a=1",
        ],
    );
    let kind =
        pick(random, &["application/json", "application/json", "application/json; charset=utf-8", "text/html", ""]);
    let mut body = match random.random_range(0..6) {
        0 | 1 => format!("{{\"agent\": \"bot\", \"message\": \"fuzz {}\"}}", random.random_range(0..9)),
        2 => "{\"agent\": \"bot\", \"message\": \"x\", \"messageId\": \"same\"}".to_owned(),
        3 => format!(
            "{{\"turnIds\": [\"{turn}\"], \"replyId\": \"r\", \"outcome\": {{\"type\": \"reply\"}}, \"end\": 3}}"
        ),
        4 => "{\"frames\": [{\"type\": \"text\", \"text\": \"hi\"}]}".to_owned(),
        _ => String::new(),
    }
    .into_bytes();
    for _ in 0..random.random_range(0..3) {
        if !body.is_empty() && random.random_bool(0.5) {
            let at = random.random_range(0..body.len());
            body[at] = random.random();
        }
    }
    let length = if random.random_ratio(1, 20) { body.len() / 2 } else { body.len() };
    let cursor = pick(random, &["", "1.0.0", "1.aaaaaaaa.99999999999999999999", "\u{e4}", "1.aaaaaaaa.0.1-1-300"]);
    let mut request = format!(
        "{method} {path}{query} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: {kind}\r\n\
         last-event-id: {cursor}\r\ncontent-length: {length}\r\n\r\n"
    )
    .into_bytes();
    request.extend(body);
    for _ in 0..random.random_range(0..8) / 6 {
        let at = random.random_range(0..request.len());
        request[at] = random.random();
    }
    request
}

/// A18: seeded random requests to both ports, among the turns of a client that means well: never a 5xx, no turn is lost,
/// every turn that was armed by the noise has its terminal in the end.
async fn two_thousand_random_requests_lose_nothing(db: Db) {
    let seed = support::seed();
    let short = Duration::from_millis(500);
    let gateway = Gateway::with(db.options(), |c| (c.header_timeout, c.body_timeout) = (short, short)).await;
    let serving = FakeWorker::on(&db.store, &gateway).await.serve(7);
    let client = gateway.client();
    let mut known = Vec::new();
    for i in 0..10 {
        known.push(client.submit("good", &format!("m{i}"), &format!("say {i}")).await.turn_id);
    }
    let mut noise = tokio::task::JoinSet::new();
    for part in 0..8 {
        let (known, clients, workers) = (known.clone(), gateway.clients.clone(), gateway.workers.clone());
        noise.spawn(async move {
            let mut random = SmallRng::seed_from_u64(seed.wrapping_add(part));
            for _ in 0..250 {
                let request = random_request(&mut random, &known);
                let base = if random.random_bool(0.7) { &clients } else { &workers };
                let answer = raw(base, &request).await;
                let shown = String::from_utf8_lossy(&request).into_owned();
                let fine = ["HTTP/1.1 2", "HTTP/1.1 4", "HTTP/1.0 4"].iter().any(|s| answer.starts_with(s));
                assert!(answer.is_empty() || fine, "{shown}\n{answer}");
            }
        });
    }
    while let Some(done) = within("the noise ends", noise.join_next()).await {
        done.expect("nothing but 2xx and 4xx");
    }
    for turn in known {
        // The noise may have cancelled it; it has a last word.
        db.ending(turn).await;
    }
    let last = client.submit("after", "m", "still here").await.turn_id;
    assert_eq!(db.ending(last).await, "reply");
    eventually("nothing is open", async || db.count("marker").await == 0).await;
    let turns = db.count("turn").await;
    println!("{turns} turns");
    assert_eq!(db.count("terminal").await, turns);
    serving.abort();
}

async fn key_of(db: &Db, organization: &str, user: &str, role: KeyRole) -> (Uuid, String) {
    let new = NewKey { organization: organization.into(), name: user.into(), user: user.into(), role, valid_for: None };
    let (info, key) = keys::create(db.store.pool(), &new).await.expect("a key");
    (info.id, key.reveal())
}

/// A19: a conversation's owner, another user, an operator, and another organization's operator.
async fn what_belongs_to_others_does_not_exist(db: Db) {
    let gateway = Gateway::with(db.options(), |c| c.auth = AuthMode::Keys).await;
    let ada = gateway.client_with(&key_of(&db, ORGANIZATION, "ada", KeyRole::User).await.1);
    let bob = gateway.client_with(&key_of(&db, ORGANIZATION, "bob", KeyRole::User).await.1);
    let operator = gateway.client_with(&key_of(&db, ORGANIZATION, "op", KeyRole::Operator).await.1);
    let foreign = gateway.client_with(&key_of(&db, "elsewhere", "ada", KeyRole::Operator).await.1);
    let turn = ada.submit("c", "m", "hello").await;
    let id = turn.turn_id;
    let paths = [
        (Method::GET, "/v1/conversations/c/turns".to_owned()),
        (Method::GET, format!("/v1/turns/{id}")),
        (Method::GET, format!("/v1/turns/{id}/events")),
        (Method::POST, format!("/v1/turns/{id}/cancel")),
        (Method::DELETE, "/v1/conversations/c".to_owned()),
    ];
    for stranger in [&bob, &foreign] {
        for (method, path) in &paths {
            let (status, problem) = stranger.call(method.clone(), path, None).await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{method} {path}: {problem}");
        }
    }
    assert_eq!(bob.try_submit("c", "m", "hello").await.0, StatusCode::NOT_FOUND);
    for cursor in [None, Some(turn.cursor.as_str())] {
        let answer = bob.stream("/v1/conversations/c/events", cursor).await.err();
        assert_eq!(answer, Some(StatusCode::NOT_FOUND), "{cursor:?}");
    }
    // The same name in another organization is another conversation: it does not exist, and no cursor makes it.
    let theirs = foreign.stream("/v1/conversations/c/events", Some(&turn.cursor)).await.err();
    assert_eq!((theirs, db.count("conversation").await), (Some(StatusCode::GONE), 1));
    assert_eq!(foreign.try_submit("c", "m", "hello").await.0, StatusCode::NOT_FOUND, "no such agent there");
    assert_eq!(foreign.get("/v1/turns").await.1["turns"], json!([]));
    assert_eq!(bob.get("/v1/turns").await.0, StatusCode::FORBIDDEN);
    assert_eq!(db.outcome(id).await, None, "nobody ended it");

    assert_eq!(operator.record(id).await["user"], "ada");
    assert_eq!(operator.get("/v1/turns?user=ada").await.1["turns"][0]["turnId"], json!(id));
    let mut session = operator.session("c", Some(&turn.cursor)).await;
    assert_eq!(operator.cancel(id).await.1["error"]["reason"], "Cancelled");
    session.until("complete").await;
    assert_eq!(db.count("delivery").await, 1, "what an operator sees is not shown to its owner");
    ada.session("c", None).await.until("complete").await;
    db.all_delivered().await;
    assert_eq!(operator.call(Method::DELETE, "/v1/conversations/c", None).await.0, StatusCode::OK);

    let strangers =
        [gateway.client(), gateway.client_with("lwk_x"), gateway.client_with(&keys::ApiKey::generate().reveal())];
    for nobody in strangers {
        for (method, path) in &paths {
            assert_eq!(nobody.call(method.clone(), path, None).await.0, StatusCode::UNAUTHORIZED, "{path}");
        }
        assert_eq!(nobody.try_submit("c", "m", "hello").await.0, StatusCode::UNAUTHORIZED);
        assert_eq!(nobody.get("/v1/turns").await.0, StatusCode::UNAUTHORIZED);
    }
}

/// A19: a worker's credential is good for its own worker group's turns, and of those for what it holds.
async fn a_worker_says_nothing_of_anothers_turn(db: Db) {
    gateway::put_agent(&db.store, "other", json!({})).await;
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let thief = FakeWorker::new(&db.store, |s| (s.agent, s.worker_group) = ("other".into(), "other".into())).await;
    let mut thief = thief;
    thief.connect(&gateway, &[]).await;
    let turn = gateway.client().submit("c", "m", "hello").await.turn_id;
    assert_eq!(worker.turn().await.turn_id, turn);
    let said = thief.output(turn, 0, vec![Frame::text("mine")]).await.expect_err("not its own");
    assert_eq!(said.0, StatusCode::FORBIDDEN);
    assert_eq!(thief.reply(&[turn], "mine").await.expect_err("not its own").0, StatusCode::FORBIDDEN);
    assert_eq!(thief.fail(turn, 0).await.expect_err("not its own").0, StatusCode::FORBIDDEN);
    assert_eq!(thief.heartbeat(&[turn]).await.expect("lives").stop, [turn]);
    thief.goodbye(lastword::wire::GoodbyePhase::Draining, &[turn]).await.expect("taken");
    assert_eq!(db.phase(turn).await.as_deref(), Some("claimed"));
    // One of its own worker group that another worker holds: over, to it; no reason to stop.
    let mate = FakeWorker::on(&db.store, &gateway).await;
    assert_eq!(mate.output(turn, 0, vec![Frame::text("mine")]).await.expect_err("not held").0, StatusCode::NOT_FOUND);
    assert_eq!(mate.reply(&[turn], "mine").await.expect_err("not held").0, StatusCode::NOT_FOUND);
    assert_eq!(worker.reply(&[turn], "done").await, Ok(FinishResult::Accepted));
    assert_eq!(gateway.client().record(turn).await["reply"]["text"], "done");
    // A dead incarnation is told so on every call.
    worker.goodbye(lastword::wire::GoodbyePhase::Gone, &[]).await.expect("taken");
    assert_eq!(worker.heartbeat(&[]).await.expect_err("dead").0, StatusCode::GONE);
    assert_eq!(worker.try_connect(&[]).await.map(drop).expect_err("dead").0, StatusCode::GONE);
}

/// A19: a revoked key is refused within a second, and the streams that it opened end.
async fn a_revoked_key_ends_within_a_second(db: Db) {
    let gateway = Gateway::with(db.options(), |c| c.auth = AuthMode::Keys).await;
    let (id, key) = key_of(&db, ORGANIZATION, "ada", KeyRole::User).await;
    let (_, other) = key_of(&db, ORGANIZATION, "ada", KeyRole::User).await;
    let (revoked, kept) = (gateway.client_with(&key), gateway.client_with(&other));
    let turn = revoked.submit("c", "m", "hello").await;
    let mut lost = [revoked.session("c", None).await, revoked.turn_stream(turn.turn_id, None).await];
    let mut session = kept.session("c", Some(&turn.cursor)).await;
    assert!(keys::revoke(db.store.pool(), id).await.expect("revokes"));
    let began = std::time::Instant::now();
    eventually("the key is refused", async || {
        revoked.get("/v1/conversations/c/turns").await.0 == StatusCode::UNAUTHORIZED
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    db.store.notify_keys_changed().await;
    for stream in &mut lost {
        assert_eq!(stream.rest().await.1, gateway::client::End::Aborted);
    }
    kept.cancel(turn.turn_id).await;
    session.until("complete").await;
}

/// A19: `--auth none` is for this machine alone.
async fn without_authentication_only_this_machine_is_served(db: Db) {
    let bind = |address| async move { tokio::net::TcpListener::bind(address).await.expect("a port") };
    let listeners = Listeners { clients: bind("0.0.0.0:0").await, workers: bind("127.0.0.1:0").await };
    let served = lastword::gateway::run(GatewayConfig::default(), db.another_store(), listeners, Default::default());
    let refused = within("the refusal", served).await;
    assert!(matches!(refused, Err(GatewayError::NotLoopback(_))), "{refused:?}");

    let gateway = Gateway::start(&db).await;
    let port = gateway.clients.rsplit_once(':').expect("a port").1;
    for (host, wanted) in [
        (format!("localhost:{port}"), 200),
        (format!("127.0.0.1:{port}"), 200),
        (format!("[::1]:{port}"), 200),
        ("evil.example".to_owned(), 403),
        (format!("evil.example:{port}"), 403),
        ("localhost.evil.example".to_owned(), 403),
        ("127.0.0.1.evil.example".to_owned(), 403),
    ] {
        let request = format!("GET /v1/turns HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let answer = raw(&gateway.clients, request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {wanted}")), "{host}: {answer}");
    }
}
