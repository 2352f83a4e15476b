//! Agents from YAML: how they are read, what is refused and why; and the Agents that documentation and examples show.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::crd::{Adapter, Agent, AgentTurn, Scope};

fn exec() -> Value {
    json!({
        "apiVersion": "lastword.dev/v1alpha1",
        "kind": "Agent",
        "metadata": {"name": "helper"},
        "spec": {
            "adapter": "Exec",
            "template": {"spec": {"containers": [{"name": "agent", "command": ["cat"]}]}},
        },
    })
}

fn read(agent: &Value) -> Result<Agent, String> {
    let yaml = serde_saphyr::to_string(agent).unwrap();
    agents_from_yaml(&yaml).map(|mut agents| agents.remove(0)).map_err(|error| error.to_string())
}

/// The example, with `value` in place of what is at `pointer`, whose parents must exist.
fn with(pointer: &str, value: Value) -> Value {
    let mut agent = exec();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    agent.pointer_mut(parent).unwrap()[field] = value;
    agent
}

#[test]
fn an_agent_is_read_with_its_defaults() {
    let agent = read(&exec()).unwrap();
    assert_eq!(agent.metadata.namespace.as_deref(), Some("default"));
    assert_eq!((agent.spec.scope, agent.spec.adapter), (Scope::Conversation, Adapter::Exec));
    assert_eq!(agent.program().unwrap().command, ["cat"]);
    let timing = &agent.spec.timing;
    assert_eq!((timing.start_seconds(), timing.lease_seconds(), timing.turn_seconds()), (120, 60, 3600));
    assert_eq!((timing.drain_seconds(), timing.idle_seconds(), timing.start_attempts()), (30, 300, 1));
    assert_eq!(timing.heartbeat(), Duration::from_secs(20));
    let limits = &agent.spec.limits;
    assert_eq!((limits.min_workers(), limits.max_workers()), (0, 10));
    assert_eq!((limits.turns_per_worker(), limits.max_queued_turns()), (1, 1000));
    agent.validate().unwrap();

    let short = read(&with("/spec/timing", json!({"leaseSeconds": 1}))).unwrap();
    assert_eq!(short.spec.timing.heartbeat(), Duration::from_secs(1) / 3);
    let pair = read(&with("/spec/timing", json!({"leaseSeconds": 3, "heartbeatSeconds": 1}))).unwrap();
    assert_eq!(pair.spec.timing.heartbeat(), Duration::from_secs(1));
}

#[test]
fn the_rest_of_a_template_is_kept() {
    let mut agent = exec();
    agent["spec"]["template"] = json!({
        "metadata": {"labels": {"team": "a"}},
        "spec": {
            "restartPolicy": "Never",
            "nodeSelector": {"gpu": "yes"},
            "containers": [{
                "name": "agent", "command": ["sh", "-c"], "args": ["cat"], "workingDir": "/tmp",
                "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}],
                "resources": {"limits": {"memory": "64Mi", "cpu": 1}},
                "ports": [{"containerPort": 80}],
            }],
        },
    });
    let read = read(&agent).unwrap();
    assert_eq!(serde_json::to_value(&read.spec.template).unwrap(), agent["spec"]["template"]);
    assert_eq!(read.program().unwrap().memory_limit_bytes(), Ok(Some(64 << 20)));
}

