//! What looks like a death, and is none, fails no turn. (A stopped kubelet is a row of `serial::nodes`,
//! a list that begins anew one of `serial::apiserver`.)

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::scene::agents::{ACTOR, busybox, shell, with, with_pod};
use crate::scene::cluster::{Cluster, SYSTEM};
use crate::scene::place::{Place, sketch};
use crate::scene::turns::Chat;
use crate::scene::{command, processes, try_command, until};
use crate::support::wait::throughout;

/// For these seconds nobody takes it for dead: a verdict needs its moment.
async fn runs_on(place: &Place, chat: &Chat, seconds: u64) {
    throughout(Duration::from_secs(seconds), "it is taken for alive", async || {
        let record = place.api.record(&chat.turn).await;
        if record["phase"] == "Running" { Ok(()) } else { Err(record) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_sidecar_fails_no_turn() {
    let Some(cluster) = Cluster::connect_local("a program's signal").await else { return };
    let place = Place::new(cluster, "sidecar").await;
    let mut agent = shell(ACTOR);
    let sidecar = json!({
        "name": "sidecar", "image": busybox(), "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", "trap 'exit 7' USR1; sleep 3600 & wait"],
    });
    agent["template"]["spec"]["containers"].as_array_mut().unwrap().push(sidecar);
    place.agent("agent", agent).await;
    let chat = place.chat("agent", "x").await;
    chat.begun().await;
    let pod = place.worker().await;
    processes::first_of(&pod, "sidecar").signal(Signal::USR1);
    until("the API server's news of the sidecar", async || {
        let pod = place.worker().await;
        if sketch(&pod).contains("\"exitCode\":7") { Ok(()) } else { Err(sketch(&pod)) }
    })
    .await;
    runs_on(&place, &chat, 3).await;
    processes::program_of(&chat.turn).await.0.signal(Signal::USR1);
    chat.replied(&place, "begun\ndone\n").await;
    place.done().await;
}

/// A stream that breaks is a reason to look, and the look finds the worker at work.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_under_a_working_pod_fails_no_turn() {
    let Some(cluster) = Cluster::connect_local("a pod's network").await else { return };
    let place = Place::new(cluster, "broken").await;
    place.agent("agent", with(shell(ACTOR), json!({"timing": {"leaseSeconds": 30}}))).await;
    let chat = place.chat("agent", "x").await;
    chat.begun().await;
    let (program, adapter) = processes::program_of(&chat.turn).await;
    let network = format!("--net=/proc/{}/ns/net", adapter.pid);
    let rule = async |what: &str| {
        let reset =
            [network.as_str(), "iptables", what, "INPUT", "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset"];
        command("nsenter", &reset).await
    };
    let worker = place.api.record(&chat.turn).await["worker"].as_str().expect("an incarnation").to_owned();
    let suspicion = format!("the stream of worker {worker} closed without goodbye");
    // The gateway pushes the second turn, and is told that nobody is there.
    rule("-A").await;
    let second = place.chat("agent", "y").await;
    until("the gateway's suspicion", async || {
        let selected = ["-n", SYSTEM, "logs", "-l", "app.kubernetes.io/component=gateway", "--tail=-1"];
        let logs = try_command("kubectl", &selected).await?;
        if logs.contains(&suspicion) { Ok(()) } else { Err("no such line".into()) }
    })
    .await;
    runs_on(&place, &chat, 3).await;
    rule("-D").await;
    program.signal(Signal::USR1);
    chat.replied(&place, "begun\ndone\n").await;
    second.begun().await;
    processes::program_of(&second.turn).await.0.signal(Signal::USR1);
    second.replied(&place, "begun\ndone\n").await;
    place.done().await;
}

/// Both at the same time: what broke cannot be told from what is slow, so nothing is.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_cut_from_all_gateways_for_5_s_fails_no_turn() {
    let Some(cluster) = Cluster::connect_local("a pod's network").await else { return };
    let place = Place::new(cluster, "cut").await;
    place.agent("agent", with_pod(shell(ACTOR), json!({}))).await;
    let chat = place.chat("agent", "x").await;
    chat.begun().await;
    let (program, adapter) = processes::program_of(&chat.turn).await;
    let network = format!("--net=/proc/{}/ns/net", adapter.pid);
    let rule = |what: &'static str, chain: &'static str| {
        let network = network.clone();
        async move { command("nsenter", &[&network, "iptables", what, chain, "-j", "DROP"]).await }
    };
    for chain in ["INPUT", "OUTPUT"] {
        rule("-A", chain).await;
    }
    // It has something to say meanwhile.
    program.signal(Signal::USR1);
    runs_on(&place, &chat, 5).await;
    for chain in ["INPUT", "OUTPUT"] {
        rule("-D", chain).await;
    }
    chat.replied(&place, "begun\ndone\n").await;
    place.done().await;
}

/// A deletion is no death yet: a pod that is being deleted works on for as long as its grace lasts.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_before_the_grace_ends_is_taken() {
    let Some(cluster) = Cluster::connect_local("a program's signal").await else { return };
    let place = Place::new(cluster, "grace").await;
    place.agent("agent", with_pod(shell(ACTOR), json!({"terminationGracePeriodSeconds": 30}))).await;
    let chat = place.chat("agent", "x").await;
    chat.begun().await;
    let pod = place.worker().await;
    place.pods().delete(pod.metadata.name.as_deref().unwrap(), &Default::default()).await.expect("deletes");
    // The pod is gone from the list of those that live; the turn runs on.
    place.no_workers().await;
    runs_on(&place, &chat, 3).await;
    processes::program_of(&chat.turn).await.0.signal(Signal::USR1);
    chat.replied(&place, "begun\ndone\n").await;
    place.done().await;
}
