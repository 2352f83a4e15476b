//! Users beside each other on gateways: conversations that they call the same, and what one of them may have.

use std::num::{NonZeroU32, NonZeroU64};

use lastword::gateway::{AuthMode, GatewayConfig};
use lastword::store::keys::KeyRole;
use lastword::turn::keys::TurnId;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::support::Db;
use crate::support::client::{Client, text};
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::{Gateway, ORGANIZATION, api_key, put_agent};
use crate::support::wait::eventually;

crate::newest! {
    two_users_call_their_conversations_the_same,
    only_a_message_makes_a_conversation,
    a_conversation_is_reached_by_its_id,
    a_program_is_told_the_conversations_id,
    requests_a_second_are_limited_and_resumed_streams_are_not,
    streams_are_limited,
    open_turns_and_conversations_are_limited_over_gateways,
    a_user_fills_half_of_a_queue,
    without_keys_nobody_is_limited,
}

/// A gateway that knows its callers by keys.
async fn gateway(db: &Db, change: impl FnOnce(&mut GatewayConfig)) -> Gateway {
    Gateway::with(db.options(), |config| {
        config.auth = AuthMode::Keys;
        change(config);
    })
    .await
}

/// A client of this user's.
async fn user(db: &Db, gateway: &Gateway, name: &str) -> Client {
    gateway.client_with(&api_key(&db.store, ORGANIZATION, name, KeyRole::User).await.1)
}

/// Whoever was first owns nothing of the others': each has turns, history and streams of its own, by message ids of its own.
async fn two_users_call_their_conversations_the_same(db: Db) {
    let gateway = gateway(&db, |_| {}).await;
    let (ada, eve) = (user(&db, &gateway, "ada").await, user(&db, &gateway, "eve").await);
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let mut turns = Vec::new();
    for (client, message) in [(&ada, "from ada"), (&eve, "from eve")] {
        let turn = client.submit("c", "m", message).await;
        let pushed = worker.turn().await;
        assert_eq!(pushed.turn_id, turn.turn_id);
        assert_eq!((pushed.message.as_str(), pushed.history.len()), (message, 0));
        worker.reply(&[turn.turn_id], &format!("to {message}")).await.expect("accepted");
        turns.push(turn);
    }
    assert_ne!(turns[0].conversation_id, turns[1].conversation_id);
    for (client, turn, said) in [(&ada, &turns[0], "to from ada"), (&eve, &turns[1], "to from eve")] {
        let shown = client.session("c", Some(&turn.cursor)).await.until("complete").await;
        assert_eq!(text(&shown), said);
        let history = client.get("/v1/conversations/c/turns").await.1;
        assert_eq!(history["turns"].as_array().map(Vec::len), Some(1));
        assert_eq!(history["turns"][0]["turnId"], json!(turn.turn_id));
    }
    assert_eq!(ada.call(Method::DELETE, "/v1/conversations/c", None).await.0, StatusCode::OK);
    assert_eq!(eve.record(turns[1].turn_id).await["phase"], "Succeeded", "hers stays");
    assert_eq!(ada.get("/v1/conversations/c/turns").await.0, StatusCode::NOT_FOUND);
}

/// To look for a conversation makes none, so it takes no name from anybody.
async fn only_a_message_makes_a_conversation(db: Db) {
    let gateway = gateway(&db, |_| {}).await;
    let (ada, eve) = (user(&db, &gateway, "ada").await, user(&db, &gateway, "eve").await);
    assert_eq!(eve.stream("/v1/conversations/c/events", None).await.err(), Some(StatusCode::NOT_FOUND));
    assert_eq!(eve.get("/v1/conversations/c/turns").await.0, StatusCode::NOT_FOUND);
    assert_eq!(eve.call(Method::DELETE, "/v1/conversations/c", None).await.0, StatusCode::NOT_FOUND);
    assert_eq!(eve.submit_to("nobody", "c", "m", "hello").await.0, StatusCode::NOT_FOUND);
    assert_eq!(db.count("conversation").await, 0);
    ada.submit("c", "m", "hello").await;
    assert_eq!((db.count("conversation").await, db.count("principal").await), (1, 1));
}

