//! Ways for a worker not to come to be. What cannot heal is told at once, what may heal when the start is due; each with
//! its own reason, and with its own cause for operators.

use std::time::Duration;

use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::scene::agents::{ACTOR, busybox, exec, shell, with, with_agent, with_pod};
use crate::scene::cluster::Cluster;
use crate::scene::faults::{Fault, Row};
use crate::scene::place::Place;

/// What may yet heal is given up after this. A status of the kubelet may be 15 s behind, and it has the cause.
const START_SECONDS: u64 = 30;
/// What cannot heal is told long before any start deadline, which is at 80 s unless a row says otherwise.
const AT_ONCE: Duration = Duration::from_secs(60);

/// A cause that cannot heal.
async fn at_once(row: Row) {
    let Some(told) = row.run().await.client_p50() else { return };
    assert!(told < AT_ONCE, "told after {told:?}, as if it might heal");
}

/// A cause that may heal: the agent with less time to start.
async fn when_due(mut row: Row) {
    row.agent = with(row.agent, json!({"timing": {"startSeconds": START_SECONDS}}));
    let Some(told) = row.run().await.client_p50() else { return };
    assert!(told >= Duration::from_secs(START_SECONDS), "told after {told:?}, though it might have healed");
}

fn row(name: &'static str, agent: Value, reason: &'static [&'static str], detail: &'static str) -> Row {
    Row::new(name, agent, Fault::Start, reason).telling(detail)
}

fn agent() -> Value {
    shell(ACTOR)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_pulled_is_told_at_once() {
    let agent = with_agent(agent(), json!({"image": "localhost/no-such-image:1", "imagePullPolicy": "Never"}));
    at_once(row("no_image", agent, &["ImagePull"], "container agent: ErrImageNeverPull")).await;
}

/// It is tried again and again.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_cannot_be_reached_is_told_when_due() {
    let agent = with_agent(agent(), json!({"image": "registry.invalid/agent:1"}));
    when_due(row("no_registry", agent, &["ImagePull"], "ImagePull")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_secret_as_a_variable_is_told_when_due() {
    let env = json!([{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "missing", "key": "key"}}}]);
    let agent = with_agent(agent(), json!({"env": env}));
    when_due(row("secret_env", agent, &["StartFailed"], "secret \"missing\" not found")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_secret_as_a_volume_is_told_when_due() {
    let agent = with_pod(agent(), json!({"volumes": [{"name": "key", "secret": {"secretName": "missing"}}]}));
    let agent = with_agent(agent, json!({"volumeMounts": [{"name": "key", "mountPath": "/key"}]}));
    when_due(row("secret_volume", agent, &["StartFailed"], "secret \"missing\" not found")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_no_node_can_hold_is_told_when_due() {
    let agent = with_agent(agent(), json!({"resources": {"requests": {"memory": "900Gi"}}}));
    when_due(row("unschedulable", agent, &["Unschedulable"], "Insufficient memory")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_init_container_is_told_at_once() {
    let init = json!([{"name": "prepare", "image": busybox(), "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", "exit 3"]}]);
    let agent = with_pod(agent(), json!({"initContainers": init}));
    at_once(row("init_fails", agent, &["StartFailed"], "init container prepare: exit code 3")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_does_not_exist_is_told_at_once() {
    at_once(row("no_program", exec(&["/no/such/program"]), &["StartFailed"], "cannot start /no/such/program")).await;
}

/// The namespace enforces `restricted`.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_refused_by_admission_is_told_at_once() {
    let agent = with_pod(agent(), json!({"hostNetwork": true}));
    at_once(row("refused", agent, &["StartFailed"], "violates PodSecurity")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_beyond_the_quota_is_told_when_due() {
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}},
    });
    when_due(row("quota", agent(), &["QuotaExceeded"], "exceeded quota").with(vec![quota])).await;
}

/// A missing Secret that comes in time fails nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_heals_in_time_fails_nothing() {
    let Some(cluster) = Cluster::connect().await else { return };
    let place = Place::new(cluster, "heals").await;
    let env = json!([{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "late", "key": "key"}}}]);
    place.agent("agent", with_agent(shell("echo $KEY"), json!({"env": env}))).await;
    let chat = place.chat("agent", "x").await;
    crate::scene::until("the pod that lacks its Secret", async || {
        let pods = place.living_pods().await;
        let waits = |s: &str| s.contains("CreateContainerConfigError");
        let seen: Vec<String> = pods.iter().map(crate::scene::place::sketch).collect();
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
