//! The lists that a page begins with: Agents, and a user's conversations.

use lastword::gateway::AuthMode;
use lastword::store::keys::KeyRole;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::Db;
use crate::support::gateway::{AGENT, Gateway, ORGANIZATION, api_key, put_agent};
use crate::support::wait::eventually;

crate::newest! {
    agents_are_those_of_the_callers_organization,
    conversations_are_the_callers_own,
}

fn names(page: &Value, list: &str, name: &str) -> Vec<String> {
    let items = page[list].as_array().expect("a list");
    items.iter().map(|item| item[name].as_str().expect("a name").to_owned()).collect()
}

async fn agents_are_those_of_the_callers_organization(db: Db) {
    for name in ["a", "c", "zz"] {
        put_agent(&db.store, name, json!({})).await;
    }
    db.store.put_agent("another", "hidden", &json!({"scope": "Agent", "adapter": "Custom"})).await.expect("put");
    let gateway = Gateway::with(db.options(), |config| config.auth = AuthMode::Keys).await;
    let ada = gateway.client_with(&api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await.1);
    let (_, page) = ada.get("/v1/agents").await;
    assert_eq!(names(&page, "agents", "name"), ["a", AGENT, "c", "zz"], "{page}");
    assert_eq!((&page["agents"][0]["scope"], &page["next"]), (&json!("Agent"), &Value::Null));
    let (_, page) = ada.get("/v1/agents?limit=3").await;
    assert_eq!((names(&page, "agents", "name").len(), &page["next"]), (3, &json!("c")));
    let (_, page) = ada.get("/v1/agents?limit=3&after=c").await;
    assert_eq!(names(&page, "agents", "name"), ["zz"]);
    let other = gateway.client_with(&api_key(&db.store, "another", "ada", KeyRole::User).await.1);
    assert_eq!(names(&other.get("/v1/agents").await.1, "agents", "name"), ["hidden"]);
    assert_eq!(gateway.client().get("/v1/agents").await.0, StatusCode::UNAUTHORIZED);
    db.store.remove_agent(ORGANIZATION, "a").await.expect("removes");
    eventually("the Agent is gone", async || names(&ada.get("/v1/agents").await.1, "agents", "name").len() == 3).await;
}

async fn conversations_are_the_callers_own(db: Db) {
    let gateway = Gateway::with(db.options(), |config| config.auth = AuthMode::Keys).await;
    let of = async |user, role| gateway.client_with(&api_key(&db.store, ORGANIZATION, user, role).await.1);
    let (ada, eve, boss) =
        (of("ada", KeyRole::User).await, of("eve", KeyRole::User).await, of("boss", KeyRole::Operator).await);
    let first = ada.submit("first", "m", "What is 6*7?").await;
    ada.cancel(first.turn_id).await;
    let second = ada.submit("second", "m", "and 6*8?").await;
    eve.submit("first", "m", "nobody else's business").await;
    let (_, page) = ada.get("/v1/conversations").await;
    assert_eq!(names(&page, "conversations", "conversation"), ["second", "first"], "{page}");
    assert_eq!(names(&page, "conversations", "title"), ["and 6*8?", "What is 6*7?"]);
    let newest = &page["conversations"][1]["newest"];
    assert_eq!((&newest["phase"], &newest["reason"]), (&json!("Failed"), &json!("Cancelled")));
    let (_, page) = ada.get("/v1/conversations?limit=1").await;
    assert_eq!(page["next"], json!(second.conversation_id), "{page}");
    let (_, page) = ada.get(&format!("/v1/conversations?limit=1&before={}", second.conversation_id)).await;
    assert_eq!(names(&page, "conversations", "conversation"), ["first"]);
    assert_eq!(eve.get("/v1/conversations?owner=ada").await.0, StatusCode::FORBIDDEN);
    let (_, page) = boss.get("/v1/conversations?owner=ada").await;
    assert_eq!(names(&page, "conversations", "conversation"), ["second", "first"]);
    let audited = db.text("SELECT actor || ' ' || action || ' ' || subject FROM audit WHERE action = 'list'").await;
    assert_eq!(audited.as_deref(), Some("boss list conversations of user ada"));
    assert_eq!(names(&boss.get("/v1/conversations").await.1, "conversations", "conversation"), [""; 0]);
}
