//! The examples of B16: for each field of both specs one that the API server takes and one that it refuses.

use serde_json::{Value, json};

use crate::parallel::fields::Field;

fn long(characters: usize) -> Value {
    "x".repeat(characters).into()
}

/// A count or a number of seconds: both ends of what is taken, and beyond.
fn between(path: &'static str, low: i64, high: i64) -> [Field; 2] {
    [(path, json!(low), json!(low - 1)), (path, json!(high), json!(high + 1))]
}

pub fn turn_fields() -> Vec<Field> {
    let mut fields = vec![
        ("spec.agentRef.name", long(63), long(64)),
        ("spec.agentRef.name", json!("a"), json!("")),
        ("spec.agentRef", json!({"name": "a"}), json!({})),
        ("spec.input", long(131072), long(131073)),
        ("spec.input", json!("ä".repeat(65536)), json!("ä".repeat(65537))),
        ("spec.input", json!("a"), json!("")),
        ("spec.input", json!("a"), Value::Null),
        ("spec.conversation", long(256), long(257)),
        ("spec.conversation", json!("a"), json!("")),
        ("spec.messageId", long(256), long(257)),
        ("spec.messageId", json!("a"), json!("")),
        ("spec.user", long(256), long(257)),
        ("spec.user", json!("a"), json!("")),
        ("spec.cancel", json!(true), json!("yes")),
    ];
    fields.extend(between("spec.deadlineSeconds", 1, 604800));
    fields.extend(between("spec.ttlSecondsAfterFinished", 0, 31536000));
    fields
}

pub fn agent_fields() -> Vec<Field> {
    let mut fields = template_fields();
    fields.extend([
        ("metadata.name", long(63), long(64)),
        (
            "spec",
            json!({"adapter": "OpenAI", "openai": {"baseURL": "http://m", "model": "m"}}),
            json!({"adapter": "OpenAI"}),
        ),
        ("spec.scope", json!("Conversation"), json!("conversation")),
        ("spec.adapter", json!("Custom"), json!("Shell")),
        ("spec.adapter", json!("OpenAI"), Value::Null),
        ("spec.openai.baseURL", json!("https://model/v1"), json!("ftp://model")),
        (
            "spec.openai.baseURL",
            json!(format!("http://{}", "x".repeat(2041))),
            json!(format!("http://{}", "x".repeat(2042))),
        ),
        ("spec.openai.model", long(256), long(257)),
        ("spec.openai.model", json!("m"), json!("")),
        ("spec.openai.systemPrompt", long(65536), long(65537)),
        ("spec.openai.apiKeySecretRef.name", long(253), long(254)),
        ("spec.openai.apiKeySecretRef.key", long(253), json!("")),
        ("spec.limits", json!({"minWorkers": 2, "maxWorkers": 2}), json!({"minWorkers": 3, "maxWorkers": 2})),
        ("spec.limits", json!({"minWorkers": 10}), json!({"minWorkers": 11})),
        ("spec.timing", json!({"heartbeatSeconds": 29}), json!({"heartbeatSeconds": 30})),
        (
            "spec.timing",
            json!({"heartbeatSeconds": 1, "leaseSeconds": 3}),
            json!({"heartbeatSeconds": 1, "leaseSeconds": 2}),
        ),
        ("spec.timing.heartbeatSeconds", json!(1), json!(0)),
        ("spec.limits.minWorkers", json!(0), json!(-1)),
    ]);
    fields.extend(between("spec.limits.maxWorkers", 1, 10000));
    fields.extend(between("spec.limits.turnsPerWorker", 1, 10000));
    fields.extend(between("spec.limits.maxQueuedTurns", 1, 1000000));
    fields.extend(between("spec.timing.startSeconds", 1, 86400));
    fields.extend(between("spec.timing.leaseSeconds", 1, 86400));
    fields.extend(between("spec.timing.turnSeconds", 1, 604800));
    fields.extend(between("spec.timing.drainSeconds", 0, 86400));
    fields.extend(between("spec.timing.idleSeconds", 0, 604800));
    fields.extend(between("spec.timing.startAttempts", 1, 10));
    fields.extend(guardrail_fields());
    fields.extend(platform_fields());
    fields.extend(alternatives());
    fields
}

