//! What one organization's guardrails do to another's: nothing.

use std::sync::Arc;
use std::time::Duration;

use lastword::agents::Agents;
use lastword::gateway::AuthMode;
use lastword::guard::Evaluators;
use lastword::store::keys::KeyRole;
use lastword::turn::keys::TurnId;
use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::gateway::{AGENT, Gateway, ORGANIZATION, api_key, put_agent};
use crate::support::wait::eventually;
use crate::support::{Db, LASTWORD};

crate::newest! {
    slow_expressions_of_one_organization_let_no_message_of_another_pass,
    a_turn_that_could_not_be_checked_ends_as_our_fault,
    an_agent_that_did_not_change_is_not_compiled_again,
}

fn agent(expression: &str) -> Value {
    let guardrail = json!({"cel": expression, "failurePolicy": "Ignore"});
    json!({"scope": "Agent", "adapter": "Custom", "guardrails": {"input": [guardrail]}})
}

async fn submit(client: &Client, agent: &str, conversation: &str, message: &str) -> TurnId {
    let (status, answer) = client.submit_to(agent, conversation, "m", message).await;
    assert_eq!(status.as_u16(), 202, "{answer}");
    serde_json::from_value(answer["turnId"].clone()).expect("a turn's id")
}

/// Each of the loud organization's evaluations takes all the time that it may, and there are more of them than places. The
/// quiet one's guardrail says `Ignore` too, and yet it is asked, before the loud ones are through.
async fn slow_expressions_of_one_organization_let_no_message_of_another_pass(db: Db) {
    let change = |c: &mut lastword::gateway::GatewayConfig| {
        c.auth = AuthMode::Keys;
        c.evaluators = Evaluators::new(LASTWORD);
    };
    let gateway = Gateway::with(db.options(), change).await;
    let list = format!("[{}]", vec!["1"; 400].join(","));
    let slow = format!("{list}.all(a, {list}.all(b, message.matches('x{{900}}')  || a == b))");
    db.store.put_agent("loud", "slow", &agent(&slow)).await.expect("put");
    db.store.put_agent("quiet", "rail", &agent("!message.contains('password')")).await.expect("put");
    let loud = gateway.client_with(&api_key(&db.store, "loud", "eve", KeyRole::User).await.1);
    let quiet = gateway.client_with(&api_key(&db.store, "quiet", "ada", KeyRole::User).await.1);
    for n in 0..24 {
        submit(&loud, "slow", &format!("c{n}"), &"x".repeat(899)).await;
    }
    // While the loud ones hold all places that they may have, or wait for them.
    let rejected = submit(&quiet, "rail", "a", "my password is x").await;
    let passed = submit(&quiet, "rail", "b", "hello").await;
    assert_eq!(db.ending(rejected).await, "GuardrailRejected");
    let waiting = format!("marker WHERE phase = 'waiting' AND turn_id = '{passed}'");
    let claimable = async || db.count(&waiting).await == 1;
    eventually("the harmless message passes", claimable).await;
    let guarding = db.count("marker WHERE phase = 'guarding' AND agent = 'slow'").await;
    assert!(guarding > 0, "the quiet organization had to wait for all of the loud one's questions");
}

/// No policy decides what Lastword lacks.
async fn a_turn_that_could_not_be_checked_ends_as_our_fault(db: Db) {
    db.store.put_agent(ORGANIZATION, AGENT, &agent("true")).await.expect("put");
    let evaluators = Evaluators::new("/nonexistent").with_patience(Duration::from_millis(300));
    let gateway = Gateway::with(db.options(), |c| c.evaluators = evaluators).await;
    let turn = submit(&gateway.client(), AGENT, "c", "hello").await;
    assert_eq!(db.ending(turn).await, "Internal");
    let record = gateway.client().record(turn).await;
    assert_eq!(record["error"]["retryable"], true, "{record}");
}

/// Agents are read every few seconds, and nearly always nothing has changed.
async fn an_agent_that_did_not_change_is_not_compiled_again(db: Db) {
    db.store.put_agent(ORGANIZATION, AGENT, &agent("size < 5")).await.expect("put");
    put_agent(&db.store, "other", json!({})).await;
    let agents = Agents::default();
    let read = async || {
        agents.refresh(&db.store).await.expect("read");
        [AGENT, "other"].map(|name| agents.get(ORGANIZATION, name).expect("known"))
    };
    let before = read().await;
    let again = read().await;
    assert!(Arc::ptr_eq(&before[0], &again[0]) && Arc::ptr_eq(&before[1], &again[1]));
    db.store.put_agent(ORGANIZATION, AGENT, &agent("size < 6")).await.expect("put");
    let changed = read().await;
    assert!(!Arc::ptr_eq(&again[0], &changed[0]) && Arc::ptr_eq(&again[1], &changed[1]));
}
