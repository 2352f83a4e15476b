//! Deliberate stops. No error to anyone for claimed turns, and a begun turn runs once.

use kube::ResourceExt;
use kube::api::{DeleteParams, EvictParams};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::scene::agents::{ACTOR, custom, shell, with, with_pod, worker_config};
use crate::scene::cluster::Cluster;
use crate::scene::notebook::Notebook;
use crate::scene::place::{Place, phase};
use crate::scene::turns::Chat;
use crate::scene::{processes, until};

/// An agent that notes each turn that it begins.
struct Stop {
    place: Place,
    notebook: Notebook,
}

impl Stop {
    async fn prepare(row: &str) -> Option<Stop> {
        let cluster = Cluster::connect_local("a program's signal").await?;
        let place = Place::new(cluster, row).await;
        let notebook = Notebook::open(&node_address(&place).await).await;
        Some(Stop { place, notebook })
    }

    fn agent(&self, version: u32) -> Value {
        let agent = shell(&format!("{}\n: version {version}\n{ACTOR}", self.notebook.note()));
        // Room for the next worker beside one that finishes.
        let agent = with(agent, json!({"limits": {"maxWorkers": 2}}));
        with_pod(agent, json!({"terminationGracePeriodSeconds": 60}))
    }

    async fn begun(&self) -> Chat {
        let chat = self.place.chat("agent", "x").await;
        chat.begun().await;
        chat
    }

    async fn finishes(&self, chat: &Chat) {
        processes::program_of(&chat.turn).await.0.signal(Signal::USR1);
        chat.replied(&self.place, "begun\ndone\n").await;
        assert_eq!(self.notebook.times(&chat.turn), 1, "it ran once");
    }

    async fn end(self) {
        self.notebook.none_twice();
        self.place.done().await;
    }
}