/// By the owner and by operators; to others the id says nothing. An own name that looks like an id is a name.
async fn a_conversation_is_reached_by_its_id(db: Db) {
    let gateway = gateway(&db, |_| {}).await;
    let (ada, eve) = (user(&db, &gateway, "ada").await, user(&db, &gateway, "eve").await);
    let operator = gateway.client_with(&api_key(&db.store, ORGANIZATION, "op", KeyRole::Operator).await.1);
    let first = ada.submit("c", "m1", "hello").await;
    let id = first.conversation_id.to_string();
    let second = ada.submit(&id, "m2", "hello again").await;
    assert_eq!(second.conversation_id, first.conversation_id, "its owner may say the id for the name");
    for client in [&ada, &operator] {
        let history = client.get(&format!("/v1/conversations/{id}/turns")).await.1;
        assert_eq!(history["turns"].as_array().map(Vec::len), Some(2), "{history}");
        assert_eq!(history["turns"][0]["conversationId"], json!(id));
        assert_eq!(history["turns"][0]["conversation"], "c");
    }
    assert_eq!(eve.get(&format!("/v1/conversations/{id}/turns")).await.0, StatusCode::NOT_FOUND);
    let eves = eve.submit(&id, "m1", "hello").await;
    assert_ne!(eves.conversation_id, first.conversation_id, "to her it is a name");
    assert_eq!(eve.get(&format!("/v1/conversations/{id}/turns")).await.1["turns"].as_array().map(Vec::len), Some(1));
    let listed = operator.get("/v1/turns?conversation=c").await.1;
    assert_eq!(listed["turns"].as_array().map(Vec::len), Some(2), "{listed}");
    let listed = operator.get(&format!("/v1/turns?conversation={}", eves.conversation_id)).await.1;
    assert_eq!(listed["turns"].as_array().map(Vec::len), Some(1), "{listed}");
    for (method, wanted) in [(Method::GET, StatusCode::OK), (Method::POST, StatusCode::FORBIDDEN)] {
        let body = (method == Method::POST).then(|| json!({"agent": "bot", "message": "x"}));
        let (status, said) = operator.call(method, "/v1/conversations/c/turns?owner=ada", body).await;
        assert_eq!(status, wanted, "{said}");
    }
}

async fn a_program_is_told_the_conversations_id(db: Db) {
    let gateway = gateway(&db, |_| {}).await;
    let (ada, eve) = (user(&db, &gateway, "ada").await, user(&db, &gateway, "eve").await);
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let mut ids = Vec::new();
    for client in [&ada, &eve] {
        let turn = client.submit("c", "m", "hello").await;
        let pushed = worker.turn().await;
        assert_eq!(pushed.conversation, turn.conversation_id.to_string());
        assert_eq!(pushed.conversation_name, "c");
        ids.push(pushed.conversation);
    }
    assert_ne!(ids[0], ids[1]);
}

async fn requests_a_second_are_limited_and_resumed_streams_are_not(db: Db) {
    let gateway = gateway(&db, |config| config.quotas.requests_per_second = NonZeroU32::new(3)).await;
    let (ada, eve) = (user(&db, &gateway, "ada").await, user(&db, &gateway, "eve").await);
    let turn = ada.submit("c", "m", "hello").await;
    let refused = eventually("too many were sent", async || {
        let response = ada.request(Method::GET, "/v1/conversations/c/turns").send().await.ok()?;
        (response.status() == StatusCode::TOO_MANY_REQUESTS).then_some(response)
    })
    .await;
    let after: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().expect("seconds");
    assert!((1..=2).contains(&after), "{after}");
    assert_eq!(refused.headers()["content-type"], "application/problem+json");
    // Every stream comes back at once when a replica has died.
    let path = "/v1/conversations/c/events";
    let back = futures::future::join_all((0..20).map(|_| ada.stream(path, Some(&turn.cursor)))).await;
    assert!(back.iter().all(Result::is_ok));
    assert_eq!(eve.try_submit("c", "m", "hello").await.0, StatusCode::ACCEPTED, "another user is not concerned");
    eventually("the rate is over", async || ada.get("/v1/conversations/c/turns").await.0 == StatusCode::OK).await;
}

async fn streams_are_limited(db: Db) {
    let gateway = gateway(&db, |config| config.quotas.streams = NonZeroU32::new(3)).await;
    let (ada, eve) = (user(&db, &gateway, "ada").await, user(&db, &gateway, "eve").await);
    let turn = ada.submit("c", "m", "hello").await.turn_id;
    let path = format!("/v1/turns/{turn}/events");
    let mut open = vec![
        ada.session("c", None).await,
        ada.turn_stream(turn, None).await,
        ada.stream(&path, None).await.expect("the third"),
    ];
    for path in ["/v1/conversations/c/events", path.as_str()] {
        let refused = ada.request(Method::GET, path).send().await.expect("an answer");
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(refused.headers().contains_key("retry-after"));
    }
    let eves = eve.submit("c", "m", "hello").await.turn_id;
    eve.turn_stream(eves, None).await;
    open.pop();
    let again = eventually("a place is free again", async || ada.stream(&path, None).await.ok()).await;
    open.push(again);
    // A stream that ends by itself leaves its place as well.
    ada.cancel(turn).await;
    for stream in &mut open[1..] {
        stream.rest().await;
    }
    eventually("the others' places are free", async || ada.stream("/v1/conversations/c/events", None).await.ok()).await;
}

