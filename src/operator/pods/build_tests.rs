use std::sync::Arc;

use super::*;
use crate::turn::keys::{StartId, WorkerGroup};
use crate::turn::reason::Reason;
use crate::wire::Credential;

fn config() -> OperatorConfig {
    OperatorConfig {
        namespaces: Vec::new(),
        own_namespace: "lastword".into(),
        identity: "c-1".into(),
        worker_gateways: vec!["http://workers:8081".into()],
        worker_ca: None,
        injector: Injector {
            image: "example.test/lastword:1".into(),
            pull_policy: Some("IfNotPresent".into()),
            pull_secrets: vec!["pull".into()],
        },
    }
}

fn start(spec: Value) -> StartRequest {
    let start_id = StartId::new();
    StartRequest {
        start_id,
        organization: "team".into(),
        agent: "bot".into(),
        worker_group: WorkerGroup::from_key(uuid::Uuid::from_u128(0x0123_4567_89ab)),
        config: 3,
        spec: Arc::new(serde_json::from_value(spec).expect("a spec")),
        agent_uid: Some("agent-uid".into()),
        attempt: 7,
        runtime_ref: "team/bot-x-7".into(),
        credential: Credential::new(start_id),
    }
}

fn exec(container: Value, more: Value) -> Value {
    let mut agent = json!({"name": "agent", "image": "busybox", "command": ["sh", "-c"], "args": ["cat"]});
    merge(&mut agent, container);
    let mut spec = json!({"containers": [agent]});
    merge(&mut spec, more);
    json!({"adapter": "Exec", "template": {"spec": spec}})
}

fn merge(into: &mut Value, more: Value) {
    let Value::Object(more) = more else { panic!("an object") };
    into.as_object_mut().expect("an object").extend(more);
}

fn built(spec: Value) -> Value {
    pod(&config(), &start(spec)).expect("a pod")
}

fn refused(spec: Value) -> String {
    let failure = pod(&config(), &start(spec)).expect_err("refused");
    assert_eq!(failure.reason, Reason::StartFailed);
    failure.detail.expect("a detail")
}

fn find<'a>(list: &'a Value, name: &str) -> &'a Value {
    list.as_array().expect("a list").iter().find(|v| v["name"] == name).unwrap_or_else(|| panic!("{name} in {list}"))
}

fn env<'a>(container: &'a Value, name: &str) -> &'a str {
    find(&container["env"], name)["value"].as_str().expect("a value")
}

#[test]
fn names_are_labels() {
    let mut start = start(exec(json!({}), json!({})));
    start.agent = "a".repeat(60);
    let name = name(&start);
    assert!(name.len() <= 63 && name.starts_with("aaa") && name.ends_with("-7"), "{name}");
    start.worker_group = WorkerGroup::OfAgent;
    assert_ne!(super::name(&start), name);
    start.agent = format!("{}-{}", "a".repeat(49), "b".repeat(10));
    assert!(!super::name(&start).contains("--"));
    start.attempt = i64::MAX;
    assert!(super::name(&start).len() <= 63);
}

#[test]
fn an_exec_pod() {
    let pod = built(exec(json!({}), json!({})));
    let owner = json!([{"apiVersion": "lastword.dev/v1alpha1", "kind": "Agent", "name": "bot", "uid": "agent-uid",
                        "controller": true, "blockOwnerDeletion": false}]);
    assert_eq!(pod["metadata"]["ownerReferences"], owner);
    assert_eq!(pod["metadata"]["name"], "bot-x-7");
    assert_eq!(pod["metadata"]["namespace"], "team");
    assert_eq!(pod["metadata"]["labels"], json!({MANAGED_BY: "lastword", AGENT: "bot"}));
    assert_eq!(pod["metadata"]["annotations"][WORKER_GROUP], "bot-0123456789ab");
    let spec = &pod["spec"];
    assert_eq!(spec["restartPolicy"], "Never");
    assert_eq!(spec["terminationGracePeriodSeconds"], 600);
    let agent = find(&spec["containers"], "agent");
    assert_eq!(agent["command"], json!(["/lastword-bin/lastword", "worker", "exec", "--", "sh", "-c"]));
    assert_eq!(agent["args"], json!(["cat"]));
    assert_eq!(env(agent, "LASTWORD_WORKER_GATEWAY"), "http://workers:8081");
    assert_eq!(env(agent, "LASTWORD_TOKEN_FILE"), "/var/run/secrets/lastword.dev/token");
    assert_eq!(env(agent, "LASTWORD_TURNS_PER_WORKER"), "1");
    assert_eq!(env(agent, "LASTWORD_DRAIN_SECONDS"), "595");
    let binary = find(&agent["volumeMounts"], "lastword-bin");
    assert_eq!(binary, &json!({"name": "lastword-bin", "mountPath": "/lastword-bin", "readOnly": true}));
    let install = find(&spec["initContainers"], "lastword-install");
    assert_eq!(install["command"], json!(["/lastword", "worker", "install", "/lastword-bin"]));
    assert_eq!(install["image"], "example.test/lastword:1");
    assert_eq!(install["imagePullPolicy"], "IfNotPresent");
    assert!(
        install["resources"]["limits"]["memory"].is_string() && install["resources"]["requests"]["cpu"].is_string()
    );
    assert!(install["volumeMounts"].as_array().expect("mounts").iter().all(|m| m["name"] != "lastword-token"));
    assert_eq!(spec["imagePullSecrets"], json!([{"name": "pull"}]));
    let token = find(&spec["volumes"], "lastword-token");
    let expected = json!({"audience": "lastword.dev", "expirationSeconds": 600, "path": "token"});
    assert_eq!(token["projected"]["sources"][0]["serviceAccountToken"], expected);
}

