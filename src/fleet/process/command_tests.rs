use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::turn::keys::{StartId, WorkerGroup};
use crate::turn::reason::Reason;
use crate::wire::Credential;

fn config() -> ProcessConfig {
    let mut config = ProcessConfig::new("node", "http://127.0.0.1:8081", std::env::temp_dir()).expect("our own path");
    config.program = "/bin/lastword".into();
    config.secrets = Arc::new(|secret| (secret.name == "openai").then(|| format!("sk-{}", secret.key)));
    config
}

fn request(spec: serde_json::Value) -> StartRequest {
    let start_id = StartId::new();
    StartRequest {
        start_id,
        organization: "default".into(),
        agent: "a".into(),
        worker_group: WorkerGroup::OfAgent,
        config: 1,
        spec: Arc::new(serde_json::from_value(spec).expect("a spec")),
        agent_uid: None,
        attempt: 0,
        runtime_ref: String::new(),
        credential: Credential::new(start_id),
    }
}

fn agent(container: serde_json::Value) -> serde_json::Value {
    let mut container = container;
    container["name"] = json!("agent");
    json!({"spec": {"containers": [{"name": "sidecar"}, container]}})
}

/// What the keeper runs.
fn line(command: &KeptCommand) -> Vec<String> {
    assert_eq!(command.command.get_program(), "/bin/lastword", "the keeper");
    command.command.get_args().map(|w| w.to_string_lossy().into_owned()).collect()
}

fn variable(command: &KeptCommand, name: &str) -> Option<String> {
    command.command.get_envs().find(|(n, _)| *n == name)?.1.map(|v| v.to_string_lossy().into_owned())
}

#[test]
fn each_adapter_has_its_command_line() {
    let exec = json!({"adapter": "Exec", "limits": {"turnsPerWorker": 3}, "timing": {"drainSeconds": 7},
        "template": agent(json!({"command": ["sh", "-c"], "args": ["echo $(GREETING) $$HOME $(NO)"],
            "env": [{"name": "NAME", "value": "world"}, {"name": "GREETING", "value": "hello $(NAME)"},
                    {"name": "LASTWORD_CREDENTIAL", "value": "mine"}]}))});
    let request = request(exec);
    let exec = command(&config(), &request).expect("works");
    assert_eq!(line(&exec), ["/bin/lastword", "worker", "exec", "--", "sh", "-c", "echo hello world $HOME $(NO)"]);
    assert_eq!(variable(&exec, "GREETING").as_deref(), Some("hello world"));
    assert_eq!(variable(&exec, env::CREDENTIAL), Some(request.credential.reveal()), "ours wins");
    assert_eq!(variable(&exec, env::CAPACITY).as_deref(), Some("3"));
    assert_eq!(variable(&exec, env::DRAIN_SECONDS).as_deref(), Some("7"));
    assert_eq!(variable(&exec, env::GATEWAY).as_deref(), Some("http://127.0.0.1:8081"));
}

#[test]
fn openai_with_and_without_a_server_of_its_own() {
    let openai = json!({"baseURL": "http://localhost:8000/v1", "model": "-m", "systemPrompt": "Be brief.",
        "apiKeySecretRef": {"name": "openai", "key": "main"}});
    let remote = command(&config(), &request(json!({"adapter": "OpenAI", "openai": openai}))).expect("works");
    let flags = |wait: &str| {
        let wait = format!("--wait-ready={wait}");
        let key = "--api-key-env=LASTWORD_OPENAI_API_KEY";
        ["--base-url=http://localhost:8000/v1".to_owned(), "--model=-m".into(), wait, key.into()]
    };
    assert_eq!(line(&remote)[..3], ["/bin/lastword", "worker", "openai"]);
    assert_eq!(line(&remote)[3..], flags("0"), "a server elsewhere is not waited for");
    assert_eq!(variable(&remote, "LASTWORD_OPENAI_API_KEY").as_deref(), Some("sk-main"));
    assert_eq!(variable(&remote, "LASTWORD_OPENAI_SYSTEM_PROMPT").as_deref(), Some("Be brief."));
    let spec = json!({"adapter": "OpenAI", "openai": openai, "template": agent(json!({"command": ["vllm", "serve"]}))});
    let local = command(&config(), &request(spec)).expect("works");
    assert_eq!(line(&local)[3..7], flags("105"));
    assert_eq!(line(&local)[7..], ["--model-server", "--", "vllm", "serve"]);
}

