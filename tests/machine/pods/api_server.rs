//! A few pods and AgentTurns behind the part of the Kubernetes API that we use, which can lie and forget on command.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch};
use axum::{Json, Router};
use kube::Client;
use lastword::operator::{Injector, OperatorConfig};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

use crate::support::http::serve;

/// What it holds, and what is wrong with it.
#[derive(Default)]
pub struct Cluster {
    /// By name.
    pub objects: HashMap<String, Value>,
    /// Lists are empty, whatever there is.
    pub lists_nothing: bool,
    /// Every watch is too old.
    pub gone: bool,
    /// The next creations are refused by this status.
    pub refuses: Option<(u16, &'static str)>,
    pub lists: u32,
    /// Lists that begin now answer what they saw once this is let go.
    pub held: Option<Arc<Notify>>,
    /// The spec of the one Lease, if it was made.
    pub lease: Option<Value>,
    /// Bodies of deletions, with the pod's name.
    pub deletions: Vec<(String, Value)>,
    watchers: Vec<mpsc::UnboundedSender<Bytes>>,
    version: u64,
}

#[derive(Clone, Default)]
pub struct ApiServer(Arc<Mutex<Cluster>>);

impl ApiServer {
    /// Serves on loopback for as long as the test runs.
    pub async fn start() -> (ApiServer, Client) {
        let server = ApiServer::default();
        let router = Router::new()
            .route("/api/v1/pods", get(list))
            .route("/api/v1/namespaces/{namespace}/pods", get(list).post(create))
            .route("/api/v1/namespaces/{namespace}/pods/{name}", get(read).delete(delete))
            .route("/apis/lastword.dev/v1alpha1/agentturns", get(list))
            .route("/apis/lastword.dev/v1alpha1/namespaces/{namespace}/agentturns/{name}", get(read).delete(delete))
            .route("/apis/lastword.dev/v1alpha1/namespaces/{namespace}/agentturns/{name}/status", patch(write_status))
            .with_state(server.clone());
        let router = router.merge(super::lease::router(server.clone()));
        let url = serve(router).await.parse().expect("a URL");
        (server, Client::try_from(kube::Config::new(url)).expect("a client"))
    }

    pub fn lock(&self) -> MutexGuard<'_, Cluster> {
        self.0.lock().expect("nobody panicked with it")
    }

    /// Puts an object, and tells it to the watches that are open.
    pub fn put(&self, object: Value) {
        self.lock().put(object, "MODIFIED");
    }

    /// Takes an object away, and tells it.
    pub fn remove(&self, name: &str) {
        let mut cluster = self.lock();
        let object = cluster.objects.get(name).expect("it is there").clone();
        cluster.put(object, "DELETED");
        cluster.objects.remove(name);
    }

    /// Breaks the watches that are open.
    pub fn cut(&self) {
        self.lock().watchers.clear();
    }

    pub fn watched(&self) -> bool {
        let mut cluster = self.lock();
        cluster.watchers.retain(|w| !w.is_closed());
        !cluster.watchers.is_empty()
    }
}

impl Cluster {
    fn put(&mut self, mut object: Value, event: &str) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(object["metadata"]["name"].as_str().expect("a name").to_owned(), object.clone());
        let line = Bytes::from(format!("{}\n", json!({"type": event, "object": object})));
        self.watchers.retain(|w| w.send(line.clone()).is_ok());
    }
}

impl Cluster {
    /// What a list shows now, and what holds it up.
    fn list(&mut self) -> (Value, Option<Arc<Notify>>) {
        self.lists += 1;
        let items: Vec<&Value> = self.objects.values().filter(|_| !self.lists_nothing).collect();
        let metadata = json!({"resourceVersion": self.version.to_string()});
        let list = json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items});
        (list, self.held.clone())
    }
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
           "message": message})
}

pub fn refuse(code: u16, reason: &str, message: &str) -> Response {
    (StatusCode::from_u16(code).expect("a status"), Json(status(code, reason, message))).into_response()
}

