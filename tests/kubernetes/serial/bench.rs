//! Many AgentTurns at once. Turns a second, beside the raw rate of the same writes to the same API server.

use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::scene::agents::{echo, with};
use crate::scene::cluster::Cluster;
use crate::scene::place::Place;
use crate::scene::times::tell;
use crate::scene::turns::{reason, status};
use crate::scene::{long, processes, until};
use crate::support::count;
use crate::support::wait::eventually_within;

/// Requests that are on their way at a time.
const IN_FLIGHT: usize = 32;
/// A group of its own, which nobody serves.
const RAW_GROUP: &str = "raw.lastword.dev";

#[tokio::test(flavor = "multi_thread")]
async fn many_agentturns_at_once_all_end() {
    let Some(cluster) = Cluster::connect().await else { return };
    let turns = count("LASTWORD_BENCH_TURNS").unwrap_or(if long() { 5000 } else { 1000 });
    let place = Place::new(cluster, "bench").await;
    let limits = json!({"limits": {"minWorkers": 2, "maxWorkers": 2, "turnsPerWorker": 20, "maxQueuedTurns": 10000}});
    place.agent("echo", with(echo(), limits)).await;
    place.chat("echo", "warm").await.replied(&place, "warm").await;
    let memory = memory(&place.cluster).await;

    let (before, warm, begun) = (place.news.updates(), place.news.terminals(), Instant::now());
    let made = futures::stream::iter(0..turns).map(|_| place.object("echo", "hello")).buffer_unordered(IN_FLIGHT);
    let made = made.collect::<Vec<_>>().await;
    let created = begun.elapsed();
    all_terminal(&place, warm + turns).await;
    let ours = begun.elapsed();
    let list = place.turns().list(&Default::default()).await.unwrap().items;
    let wrong: Vec<_> =
        list.iter().filter(|t| reason(t) != "Succeeded" || status(t).reply.as_deref() != Some("hello")).collect();
    assert!(wrong.is_empty() && list.len() == made.len(), "{} of {}: {:?}", wrong.len(), list.len(), wrong.first());
    // One update is the creation.
    let patches = (place.news.updates() - before).saturating_sub(turns).max(turns);
    let after = self::memory(&place.cluster).await;

    let raw = raw(&place, turns, patches).await;
    let rate = |took: Duration| turns as f64 / took.as_secs_f64();
    let told = format!(
        "{turns} AgentTurns: {:.0}/s (created at {:.0}/s); raw create and {:.2} status patches each: {:.0}/s; ratio {:.2}",
        rate(ours),
        rate(created),
        patches as f64 / turns as f64,
        rate(raw),
        raw.as_secs_f64() / ours.as_secs_f64()
    );
    tell("bench", &told);
    if let Some((before, after)) = memory.zip(after) {
        tell("bench", &format!("controllers' memory: {before} MiB before, {after} MiB after"));
        assert!(after < before + 150, "flat: {before} MiB before, {after} MiB after");
    }
    place.done().await;
}

/// By the watch: lists of thousands of objects would be most of what is measured.
async fn all_terminal(place: &Place, turns: usize) {
    let bound = Duration::from_secs(60 + turns as u64 / 20);
    eventually_within(bound, "all AgentTurns to be Terminal", async || match place.news.terminals() {
        ended if ended >= turns => Ok(()),
        ended => Err(format!("{ended} of {turns}")),
    })
    .await;
}

/// The same writes by nobody but us, with as many patches over all: how long they take.
async fn raw(place: &Place, turns: usize, patches: usize) -> Duration {
    let mut crd = lastword::crd::crds().into_iter().find(|c| c.spec.names.kind == "AgentTurn").expect("ours");
    crd.metadata.name = Some(format!("agentturns.{RAW_GROUP}"));
    crd.spec.group = RAW_GROUP.into();
    crd.spec.names.short_names = None;
    crd.spec.names.categories = None;
    let crds: Api<CustomResourceDefinition> = Api::all(place.cluster.kube.clone());
    crds.create(&PostParams::default(), &crd).await.expect("a CRD of the bench's own");
    let resource =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(RAW_GROUP, "v1alpha1", "AgentTurn"), "agentturns");
    let api: Api<DynamicObject> = Api::namespaced_with(place.cluster.kube.clone(), &place.name, &resource);
    until("the raw resource to be served", async || api.list(&Default::default()).await.map_err(|e| e.to_string()))
        .await;

    // Watched as ours are.
    let watch = kube::runtime::watcher(api.clone(), Default::default());
    let watch = tokio::spawn(watch.for_each(async |_| ()));
    let begun = Instant::now();
    let writes = futures::stream::iter(0..turns)
        .map(|n| write(&api, n, (n + 1) * patches / turns - n * patches / turns))
        .buffer_unordered(IN_FLIGHT);
    writes.collect::<Vec<_>>().await;
    let took = begun.elapsed();
    watch.abort();
    crds.delete(&crd.name_any(), &DeleteParams::default()).await.expect("deletes");
    took
}

async fn write(api: &Api<DynamicObject>, n: usize, patches: usize) {
    let name = format!("raw-{n}");
    let head = json!({"apiVersion": format!("{RAW_GROUP}/v1alpha1"), "kind": "AgentTurn", "metadata": {"name": name}});
    let mut object = head.clone();
    object["spec"] = json!({"agentRef": {"name": "echo"}, "input": "hello"});
    let object: DynamicObject = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.expect("creates");
    for patch in 0..patches {
        let mut status = head.clone();
        status["status"] = state(patch + 1 == patches);
        let apply = PatchParams::apply("e2e").force();
        api.patch_status(&name, &apply, &Patch::Apply(&status)).await.expect("patches");
    }
}

/// A status like ours.
fn state(last: bool) -> Value {
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": kind, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let (end, phase) = if last { ("True", "Succeeded") } else { ("False", "Running") };
    let mut status = json!({
        "phase": phase, "observedGeneration": 1, "turnId": "0199f0a0-0000-7000-8000-000000000000",
        "workerPod": "echo-0123456789-1", "armedTime": "2026-01-01T00:00:00Z", "dispatchedTime": "2026-01-01T00:00:00Z",
        "conditions": [condition("Armed", "True"), condition("Dispatched", "True"), condition("Succeeded", end), condition("Terminal", end)],
    });
    if last {
        status["reply"] = "hello".into();
    }
    status
}

/// The controllers' resident memory together, in MiB; where the host sees their processes.
async fn memory(cluster: &Cluster) -> Option<u64> {
    if !cluster.local {
        return None;
    }
    let pods = cluster.pods_of("controller").await;
    let resident = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).map(str::to_owned);
        line.and_then(|l| l.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or_default()
    };
    let kib: u64 = pods.iter().map(|p| resident(processes::first_of(p, "controller").pid)).sum();
    Some(kib / 1024)
}
