//! AgentTurns as objects: what becomes of them, and what deleting one does.

use kube::api::{DeleteParams, Patch, PatchParams};
use lastword::crd::Phase;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::scene::agents::{ACTOR, exec, shell};
use crate::scene::cluster::Cluster;
use crate::scene::place::Place;
use crate::scene::turns::{Object, is, status};
use crate::scene::{processes, until};
use crate::support::wait::eventually_within;

async fn patch(place: &Place, object: &Object, spec: Value) {
    let patch = Patch::Merge(json!({"spec": spec}));
    place.turns().patch(&object.name, &PatchParams::default(), &patch).await.expect("the API server takes the patch");
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_running_agentturn_stops_its_work() {
    let Some(cluster) = Cluster::connect_local("a program's process").await else { return };
    let place = Place::new(cluster, "object-deleted").await;
    place.agent("agent", shell(ACTOR)).await;
    let object = place.object("agent", "x").await;
    let turn = object.turn(&place).await;
    let stream = place.api.turn(&turn);
    stream.frame("the program has begun", |f| f.event == "text").await;
    let running = object.condition(&place, "Dispatched").await;
    assert_eq!(status(&running).phase, Some(Phase::Running));
    assert_eq!(status(&running).worker_pod, place.worker().await.metadata.name, "it names the pod that works");
    let (program, _) = processes::program_of(&turn).await;

    place.turns().delete(&object.name, &DeleteParams::default()).await.expect("deletes");
    eventually_within(std::time::Duration::from_secs(5), "the object to be gone: it has no finalizer", async || {
        match place.turns().get_opt(&object.name).await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let error = stream.frame("the client's error", |f| f.event == "agent-error").await;
    assert_eq!(error.data["reason"], "Cancelled", "{error:?}");
    stream.ended().await;
    assert_eq!(stream.names(&turn).iter().filter(|n| *n == "complete").count(), 1);
    until("the end of the program", async || if program.is_gone() { Ok(()) } else { Err(format!("{program:?}")) })
        .await;
    assert_eq!(place.api.record(&turn).await["error"]["reason"], "Cancelled");

    // Its worker goes on to the next.
    let next = place.object("agent", "y").await;
    let turn = next.turn(&place).await;
    place.api.turn(&turn).frame("the program has begun", |f| f.event == "text").await;
    processes::program_of(&turn).await.0.signal(Signal::USR1);
    next.replied(&place, "begun\ndone\n").await;
    place.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_in_the_spec_ends_the_turn() {
    let Some(cluster) = Cluster::connect().await else { return };
    let place = Place::new(cluster, "cancel").await;
    place.agent("agent", shell(ACTOR)).await;
    let object = place.object("agent", "x").await;
    let turn = object.turn(&place).await;
    place.api.turn(&turn).frame("the program has begun", |f| f.event == "text").await;
    patch(&place, &object, json!({"cancel": true})).await;
    object.failed(&place, &["Cancelled"]).await;
    // One that is born cancelled never runs.
    let born = place.object_with("agent", "x", json!({"cancel": true})).await;
    born.failed(&place, &["Cancelled"]).await;
    place.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agentturns_agent_may_come_after_it() {
    let Some(cluster) = Cluster::connect().await else { return };
    let place = Place::new(cluster, "agent-late").await;
    let object = place.object("late", "hello").await;
    let never = place.object("never", "hello").await;
    until("phase Pending", async || {
        let turn = object.get(&place).await?;
        if status(&turn).phase == Some(Phase::Pending) { Ok(()) } else { Err(format!("{:?}", turn.status)) }
    })
    .await;
    place.agent("late", exec(&["cat"])).await;
    object.replied(&place, "hello\n").await;
    // The wait is bounded: 60 s.
    let bound = std::time::Duration::from_secs(100);
    let ended = never.condition_within(&place, "Terminal", bound).await;
    assert_eq!(crate::scene::turns::reason(&ended), "AgentNotFound", "{:?}", ended.status);
    place.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agentturn_goes_after_its_time_to_live() {
    let Some(cluster) = Cluster::connect().await else { return };
    let place = Place::new(cluster, "ttl").await;
    place.agent("agent", exec(&["cat"])).await;
    let stays = place.object("agent", "a").await;
    let goes = place.object_with("agent", "b", json!({"ttlSecondsAfterFinished": 1})).await;
    until("the end of its time", async || match place.turns().get_opt(&goes.name).await {
        Ok(None) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    stays.replied(&place, "a\n").await;
    let records = place.api.records("agent").await;
    assert!(
        records.iter().all(|r| r["phase"] == "Succeeded"),
        "the object goes, the record stays as it is: {records:?}"
    );
    // It is mutable.
    patch(&place, &stays, json!({"ttlSecondsAfterFinished": 0})).await;
    until("the end of its time", async || match place.turns().get_opt(&stays.name).await {
        Ok(None) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    place.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_reply_is_cut_in_the_status() {
    let Some(cluster) = Cluster::connect().await else { return };
    let place = Place::new(cluster, "long-reply").await;
    place.agent("agent", exec(&["cat"])).await;
    let input = "ä".repeat(10_000);
    let object = place.object("agent", &input).await;
    let turn = object.condition(&place, "Terminal").await;
    let status = status(&turn);
    let reply = status.reply.clone().unwrap_or_else(|| panic!("{status:?}"));
    assert!(reply.len() <= 16384 && reply.len() > 16000 && input.starts_with(&reply), "{} bytes", reply.len());
    assert_eq!(status.reply_truncated, Some(true));
    let record = place.api.record(status.turn_id.as_deref().unwrap()).await;
    assert_eq!(record["reply"]["text"], format!("{input}\n"), "the record has it whole");
    place.done().await;
}

/// What a chat would be told by a 4xx, an object is told by its terminal.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_an_agentturn_is_its_terminal() {
    let Some(cluster) = Cluster::connect().await else { return };
    let place = Place::new(cluster, "conflict").await;
    place.agent("agent", exec(&["cat"])).await;
    let name = json!({"conversation": "c", "messageId": "m"});
    let first = place.object_with("agent", "one", name.clone()).await;
    first.replied(&place, "one\n").await;
    let other = place.object_with("agent", "another", name).await;
    let ended = other.condition(&place, "Terminal").await;
    assert_eq!(crate::scene::turns::reason(&ended), "Conflict", "{:?}", ended.status);
    place.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agentturns_deadline_ends_it() {
    let Some(cluster) = Cluster::connect().await else { return };
    let place = Place::new(cluster, "deadline").await;
    let mut agent = shell(ACTOR);
    agent["timing"]["leaseSeconds"] = json!(3);
    place.agent("agent", agent).await;
    let object = place.object_with("agent", "x", json!({"deadlineSeconds": 4})).await;
    object.failed(&place, &["DeadlineExceeded"]).await;
    place.done().await;
}

/// The Agent's status counts, and tells its last failure; an Event tells it on the Agent and on the pod.
#[tokio::test(flavor = "multi_thread")]
async fn the_agents_status_and_events_tell_its_last_failure() {
    let Some(cluster) = Cluster::connect().await else { return };
    let place = Place::new(cluster, "agent-status").await;
    place.agent("agent", shell("read m; [ $m = fail ] && echo 'a secret' >&2 && exit 9; sleep 3600 & wait")).await;
    let running = place.object("agent", "run").await;
    running.condition(&place, "Dispatched").await;
    let fails = place.object("agent", "fail").await;
    fails.failed(&place, &["AgentError"]).await;
    until("the Agent's counts and its last failure", async || {
        let status = place.agents().get("agent").await.map_err(|e| e.to_string())?.status.unwrap_or_default();
        let failure =
            status.last_failure.as_ref().is_some_and(|f| f.reason.as_str() == "AgentError" && f.code == Some(9));
        match status.workers == 1 && status.running_turns == 1 && failure {
            true => Ok(()),
            false => Err(format!("{status:?}")),
        }
    })
    .await;
    until("an Event on the Agent and one on the pod", async || {
        let events =
            place.any("events.k8s.io/v1", "Event").list(&Default::default()).await.map_err(|e| e.to_string())?;
        let about = |kind: &str| {
            events.items.iter().any(|e| {
                e.data["regarding"]["kind"] == kind
                    && e.data["note"]
                        .as_str()
                        .is_some_and(|n| n.contains("AgentError, exit code 9") && !n.contains("secret"))
            })
        };
        match about("Agent") && about("Pod") {
            true => Ok(()),
            false => Err(format!("{:#?}", events.items.iter().map(|e| e.data.to_string()).collect::<Vec<_>>())),
        }
    })
    .await;
    assert!(is(&running.get(&place).await.unwrap().status.unwrap(), "Succeeded", "Unknown"), "still open");
    place.done().await;
}