async fn list(State(server): State<ApiServer>, Query(query): Query<HashMap<String, String>>) -> Response {
    if !query.contains_key("watch") {
        let (seen, held) = server.lock().list();
        if let Some(held) = held {
            held.notified().await;
        }
        return Json(seen).into_response();
    }
    let mut cluster = server.lock();
    let (lines, mut heard) = mpsc::unbounded_channel();
    if cluster.gone {
        let line = json!({"type": "ERROR", "object": status(410, "Expired", "too old resource version")});
        lines.send(Bytes::from(format!("{line}\n"))).expect("open");
    } else {
        cluster.watchers.push(lines);
    }
    let body = async_stream::stream! {
        while let Some(line) = heard.recv().await {
            yield Ok::<_, std::io::Error>(line);
        }
    };
    Body::from_stream(body).into_response()
}

async fn create(State(server): State<ApiServer>, Json(mut pod): Json<Value>) -> Response {
    let mut cluster = server.lock();
    if let Some((code, message)) = cluster.refuses {
        return refuse(code, "Forbidden", message);
    }
    let name = pod["metadata"]["name"].as_str().expect("a name").to_owned();
    if cluster.objects.contains_key(&name) {
        return refuse(409, "AlreadyExists", "it exists");
    }
    pod["metadata"]["uid"] = json!(format!("uid-of-{name}"));
    pod["status"] = json!({"phase": "Pending"});
    cluster.put(pod, "ADDED");
    (StatusCode::CREATED, Json(cluster.objects[&name].clone())).into_response()
}

async fn read(State(server): State<ApiServer>, Path((_, name)): Path<(String, String)>) -> Response {
    match server.lock().objects.get(&name) {
        Some(pod) => Json(pod.clone()).into_response(),
        None => refuse(404, "NotFound", "not found"),
    }
}

/// A merge patch of the status, fenced by the version that it names.
async fn write_status(
    State(server): State<ApiServer>,
    Path((_, name)): Path<(String, String)>,
    Json(patch): Json<Value>,
) -> Response {
    let mut cluster = server.lock();
    let Some(mut object) = cluster.objects.get(&name).cloned() else { return refuse(404, "NotFound", "not found") };
    if patch["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
        return refuse(409, "Conflict", "another version");
    }
    let Value::Object(fields) = &patch["status"] else { return refuse(400, "BadRequest", "no status") };
    for (field, value) in fields {
        object["status"][field] = value.clone();
    }
    cluster.put(object, "MODIFIED");
    Json(cluster.objects[&name].clone()).into_response()
}

async fn delete(State(server): State<ApiServer>, Path((_, name)): Path<(String, String)>, body: Bytes) -> Response {
    let mut cluster = server.lock();
    let Some(pod) = cluster.objects.get(&name).cloned() else { return refuse(404, "NotFound", "not found") };
    let options: Value = serde_json::from_slice(&body).unwrap_or_default();
    if options["preconditions"]["uid"] != pod["metadata"]["uid"] {
        return refuse(409, "Conflict", "another UID");
    }
    cluster.deletions.push((name.clone(), options));
    cluster.put(pod.clone(), "DELETED");
    cluster.objects.remove(&name);
    Json(pod).into_response()
}

pub fn config() -> OperatorConfig {
    OperatorConfig {
        namespaces: Vec::new(),
        own_namespace: "lastword".into(),
        identity: "c-1".into(),
        worker_gateways: vec!["http://workers:8081".into()],
        worker_ca: None,
        injector: Injector { image: "example.test/lastword:1".into(), pull_policy: None, pull_secrets: Vec::new() },
    }
}

/// The pod `bot-1` of the tests, whose container `agent` has this state.
pub fn pod(state: Value) -> Value {
    let status =
        json!({"name": "agent", "image": "i", "imageID": "i", "ready": true, "restartCount": 0, "state": state});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "bot-1", "namespace": "default", "uid": super::UID,
                     "labels": {"app.kubernetes.io/managed-by": "lastword"}},
        "spec": {"nodeName": "n", "containers": [{"name": "agent", "image": "i"}]},
        "status": {"phase": "Running", "containerStatuses": [status]},
    })
}

pub fn running() -> Value {
    json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}})
}

pub fn oom_killed() -> Value {
    json!({"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-01-01T00:01:00Z"}})
}
