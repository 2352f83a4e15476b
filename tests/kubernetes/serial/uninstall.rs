//! `helm uninstall`, then deleting a namespace with Agents and 1,000 AgentTurns, completes: nothing waits for a finalizer
//! that nobody is there to remove. The very last row.

use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::DeleteParams;

use serde_json::json;

use crate::scene::agents::{ACTOR, exec, shell, with_pod};
use crate::scene::cluster::{Cluster, SYSTEM};
use crate::scene::command;
use crate::scene::place::Place;
use crate::scene::times::tell;
use crate::support::wait::eventually_within;

const TURNS: usize = 1000;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_namespace_can_be_deleted_after_an_uninstall() {
    let Some(cluster) = Cluster::connect().await else { return };
    let place = Place::new(cluster, "uninstall").await;
    // A namespace's deletion looks again only after half of the longest grace of its pods.
    let short = |spec| with_pod(spec, json!({"terminationGracePeriodSeconds": 5}));
    place.agent("agent", short(shell(ACTOR))).await;
    place.agent("other", short(exec(&["cat"]))).await;
    let made = futures::stream::iter(0..TURNS).map(|_| place.object("agent", "x")).buffer_unordered(16);
    let made: Vec<_> = made.collect().await;
    made[0].condition(&place, "Armed").await;
    command("helm", &["uninstall", "lastword", "--namespace", SYSTEM, "--wait", "--timeout=120s"]).await;
    let begun = Instant::now();
    let namespaces: Api<Namespace> = Api::all(place.cluster.kube.clone());
    namespaces.delete(&place.name, &DeleteParams::default()).await.expect("deletes");
    eventually_within(Duration::from_secs(150), "the namespace to be gone", async || {
        match namespaces.get_opt(&place.name).await {
            Ok(None) => Ok(()),
            Ok(Some(namespace)) => Err(format!("{:?}", namespace.status)),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
    tell(
        "uninstall",
        &format!(
            "a namespace with {TURNS} AgentTurns was gone {:.1} s after its deletion, uninstalled before",
            begun.elapsed().as_secs_f64()
        ),
    );
}
