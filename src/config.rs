//! What a role is told by flags, `LASTWORD_…` variables and `lastword.env`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;
use rustls::pki_types::{InvalidDnsNameError, ServerName};
use tokio::net::TcpListener;

use crate::deliver::egress::Egress;
use crate::dispatch::follow;
use crate::gateway::{AuthMode, GatewayConfig, WorkerTls};
use crate::operator::{Injector, OperatorConfig};
use crate::store::{PoolSizes, Retention};
use crate::tls::{self, TlsError};

/// A port that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({error}); choose another with {flag}")]
pub struct CannotListen {
    address: SocketAddr,
    flag: &'static str,
    error: std::io::Error,
}

/// Opens the port that `flag` names.
pub async fn listen(address: SocketAddr, flag: &'static str) -> Result<TcpListener, CannotListen> {
    TcpListener::bind(address).await.map_err(|error| CannotListen { address, flag, error })
}

/// Where the state is.
#[derive(Debug, Clone, Args)]
pub struct DatabaseArgs {
    /// The database: `postgres://…`, or a directory (`file://DIR` or a path) for an embedded Postgres whose data lives
    /// there.
    #[arg(
        long,
        global = true,
        env = "LASTWORD_DATABASE_URL",
        value_name = "URL",
        default_value = "./.lastword",
        hide_env_values = true
    )]
    pub database_url: String,
    /// For an embedded Postgres: use the programs in this directory, no others.
    #[arg(long, global = true, env = "LASTWORD_POSTGRES_BIN", value_name = "DIR")]
    pub postgres_bin: Option<PathBuf>,
    /// For an embedded Postgres: where its programs are kept once fetched [default: lastword in the user's cache
    /// directory].
    #[arg(long, global = true, env = "LASTWORD_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Connections for submits, reads and output; a third of them for reads by key, whose plans are kept.
    #[arg(long, global = true, env = "LASTWORD_POOL_GENERAL", value_name = "COUNT", default_value_t = 12, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub pool_general: u32,
    /// Connections that terminals and heartbeats have for themselves.
    #[arg(long, global = true, env = "LASTWORD_POOL_VITAL", value_name = "COUNT", default_value_t = 6, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub pool_vital: u32,
}

impl DatabaseArgs {
    /// The pools' sizes.
    pub fn pools(&self) -> PoolSizes {
        PoolSizes { general: self.pool_general, vital: self.pool_vital }
    }
}

/// The gateway's ports and limits.
#[derive(Debug, Clone, Args)]
pub struct GatewayArgs {
    /// Where clients connect.
    #[arg(long, env = "LASTWORD_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Where workers connect; never for clients to reach.
    #[arg(long, env = "LASTWORD_WORKER_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    pub worker_listen: SocketAddr,
    /// Base URL of the worker port as workers and other replicas reach it [default: http:// or https://, and the worker
    /// port's address].
    #[arg(long, env = "LASTWORD_ADVERTISE", value_name = "URL")]
    pub advertise: Option<String>,
    /// How callers are known. `none`: everybody is the local operator, on loopback alone.
    #[arg(long, env = "LASTWORD_AUTH", value_name = "MODE", default_value = "none")]
    pub auth: AuthMode,
    /// SSE streams that may be open at once.
    #[arg(long, env = "LASTWORD_MAX_STREAMS", value_name = "COUNT", default_value_t = 20_000)]
    pub max_streams: usize,
}

impl GatewayArgs {
    /// The gateway's configuration; `workers` is the address that the worker port really has.
    pub fn config(&self, workers: SocketAddr, worker_tls: Option<WorkerTls>) -> GatewayConfig {
        let scheme = if worker_tls.is_some() { "https" } else { "http" };
        GatewayConfig {
            auth: self.auth,
            advertise: self.advertise.clone().unwrap_or_else(|| format!("{scheme}://{workers}")),
            worker_tls,
            max_streams: self.max_streams,
            ..GatewayConfig::default()
        }
    }
}

