//! All of Kubernetes: Agents, AgentTurns, worker pods. Only this module, `crd`, and the gateway's TokenReview know kube.
//!
//! - [`pods`]: worker pods, and the fleet's runtime that makes them.
//! - [`review`]: who a pod is, by its token; for gateways.
//! - [`agents`]: their projection into the store, and their statuses; [`turns`]: AgentTurns; [`events`]: failures as Events.
//! - [`leader`]: the Lease that makes one replica the writer of Kubernetes objects.
//! - [`secrets`]: Secrets that Agents name, read at use.
//!
//! Everything here may be cut off from the API server at any time: what needs it waits and tries again; sweep, suspicion
//! and deliveries of other platforms go on without it.

pub mod agents;
pub mod args;
mod call;
pub mod events;
pub mod leader;
pub mod pods;
pub mod review;
pub mod secrets;
pub mod turns;
pub mod watch;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::pods::{PodRuntime, Pods};
use crate::fleet::{self, FleetConfig};
use crate::guard::Services;
use crate::store::Store;
use crate::tls::{Authorities, Renewed};

/// How the operator works; from the controller's flags.
#[derive(Debug, Clone)]
pub struct OperatorConfig {
    /// Namespaces that are served; empty: all.
    pub namespaces: Vec<String>,
    /// The namespace of the controller itself, where its Lease lies.
    pub own_namespace: String,
    /// Names this replica in the Lease: the pod's name.
    pub identity: String,
    /// Base URLs of the gateways' worker port as worker pods reach it.
    pub worker_gateways: Vec<String>,
    /// Whom worker pods trust there; absent: whom their images trust.
    pub worker_ca: Option<Renewed<Authorities>>,
    /// What puts the binary `lastword` into worker pods.
    pub injector: Injector,
}

/// The image that an init container of each worker pod copies the binary from.
#[derive(Debug, Clone)]
pub struct Injector {
    pub image: Arc<str>,
    /// `Always`, `IfNotPresent` or `Never`; absent: the cluster's default.
    pub pull_policy: Option<String>,
    /// Names of pull Secrets in the workers' namespace.
    pub pull_secrets: Vec<String>,
}

/// The audience of the tokens that worker pods show to gateways.
pub const AUDIENCE: &str = "lastword.dev";
/// Our name as a writer of Kubernetes objects (server-side apply, Events).
pub const MANAGER: &str = "lastword-controller";

/// A client from the pod's ServiceAccount, or from `KUBECONFIG`; it asks nothing yet.
///
/// # Errors
/// If there is neither.
pub async fn client() -> Result<Client, kube::Error> {
    let mut config = kube::Config::infer().await.map_err(kube::Error::InferConfig)?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Client::try_from(config)
}

/// A connection to the API server is there by then, or another is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The same for calls that must be answered within `limit`; it cannot watch.
async fn client_within(limit: Duration) -> Result<Client, kube::Error> {
    let mut config = kube::Config::infer().await.map_err(kube::Error::InferConfig)?;
    (config.connect_timeout, config.read_timeout, config.write_timeout) = (Some(limit), Some(limit), Some(limit));
    Client::try_from(config)
}

/// Runs the operator until `shutdown`. `services` are what guardrails of AgentTurns may ask.
pub async fn run(
    config: OperatorConfig,
    store: Store,
    client: Client,
    services: Services,
    cause_window: Duration,
    shutdown: CancellationToken,
) {
    let connect = || client_within(leader::CALL_TIMEOUT);
    let leadership = leader::elect(&config, store.clone(), connect, shutdown.clone());
    let namespaces: Arc<[String]> = config.namespaces.clone().into();
    let failures = events::LastFailures::default();
    let config = Arc::new(config);
    let pods = Pods::new(client.clone(), store.clone(), config.clone());
    let agents = agents::Hands { store: store.clone(), client: client.clone(), config, failures: failures.clone() };
    let wake = Arc::new(Notify::new());
    let fleet_config = FleetConfig { cause_window, ..FleetConfig::default() };
    let runtime = Arc::new(PodRuntime(pods.clone()));
    tokio::join!(
        agents::run(agents, namespaces.clone(), leadership.clone(), shutdown.clone()),
        turns::run(store.clone(), client.clone(), services, namespaces, leadership.clone(), shutdown.clone()),
        events::run(store.clone(), client, failures, leadership.clone(), shutdown.clone()),
        pods.clone().watch(shutdown.clone()),
        pods.clone().observe(shutdown.clone()),
        pods.tidy(leadership.clone(), shutdown.clone()),
        fleet::run(store.clone(), runtime, fleet_config, leadership, wake.clone(), shutdown.clone()),
        fleet::wake_on_notices(store.hear(), wake, shutdown),
    );
}
