//! The generated definitions, their rules, and Agents from YAML.

use std::path::Path;
use std::time::Duration;

use kube::core::cel::Validator;
use serde_json::{Value, json};

use super::*;
use crate::agents::{YamlError, agents_from_yaml};
use crate::turn::defaults;

#[test]
fn the_committed_files_are_the_generated_ones() {
    for (name, yaml) in crd_files().unwrap() {
        assert!(yaml.len() < 100_000, "{name} has {} bytes", yaml.len());
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds").join(&name);
        if std::env::var_os("LASTWORD_WRITE_CRDS").is_some() {
            std::fs::write(&path, &yaml).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == yaml, "crds/{name} is not what the types say: run `make generate`, commit the result");
    }
}

#[test]
fn the_yaml_reads_back_as_the_definitions() {
    let read: Vec<Value> = serde_saphyr::from_multiple(&print_crds().unwrap()).unwrap();
    assert_eq!(read, crds().iter().map(|crd| serde_json::to_value(crd).unwrap()).collect::<Vec<_>>());
    let text = serde_json::to_string(&read).unwrap();
    for absent in ["nullable", "uint", "anyOf", "oneOf", "$ref", "Validated"] {
        assert!(!text.contains(absent), "{absent}");
    }
    assert_eq!(read[1]["spec"]["names"]["shortNames"], json!(["turn", "turns"]));
    let spec = &read[0]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    assert_eq!(spec["adapter"]["enum"], json!(["Exec", "OpenAI", "Custom"]));
    assert_eq!(spec["scope"]["default"], "Conversation");
    assert!(spec["openai"]["properties"].get("baseURL").is_some());
    let pod = &spec["template"]["properties"]["spec"];
    assert_eq!(pod["x-kubernetes-preserve-unknown-fields"], true);
    assert_eq!(pod["properties"]["restartPolicy"]["enum"], json!(["Never"]));
    let containers = &pod["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(containers["maxItems"], 16);
    assert_eq!(containers["items"]["x-kubernetes-preserve-unknown-fields"], true);
}

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

/// The example with the value at `pointer` (parents must exist) set to `value`.
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

#[test]
fn a_newer_schema_does_not_blind_an_older_reader() {
    let agent: Agent = serde_json::from_value(with("/spec/fromTheFuture", json!(1))).unwrap();
    assert_eq!(agent.spec.adapter, Adapter::Exec);
}

#[test]
fn quantities_are_read_as_kubernetes_does() {
    for (text, bytes) in [
        ("0", 0),
        ("128974848", 128_974_848),
        ("129e6", 129_000_000),
        ("129M", 129_000_000),
        ("123Mi", 128_974_848),
        ("1.5Gi", 1_610_612_736),
        ("100m", 1),
        ("2k", 2000),
        ("1Ei", 1 << 60),
    ] {
        assert_eq!(quantity_bytes(text), Ok(bytes), "{text}");
    }
    for bad in ["", "Mi", "-1", "1 Gi", "1gi", "1e", "16Ei", "1e400", ".", "1.2.3"] {
        assert!(quantity_bytes(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_turn_may_change_only_where_it_says_so() {
    let schema = schema_of(&crds()[1])["properties"]["spec"].clone();
    let check = |spec: &Value, old: Option<&Value>| {
        Validator::new().validate(&schema, spec, old).map_err(|errors| errors.to_string())
    };
    let turn = json!({"agentRef": {"name": "helper"}, "input": "hi", "conversation": "c", "cancel": false});
    check(&turn, None).unwrap();
    let edit = |field: &str, value: Value| {
        let mut turn = turn.clone();
        turn[field] = value;
        turn
    };
    for (field, value) in [
        ("agentRef", json!({"name": "other"})),
        ("input", json!("ho")),
        ("conversation", json!("d")),
        ("messageId", json!("m")),
        ("user", json!("ada")),
        ("deadlineSeconds", json!(5)),
    ] {
        let error = check(&edit(field, value), Some(&turn)).unwrap_err();
        assert!(error.contains(&format!("{field} is immutable")), "{error}");
    }
    let cancelled = edit("cancel", json!(true));
    check(&cancelled, Some(&turn)).unwrap();
    check(&cancelled, Some(&cancelled)).unwrap();
    assert!(check(&turn, Some(&cancelled)).unwrap_err().contains("stays cancelled"));
    check(&edit("ttlSecondsAfterFinished", json!(5)), Some(&turn)).unwrap();

    check(&edit("input", json!("x".repeat(128 << 10))), None).unwrap();
    assert!(check(&edit("input", json!("é".repeat(70_000))), None).unwrap_err().contains("131072 bytes"));
}

#[test]
fn the_rules_know_the_defaults() {
    let text = serde_json::to_string(&crds()[0]).unwrap();
    assert!(text.contains(&format!("has(self.leaseSeconds) ? self.leaseSeconds : {})", defaults::LEASE_SECONDS)));
    assert!(text.contains(&format!("has(self.maxWorkers) ? self.maxWorkers : {})", defaults::MAX_WORKERS)));
    for stated in [
        format!("must be live; default {}", defaults::START_SECONDS),
        format!("of a worker; default {}", defaults::HEARTBEAT_SECONDS),
        format!("given up; default {}", defaults::LEASE_SECONDS),
        format!("hard deadline; default {}", defaults::TURN_SECONDS),
        format!("what it holds; default {}", defaults::DRAIN_SECONDS),
        format!("is stopped; default {}", defaults::IDLE_SECONDS),
        format!("new ones are refused; default {}", defaults::MAX_QUEUED_TURNS),
        format!("whole answer; default {}", defaults::WEBHOOK_TIMEOUT_SECONDS),
    ] {
        assert!(text.contains(&stated), "{stated}");
    }
}

#[path = "../../tests/kubernetes/fields.rs"]
#[expect(dead_code, reason = "the tests on a cluster use the rest")]
mod fields;

/// Every property path of a schema below `path`, e.g. `spec.list[0].field`; what is preserved unknown has none.
fn paths(schema: &Value, path: &str, found: &mut Vec<String>) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let mut property = property;
        found.push(path.clone());
        let mut path = path;
        while property["items"].is_object() {
            property = &property["items"];
            path.push_str("[0]");
            if property["properties"].is_object() {
                found.push(path.clone());
            }
        }
        paths(property, &path, found);
    }
}

#[test]
fn every_field_has_a_valid_and_a_rejected_example() {
    for (index, kind) in ["agent", "agentturn"].into_iter().enumerate() {
        let schema = schema_of(&crds()[index]);
        let table = fields::Table::read(kind);
        let mut known = Vec::new();
        paths(&schema, "", &mut known);
        known.retain(|path| !["apiVersion", "kind", "metadata", "spec"].contains(&path.as_str()));
        for path in &known {
            assert!(table.paths().contains(&path.as_str()), "{kind}: {path} has no example");
        }
        for path in table.paths() {
            assert!(known.iter().any(|known| known == path) || path == "metadata.name", "{kind}: there is no {path}");
        }
        for case in table.cases() {
            let part = case.path.split('.').next().unwrap();
            let errors = match part {
                "metadata" => {
                    let read: Result<Agent, _> = serde_json::from_value(case.object.clone());
                    read.unwrap().validate().map_or_else(|invalid| invalid.0, |()| Vec::new())
                }
                part => check::check_part(&schema["properties"][part], &case.object[part], part),
            };
            assert_eq!(errors.is_empty(), case.valid, "{kind} {}: {errors:?} {}", case.path, case.object[part]);
        }
    }
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