/// The checks of the Pod Security Standard `restricted`.
fn assert_restricted(pod: &Value) {
    let spec = &pod["spec"];
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    for container in ["containers", "initContainers"].iter().flat_map(|l| spec[*l].as_array().into_iter().flatten()) {
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false, "{container}");
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{container}");
    }
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        assert!(volume.get("emptyDir").or(volume.get("projected")).is_some(), "{volume}");
    }
}

#[test]
fn defaults_are_restricted_and_the_template_wins() {
    let pod = built(exec(
        json!({}),
        json!({"containers": [
        {"name": "agent", "image": "busybox", "command": ["cat"]},
        {"name": "side", "image": "busybox"},
    ], "initContainers": [{"name": "first", "image": "busybox"}]}),
    ));
    assert_restricted(&pod);
    let spec = &pod["spec"];
    for (key, value) in [("runAsUser", 65532), ("runAsGroup", 65532), ("fsGroup", 65532)] {
        assert_eq!(spec["securityContext"][key], value);
    }
    assert_eq!((&spec["automountServiceAccountToken"], &spec["enableServiceLinks"]), (&json!(false), &json!(false)));
    let side = find(&spec["containers"], "side");
    assert_eq!(side["securityContext"]["readOnlyRootFilesystem"], true);
    assert!(side.get("env").is_none(), "only the adapter is told where the gateways are");
    let tmps: Vec<&Value> =
        ["containers", "initContainers"]
            .iter()
            .flat_map(|l| spec[*l].as_array().expect("containers"))
            .map(|c| {
                &c["volumeMounts"].as_array().expect("mounts").iter().find(|m| m["mountPath"] == "/tmp").expect("/tmp")
                    ["name"]
            })
            .collect();
    assert_eq!(tmps.len(), 4);
    for tmp in &tmps {
        assert_eq!(tmps.iter().filter(|t| t == &tmp).count(), 1, "each has its own");
        find(&spec["volumes"], tmp.as_str().expect("a name"));
    }

    let pod = built(exec(
        json!({"securityContext": {"readOnlyRootFilesystem": false, "runAsUser": 5, "capabilities": {"add": ["NET_BIND_SERVICE"]}}}),
        json!({
            "securityContext": {"runAsUser": null, "runAsGroup": null, "fsGroup": null, "supplementalGroups": [7]},
            "terminationGracePeriodSeconds": 2, "nodeSelector": {"a": "b"}, "someNewField": {"x": [1]},
            "automountServiceAccountToken": true,
        }),
    ));
    let (spec, agent) = (&pod["spec"], find(&pod["spec"]["containers"], "agent"));
    assert_restricted(&pod);
    let context =
        json!({"runAsNonRoot": true, "supplementalGroups": [7], "seccompProfile": {"type": "RuntimeDefault"}});
    assert_eq!(spec["securityContext"], context, "null leaves a field unset");
    assert_eq!(agent["securityContext"]["capabilities"], json!({"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]}));
    assert!(agent["volumeMounts"].as_array().expect("mounts").iter().all(|m| m["mountPath"] != "/tmp"));
    assert_eq!(spec["nodeSelector"], json!({"a": "b"}));
    assert_eq!(spec["someNewField"], json!({"x": [1]}));
    assert_eq!(spec["automountServiceAccountToken"], true);
    assert_eq!(spec["terminationGracePeriodSeconds"], 2);
    assert_eq!(env(agent, "LASTWORD_DRAIN_SECONDS"), "1");
    assert_eq!(env(agent, "LASTWORD_KILL_SECONDS"), "0");
    let mounted = built(exec(json!({"volumeMounts": [{"name": "t", "mountPath": "/tmp/"}]}), json!({})));
    let agent = find(&mounted["spec"]["containers"], "agent");
    assert_eq!(agent["volumeMounts"].as_array().expect("mounts").iter().filter(|m| m["name"] != "t").count(), 2);
}

#[test]
fn graces() {
    for (grace, drain) in [(0, 0), (1, 0), (2, 1), (3, 1), (8, 4), (10, 5), (30, 25), (600, 595)] {
        assert_eq!(drain_seconds(grace), drain, "{grace}");
    }
    let mut spec = exec(json!({}), json!({}));
    spec["timing"] = json!({"turnSeconds": 40});
    assert_eq!(built(spec)["spec"]["terminationGracePeriodSeconds"], 40);
}

#[test]
fn the_templates_own_metadata_and_variables() {
    let mut spec = exec(
        json!({"env": [{"name": "A", "value": "$(LASTWORD_WORKER_GATEWAY)"}, {"name": "LASTWORD_WORKER_GATEWAY", "value": "http://evil"},
                       {"name": "LASTWORD_CREDENTIAL", "value": "x"}],
               "terminationMessagePath": "/tmp/end"}),
        json!({}),
    );
    spec["template"]["metadata"] = json!({"labels": {"team": "x", MANAGED_BY: "helm"}, "annotations": {"note": "y"}});
    let pod = built(spec);
    assert_eq!(pod["metadata"]["labels"], json!({"team": "x", MANAGED_BY: "lastword", AGENT: "bot"}));
    assert_eq!(pod["metadata"]["annotations"]["note"], "y");
    let agent = find(&pod["spec"]["containers"], "agent");
    let names: Vec<&str> = agent["env"].as_array().expect("env").iter().map(named).collect();
    assert_eq!(names.iter().filter(|n| **n == "LASTWORD_WORKER_GATEWAY").count(), 1);
    assert_eq!(env(agent, "LASTWORD_WORKER_GATEWAY"), "http://workers:8081");
    assert!(!names.contains(&"LASTWORD_CREDENTIAL"));
    assert_eq!(names.last(), Some(&"A"), "ours stand in front");
    assert_eq!(env(agent, "LASTWORD_TERMINATION_LOG"), "/tmp/end");
}

#[test]
fn an_openai_pod() {
    let openai = json!({"baseURL": "http://localhost:8000/v1", "model": "m$(X)", "systemPrompt": "be $kind",
                        "apiKeySecretRef": {"name": "s", "key": "k"}, "caSecretRef": {"name": "c", "key": "ca.crt"},
                        "headers": [{"name": "X-Team", "value": "$red"}]});
    let template = json!({"spec": {"containers": [{"name": "agent", "image": "model"}]}});
    let pod = built(json!({"adapter": "OpenAI", "openai": openai, "template": template}));
    assert_restricted(&pod);
    let spec = &pod["spec"];
    let (adapter, server) = (find(&spec["containers"], "lastword"), find(&spec["containers"], "agent"));
    let command = json!([
        "/lastword",
        "worker",
        "openai",
        "--base-url=http://localhost:8000/v1",
        "--model=m$$(X)",
        "--wait-ready=105",
        "--api-key-env=LASTWORD_OPENAI_API_KEY",
        "--ca-env=LASTWORD_OPENAI_CA",
        "--header-env=X-Team=LASTWORD_OPENAI_HEADER_VALUE_0"
    ]);
    assert_eq!(adapter["command"], command);
    assert_eq!(env(adapter, "LASTWORD_OPENAI_SYSTEM_PROMPT"), "be $$kind");
    let key = json!({"secretKeyRef": {"name": "s", "key": "k"}});
    assert_eq!(find(&adapter["env"], "LASTWORD_OPENAI_API_KEY")["valueFrom"], key);
    let authorities = json!({"secretKeyRef": {"name": "c", "key": "ca.crt"}});
    assert_eq!(find(&adapter["env"], "LASTWORD_OPENAI_CA")["valueFrom"], authorities);
    assert_eq!(env(adapter, "LASTWORD_OPENAI_HEADER_VALUE_0"), "$$red");
    assert!(server.get("env").is_none() && server.get("command").is_none());
    let has_token =
        |c: &Value| c["volumeMounts"].as_array().expect("mounts").iter().any(|m| m["name"] == "lastword-token");
    assert!(has_token(adapter) && !has_token(server), "a model server has no token");
    assert!(spec.get("initContainers").is_none());
    let without = built(json!({"adapter": "OpenAI", "openai": openai}));
    assert_eq!(without["spec"]["containers"].as_array().map(Vec::len), Some(1));
    let command = find(&without["spec"]["containers"], "lastword")["command"].to_string();
    assert!(command.contains("--wait-ready=0"), "a server elsewhere is not waited for: {command}");
}

#[test]
fn a_custom_pod_runs_as_it_is() {
    let template = json!({"spec": {"containers": [{"name": "agent", "image": "mine"}]}});
    let pod = built(json!({"adapter": "Custom", "template": template}));
    let agent = find(&pod["spec"]["containers"], "agent");
    assert!(agent.get("command").is_none());
    assert_eq!(env(agent, "LASTWORD_TOKEN_FILE"), "/var/run/secrets/lastword.dev/token");
    assert!(pod["spec"].get("initContainers").is_none() && pod["spec"].get("imagePullSecrets").is_none());
}

#[test]
fn what_cannot_be_built() {
    let side = |name: &str| {
        json!({"containers": [
        {"name": "agent", "image": "i", "command": ["c"]}, {"name": name, "image": "i"}]})
    };
    for (spec, says) in [
        (exec(json!({"image": ""}), json!({})), "needs an image"),
        (exec(json!({"command": []}), json!({})), "needs a command"),
        (json!({"adapter": "Custom", "template": {"spec": {"containers": []}}}), "no container named agent"),
        (json!({"adapter": "Custom", "template": {"spec": {"containers": [{"name": "agent"}]}}}), "needs an image"),
        (json!({"adapter": "OpenAI"}), "needs spec.openai"),
        (exec(json!({}), side("lastword-install")), "lastword-install is reserved"),
        (exec(json!({}), json!({"volumes": [{"name": "lastword-bin", "emptyDir": {}}]})), "lastword-bin is reserved"),
        (
            exec(json!({"volumeMounts": [{"name": "v", "mountPath": "/lastword-bin"}]}), json!({})),
            "/lastword-bin is reserved",
        ),
        (
            json!({"adapter": "OpenAI", "openai": {"baseURL": "http://localhost:8000/v1", "model": "m"},
                   "template": {"spec": {"containers": [{"name": "agent", "image": "i", "volumeMounts": [
                       {"name": "lastword-token", "mountPath": "/t"}]}]}}}),
            "lastword-token is reserved",
        ),
        (exec(json!({}), json!({"volumes": "x"})), "volumes in the template must be a list"),
        (exec(json!({}), json!({"initContainers": ["x"]})), "initContainers in the template must be a list"),
    ] {
        let detail = refused(spec);
        assert!(detail.contains(says), "{detail:?}: {says}");
    }
    let start = StartRequest { agent_uid: None, ..start(exec(json!({}), json!({}))) };
    assert!(pod(&config(), &start).is_err());
}

/// Nothing about a worker but its Agent's generation may roll it.
#[test]
fn only_the_injected_parts_follow_the_injector() {
    let mut other = config();
    other.injector.image = "example.test/lastword:2".into();
    let start = start(exec(json!({}), json!({})));
    let (one, two) = (pod(&config(), &start).expect("a pod"), pod(&other, &start).expect("a pod"));
    assert_eq!(one["metadata"], two["metadata"]);
    assert_eq!(one["spec"]["containers"], two["spec"]["containers"]);
}

/// A file beside the token, from an annotation: no object is made in the Agents' namespaces.
#[tokio::test]
async fn authorities_of_the_gateways_are_a_file_in_the_pod() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls/first-ca.crt");
    let mut config = config();
    config.worker_ca = Some(crate::tls::authorities(&file).expect("authorities"));
    let theirs = json!({"env": [{"name": "LASTWORD_WORKER_GATEWAY_CA", "value": "/theirs"}]});
    let pod = pod(&config, &start(exec(theirs, json!({})))).expect("a pod");
    let pem = std::fs::read_to_string(&file).expect("there");
    assert_eq!(pod["metadata"]["annotations"]["lastword.dev/gateway-ca"], pem);
    let agent = find(&pod["spec"]["containers"], "agent");
    let given: Vec<_> =
        agent["env"].as_array().expect("a list").iter().filter(|v| v["name"] == "LASTWORD_WORKER_GATEWAY_CA").collect();
    assert_eq!(
        given,
        [&json!({"name": "LASTWORD_WORKER_GATEWAY_CA", "value": "/var/run/secrets/lastword.dev/ca.crt"})]
    );
    let sources = &find(&pod["spec"]["volumes"], "lastword-token")["projected"]["sources"];
    assert_eq!(sources[0]["serviceAccountToken"]["path"], "token");
    let item = json!({"path": "ca.crt", "fieldRef": {"fieldPath": "metadata.annotations['lastword.dev/gateway-ca']"}});
    assert_eq!(sources[1], json!({"downwardAPI": {"items": [item]}}));
    assert!(!built(exec(json!({}), json!({}))).to_string().contains("ca.crt"), "without authorities nothing is added");
}
