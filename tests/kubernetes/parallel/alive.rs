//! B5: alive is alive. What looks like a death, and is none, fails no turn. (A stopped kubelet is a row of `serial::nodes`,
//! a list that begins anew one of `serial::apiserver`.)

use rustix::process::Signal;
use serde_json::json;

use crate::support::agents::{ACTOR, busybox, shell, with_pod};
use crate::support::cluster::Cluster;
use crate::support::place::{Place, sketch};
use crate::support::{command, pause, processes, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_dies() {
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
    processes::program_of(&chat.turn).await.0.signal(Signal::USR1);
    chat.replied(&place, "begun\ndone\n").await;
    place.done().await;
}

/// Both at the same time: what broke cannot be told from what is slow, so nothing is.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_cut_from_all_gateways_for_5_s() {
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
    let cut = std::time::Instant::now();
    // It has something to say meanwhile.
    program.signal(Signal::USR1);
    while cut.elapsed().as_secs() < 5 {
        let record = place.api.record(&chat.turn).await;
        assert_eq!(record["phase"], "Running", "who is cut off is not dead: {record}");
        pause().await;
    }
    for chain in ["INPUT", "OUTPUT"] {
        rule("-D", chain).await;
    }
    chat.replied(&place, "begun\ndone\n").await;
    place.done().await;
}

/// A pod without its object: whoever still works is not dead because nobody lists it.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_before_the_grace_ends() {
    let Some(cluster) = Cluster::connect_local("a program's signal").await else { return };
    let place = Place::new(cluster, "grace").await;
    place.agent("agent", with_pod(shell(ACTOR), json!({"terminationGracePeriodSeconds": 30}))).await;
    let chat = place.chat("agent", "x").await;
    chat.begun().await;
    let pod = place.worker().await;
    place.pods().delete(pod.metadata.name.as_deref().unwrap(), &Default::default()).await.expect("deletes");
    // The pod is gone from the list of those that live; the turn runs on.
    place.no_workers().await;
    assert_eq!(place.api.record(&chat.turn).await["phase"], "Running");
    processes::program_of(&chat.turn).await.0.signal(Signal::USR1);
    chat.replied(&place, "begun\ndone\n").await;
    place.done().await;
}
