//! The flags of the operator.

use std::path::PathBuf;

use clap::Args;

use super::{Injector, OperatorConfig};
use crate::tls::{self, TlsError};

/// What the controller is to Kubernetes.
#[derive(Debug, Clone, Args)]
pub struct OperatorArgs {
    /// Namespaces whose Agents and AgentTurns are served, comma-separated [default: all].
    #[arg(long, env = "LASTWORD_WATCH_NAMESPACES", value_name = "NAMESPACE,…", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
    /// The controller's own namespace, where its Lease lies.
    #[arg(long, env = "LASTWORD_NAMESPACE", value_name = "NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Names this replica in the Lease [default: the host's name, which is the pod's].
    #[arg(long, env = "LASTWORD_IDENTITY", value_name = "NAME")]
    pub identity: Option<String>,
    /// Base URLs of the gateways' worker port, as worker pods reach it.
    #[arg(long, env = "LASTWORD_WORKER_GATEWAY", value_name = "URL,…", value_delimiter = ',', required = true)]
    pub worker_gateway: Vec<String>,
    /// The authorities (PEM) that signed the certificate of that port, for worker pods to trust [default: what their images
    /// trust].
    #[arg(long, env = "LASTWORD_WORKER_CA", value_name = "FILE")]
    pub worker_ca: Option<PathBuf>,
    /// The image of Lastword that an init container of each worker pod copies the adapter from.
    #[arg(long, env = "LASTWORD_INJECTOR_IMAGE", value_name = "IMAGE")]
    pub injector_image: String,
    /// `Always`, `IfNotPresent` or `Never` [default: as Kubernetes chooses].
    #[arg(long, env = "LASTWORD_INJECTOR_PULL_POLICY", value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub injector_pull_policy: Option<String>,
    /// Pull Secrets for it, comma-separated; they must be in the Agents' namespaces.
    #[arg(long, env = "LASTWORD_INJECTOR_PULL_SECRETS", value_name = "SECRET,…", value_delimiter = ',')]
    pub injector_pull_secrets: Vec<String>,
}

impl OperatorArgs {
    /// The operator's configuration.
    ///
    /// # Errors
    /// What is wrong with the file of authorities.
    pub fn config(&self) -> Result<OperatorConfig, TlsError> {
        let some = |list: &[String]| list.iter().filter(|s| !s.is_empty()).cloned().collect::<Vec<_>>();
        Ok(OperatorConfig {
            namespaces: some(&self.watch_namespaces),
            own_namespace: self.namespace.clone(),
            identity: self.identity.clone().unwrap_or_else(hostname),
            worker_gateways: some(&self.worker_gateway),
            worker_ca: self.worker_ca.as_deref().map(tls::authorities).transpose()?,
            injector: Injector {
                image: self.injector_image.as_str().into(),
                pull_policy: self.injector_pull_policy.clone(),
                pull_secrets: some(&self.injector_pull_secrets),
            },
        })
    }
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