/// What is in the database is counted there, whichever gateway is asked.
async fn open_turns_and_conversations_are_limited_over_gateways(db: Db) {
    let limits = |config: &mut GatewayConfig| {
        config.quotas.open_turns = NonZeroU32::new(4);
        config.quotas.conversations = NonZeroU64::new(6);
    };
    let gateways = [gateway(&db, limits).await, gateway(&db, limits).await];
    let key = api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await.1;
    let ada = [gateways[0].client_with(&key), gateways[1].client_with(&key)];
    let eve = user(&db, &gateways[0], "eve").await;
    let tries = (0..24).map(|i| {
        let client = &ada[i % 2];
        async move { client.try_submit(&format!("c{}", i % 4), &format!("m{i}"), "hello").await }
    });
    let answers = futures::future::join_all(tries).await;
    let armed: Vec<TurnId> = answers
        .iter()
        .filter(|(status, _)| *status == StatusCode::ACCEPTED)
        .map(|(_, answer)| serde_json::from_value(answer["turnId"].clone()).expect("an id"))
        .collect();
    assert_eq!(armed.len(), 4, "{answers:?}");
    for (status, problem) in answers.iter().filter(|(status, _)| *status != StatusCode::ACCEPTED) {
        assert_eq!(
            (*status, &problem["reason"]),
            (StatusCode::TOO_MANY_REQUESTS, &json!("QuotaExceeded")),
            "{problem}"
        );
        assert!(problem["messageId"].is_string());
    }
    assert_eq!(eve.try_submit("c", "m", "hello").await.0, StatusCode::ACCEPTED);
    for turn in armed {
        ada[0].cancel(turn).await;
    }
    let mut made = db.count("conversation WHERE owner = 'ada'").await;
    for i in 0..10 {
        let (status, answer) = ada[i % 2].try_submit(&format!("d{i}"), "m", "hello").await;
        if made < 6 {
            assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
            made += 1;
            ada[0].cancel(serde_json::from_value(answer["turnId"].clone()).expect("an id")).await;
        } else {
            assert_eq!((status, &answer["reason"]), (StatusCode::TOO_MANY_REQUESTS, &json!("QuotaExceeded")));
        }
    }
    assert_eq!(db.count("conversation WHERE owner = 'ada'").await, 6);
    assert_eq!(ada[0].call(Method::DELETE, "/v1/conversations/d0", None).await.0, StatusCode::OK);
    assert_eq!(ada[1].try_submit("e", "m", "hello").await.0, StatusCode::ACCEPTED);
}

/// So that one user alone does not lock out the others.
async fn a_user_fills_half_of_a_queue(db: Db) {
    put_agent(&db.store, "narrow", json!({"limits": {"maxQueuedTurns": 5}})).await;
    let gateway = gateway(&db, |config| config.quotas.open_turns = NonZeroU32::new(1_000)).await;
    let (ada, eve) = (user(&db, &gateway, "ada").await, user(&db, &gateway, "eve").await);
    let submit = async |client: &Client, i: usize| client.submit_to("narrow", &format!("c{i}"), "m", "hello").await.0;
    let (accepted, full) = (StatusCode::ACCEPTED, StatusCode::TOO_MANY_REQUESTS);
    for (i, wanted) in [accepted, accepted, accepted, full].into_iter().enumerate() {
        assert_eq!(submit(&ada, i).await, wanted, "{i}");
    }
    assert_eq!(submit(&ada, 0).await, StatusCode::OK, "a repeat of what was armed");
    for (i, wanted) in [accepted, accepted, full].into_iter().enumerate() {
        assert_eq!(submit(&eve, i).await, wanted, "{i}");
    }
}

/// There is nobody to be guarded from: scripts on one machine send as fast as they can.
async fn without_keys_nobody_is_limited(db: Db) {
    use clap::Parser;
    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        gateway: lastword::gateway::args::GatewayArgs,
    }
    let quotas = |flags: &[&str]| {
        let flags = Flags::parse_from([&["gateway"], flags].concat());
        flags.gateway.config("127.0.0.1:1".parse().expect("an address"), None).quotas
    };
    let none = quotas(&["--auth", "none"]);
    assert_eq!(none, Default::default());
    let keys = quotas(&["--auth", "keys"]);
    assert_eq!(keys.requests_per_second.map(NonZeroU32::get), Some(100));
    assert_eq!((keys.streams, keys.open_turns), (NonZeroU32::new(1_000), NonZeroU32::new(1_000)));
    assert_eq!(quotas(&["--auth", "none", "--user-streams", "2"]).streams, NonZeroU32::new(2));
    let gateway = Gateway::with(db.options(), |config| config.quotas = none).await;
    let all = (0..300).map(|i| {
        let client = gateway.client();
        async move { client.get(&format!("/v1/turns?limit=1&user=u{i}")).await.0 }
    });
    assert!(futures::future::join_all(all).await.into_iter().all(|status| status == StatusCode::OK));
}
