//! The flags of a gateway: ports and limits, TLS on the worker port, and whether pods may prove who they are.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rustls::ServerConfig;
use rustls::pki_types::{InvalidDnsNameError, ServerName};

use super::auth::AuthMode;
use super::config::{GatewayConfig, WorkerTls};
use super::limits::PrincipalQuotas;
use super::oidc::args::OidcArgs;
use super::origin::{AllowedOrigin, ServedHost};
use crate::dispatch::follow;
use crate::tls::{self, Renewed, TlsError};

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
    /// How callers are known. `none`: whoever runs this is the local operator, on loopback alone; others need a key.
    #[arg(long, env = "LASTWORD_AUTH", value_name = "MODE", default_value = "none")]
    pub auth: AuthMode,
    /// The hosts in the URLs by which clients call, such as chat.example.com,*.example.com; `*` for any. Those of loopback are
    /// always served, and with --auth keys every IP address.
    #[arg(long, env = "LASTWORD_HOSTS", value_name = "HOST", value_delimiter = ',')]
    pub hosts: Vec<ServedHost>,
    /// An origin whose web pages may call the API, such as `https://app.example.com`; may be given more than once. The gateway's
    /// own page needs none.
    #[arg(long = "allow-origin", env = "LASTWORD_ALLOW_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    pub origins: Vec<AllowedOrigin>,
    /// SSE streams that may be open at once.
    #[arg(long, env = "LASTWORD_MAX_STREAMS", value_name = "COUNT", default_value_t = 20_000)]
    pub max_streams: usize,
    /// Connections that each port may have at once; fewer if the process may not open as many files.
    #[arg(long, env = "LASTWORD_MAX_CONNECTIONS", value_name = "COUNT", default_value_t = 40_000)]
    pub max_connections: usize,
    /// The client port's certificate, with its chain: with it, the port speaks HTTPS alone. PEM, looked at again every few seconds.
    #[arg(long, env = "LASTWORD_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key.
    #[arg(long, env = "LASTWORD_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Seconds that a client may not read what it is sent before its stream is cut; it goes on by its cursor.
    #[arg(long, env = "LASTWORD_READER_PATIENCE_SECONDS", value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub reader_patience_seconds: u64,
    #[command(flatten)]
    pub quotas: QuotaArgs,
    #[command(flatten)]
    pub oidc: OidcArgs,
}

/// What one user of an organization may have. `--auth none` knows one user only, and limits it only where a flag does.
#[derive(Debug, Clone, Args)]
pub struct QuotaArgs {
    /// Requests that a user may send in a second, to each replica [default: 100; with --auth none no limit].
    #[arg(long, env = "LASTWORD_USER_REQUESTS_PER_SECOND", value_name = "COUNT")]
    pub user_requests_per_second: Option<NonZeroU32>,
    /// SSE streams that a user may have at once, on each replica [default: 1000; with --auth none no limit].
    #[arg(long, env = "LASTWORD_USER_STREAMS", value_name = "COUNT")]
    pub user_streams: Option<NonZeroU32>,
    /// Turns that a user may have open at once [default: 1000; with --auth none no limit].
    #[arg(long, env = "LASTWORD_USER_OPEN_TURNS", value_name = "COUNT")]
    pub user_open_turns: Option<NonZeroU32>,
    /// Conversations that a user may have [default: 100000; with --auth none no limit].
    #[arg(long, env = "LASTWORD_USER_CONVERSATIONS", value_name = "COUNT")]
    pub user_conversations: Option<NonZeroU64>,
}

impl QuotaArgs {
    /// The quotas that these flags give where callers are known so.
    fn quotas(&self, auth: AuthMode) -> PrincipalQuotas {
        let known = auth != AuthMode::None;
        let count = |given: Option<NonZeroU32>, default: u32| given.or(NonZeroU32::new(default).filter(|_| known));
        PrincipalQuotas {
            requests_per_second: count(self.user_requests_per_second, 100),
            streams: count(self.user_streams, 1_000),
            open_turns: count(self.user_open_turns, 1_000),
            conversations: self.user_conversations.or(NonZeroU64::new(100_000).filter(|_| known)),
        }
    }
}