#[test]
fn what_is_wrong_is_named_with_its_path() {
    let openai = json!({"adapter": "OpenAI", "openai": {"baseURL": "localhost", "model": "m"}});
    let twice = json!([{"name": "agent", "command": ["a"]}, {"name": "agent"}]);
    let memory = json!([{"name": "agent", "command": ["a"], "resources": {"limits": {"memory": "lots"}}}]);
    let rail = |rail: Value| with("/spec/guardrails", json!({"input": [rail]}));
    let cases = [
        (with("/metadata/name", json!("Not OK")), "metadata.name: must be"),
        (with("/sepc", json!(1)), "sepc: unknown field"),
        (with("/spec/limit", json!({})), "spec.limit: unknown field; known here: adapter, "),
        (with("/spec/limits", json!({"maxWorker": 1})), "spec.limits.maxWorker: unknown field"),
        (with("/spec/limits", json!({"maxWorkers": 0})), "spec.limits.maxWorkers: must be at least 1, is 0"),
        (
            with("/spec/limits", json!({"maxWorkers": "2"})),
            "spec.limits.maxWorkers: must be of type integer, is string",
        ),
        (with("/spec/limits", json!({"minWorkers": 11})), "spec.limits: minWorkers must not be"),
        (with("/spec/limits", Value::Null), "spec.limits: must be of type object, is null"),
        (with("/spec/adapter", json!("exec")), "spec.adapter: unsupported value \"exec\"; supported: Exec, OpenAI"),
        (with("/spec/adapter", json!("OpenAI")), "spec: adapter OpenAI requires spec.openai"),
        (with("/spec", openai), "spec.openai: baseURL must be"),
        (with("/spec", json!({"adapter": "Exec"})), "spec: adapters Exec and Custom require a container named agent"),
        (with("/spec", json!({"scope": "Agent"})), "spec.adapter: is required"),
        (with("/spec/template/spec/restartPolicy", json!("Always")), "spec.template.spec.restartPolicy: unsupported"),
        (with("/spec/template/spec/containers", json!([{"name": "agent"}])), "spec: adapter Exec requires a command"),
        (with("/spec/template/spec/containers", twice), "spec.template.spec.containers[1].name: duplicate \"agent\""),
        (with("/spec/template/spec/containers", memory), "resources.limits.memory: lots is not a quantity"),
        (with("/spec/timing", json!({"heartbeatSeconds": 30})), "spec.timing: heartbeatSeconds must be less than half"),
        (with("/spec/timing", json!({"leaseSeconds": 1.5})), "spec.timing.leaseSeconds: must be of type integer"),
        (rail(json!({"cel": "nope"})), "spec.guardrails.input[0]: cel: unknown variable nope"),
        (rail(json!({})), "spec.guardrails.input[0]: set exactly one of cel and webhook"),
        (rail(json!({"webhook": {"url": "x"}})), "spec.guardrails.input[0].webhook: url must be"),
        (
            with("/spec/platforms", json!([{"name": "api", "slack": {"url": "http://x"}}])),
            "spec.platforms[0]: the names",
        ),
    ];
    for (agent, expected) in cases {
        let error = read(&agent).expect_err(expected);
        assert!(error.contains(expected), "expected {expected:?}, got {error:?}");
    }
}

#[test]
fn a_file_is_refused_as_a_whole() {
    let one = serde_saphyr::to_string(&exec()).unwrap();
    let other = one.replace("helper", "other");
    assert_eq!(agents_from_yaml(&format!("---\n{one}---\n---\n{other}")).unwrap().len(), 2);
    assert_eq!(agents_from_yaml("").unwrap().len(), 0);
    let error = |text: &str| agents_from_yaml(text).unwrap_err().to_string();
    assert_eq!(error(&format!("{one}---\n{one}")), "document 2: agent default/helper is there twice");
    assert!(error("kind: Pod\napiVersion: v1").contains("document 1: expected apiVersion"));
    assert!(error("kind: Agent\napiVersion: v1").ends_with("found v1 Agent"));
    assert!(matches!(agents_from_yaml("a: [1"), Err(YamlError::Syntax(_))));
    assert!(matches!(agents_from_yaml("a: 1\na: 2"), Err(YamlError::Syntax(_))));
}

/// Every resource that the documentation and the examples show is one that the definitions take.
#[test]
fn what_is_shown_is_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut shown =
        vec![("docs/agents.md".to_owned(), yaml_of(&std::fs::read_to_string(root.join("docs/agents.md")).unwrap()))];
    for entry in std::fs::read_dir(root.join("examples/kubernetes")).unwrap() {
        let path = entry.unwrap().path();
        shown.push((path.display().to_string(), std::fs::read_to_string(&path).unwrap()));
    }
    let (mut agents, mut turns) = (0, 0);
    for (file, text) in shown {
        for document in serde_saphyr::from_multiple::<Value>(&text).unwrap() {
            match document["kind"].as_str() {
                Some("Agent") => {
                    agents += 1;
                    read(&document).unwrap_or_else(|why| panic!("{file}: {why}"));
                }
                Some("AgentTurn") => {
                    turns += 1;
                    serde_json::from_value::<AgentTurn>(document).unwrap_or_else(|why| panic!("{file}: {why}"));
                }
                _ => {}
            }
        }
    }
    assert!(agents >= 15 && turns >= 2, "{agents} Agents and {turns} AgentTurns were found");
}

/// The fenced YAML of a page, as one text.
fn yaml_of(page: &str) -> String {
    let blocks = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.collect::<Vec<_>>().join("---\n")
}
