//! B4: ways for a worker not to come to be.

use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::support::agents::{ACTOR, busybox, exec, shell, with, with_agent, with_pod};
use crate::support::cluster::Cluster;
use crate::support::faults::{Fault, Row};
use crate::support::place::Place;

/// What may yet heal is given up after this.
const START_SECONDS: u32 = 15;

fn agent() -> Value {
    with(shell(ACTOR), json!({"timing": {"startSeconds": START_SECONDS}}))
}

async fn row(name: &'static str, agent: Value, reasons: &'static [&'static str]) {
    Row::new(name, agent, Fault::Start, reasons).run().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn image_that_cannot_be_pulled() {
    row(
        "no_image",
        with_agent(agent(), json!({"image": "localhost/no-such-image:1", "imagePullPolicy": "Never"})),
        &["ImagePull"],
    )
    .await;
}

/// It is tried again and again: what may yet heal is given up when the start is due.
#[tokio::test(flavor = "multi_thread")]
async fn registry_that_cannot_be_reached() {
    row("no_registry", with_agent(agent(), json!({"image": "registry.invalid/agent:1"})), &["ImagePull"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_secret_as_env() {
    let env = json!([{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "missing", "key": "key"}}}]);
    row("secret_env", with_agent(agent(), json!({"env": env})), &["StartFailed"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_secret_as_volume() {
    let agent = with_pod(agent(), json!({"volumes": [{"name": "key", "secret": {"secretName": "missing"}}]}));
    let agent = with_agent(agent, json!({"volumeMounts": [{"name": "key", "mountPath": "/key"}]}));
    row("secret_volume", agent, &["StartFailed"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unschedulable() {
    row(
        "unschedulable",
        with_agent(agent(), json!({"resources": {"requests": {"memory": "900Gi"}}})),
        &["Unschedulable"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_init_container() {
    let init = json!([{"name": "prepare", "image": busybox(), "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", "exit 3"]}]);
    row("init_fails", with_pod(shell(ACTOR), json!({"initContainers": init})), &["StartFailed"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn program_that_does_not_exist() {
    row("no_program", exec(&["/no/such/program"]), &["StartFailed"]).await;
}

/// The namespace enforces `restricted`.
#[tokio::test(flavor = "multi_thread")]
async fn pod_refused_by_admission() {
    row("refused", with_pod(agent(), json!({"hostNetwork": true})), &["StartFailed"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_beyond_the_quota() {
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}},
    });
    Row::new("quota", agent(), Fault::Start, &["QuotaExceeded"]).with(vec![quota]).run().await;
}

/// A missing Secret that comes in time fails nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_heals_in_time_fails_nothing() {
    let Some(cluster) = Cluster::connect().await else { return };
    let place = Place::new(cluster, "heals").await;
    let env = json!([{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "late", "key": "key"}}}]);
    place.agent("agent", with_agent(shell("echo $KEY"), json!({"env": env}))).await;
    let chat = place.chat("agent", "x").await;
    crate::support::until("the pod that lacks its Secret", async || {
        let pods = place.living_pods().await;
        let waits = |s: &str| s.contains("CreateContainerConfigError");
        let seen: Vec<String> = pods.iter().map(crate::support::place::sketch).collect();
        if seen.iter().any(|s| waits(s)) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "late"}, "stringData": {"key": "opensesame"},
    });
    place.apply(&secret).await;
    chat.replied(&place, "opensesame\n").await;
    place.any("v1", "Secret").delete("late", &DeleteParams::default()).await.expect("deletes");
    place.done().await;
}
