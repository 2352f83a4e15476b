//! Who may see and do what: what belongs to others does not exist.

use std::time::{Duration, Instant};

use lastword::gateway::{AuthMode, GatewayConfig, GatewayError, Listeners};
use lastword::store::NewStart;
use lastword::store::keys::{self, KeyRole};
use lastword::turn::frame::Frame;
use lastword::wire::{FinishResult, GoodbyePhase};
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::raw;
use crate::support::Db;
use crate::support::client::End;
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::{Gateway, ORGANIZATION, api_key, put_agent};
use crate::support::wait::{eventually, within};

crate::newest! {
    what_belongs_to_others_does_not_exist,
    a_worker_says_nothing_of_anothers_turn,
    a_revoked_key_ends_within_a_second,
    without_authentication_only_this_machine_is_served,
}

/// A conversation's owner, another user, an operator, and another organization's operator.
async fn what_belongs_to_others_does_not_exist(db: Db) {
    let gateway = Gateway::with(db.options(), |c| c.auth = AuthMode::Keys).await;
    let ada = gateway.client_with(&api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await.1);
    let bob = gateway.client_with(&api_key(&db.store, ORGANIZATION, "bob", KeyRole::User).await.1);
    let operator = gateway.client_with(&api_key(&db.store, ORGANIZATION, "op", KeyRole::Operator).await.1);
    let foreign = gateway.client_with(&api_key(&db.store, "elsewhere", "ada", KeyRole::Operator).await.1);
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
            let body = (method == Method::POST).then(|| json!({}));
            let (status, problem) = stranger.call(method.clone(), path, body).await;
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

/// A worker's credential is good for its own worker group's turns, and of those for what it holds.
async fn a_worker_says_nothing_of_anothers_turn(db: Db) {
    put_agent(&db.store, "other", json!({})).await;
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let other = |start: &mut NewStart| (start.agent, start.worker_group) = ("other".into(), "other".into());
    let mut thief = FakeWorker::new(&db.store, other).await;
    thief.connect(&gateway, &[]).await;
    let turn = gateway.client().submit("c", "m", "hello").await.turn_id;
    assert_eq!(worker.turn().await.turn_id, turn);
    let said = thief.output(turn, 0, vec![Frame::text("mine")]).await.expect_err("not its own");
    assert_eq!(said.0, StatusCode::FORBIDDEN);
    assert_eq!(thief.reply(&[turn], "mine").await.expect_err("not its own").0, StatusCode::FORBIDDEN);
    assert_eq!(thief.fail(turn, 0).await.expect_err("not its own").0, StatusCode::FORBIDDEN);
    assert_eq!(thief.heartbeat(&[turn]).await.expect("lives").stop, [turn]);
    thief.goodbye(GoodbyePhase::Draining, &[turn]).await.expect("taken");
    assert_eq!(db.phase(turn).await.as_deref(), Some("claimed"));
    // One of its own worker group that another worker holds: over, to it; no reason to stop.
    let mate = FakeWorker::on(&db.store, &gateway).await;
    assert_eq!(mate.output(turn, 0, vec![Frame::text("mine")]).await.expect_err("not held").0, StatusCode::NOT_FOUND);
    assert_eq!(mate.reply(&[turn], "mine").await.expect_err("not held").0, StatusCode::NOT_FOUND);
    assert_eq!(worker.reply(&[turn], "done").await, Ok(FinishResult::Accepted));
    assert_eq!(gateway.client().record(turn).await["reply"]["text"], "done");
    // A dead incarnation is told so on every call.
    worker.goodbye(GoodbyePhase::Gone, &[]).await.expect("taken");
    assert_eq!(worker.heartbeat(&[]).await.expect_err("dead").0, StatusCode::GONE);
    assert_eq!(worker.try_connect(&[]).await.map(drop).expect_err("dead").0, StatusCode::GONE);
}

/// A revoked key is refused within a second, and the streams that it opened end.
async fn a_revoked_key_ends_within_a_second(db: Db) {
    let gateway = Gateway::with(db.options(), |c| c.auth = AuthMode::Keys).await;
    let (id, key) = api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await;
    let (_, other) = api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await;
    let (revoked, kept) = (gateway.client_with(&key), gateway.client_with(&other));
    let turn = revoked.submit("c", "m", "hello").await;
    let mut lost = [revoked.session("c", None).await, revoked.turn_stream(turn.turn_id, None).await];
    let mut session = kept.session("c", Some(&turn.cursor)).await;
    assert!(keys::revoke(db.store.pool(), id).await.expect("revokes"));
    let began = Instant::now();
    eventually("the key is refused", async || {
        revoked.get("/v1/conversations/c/turns").await.0 == StatusCode::UNAUTHORIZED
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    db.store.notify_keys_changed().await;
    for stream in &mut lost {
        assert_eq!(stream.rest().await.1, End::Aborted);
    }
    kept.cancel(turn.turn_id).await;
    session.until("complete").await;
}

/// `--auth none` is for this machine alone.
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