/// What would go over a network in cleartext.
#[derive(Debug, thiserror::Error)]
pub enum GatewayInCleartext {
    /// Workers, and other replicas, would be served so on other machines.
    #[error(
        "workers would connect to {0} in cleartext, with their credentials: name a certificate with --worker-tls-cert and \
         --worker-tls-key, or allow it with --allow-cleartext (LASTWORD_ALLOW_CLEARTEXT)"
    )]
    Workers(SocketAddr),
    /// Whoever is on the way could forge the keys by which tokens are checked.
    #[error(
        "the keys of the issuer {0} would be read in cleartext: use https://, or allow it with --allow-cleartext \
         (LASTWORD_ALLOW_CLEARTEXT)"
    )]
    Issuer(String),
}

impl GatewayArgs {
    /// Refuses a worker port that other machines reach in cleartext, and an OIDC issuer that would be asked so.
    ///
    /// # Errors
    /// If one of them goes beyond this machine without TLS, and that is not allowed.
    pub fn check_cleartext(&self, has_tls: bool, allowed: bool) -> Result<(), GatewayInCleartext> {
        if allowed {
            return Ok(());
        }
        if let Some(issuer) = self.oidc.oidc_issuer.as_ref().filter(|issuer| issuer.is_in_cleartext()) {
            return Err(GatewayInCleartext::Issuer(issuer.as_str().to_owned()));
        }
        if has_tls || self.worker_listen.ip().is_loopback() {
            return Ok(());
        }
        Err(GatewayInCleartext::Workers(self.worker_listen))
    }

    /// TLS on the client port; `None` without a certificate.
    ///
    /// # Errors
    /// The first file with which something is wrong, and what.
    pub fn client_tls(&self) -> Result<Option<Renewed<Arc<ServerConfig>>>, TlsError> {
        let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) else { return Ok(None) };
        tls::server(certificate, key, tls::HTTP2).map(Some)
    }

    /// The configuration that these flags describe, but for TLS on the client port. `workers` is the address that the worker port was bound to: with port 0
    /// the kernel chose it.
    pub fn config(&self, workers: SocketAddr, worker_tls: Option<WorkerTls>) -> GatewayConfig {
        let scheme = if worker_tls.is_some() { "https" } else { "http" };
        GatewayConfig {
            auth: self.auth,
            oidc: self.oidc.config(),
            hosts: self.hosts.clone(),
            origins: self.origins.clone(),
            advertise: self.advertise.clone().unwrap_or_else(|| format!("{scheme}://{workers}")),
            worker_tls,
            max_streams: self.max_streams,
            quotas: self.quotas.quotas(self.auth),
            max_connections: self.max_connections,
            reader_patience: Duration::from_secs(self.reader_patience_seconds),
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
    /// Reads the files; `None` without them.
    ///
    /// # Errors
    /// The first file with which something is wrong, and what.
    pub fn worker_tls(&self) -> Result<Option<WorkerTls>, TlsError> {
        let (Some(certificate), Some(key)) = (&self.worker_tls_cert, &self.worker_tls_key) else { return Ok(None) };
        let port = tls::server(certificate, key, tls::HTTP1)?;
        let peers = tls::client(self.worker_tls_ca.as_deref(), self.worker_tls_name.as_ref(), follow::client)?;
        Ok(Some(WorkerTls { port, peers }))
    }
}

fn server_name(text: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
    ServerName::try_from(text.to_owned())
}

/// Whether the gateway asks Kubernetes who a pod is.
#[derive(Debug, Clone, Args)]
pub struct ReviewArgs {
    /// Let pods prove who they are by a token of their ServiceAccount (TokenReview): the gateway must run in the cluster.
    #[arg(long, env = "LASTWORD_TOKEN_REVIEW")]
    pub token_review: bool,
}