/// TLS on the gateway's worker port. Files are PEM, and looked at again every few seconds.
#[derive(Debug, Clone, Args)]
pub struct WorkerTlsArgs {
    /// The worker port's certificate, with its chain: with it, the port speaks HTTPS alone.
    #[arg(long, env = "LASTWORD_WORKER_TLS_CERT", value_name = "FILE", requires = "worker_tls_key")]
    pub worker_tls_cert: Option<PathBuf>,
    /// Its private key.
    #[arg(long, env = "LASTWORD_WORKER_TLS_KEY", value_name = "FILE", requires = "worker_tls_cert")]
    pub worker_tls_key: Option<PathBuf>,
    /// The authorities that other replicas' certificates are held against [default: the system's].
    #[arg(long, env = "LASTWORD_WORKER_TLS_CA", value_name = "FILE", requires = "worker_tls_cert")]
    pub worker_tls_ca: Option<PathBuf>,
    /// The name in other replicas' certificates, where all have one for a name that they share [default: the host in their
    /// --advertise].
    #[arg(long, env = "LASTWORD_WORKER_TLS_NAME", value_name = "NAME", requires = "worker_tls_cert", value_parser = server_name)]
    pub worker_tls_name: Option<ServerName<'static>>,
}

impl WorkerTlsArgs {
    /// Reads the files, if there are any.
    ///
    /// # Errors
    /// What is wrong with which of them.
    pub fn worker_tls(&self) -> Result<Option<WorkerTls>, TlsError> {
        let (Some(certificate), Some(key)) = (&self.worker_tls_cert, &self.worker_tls_key) else { return Ok(None) };
        let port = tls::server(certificate, key)?;
        let peers = tls::client(self.worker_tls_ca.as_deref(), self.worker_tls_name.as_ref(), follow::client)?;
        Ok(Some(WorkerTls { port, peers }))
    }
}

fn server_name(text: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
    ServerName::try_from(text.to_owned())
}

/// Health, readiness and metrics.
#[derive(Debug, Clone, Args)]
pub struct AdminArgs {
    /// Where health, readiness and metrics are served.
    #[arg(long, env = "LASTWORD_ADMIN_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:9090")]
    pub admin_listen: SocketAddr,
}

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

/// Whether, and for which callers, the gateway asks Kubernetes.
#[derive(Debug, Clone, Args)]
pub struct ReviewArgs {
    /// Let pods prove who they are by a token of their ServiceAccount (TokenReview): the gateway must run in the cluster.
    #[arg(long, env = "LASTWORD_TOKEN_REVIEW")]
    pub token_review: bool,
}

/// Where Agents' webhooks, Slack URLs and guardrails may be.
#[derive(Debug, Clone, Args)]
pub struct EgressArgs {
    /// Networks (CIDR) that Agents' URLs may lead to though they are loopback, link-local or private; http is taken there
    /// too. Guardrails may lead to private ones anyway. `dev` allows loopback.
    #[arg(long, env = "LASTWORD_EGRESS_ALLOW", value_name = "CIDR,…", value_delimiter = ',')]
    pub egress_allow: Vec<IpNet>,
    /// Networks (CIDR) that no Agent's URL may lead to; wins over --egress-allow.
    #[arg(long, env = "LASTWORD_EGRESS_DENY", value_name = "CIDR,…", value_delimiter = ',')]
    pub egress_deny: Vec<IpNet>,
}

impl EgressArgs {
    /// The rules.
    pub fn egress(&self) -> Egress {
        Egress { allow: self.egress_allow.clone(), deny: self.egress_deny.clone() }
    }
}

/// The knobs of failure detection and housekeeping that are not an Agent's own.
#[derive(Debug, Clone, Args)]
pub struct TimingArgs {
    /// How often the sweep looks for what has lapsed.
    #[arg(long, env = "LASTWORD_SWEEP_MILLISECONDS", value_name = "MILLISECONDS", default_value_t = 1000)]
    pub sweep_milliseconds: u64,
    /// How long the cause of a proven death is waited for.
    #[arg(long, env = "LASTWORD_CAUSE_WINDOW_MILLISECONDS", value_name = "MILLISECONDS", default_value_t = 5000)]
    pub cause_window_milliseconds: u64,
    /// How long a turn is kept after its terminal.
    #[arg(long, env = "LASTWORD_RETENTION_SECONDS", value_name = "SECONDS", default_value_t = 30 * 24 * 3600)]
    pub retention_seconds: u64,
}

impl TimingArgs {
    pub fn sweep_every(&self) -> Duration {
        Duration::from_millis(self.sweep_milliseconds.max(10))
    }

    pub fn cause_window(&self) -> Duration {
        Duration::from_millis(self.cause_window_milliseconds)
    }

    pub fn retention(&self) -> Retention {
        Retention { turn_seconds: self.retention_seconds, ..Retention::default() }
    }
}

/// How to log.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// What to log, e.g. `info` or `lastword=debug,warn`.
    #[arg(long, env = "LASTWORD_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// One JSON object a line.
    #[arg(long, env = "LASTWORD_LOG_JSON")]
    pub log_json: bool,
}
