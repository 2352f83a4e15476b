//! The Lease of the API server that is played: what leader election reads and writes.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::api_server::{ApiServer, refuse};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases";

pub fn router(server: ApiServer) -> Router {
    Router::new()
        .route(LEASES, post(create))
        .route(&format!("{LEASES}/{{name}}"), get(read).patch(patch))
        .with_state(server)
}

fn shown(spec: &Value) -> Response {
    let metadata = json!({"name": "lastword-controller", "namespace": "lastword"});
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec});
    Json(lease).into_response()
}

async fn create(State(server): State<ApiServer>) -> Response {
    let mut cluster = server.lock();
    if cluster.lease.is_some() {
        return refuse(409, "AlreadyExists", "it exists");
    }
    shown(cluster.lease.insert(json!({})))
}

async fn read(State(server): State<ApiServer>) -> Response {
    match &server.lock().lease {
        Some(spec) => shown(spec),
        None => refuse(404, "NotFound", "not found"),
    }
}

/// Merges; what somebody else applied is a conflict for whoever applies.
async fn patch(State(server): State<ApiServer>, headers: HeaderMap, body: String) -> Response {
    let mut cluster = server.lock();
    let Some(spec) = &mut cluster.lease else { return refuse(404, "NotFound", "not found") };
    let change: Value = serde_json::from_str(&body).expect("JSON is YAML");
    let applied = headers.get("content-type").is_some_and(|t| t == "application/apply-patch+yaml");
    if applied && spec["holderIdentity"].is_string() {
        return refuse(409, "Conflict", "another manager owns it");
    }
    for (field, value) in change["spec"].as_object().expect("a spec") {
        spec[field] = value.clone();
    }
    shown(spec)
}
