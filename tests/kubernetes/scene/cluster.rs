//! The cluster that the rows run on, and what only our local one can do: nodes and the API server taken away.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::ListParams;
use kube::{Api, Client};

use super::{command, try_command, until};
use crate::support::{repository, skipped};

/// The namespace and the release that `tests/kubernetes/run` installs.
pub const SYSTEM: &str = "lastword";
/// What the chart calls its parts; all names that the rows rely on stand here.
pub const GATEWAY: &str = "lastword-gateway";
pub const CONTROLLER: &str = "lastword-controller";
/// The Service of the client port, of the worker port, and the Lease of the leader among the controllers.
pub const CLIENTS: &str = "lastword-gateway";
pub const WORKERS: &str = "lastword-workers";
pub const LEASE: &str = "lastword-controller";
/// The node that rows may take away, as Kubernetes calls it and as `tests/cluster/cluster` does.
pub const NODE: &str = "lastword-worker";

/// A connection to the cluster.
#[derive(Clone)]
pub struct Cluster {
    pub kube: Client,
    /// Where clients reach the gateways.
    pub gateway: String,
    /// Whether nodes, the API server and processes are within reach.
    pub local: bool,
}

impl Cluster {
    /// The cluster; or none, told loudly, when no rows are wanted.
    pub async fn connect() -> Option<Cluster> {
        if std::env::var_os("LASTWORD_KUBERNETES").is_none() {
            skipped("no cluster: run tests/kubernetes/run");
            return None;
        }
        crate::support::crypto();
        let kube = Client::try_default().await.expect("KUBECONFIG names the cluster");
        let gateway = match std::env::var("LASTWORD_KUBERNETES_GATEWAY") {
            Ok(url) => url,
            Err(_) => service(&kube, CLIENTS).await,
        };
        Some(Cluster { kube, gateway, local: std::env::var_os("LASTWORD_KUBERNETES_LOCAL").is_some() })
    }

    /// The same, for a row that needs what only the local cluster can do.
    pub async fn connect_local(needs: &str) -> Option<Cluster> {
        let cluster = Cluster::connect().await?;
        if !cluster.local {
            skipped(&format!("{needs} is in reach on the local cluster alone"));
            return None;
        }
        Some(cluster)
    }

    /// Where workers reach the gateways.
    pub async fn worker_port(&self) -> String {
        service(&self.kube, WORKERS).await
    }

    pub fn system_pods(&self) -> Api<Pod> {
        Api::namespaced(self.kube.clone(), SYSTEM)
    }

    /// The pods of a part of the chart that are not being deleted.
    pub async fn pods_of(&self, component: &str) -> Vec<Pod> {
        let wanted = ListParams::default().labels(&format!("app.kubernetes.io/component={component}"));
        let pods = self.system_pods().list(&wanted).await.expect("the API server lists pods").items;
        let pods: Vec<Pod> = pods.into_iter().filter(|p| p.metadata.deletion_timestamp.is_none()).collect();
        assert!(!pods.is_empty(), "no pods of the component {component}");
        pods
    }

    /// The identity of the leader among the controllers, which is its pod's name.
    pub async fn leader(&self) -> Option<String> {
        let leases: Api<Lease> = Api::namespaced(self.kube.clone(), SYSTEM);
        let lease = leases.get_opt(LEASE).await.ok().flatten()?;
        lease.spec?.holder_identity.filter(|h| !h.is_empty())
    }

    /// An operator's key for a namespace.
    pub async fn operator_key(&self, organization: &str) -> String {
        let target = format!("deploy/{GATEWAY}");
        let create = [
            "--namespace",
            SYSTEM,
            "exec",
            &target,
            "--",
            "/lastword",
            "keys",
            "create",
            "e2e",
            "--organization",
            organization,
            "--role",
            "operator",
        ];
        let key = until("an API key", async || try_command("kubectl", &create).await).await;
        key.lines().last().expect("the key stands alone on stdout").trim().to_owned()
    }

    /// Waits until both Deployments are as they should be.
    pub async fn settled(&self) {
        for deployment in [GATEWAY, CONTROLLER] {
            let target = format!("deploy/{deployment}");
            command("kubectl", &["-n", SYSTEM, "rollout", "status", &target, "--timeout=120s"]).await;
        }
    }

    /// A fault, or its end, by `tests/cluster/cluster`.
    pub async fn control(&self, words: &[&str]) {
        assert!(self.local, "asked for by a row that checked it");
        command(repository("tests/cluster/cluster").to_str().unwrap(), words).await;
    }
}

/// The URL of a Service in the chart's namespace, by its address: this process knows no DNS of the cluster.
async fn service(kube: &Client, name: &str) -> String {
    let services: Api<Service> = Api::namespaced(kube.clone(), SYSTEM);
    let service = services.get(name).await.unwrap_or_else(|e| panic!("the Service {name} of the chart: {e}"));
    let spec = service.spec.expect("a Service has a spec");
    let port = spec.ports.expect("a Service has ports")[0].port;
    let address = spec.cluster_ip.filter(|a| a != "None");
    let address = match address {
        Some(address) => address,
        // A headless one: any of its pods will do.
        None => endpoint(kube, name).await,
    };
    format!("http://{address}:{port}")
}

async fn endpoint(kube: &Client, service: &str) -> String {
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    let slices: Api<EndpointSlice> = Api::namespaced(kube.clone(), SYSTEM);
    let wanted = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    let slices = slices.list(&wanted).await.expect("the API server lists endpoints").items;
    let first = slices.iter().flat_map(|s| &s.endpoints).flat_map(|e| &e.addresses).next();
    first.unwrap_or_else(|| panic!("{service} has no endpoints")).clone()
}
