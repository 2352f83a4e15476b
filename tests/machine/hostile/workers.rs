//! What workers may send, by mistake or on purpose.

use lastword::turn::frame::Frame;
use lastword::turn::keys::{Incarnation, StartId};
use lastword::turn::reason::Reason;
use lastword::turn::terminal::{Failure, Outcome};
use lastword::wire::{Credential, Finish, FinishResult, INCARNATION, Tail};
use reqwest::{Method, StatusCode};
use serde_json::json;
use uuid::Uuid;

use crate::support::Db;
use crate::support::client::{Client, answer, names, text};
use crate::support::fake_worker::{FakeWorker, whole_reply};
use crate::support::gateway::Gateway;
use crate::support::wait::within;

crate::newest! {
    garbage_to_the_worker_port_is_refused_in_words,
    offsets_that_no_log_has_are_refused,
    a_turn_that_is_gone_is_no_reason_to_stop_a_worker,
    nothing_breaks_out_of_a_frame,
}

/// The same on the worker port.
async fn garbage_to_the_worker_port_is_refused_in_words(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let turn = gateway.client().submit("c", "m", "hello").await.turn_id;
    worker.turn().await;
    let bare = Client::new(&gateway.workers, None);
    let good = Client::new(&gateway.workers, Some(&worker.credential.reveal()));
    let stranger = Credential::new(StartId::new());
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
        (400, signed(&good, post.clone(), beat, "[[]]")),
        (400, signed(&good, post.clone(), "/worker/v1/goodbye", "[\"draining\", [], null]")),
        (400, signed(&good, post.clone(), &at("0"), "[[{\"type\": \"text\", \"text\": \"hi\"}]]")),
        (400, signed(&good, post.clone(), &at("0"), "{\"frames\": [[\"text\", \"hi\"]]}")),
        (
            400,
            signed(
                &good,
                post.clone(),
                "/worker/v1/finish",
                &format!("[[\"{turn}\"], \"r\", {{\"type\": \"reply\"}}, 0]"),
            ),
        ),
        (400, signed(&good, post.clone(), "/worker/v1/finish", &finish("\"outcome\": [\"reply\"], \"end\": 0"))),
        (
            400,
            signed(
                &good,
                post.clone(),
                "/worker/v1/finish",
                &finish("\"outcome\": {\"type\": \"reply\"}, \"end\": 0, \"tail\": [0, []]"),
            ),
        ),
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

/// Offsets at the end of their type; the lanes that write everybody's words go on.
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
        let outcome = Outcome::Error(Failure::new(Reason::AgentError));
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

/// Text that looks like a frame is text.
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
    assert_eq!(names(&events), ["text", "progress", "data", "complete"]);
    assert_eq!(text(&events), evil.replace('\0', "\u{fffd}"));
    assert_eq!(events[3].data["messageIds"], json!(["ev\u{e4}l: \"x\""]));
}
