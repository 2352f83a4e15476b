//! Tickets: a stream without a header, opened once, and closed with its key.

use lastword::gateway::AuthMode;
use lastword::store::keys::{self, KeyRole};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::support::Db;
use crate::support::client::{Client, End};
use crate::support::gateway::{Gateway, ORGANIZATION, api_key};

crate::newest! {
    a_ticket_opens_one_stream_of_its_owners,
    a_stream_that_a_ticket_opened_ends_with_the_key,
}

async fn ticket(client: &Client, path: Option<&str>) -> String {
    let (status, issued) = client.call(Method::POST, "/v1/streams/tickets", Some(json!({"path": path}))).await;
    assert_eq!(status, StatusCode::CREATED, "{issued}");
    issued["ticket"].as_str().expect("a ticket").to_owned()
}

async fn a_ticket_opens_one_stream_of_its_owners(db: Db) {
    let gateway = Gateway::with(db.options(), |config| config.auth = AuthMode::Keys).await;
    let ada = gateway.client_with(&api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await.1);
    let eve = gateway.client_with(&api_key(&db.store, ORGANIZATION, "eve", KeyRole::User).await.1);
    let stranger = gateway.client();
    let turn = ada.submit("c", "m", "hello").await;
    ada.cancel(turn.turn_id).await;
    let (session, stream) = ("/v1/conversations/c/events", format!("/v1/turns/{}/events", turn.turn_id));

    let any = ticket(&ada, None).await;
    let mut opened = stranger.stream(&format!("{session}?ticket={any}"), None).await.expect("a stream");
    opened.until("complete").await;
    let again = stranger.stream(&format!("{session}?ticket={any}"), None).await;
    assert_eq!(again.err(), Some(StatusCode::UNAUTHORIZED), "it was used");

    let bound = ticket(&ada, Some(&stream)).await;
    let mut opened =
        stranger.stream(&format!("{stream}?after={}&ticket={bound}", turn.cursor), None).await.expect("one");
    assert_eq!(opened.rest().await.1, End::Clean);
    let bound = ticket(&ada, Some(&stream)).await;
    let elsewhere = stranger.stream(&format!("{session}?ticket={bound}"), None).await;
    assert_eq!(elsewhere.err(), Some(StatusCode::UNAUTHORIZED), "for another path");

    // It is worth what its owner may see, opens streams alone, and makes no further tickets.
    let foreign = ticket(&eve, None).await;
    let refused = stranger.stream(&format!("{stream}?ticket={foreign}"), None).await;
    assert_eq!(refused.err(), Some(StatusCode::NOT_FOUND));
    for (method, path) in [
        (Method::GET, format!("/v1/turns/{}", turn.turn_id)),
        (Method::GET, "/v1/agents".into()),
        (Method::POST, "/v1/streams/tickets".into()),
    ] {
        let other = ticket(&ada, None).await;
        let (status, _) = stranger.call(method, &format!("{path}?ticket={other}"), Some(json!({}))).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
    }
    for noise in ["lwt_", "lwt_0", &any.replace("lwt_", "lws_"), ""] {
        let refused = stranger.stream(&format!("{session}?ticket={noise}"), None).await;
        assert_eq!(refused.err(), Some(StatusCode::UNAUTHORIZED), "{noise}");
    }
    for wrong in [json!({"path": "v1"}), json!({"paths": "/"}), json!([])] {
        let (status, _) = ada.call(Method::POST, "/v1/streams/tickets", Some(wrong)).await;
        assert!(status.is_client_error() && status != StatusCode::UNAUTHORIZED);
    }
}

async fn a_stream_that_a_ticket_opened_ends_with_the_key(db: Db) {
    let gateway = Gateway::with(db.options(), |config| config.auth = AuthMode::Keys).await;
    let (id, key) = api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await;
    let ada = gateway.client_with(&key);
    ada.submit("c", "m", "hello").await;
    let (first, second) = (ticket(&ada, None).await, ticket(&ada, None).await);
    let mut opened =
        gateway.client().stream(&format!("/v1/conversations/c/events?ticket={first}"), None).await.expect("one");
    keys::revoke(db.store.pool(), id).await.expect("revokes");
    db.store.notify_keys_changed().await;
    assert_eq!(opened.rest().await.1, End::Aborted);
    let refused = gateway.client().stream(&format!("/v1/conversations/c/events?ticket={second}"), None).await;
    assert_eq!(refused.err(), Some(StatusCode::UNAUTHORIZED));
}
