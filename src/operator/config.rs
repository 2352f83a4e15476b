//! The operator's configuration, made from the controller's flags by [`args`](super::args).

use std::sync::Arc;

use crate::tls::{Authorities, Renewed};

/// How the operator works.
#[derive(Debug, Clone)]
pub struct OperatorConfig {
    /// The namespaces whose Agents, AgentTurns and worker pods are served. Empty: all namespaces.
    pub namespaces: Vec<String>,
    /// The namespace that the controller itself runs in. Its leader election's Lease is there.
    pub own_namespace: String,
    /// The name of this replica as holder of the Lease: the name of its pod.
    pub identity: String,
    /// Base URLs of the gateways' worker port, as worker pods reach it.
    pub worker_gateways: Vec<String>,
    /// The authorities that worker pods trust when they connect to that port. `None`: those that their images trust.
    pub worker_ca: Option<Renewed<Authorities>>,
    /// The image that brings the binary `lastword` into worker pods.
    pub injector: Injector,
}

/// The image from which an init container of each worker pod copies the binary `lastword`.
#[derive(Debug, Clone)]
pub struct Injector {
    /// The image reference.
    pub image: Arc<str>,
    /// `Always`, `IfNotPresent` or `Never`. `None`: Kubernetes chooses by the image's tag.
    pub pull_policy: Option<String>,
    /// Names of image pull Secrets in the namespace of the worker pod.
    pub pull_secrets: Vec<String>,
}
