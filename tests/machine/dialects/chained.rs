//! What speaks AG-UI on both sides: an agent of Lastword, taken by AG-UI, is an agent of Lastword again.

use serde_json::json;

use crate::support::LASTWORD;
use crate::support::dev::{Dev, agent};
use crate::support::wait::eventually;

#[tokio::test]
async fn an_agent_of_lastword_is_an_agent_again_by_agui() {
    let scope = json!({"scope": "Agent"});
    let last = [
        agent("shout", scope.clone(), &["tr", "a-z", "A-Z"]),
        agent("exits", scope.clone(), &["sh", "-c", "echo half; exit 3"]),
    ]
    .concat();
    let dev = Dev::start(&last).await;
    let custom = json!({"scope": "Agent", "adapter": "Custom"});
    let by = |name: &str, of: &str| {
        let url = format!("{}/agui/{of}", dev.url());
        agent(name, custom.clone(), &[LASTWORD, "worker", "agui", &url])
    };
    dev.write_agents(&[last.clone(), by("again", "shout"), by("thrice", "again"), by("fails", "exits")].concat());
    let submit = async |agent: &str| {
        eventually("the agent is known", async || {
            let (status, body) = dev.api().try_submit(agent, agent, "hello", Some("m")).await.unwrap();
            if status == 202 || status == 200 { Ok(body["turnId"].as_str().unwrap().to_owned()) } else { Err(body) }
        })
        .await
    };
    for name in ["again", "thrice"] {
        let record = dev.api().phase(&submit(name).await, "Succeeded").await;
        assert_eq!(record["reply"]["text"], json!("HELLO"), "{name}");
    }
    let record = dev.api().phase(&submit("fails").await, "Failed").await;
    assert_eq!(record["error"]["reason"], json!("AgentError"));
    let detail = record["error"]["detail"].as_str().unwrap();
    assert!(detail.contains("ended with an error: AgentError: The agent failed"), "{detail}");
}
