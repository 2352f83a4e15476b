//! Every field of both CRDs, a valid and a rejected example each (`fields/*.yaml`), through the real API server. That no
//! field lacks its examples, a test of the crate tells.

use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::fields::{Case, Table};
use crate::scene::cluster::Cluster;
use crate::scene::place::Place;

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_an_agent_is_taken_or_refused_as_shown() {
    check("Agent", &Table::read("agent")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_an_agentturn_is_taken_or_refused_as_shown() {
    check("AgentTurn", &Table::read("agentturn")).await;
}

async fn check(kind: &str, table: &Table) {
    let Some(cluster) = Cluster::connect().await else { return };
    let place = Place::new(cluster, "fields").await;
    let mut kept = table.base().clone();
    kept["metadata"]["name"] = json!("kept");
    place.apply(&kept).await;
    let mut wrong = Vec::new();
    for case in table.cases() {
        let value = &case.object[case.path.split('.').next().unwrap_or_default()];
        match (write(&place, kind, &case).await, case.valid) {
            (Ok(()), true) | (Err(kube::Error::Api(_)), false) => {}
            (Ok(()), false) => wrong.push(format!("{}: taken: {value}", case.path)),
            (Err(error), _) => wrong.push(format!("{}: refused: {value}: {error}", case.path)),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    place.done().await;
}

/// A dry run: all of admission, and nothing is kept.
async fn write(place: &Place, kind: &str, case: &Case) -> Result<(), kube::Error> {
    let api = place.any("lastword.dev/v1alpha1", kind);
    if case.is_status() {
        let dry = PatchParams { dry_run: true, ..PatchParams::default() };
        let status = json!({"status": case.object["status"]});
        return api.patch_status("kept", &dry, &Patch::Merge(status)).await.map(drop);
    }
    let object: DynamicObject = match serde_json::from_value(case.object.clone()) {
        Ok(object) => object,
        Err(error) => return Err(kube::Error::SerdeError(error)),
    };
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    api.create(&dry, &object).await.map(drop)
}

/// What may be changed of an AgentTurn, and what may not; these rules compare with the old object.
#[tokio::test(flavor = "multi_thread")]
async fn an_agentturn_is_immutable_but_for_two_fields() {
    let Some(cluster) = Cluster::connect().await else { return };
    let place = Place::new(cluster, "immutable").await;
    let mut object = Table::read("agentturn").base().clone();
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
