//! B16: every field of both CRDs, a valid and a rejected example each, through the real API server.

use std::collections::BTreeSet;

use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::support::cluster::Cluster;
use crate::support::fields::{agent_fields, turn_fields};
use crate::support::place::Place;

/// A field's path (`[]` is the first item of a list), what is taken there, and what is not.
pub type Field = (&'static str, Value, Value);

fn base_agent() -> Value {
    json!({
        "apiVersion": "lastword.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "fields"},
        "spec": {
            "adapter": "Exec",
            "template": {"spec": {"containers": [{
                "name": "agent", "image": "x", "command": ["cat"], "env": [{"name": "A", "value": "b"}],
            }]}},
            "openai": {"baseURL": "http://localhost/v1", "model": "m", "apiKeySecretRef": {"name": "s", "key": "k"}},
            "guardrails": {"input": [{"webhook": {"url": "http://guard"}}]},
            "platforms": [{"name": "p", "webhook": {"url": "http://hook"}}, {"name": "q", "slack": {"url": "http://hook"}}],
        },
    })
}

fn base_turn() -> Value {
    json!({
        "apiVersion": "lastword.dev/v1alpha1", "kind": "AgentTurn", "metadata": {"name": "fields"},
        "spec": {"agentRef": {"name": "a"}, "input": "hello"},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_an_agent() {
    check("Agent", base_agent(), agent_fields()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_an_agentturn() {
    check("AgentTurn", base_turn(), turn_fields()).await;
}

async fn check(kind: &str, base: Value, fields: Vec<Field>) {
    let Some(cluster) = Cluster::connect().await else { return };
    let place = Place::new(cluster, "fields").await;
    let mut wrong = Vec::new();
    if let Err(error) = create(&place, kind, &base).await {
        wrong.push(format!("the base itself: {error}"));
    }
    for (path, valid, invalid) in &fields {
        for (value, taken) in [(valid, true), (invalid, false)] {
            let mut object = base.clone();
            set(&mut object, path.split(" for ").next().unwrap_or(path), value);
            match (create(&place, kind, &object).await, taken) {
                (Ok(()), true) | (Err(kube::Error::Api(_)), false) => {}
                (Ok(()), false) => wrong.push(format!("{path}: {} is taken", short(value))),
                (Err(error), _) => wrong.push(format!("{path}: {} is refused: {error}", short(value))),
            }
        }
    }
    // A field that nobody gave an example for is a hole in this table.
    let given: BTreeSet<String> =
        fields.iter().map(|(path, ..)| path.rsplit(" for ").next().unwrap_or(path).to_owned()).collect();
    wrong.extend(spec_fields(kind).difference(&given).map(|path| format!("{path}: no example")));
    assert!(wrong.is_empty(), "{wrong:#?}");
    place.done().await;
}

/// A dry run: all of admission, and nothing is kept.
async fn create(place: &Place, kind: &str, object: &Value) -> Result<(), kube::Error> {
    let object: DynamicObject = serde_json::from_value(object.clone()).expect("an object");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    place.any("lastword.dev/v1alpha1", kind).create(&dry, &object).await.map(drop)
}

/// Puts a value at a path; a null takes the field away.
fn set(object: &mut Value, path: &str, value: &Value) {
    let mut at = object;
    for step in path.split('.') {
        let (name, item) = step.strip_suffix("[]").map_or((step, false), |name| (name, true));
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[name];
        if item {
            if !at.is_array() {
                *at = json!([{}]);
            }
            at = &mut at[0];
        }
    }
    *at = value.clone();
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    text.chars().take(60).collect()
}

/// The paths of all fields of a spec that the CRD knows and that hold no further ones.
fn spec_fields(kind: &str) -> BTreeSet<String> {
    let crd = lastword::crd::crds().into_iter().find(|c| c.spec.names.kind == kind).expect("one of ours");
    let schema = json!(crd.spec.versions[0].schema.as_ref().expect("a schema").open_api_v3_schema);
    let mut found = BTreeSet::new();
    walk(&schema["properties"]["spec"], "spec", &mut found);
    found
}

fn walk(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    if let Some(properties) = schema["properties"].as_object() {
        for (name, property) in properties {
            walk(property, &format!("{path}.{name}"), found);
        }
        return;
    }
    match &schema["items"] {
        items if items["properties"].is_object() => walk(items, &format!("{path}[]"), found),
        _ => drop(found.insert(path.to_owned())),
    }
}

/// What may be changed of an AgentTurn, and what may not; these rules compare with the old object.
#[tokio::test(flavor = "multi_thread")]
async fn an_agentturn_is_immutable_but_for_two_fields() {
    let Some(cluster) = Cluster::connect().await else { return };
    let place = Place::new(cluster, "immutable").await;
    let mut object = base_turn();
    object["spec"]["conversation"] = json!("c");
    object["spec"]["messageId"] = json!("m");
    object["spec"]["user"] = json!("u");
    object["spec"]["deadlineSeconds"] = json!(60);
    place.apply(&object).await;
    let api = place.any("lastword.dev/v1alpha1", "AgentTurn");
    let patch = async |spec: Value| {
        api.patch("fields", &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await.map(drop)
    };
    for change in [
        json!({"agentRef": {"name": "b"}}),
        json!({"input": "other"}),
        json!({"conversation": "d"}),
        json!({"conversation": null}),
        json!({"messageId": "n"}),
        json!({"messageId": null}),
        json!({"user": "v"}),
        json!({"user": null}),
        json!({"deadlineSeconds": 61}),
        json!({"deadlineSeconds": null}),
    ] {
        assert!(patch(change.clone()).await.is_err(), "{change} is taken");
    }
    for change in
        [json!({"ttlSecondsAfterFinished": 100}), json!({"ttlSecondsAfterFinished": null}), json!({"cancel": true})]
    {
        patch(change.clone()).await.unwrap_or_else(|e| panic!("{change}: {e}"));
    }
    assert!(patch(json!({"cancel": false})).await.is_err(), "a cancelled turn stays cancelled");
    place.done().await;
}
