//! The creation of a pod from JSON. Fields that this program's Kubernetes types do not know yet arrive as they are.

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::PostParams;
use serde_json::Value;

use crate::operator::client::FIELD_MANAGER;

/// Creates a pod. With `dry_run` the API server admits or refuses the pod, and creates nothing.
///
/// # Errors
/// The API server's refusal; [`refused`](crate::turn::cause::start::refused) says what it means for a worker's start.
pub async fn create(client: &Client, namespace: &str, pod: &Value, dry_run: bool) -> Result<Pod, kube::Error> {
    let params = PostParams { dry_run, field_manager: Some(FIELD_MANAGER.to_owned()) };
    let body = serde_json::to_vec(pod).map_err(kube::Error::SerdeError)?;
    let request = kube::core::Request::new(format!("/api/v1/namespaces/{namespace}/pods"));
    let request = request.create(&params, body).map_err(kube::Error::BuildRequest)?;
    client.request(request).await
}
