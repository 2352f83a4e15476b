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

impl OperatorConfig {
    /// Whether nothing is served in this namespace, though all namespaces are watched: Lastword's own, where its Secrets are,
    /// and those of Kubernetes itself. A worker pod there could mount what is there. The operator may name one explicitly.
    pub fn leaves_out(&self, namespace: &str) -> bool {
        let named = self.namespaces.iter().any(|watched| watched == namespace);
        !named && (namespace == self.own_namespace || namespace.starts_with("kube-"))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_namespace_and_those_of_kubernetes_are_left_out_unless_they_are_named() {
        let config = |namespaces: &[&str]| OperatorConfig {
            namespaces: namespaces.iter().map(|name| name.to_string()).collect(),
            own_namespace: "lastword-system".into(),
            identity: String::new(),
            worker_gateways: Vec::new(),
            worker_ca: None,
            injector: Injector { image: "i".into(), pull_policy: None, pull_secrets: Vec::new() },
        };
        for (namespace, left_out) in [
            ("team", false),
            ("default", false),
            ("lastword-system", true),
            ("kube-system", true),
            ("kube-public", true),
        ] {
            assert_eq!(config(&[]).leaves_out(namespace), left_out, "{namespace}");
            assert!(!config(&[namespace]).leaves_out(namespace), "{namespace} is named");
        }
    }
}
