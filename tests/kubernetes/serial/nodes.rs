//! Nodes: drained, without a kubelet, and gone.

use std::time::Instant;

use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::scene::agents::{ACTOR, exec, shell, with, with_pod};
use crate::scene::cluster::{Cluster, NODE};
use crate::scene::place::Place;
use crate::scene::times::{Times, tell};
use crate::scene::turns::Chat;
use crate::scene::{command, processes, until};

async fn ready(cluster: &Cluster, wanted: bool) {
    let nodes: Api<Node> = Api::all(cluster.kube.clone());
    until(&format!("node {NODE} to be Ready: {wanted}"), async || {
        let node = nodes.get(NODE).await.map_err(|e| e.to_string())?;
        let conditions = node.status.unwrap_or_default().conditions.unwrap_or_default();
        let is = conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
        if is == wanted { Ok(()) } else { Err(format!("{conditions:?}")) }
    })
    .await;
}

async fn begun(place: &Place, agent: &str) -> Chat {
    let chat = place.chat(agent, "x").await;
    chat.begun().await;
    chat
}

fn labelled(grace: u32) -> Value {
    let agent = with_pod(shell(ACTOR), json!({"terminationGracePeriodSeconds": grace}));
    with(agent, json!({"template": {"metadata": {"labels": {"e2e": "drained"}}}}))
}

/// One agent outlasts its grace of 2 s and is told so; another finishes in time, and nobody notices.
#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_ends_only_what_outlasts_its_grace() {
    let Some(cluster) = Cluster::connect_local("a node").await else { return };
    let place = Place::new(cluster, "drained").await;
    place.agent("outlasts", labelled(2)).await;
    place.agent("graceful", labelled(60)).await;
    let (outlasts, graceful) = (begun(&place, "outlasts").await, begun(&place, "graceful").await);
    let drain = [
        "drain",
        NODE,
        "--pod-selector=e2e=drained",
        "--delete-emptydir-data",
        "--force",
        "--ignore-daemonsets",
        "--timeout=60s",
    ];
    let fault = Instant::now();
    let drain = tokio::spawn(async move { command("kubectl", &drain).await });
    let told = outlasts.failed(&place, &["Evicted"]).await;
    let mut times = Times::default();
    times.note(fault, told, None);
    times.tell("node_drained", "Evicted");
    assert_eq!(place.api.record(&graceful.turn).await["phase"], "Running", "it has its grace");
    processes::program_of(&graceful.turn).await.0.signal(Signal::USR1);
    graceful.replied(&place, "begun\ndone\n").await;
    drain.await.expect("kubectl drain ends well");
    command("kubectl", &["uncordon", NODE]).await;
    place.done().await;
}

/// NotReady is no death: the pod works on, and answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_kubelet_answers_on() {
    let Some(cluster) = Cluster::connect_local("a kubelet").await else { return };
    let place = Place::new(cluster, "kubelet").await;
    place.agent("agent", shell(ACTOR)).await;
    place.agent("echo", exec(&["cat"])).await;
    let chat = begun(&place, "agent").await;
    let object = place.object("agent", "x").await;
    let turn = object.turn(&place).await;
    place.api.turn(&turn).frame("the object's program has begun", |f| f.event == "text").await;
    place.chat("echo", "before").await.replied(&place, "before\n").await;
    place.cluster.control(&["node", "stop-kubelet", NODE]).await;
    ready(&place.cluster, false).await;
    // New turns, too, by workers that live.
    place.chat("echo", "meanwhile").await.replied(&place, "meanwhile\n").await;
    for turn in [&chat.turn, &turn] {
        processes::program_of(turn).await.0.signal(Signal::USR1);
    }
    chat.replied(&place, "begun\ndone\n").await;
    object.replied(&place, "begun\ndone\n").await;
    place.cluster.control(&["node", "start-kubelet", NODE]).await;
    ready(&place.cluster, true).await;
    place.done().await;
}

/// Kubelet, runtime and containers are gone at once: there is nobody left to tell.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_fails_its_turns() {
    let Some(cluster) = Cluster::connect_local("a node").await else { return };
    let place = Place::new(cluster, "node-lost").await;
    place.agent("agent", with(shell(ACTOR), json!({"timing": {"leaseSeconds": 8}}))).await;
    let chat = begun(&place, "agent").await;
    let object = place.object("agent", "x").await;
    let turn = object.turn(&place).await;
    place.api.turn(&turn).frame("the object's program has begun", |f| f.event == "text").await;
    let pod = place.worker().await.name_any();
    let fault = Instant::now();
    place.cluster.control(&["node", "kill", NODE]).await;
    let told = chat.failed(&place, &["NodeLost", "LeaseLapsed"]).await;
    let status = object.failed(&place, &["NodeLost", "LeaseLapsed"]).await;
    let mut times = Times::default();
    times.note(fault, told, place.news.pod(&pod).end());
    times.tell("node_lost", status.error.map_or("", |e| e.reason.as_str()));
    let restoring = Instant::now();
    place.cluster.control(&["node", "restore", NODE]).await;
    ready(&place.cluster, true).await;
    tell("node", &format!("node restored after {:.1} s", restoring.elapsed().as_secs_f64()));
    // It serves again.
    import_image(&place.cluster).await;
    place.agent("echo", exec(&["cat"])).await;
    place.chat("echo", "again").await.replied(&place, "again\n").await;
    place.done().await;
}

/// A node that comes back has an empty disk: our image is not among the cluster's own.
async fn import_image(cluster: &Cluster) {
    let archive = std::env::var("LASTWORD_KUBERNETES_IMAGE").expect("run tells the image's archive");
    cluster.control(&["image", &archive]).await;
}
