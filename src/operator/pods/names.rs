//! The names that worker pods bear (labels, annotations, containers), and what is read from them.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::turn::keys::StartId;

/// Label: what manages the pod. The watch selects pods by it.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY`].
pub const MANAGER: &str = "lastword";
/// Label: the Agent's name.
pub const AGENT: &str = "lastword.dev/agent";
/// Annotation: the worker group. It is no label, since it need not be valid as one.
pub const WORKER_GROUP: &str = "lastword.dev/worker-group";
/// Annotation: the id of the start that the pod was created for.
pub const START: &str = "lastword.dev/start";
/// Annotation: the certificate authorities (PEM) that the worker trusts at the gateways. The worker reads it as a file
/// beside its token.
pub const GATEWAY_CA: &str = "lastword.dev/gateway-ca";

/// The container that runs our adapter where the container `agent` is a model server.
pub const ADAPTER_CONTAINER: &str = "lastword";
/// The init container that copies the binary `lastword` into the pod.
pub const INSTALL_CONTAINER: &str = "lastword-install";

/// The start that a pod says it is for. It proves nothing, since others may write annotations.
pub fn start_of(pod: &Pod) -> Option<StartId> {
    pod.annotations().get(START)?.parse().ok()
}

/// Whether an Agent is the pod's controller. Other pods are never touched.
pub fn is_ours(pod: &Pod) -> bool {
    let ours = |version: &str| version.split('/').next() == Some(crate::crd::GROUP);
    pod.owner_references().iter().any(|o| o.controller == Some(true) && o.kind == "Agent" && ours(&o.api_version))
}

/// `namespace/name`, which is how a lease row names a pod.
pub fn reference(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}
