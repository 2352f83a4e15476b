//! The runtime `kubernetes` against an API server: a start makes one pod, whoever makes it, and touches no other.

use std::sync::Arc;

use lastword::fleet::{StartRequest, WorkerRuntime};
use lastword::operator::pods::{PodRuntime, Pods};
use lastword::store::NewStart;
use lastword::turn::decide::Look;
use lastword::turn::keys::{Incarnation, StartId};
use lastword::turn::reason::Reason;
use lastword::wire::Credential;
use serde_json::json;

use super::api_server::{ApiServer, config, oom_killed};
use crate::support::Db;
use crate::support::fake_worker::new_start;
use crate::support::wait::eventually;

crate::newest! {
    a_start_makes_one_pod,
    a_namesake_is_not_adopted,
    what_may_heal_is_kept_as_the_cause,
    a_stop_deletes_the_very_pod,
}

/// A start with its lease.
async fn start(db: &Db, runtime: &PodRuntime) -> StartRequest {
    let (row, credential) = new_start();
    let spec = json!({"adapter": "Exec", "template": {"spec": {
        "terminationGracePeriodSeconds": 9, "containers": [{"name": "agent", "image": "i", "command": ["c"]}]}}});
    let mut request = StartRequest {
        start_id: row.start_id,
        organization: row.organization.clone(),
        agent: row.agent.clone(),
        worker_group: row.worker_group,
        config: 1,
        spec: Arc::new(serde_json::from_value(spec).expect("a spec")),
        agent_uid: Some("agent-uid".into()),
        attempt: 1,
        runtime_ref: String::new(),
        credential,
    };
    request.runtime_ref = runtime.reference(&request);
    let row = NewStart { runtime: "kubernetes", runtime_ref: request.runtime_ref.clone(), ..row };
    assert!(db.store.start_worker(&row, false).await.expect("starts"));
    request
}

async fn runtime(db: &Db) -> (ApiServer, PodRuntime) {
    let (server, client) = ApiServer::start().await;
    (server, PodRuntime(Pods::new(client, db.store.clone(), config())))
}

async fn uid(db: &Db, start: StartId) -> Option<String> {
    db.store.pod_of_start(start).await.expect("answers").expect("alive").uid
}

async fn a_start_makes_one_pod(db: Db) {
    let (server, runtime) = runtime(&db).await;
    let request = start(&db, &runtime).await;
    assert_eq!(runtime.look(request.start_id, &request.runtime_ref).await, Look::Unknown, "not made yet");
    runtime.start(&request).await.expect("made");
    let recorded = uid(&db, request.start_id).await.expect("recorded");
    // The one who made it died before it could record it: it is found, and no second one made.
    db.sql("UPDATE lease SET pod_uid = NULL").await;
    runtime.start(&request).await.expect("adopted");
    assert_eq!(uid(&db, request.start_id).await.as_deref(), Some(&*recorded));
    assert_eq!(server.lock().objects.len(), 1);
    assert_eq!(db.number("SELECT grace_seconds FROM lease").await, 9);

    assert_eq!(runtime.look(request.start_id, &request.runtime_ref).await, Look::Running);
    let name = request.runtime_ref.rsplit('/').next().expect("a name").to_owned();
    let mut pod = server.lock().objects[&name].clone();
    let status =
        json!({"name": "agent", "image": "i", "imageID": "i", "ready": true, "restartCount": 0, "state": oom_killed()});
    pod["status"] = json!({"phase": "Failed", "containerStatuses": [status]});
    server.put(pod.clone());
    let Look::Terminated { cause: Some(cause) } = runtime.look(request.start_id, &request.runtime_ref).await else {
        panic!("proof");
    };
    assert_eq!(cause.reason, Reason::OutOfMemory);
    pod["metadata"]["uid"] = json!("another");
    server.put(pod);
    assert_eq!(runtime.look(request.start_id, &request.runtime_ref).await, Look::Absent, "a namesake proves nothing");
}

async fn a_namesake_is_not_adopted(db: Db) {
    let (server, runtime) = runtime(&db).await;
    let request = start(&db, &runtime).await;
    runtime.start(&request).await.expect("made");
    db.sql("UPDATE lease SET pod_uid = NULL").await;
    for strange in [
        StartRequest { agent_uid: Some("of another Agent".into()), ..request.clone() },
        StartRequest { start_id: StartId::new(), credential: Credential::new(StartId::new()), ..request.clone() },
    ] {
        let failure = runtime.start(&strange).await.expect_err("refused");
        assert_eq!(failure.reason, Reason::StartFailed);
    }
    assert_eq!(uid(&db, request.start_id).await, None);
    assert!(server.lock().deletions.is_empty());
}

async fn what_may_heal_is_kept_as_the_cause(db: Db) {
    let (server, runtime) = runtime(&db).await;
    let request = start(&db, &runtime).await;
    server.lock().refuses = Some((403, "pods \"a\" is forbidden: exceeded quota: q"));
    runtime.start(&request).await.expect("it may heal");
    assert_eq!(db.text("SELECT start_cause FROM lease").await.as_deref(), Some("QuotaExceeded"));
    server.lock().refuses = Some((403, "pods \"a\" is forbidden: violates PodSecurity \"restricted:latest\""));
    let failure = runtime.start(&request).await.expect_err("for good");
    assert!(failure.detail.is_some_and(|d| d.contains("PodSecurity")));
    server.lock().refuses = None;
    runtime.start(&request).await.expect("made");
    assert!(uid(&db, request.start_id).await.is_some());
}

async fn a_stop_deletes_the_very_pod(db: Db) {
    let (server, runtime) = runtime(&db).await;
    let request = start(&db, &runtime).await;
    let mut deaths = runtime.deaths();
    runtime.stop(request.start_id, &request.runtime_ref).await;
    let death = crate::support::wait::within("a death", deaths.recv()).await.expect("told");
    assert_eq!(death.start_id, request.start_id, "no pod was made, and none will be");

    runtime.start(&request).await.expect("made");
    let recorded = uid(&db, request.start_id).await.expect("recorded");
    runtime.stop(request.start_id, &request.runtime_ref).await;
    eventually("a deletion", async || !server.lock().deletions.is_empty()).await;
    let (_, options) = server.lock().deletions.remove(0);
    assert_eq!(options["preconditions"]["uid"], *recorded);
    assert!(options.get("gracePeriodSeconds").is_none(), "its own grace");

    // The lease died: a pod that was made too late goes at once.
    let failure = lastword::turn::terminal::Failure::new(Reason::WorkerExited);
    db.store.fail_worker(Incarnation(request.start_id.0), &failure).await.expect("answers");
    runtime.start(&request).await.expect("nobody fails for it");
    eventually("a deletion", async || !server.lock().deletions.is_empty()).await;
    assert!(server.lock().objects.is_empty());
}
