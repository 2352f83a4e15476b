//! The generated definitions and their rules.

use std::path::Path;

use kube::core::cel::Validator;
use serde_json::{Value, json};

use super::definitions::schema_of;
use super::*;
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
    assert_eq!(read[0]["spec"]["names"]["shortNames"], json!(["lwagent"]));
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

#[test]
fn a_newer_schema_does_not_blind_an_older_reader() {
    let agent = json!({
        "apiVersion": "lastword.dev/v1alpha1",
        "kind": "Agent",
        "metadata": {"name": "helper"},
        "spec": {
            "adapter": "Exec",
            "template": {"spec": {"containers": [{"name": "agent", "command": ["cat"]}]}},
            "fromTheFuture": 1,
        },
    });
    let agent: Agent = serde_json::from_value(agent).unwrap();
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
        format!("its turns fail; default {}", defaults::LEASE_SECONDS),
        format!("its waiting included; default {}", defaults::TURN_SECONDS),
        format!("the turns that it holds; default {}", defaults::DRAIN_SECONDS),
        format!("is stopped; default {}", defaults::IDLE_SECONDS),
        format!("new turns are refused; default {}", defaults::MAX_QUEUED_TURNS),
        format!("whole answer; default {}", defaults::WEBHOOK_TIMEOUT_SECONDS),
        format!("to be made; default {}", defaults::MODEL_CONNECT_SECONDS),
        format!("or within it; default {}", defaults::MODEL_SILENCE_SECONDS),
        format!("pauses included; default {}", defaults::MODEL_COMPLETION_SECONDS),
        format!("of an answer; default {}", defaults::MODEL_RETRIES),
        format!("are sent along; default {}", defaults::MODEL_HISTORY_TURNS),
    ] {
        assert!(text.contains(&stated), "{stated}");
    }
}

#[path = "../../tests/kubernetes/fields.rs"]
#[expect(dead_code, reason = "the test of the fields on a real API server uses the rest")]
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

/// Other products define Agents too (kagent, ECK), and a bare `agents` means whichever group the API server lists first: a
/// documented line would read, or delete, another product's objects.
#[test]
fn documented_commands_name_our_kinds_and_no_others() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    let mut folders: Vec<_> = ["docs", "charts", "examples", "scripts"].map(|name| root.join(name)).into();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    let mut commands = 0;
    for path in files {
        // Binary files have no commands.
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            for command in line.split("kubectl ").skip(1) {
                commands += 1;
                // A command ends with the code span, or with the next command of its line.
                let command = command.split(['`', ';', '|', '#']).next().unwrap();
                let bare = ambiguous_kind(command);
                assert!(bare.is_none(), "{}:{}: `kubectl {command}` says {bare:?}", path.display(), number + 1);
            }
        }
    }
    assert!(commands > 10, "only {commands} commands were found");
    assert_eq!(ambiguous_kind("delete agentturns,agents --all -A"), Some("agentturns"));
    assert_eq!(ambiguous_kind("-n chats get agent/helper"), Some("agent"));
    assert_eq!(ambiguous_kind("delete turns --all"), Some("turns"));
    assert_eq!(ambiguous_kind("get turns"), None);
    assert_eq!(ambiguous_kind("exec pod/helper-0 -c agent -- env"), None);
    assert_eq!(ambiguous_kind("delete crd agents.lastword.dev"), None);
}

/// The kind in a kubectl command that another product may have under that name; what deletes names the group as well.
fn ambiguous_kind(command: &str) -> Option<&str> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let deletes = words.contains(&"delete");
    // The word behind a flag is the flag's, as in `-c agent`.
    let plain = (0..words.len()).filter(|&at| at == 0 || !words[at - 1].starts_with('-')).map(|at| words[at]);
    plain.flat_map(|word| word.split('/').next().unwrap_or(word).split(',')).find(|kind| match *kind {
        "agent" | "agents" | "agentturn" | "agentturns" => true,
        "turn" | "turns" | "lwagent" => deletes,
        _ => false,
    })
}