pub async fn node_address(place: &Place) -> String {
    let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(place.cluster.kube.clone());
    let node = nodes.get(crate::scene::cluster::NODE).await.expect("the local cluster's node");
    let addresses = node.status.unwrap_or_default().addresses.unwrap_or_default();
    addresses.into_iter().find(|a| a.type_ == "InternalIP").expect("a node has an address").address
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_worker_goes_unnoticed() {
    let Some(stop) = Stop::prepare("idle").await else { return };
    let place = &stop.place;
    place.agent("agent", with(stop.agent(1), json!({"timing": {"idleSeconds": 2}}))).await;
    let first = stop.begun().await;
    stop.finishes(&first).await;
    place.no_workers().await;
    let second = stop.begun().await;
    stop.finishes(&second).await;
    let names: Vec<String> = first.session.frames().into_iter().map(|f| f.event).collect();
    assert!(!names.iter().any(|n| n.ends_with("error")), "{names:?}");
    stop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_agent_finishes_what_it_has_begun() {
    let Some(stop) = Stop::prepare("agent-deleted").await else { return };
    let place = &stop.place;
    let agent = with(stop.agent(1), json!({"limits": {"maxWorkers": 1, "turnsPerWorker": 1}}));
    place.agent("agent", agent).await;
    let running = stop.begun().await;
    let waiting = place.chat("agent", "y").await;
    place.delete_agent("agent").await;
    // What never began ends with its agent.
    waiting.failed(place, &["AgentNotFound"]).await;
    assert_eq!(stop.notebook.times(&waiting.turn), 0);
    stop.finishes(&running).await;
    place.no_workers().await;
    stop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_agent_finishes_the_old_way_and_begins_the_new() {
    let Some(stop) = Stop::prepare("agent-changed").await else { return };
    let place = &stop.place;
    place.agent("agent", stop.agent(1)).await;
    let running = stop.begun().await;
    let old = place.worker().await.name_any();
    place.agent("agent", stop.agent(2)).await;
    until("another template's pod", async || {
        let pods = place.living_pods().await;
        let running = pods.iter().filter(|pod| phase(pod) == "Running").count();
        if running == 2 { Ok(()) } else { Err(format!("{running} of {}", pods.len())) }
    })
    .await;
    // The old one goes on until the new one has connected. Then it takes no more, and has the time that its turns take.
    let worker = async |chat: &Chat| place.api.record(&chat.turn).await["worker"].clone();
    let mut by_old = vec![running];
    let next = loop {
        let chat = stop.begun().await;
        if worker(&chat).await != worker(&by_old[0]).await {
            break chat;
        }
        by_old.push(chat);
        assert!(by_old.len() < 100, "another template, another pod");
    };
    for turn in &by_old {
        stop.finishes(turn).await;
    }
    stop.finishes(&next).await;
    until("the old pod leaves", async || {
        let names: Vec<String> = place.living_pods().await.iter().map(ResourceExt::name_any).collect();
        if names.contains(&old) { Err(format!("{names:?}")) } else { Ok(()) }
    })
    .await;
    stop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scale_down_finishes_what_is_in_hand() {
    let Some(stop) = Stop::prepare("scale-down").await else { return };
    let place = &stop.place;
    let scaled = |n: u32| json!({"limits": {"minWorkers": n, "maxWorkers": n, "turnsPerWorker": 1}});
    place.agent("agent", with(stop.agent(1), scaled(2))).await;
    let (one, two) = (stop.begun().await, stop.begun().await);
    place.agent("agent", with(stop.agent(1), scaled(1))).await;
    stop.finishes(&one).await;
    stop.finishes(&two).await;
    place.worker().await;
    stop.end().await;
}

/// Of two turns in hand at a drain, the one that never began goes to the next worker; a begun one is never run again.
#[tokio::test(flavor = "multi_thread")]
async fn what_never_began_is_handed_back() {
    let Some(cluster) = Cluster::connect().await else { return };
    let place = Place::new(cluster, "handed-back").await;
    place.apply(&worker_config()).await;
    let agent = with(custom(), json!({"limits": {"maxWorkers": 2}}));
    place.agent("agent", with_pod(agent, json!({"terminationGracePeriodSeconds": 10}))).await;
    let begun = place.chat("agent", "wait").await;
    begun.begun().await;
    let later = place.chat("agent", "later").await;
    let first = place.worker().await;
    let held_by = async || place.api.record(&later.turn).await["worker"].clone();
    until("the claim", async || if held_by().await.is_string() { Ok(()) } else { Err("nobody's".into()) }).await;
    let holder = held_by().await;
    assert_eq!(holder, place.api.record(&begun.turn).await["worker"], "both are in one hand");
    place.pods().delete(&first.name_any(), &DeleteParams::default()).await.expect("deletes");
    later.replied(&place, "later ").await;
    assert_ne!(held_by().await, holder, "the next worker has answered it");
    begun.failed(&place, &["Deleted"]).await;
    place.done().await;
}

/// As `kubectl drain` does it, which is a row of `serial::nodes`.
#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_with_enough_grace_fails_nothing() {
    let Some(stop) = Stop::prepare("graceful").await else { return };
    let place = &stop.place;
    place.agent("agent", stop.agent(1)).await;
    let running = stop.begun().await;
    let pod = place.worker().await;
    place.pods().evict(&pod.name_any(), &EvictParams::default()).await.expect("evicts");
    place.no_workers().await;
    let next = stop.begun().await;
    let (leaving, another) = (place.api.record(&running.turn).await, place.api.record(&next.turn).await);
    assert_ne!(leaving["worker"], another["worker"], "who leaves claims nothing more");
    stop.finishes(&running).await;
    stop.finishes(&next).await;
    until("the end of the evicted pod", async || {
        let found = place.pods().get_opt(&pod.name_any()).await.map_err(|e| e.to_string())?;
        if found.is_none() { Ok(()) } else { Err("it is there".into()) }
    })
    .await;
    stop.end().await;
}
