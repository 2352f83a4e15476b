//! The flags of the role `controller` that are about Kubernetes.

use std::path::PathBuf;

use clap::Args;

use super::config::{Injector, OperatorConfig};
use crate::tls::{self, TlsError};

/// How the controller works in Kubernetes.
#[derive(Debug, Clone, Args)]
pub struct OperatorArgs {
    /// Namespaces whose Agents and AgentTurns are served, comma-separated [default: all but the controller's own and those
    /// whose names begin with kube-].
    #[arg(long, env = "LASTWORD_WATCH_NAMESPACES", value_name = "NAMESPACE,…", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
    /// The controller's own namespace. The Lease of its leader election is there.
    #[arg(long, env = "LASTWORD_NAMESPACE", value_name = "NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// The name of this replica in the leader election [default: the host name, which in Kubernetes is the pod's name].
    #[arg(long, env = "LASTWORD_IDENTITY", value_name = "NAME")]
    pub identity: Option<String>,
    /// Base URLs of the gateways' worker port as worker pods reach it, comma-separated.
    #[arg(long, env = "LASTWORD_WORKER_GATEWAY", value_name = "URL,…", value_delimiter = ',', required = true)]
    pub worker_gateway: Vec<String>,
    /// A PEM file with the authorities that worker pods trust at that port [default: what their images trust].
    #[arg(long, env = "LASTWORD_WORKER_CA", value_name = "FILE")]
    pub worker_ca: Option<PathBuf>,
    /// The image of Lastword from which an init container of each worker pod copies the adapter.
    #[arg(long, env = "LASTWORD_INJECTOR_IMAGE", value_name = "IMAGE")]
    pub injector_image: String,
    /// The pull policy of that image: `Always`, `IfNotPresent` or `Never` [default: as Kubernetes chooses].
    #[arg(long, env = "LASTWORD_INJECTOR_PULL_POLICY", value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub injector_pull_policy: Option<String>,
    /// Names of pull Secrets for that image, comma-separated. They must exist in the Agents' namespaces.
    #[arg(long, env = "LASTWORD_INJECTOR_PULL_SECRETS", value_name = "SECRET,…", value_delimiter = ',')]
    pub injector_pull_secrets: Vec<String>,
}

impl OperatorArgs {
    /// The operator's configuration.
    ///
    /// # Errors
    /// If the file of authorities cannot be read or holds none.
    pub fn config(&self) -> Result<OperatorConfig, TlsError> {
        // An empty variable, as a chart renders it for an unset value, is one empty name.
        let given = |list: &[String]| list.iter().filter(|s| !s.is_empty()).cloned().collect::<Vec<_>>();
        Ok(OperatorConfig {
            namespaces: given(&self.watch_namespaces),
            own_namespace: self.namespace.clone(),
            identity: self.identity.clone().unwrap_or_else(hostname),
            worker_gateways: given(&self.worker_gateway),
            worker_ca: self.worker_ca.as_deref().map(tls::authorities).transpose()?,
            injector: Injector {
                image: self.injector_image.as_str().into(),
                pull_policy: self.injector_pull_policy.clone(),
                pull_secrets: given(&self.injector_pull_secrets),
            },
        })
    }
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
