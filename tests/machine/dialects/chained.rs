//! What speaks AG-UI on both sides: an agent of one Lastword is taken by another one for an agent of its own.

use serde_json::json;

use crate::support::LASTWORD;
use crate::support::dev::{Dev, agent};

#[tokio::test]
async fn an_agent_of_one_lastword_is_an_agent_of_another_by_agui() {
    let scope = json!({"scope": "Agent"});
    let agents = [
        agent("shout", scope.clone(), &["tr", "a-z", "A-Z"]),
        agent("exits", scope, &["sh", "-c", "echo half; exit 3"]),
    ];
    let inner = Dev::start(&agents.concat()).await;
    let by = |name: &str, of: &str| {
        let url = format!("{}/agui/{of}", inner.url());
        agent(name, json!({"scope": "Agent", "adapter": "Custom"}), &[LASTWORD, "worker", "agui", &url])
    };
    let outer = Dev::start(&[by("again", "shout"), by("fails", "exits")].concat()).await;
    let turn = outer.api().submit("c", "again", "hello").await.turn;
    let record = outer.api().phase(&turn, "Succeeded").await;
    assert_eq!(record["reply"]["text"], json!("HELLO\n"));
    // The inner conversation is named after the outer one's id, and the message after the outer turn.
    let inner_record = inner.api().records("shout").await.remove(0);
    assert_eq!((&inner_record["conversation"], &inner_record["messageId"]), (&record["conversationId"], &json!(turn)));

    let turn = outer.api().submit("d", "fails", "hello").await.turn;
    let record = outer.api().phase(&turn, "Failed").await;
    assert_eq!(record["error"]["reason"], json!("AgentError"));
    let detail = record["error"]["detail"].as_str().unwrap();
    assert!(detail.contains("ended with an error: AgentError: The agent failed"), "{detail}");
}