fn template_fields() -> Vec<Field> {
    let container = |name: &str| json!({"name": name, "command": ["cat"]});
    let many = |n: usize| json!((0..n).map(|i| format!("{i}")).collect::<Vec<_>>());
    let containers = |n: usize| {
        let others = (1..n).map(|i| container(&format!("c{i}")));
        json!(std::iter::once(container("agent")).chain(others).collect::<Vec<_>>())
    };
    vec![
        ("spec.template.metadata.labels", json!({"a": "b"}), json!({"a": 1})),
        ("spec.template.metadata.annotations", json!({"a": "b"}), json!({"a": ["b"]})),
        ("spec.template.spec.restartPolicy", json!("Never"), json!("Always")),
        ("spec.template.spec.containers", containers(16), containers(17)),
        ("spec.template.spec.containers", containers(2), json!([container("agent"), container("agent")])),
        ("spec.template.spec.containers", containers(1), json!([container("other")])),
        ("spec.template.spec.containers[].name", json!("agent"), json!("")),
        ("spec.template.spec.containers[].image", long(1024), long(1025)),
        ("spec.template.spec.containers[].command", many(256), many(257)),
        ("spec.template.spec.containers[].command", many(1), json!([])),
        ("spec.template.spec.containers[].args", many(256), many(257)),
        ("spec.template.spec.containers[].env[].name", long(1024), long(1025)),
        ("spec.template.spec.containers[].env[].value", json!("1"), json!(1)),
        ("spec.template.spec.containers[].workingDir", long(4096), long(4097)),
    ]
}

fn guardrail_fields() -> Vec<Field> {
    let hook = |more: Value| {
        let mut hook = json!({"url": "http://guard"});
        hook.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        json!([{"webhook": hook}])
    };
    vec![
        (
            "spec.guardrails.input",
            json!([{"cel": "true"}]),
            json!([{"cel": "true", "webhook": {"url": "http://guard"}}]),
        ),
        ("spec.guardrails.input", json!(vec![json!({"cel": "true"}); 16]), json!(vec![json!({"cel": "true"}); 17])),
        ("spec.guardrails.input[]", json!({"cel": "true"}), json!({})),
        ("spec.guardrails.input[].message", long(512), long(513)),
        ("spec.guardrails.input[].failurePolicy", json!("Ignore"), json!("Maybe")),
        ("spec.guardrails.input[].webhook", json!({"url": "https://guard"}), json!({"url": "ftp://guard"})),
        ("spec.guardrails.input[].webhook.url", json!("http://guard"), json!("guard")),
        ("spec.guardrails.input[].webhook.timeoutSeconds", json!(30), json!(31)),
        ("spec.guardrails.input[].webhook.timeoutSeconds", json!(1), json!(0)),
        ("spec.guardrails.input", hook(json!({})), hook(json!({"urlSecretRef": {"name": "s", "key": "k"}}))),
    ]
}

fn platform_fields() -> Vec<Field> {
    let named = |n: usize| {
        json!((0..n).map(|i| json!({"name": format!("p{i}"), "slack": {"url": "http://s"}})).collect::<Vec<_>>())
    };
    vec![
        ("spec.platforms", named(16), named(17)),
        (
            "spec.platforms",
            named(1),
            json!([{"name": "a", "slack": {"url": "http://s"}, "webhook": {"url": "http://s"}}]),
        ),
        ("spec.platforms", json!([]), json!([{"name": "a"}])),
        ("spec.platforms[].name", long(63), long(64)),
        ("spec.platforms[].name", json!("web"), json!("api")),
        ("spec.platforms[].name", json!("web"), json!("kubernetes")),
        ("spec.platforms[].webhook.url", json!("http://hook"), json!("hook")),
        (
            "spec.platforms[].webhook",
            json!({"url": "http://h"}),
            json!({"url": "http://h", "urlSecretRef": {"name": "s", "key": "k"}}),
        ),
    ]
}

/// Fields that take the place of another one of the base object: `PLACE for FIELD` puts a whole value at the place.
fn alternatives() -> Vec<Field> {
    let secret = |name: Value, key: Value| json!({"urlSecretRef": {"name": name, "key": key}});
    let mut fields = vec![
        (
            "spec.platforms for spec.platforms[].slack.url",
            json!([{"name": "p", "slack": {"url": "https://s"}}]),
            json!([{"name": "p", "slack": {"url": "s"}}]),
        ),
        (
            "spec.guardrails.input for spec.guardrails.input[].cel",
            json!([{"cel": "x".repeat(2048)}]),
            json!([{"cel": "x".repeat(2049)}]),
        ),
    ];
    type Around = fn(Value) -> Value;
    let places: [(&str, &str, Around); 3] = [
        (
            "spec.guardrails.input for spec.guardrails.input[].webhook.urlSecretRef.name",
            "spec.guardrails.input for spec.guardrails.input[].webhook.urlSecretRef.key",
            |d| json!([{"webhook": d}]),
        ),
        (
            "spec.platforms for spec.platforms[].webhook.urlSecretRef.name",
            "spec.platforms for spec.platforms[].webhook.urlSecretRef.key",
            |d| json!([{"name": "p", "webhook": d}]),
        ),
        (
            "spec.platforms for spec.platforms[].slack.urlSecretRef.name",
            "spec.platforms for spec.platforms[].slack.urlSecretRef.key",
            |d| json!([{"name": "p", "slack": d}]),
        ),
    ];
    for (name, key, around) in places {
        fields.push((name, around(secret(long(253), json!("k"))), around(secret(long(254), json!("k")))));
        fields.push((key, around(secret(json!("s"), long(253))), around(secret(json!("s"), json!("")))));
    }
    fields
}