#[test]
fn a_custom_program_is_the_worker() {
    let custom = |container| request(json!({"adapter": "Custom", "template": agent(container)}));
    let named = command(&config(), &custom(json!({"command": ["python3", "w.py"]}))).expect("works");
    assert_eq!(line(&named), ["python3", "w.py"]);
    let ours = command(&config(), &custom(json!({"command": ["lastword", "worker", "echo"]}))).expect("works");
    assert_eq!(line(&ours), ["/bin/lastword", "worker", "echo"]);
    let path = command(&config(), &custom(json!({"command": ["./w"], "workingDir": "/"}))).expect("works");
    assert_eq!(line(&path), ["/./w"]);
}

fn from_secret(name: &str, optional: bool) -> serde_json::Value {
    json!({"name": "KEY", "valueFrom": {"secretKeyRef": {"name": name, "key": "main", "optional": optional}}})
}

#[test]
fn a_variable_may_come_from_a_secret() {
    let custom =
        |env| request(json!({"adapter": "Custom", "template": agent(json!({"command": ["x"], "env": [env]}))}));
    let given = command(&config(), &custom(from_secret("openai", false))).expect("works");
    assert_eq!(variable(&given, "KEY").as_deref(), Some("sk-main"));
    let none = command(&config(), &custom(from_secret("no", true))).expect("works");
    assert_eq!(variable(&none, "KEY"), None);
}

#[test]
fn what_is_inherited_is_no_secret() {
    for name in ["PATH", "HOME", "LC_ALL", "TZ"] {
        assert!(is_inherited(Adapter::Exec, name), "{name}");
    }
    for name in ["OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "DATABASE_URL", "LASTWORD_API_KEY", "https_proxy", "path"] {
        assert!(!is_inherited(Adapter::Custom, name), "{name}");
        assert_eq!(is_inherited(Adapter::OpenAI, name), name == "https_proxy", "{name}");
    }
}

#[test]
fn what_cannot_work_says_why() {
    let custom = |container| json!({"adapter": "Custom", "template": agent(container)});
    let unknown = |field: &str| json!({"baseURL": "http://x", "model": "m", field: {"name": "no", "key": "k"}});
    let openai = |openai: serde_json::Value| json!({"adapter": "OpenAI", "openai": openai});
    let header = json!([{"name": "a", "value": "b"}, {"name": "c", "valueSecretRef": {"name": "no", "key": "k"}}]);
    for (spec, why) in [
        (custom(json!({"image": "i"})), "needs a command"),
        (custom(json!({"command": ["x"], "workingDir": "no/such"})), "no/such does not exist"),
        (
            custom(json!({"command": ["x"], "env": [{"name": "KEY", "valueFrom": {"fieldRef": {}}}]})),
            "env KEY: of valueFrom, only",
        ),
        (custom(json!({"command": ["x"], "env": [from_secret("no", false)]})), "env KEY: no secret \"no\""),
        (
            custom(json!({"command": ["x"], "envFrom": [{"secretRef": {"name": "openai"}}]})),
            "envFrom works in Kubernetes alone",
        ),
        (json!({"adapter": "OpenAI"}), "needs spec.openai"),
        (openai(unknown("apiKeySecretRef")), "spec.openai.apiKeySecretRef: no secret \"no\""),
        (openai(unknown("caSecretRef")), "spec.openai.caSecretRef: no secret \"no\""),
        (
            openai(json!({"baseURL": "http://x", "model": "m", "headers": header})),
            "spec.openai.headers[1].valueSecretRef: no secret \"no\"",
        ),
    ] {
        let failure = command(&config(), &request(spec)).err().expect(why);
        assert_eq!(failure.reason, Reason::StartFailed);
        let detail = failure.detail.expect("a detail");
        assert!(detail.contains(why), "{detail}");
    }
}
