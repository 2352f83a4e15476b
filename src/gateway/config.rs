//! What a gateway is configured with. The flags are in [`args`](super::args).

use std::sync::Arc;
use std::time::Duration;

use super::auth::AuthMode;
use super::limits::PrincipalQuotas;
use super::oidc::OidcConfig;
use super::origin::{AllowedOrigin, ServedHost};
use crate::edge::bodies::BodyLimits;
use crate::egress::Egress;
use crate::guard::Evaluators;
use crate::secrets::{NoSecrets, Secrets};
use crate::tls::Renewed;
use crate::worker_port::WorkerBodyLimits;
use crate::worker_port::identity::Reviewer;

const MIB: usize = 1024 * 1024;

/// The gateway's limits and addresses.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    pub auth: AuthMode,
    /// Whose tokens are taken beside API keys.
    pub oidc: Option<OidcConfig>,
    /// By which hosts clients may call, beside those of loopback and, with keys, addresses.
    pub hosts: Vec<ServedHost>,
    /// The origins, beside its own, whose web pages may call the API.
    pub origins: Vec<AllowedOrigin>,
    /// Base URL of the worker port, as other replicas and workers reach it.
    pub advertise: String,
    /// TLS on the worker port; absent: plain HTTP.
    pub worker_tls: Option<WorkerTls>,
    /// TLS on the client port; absent: plain HTTP, as behind an Ingress.
    pub client_tls: Option<Renewed<Arc<rustls::ServerConfig>>>,
    /// How many SSE streams may be open at once; a further one is answered 429.
    pub max_streams: usize,
    /// What one principal may have.
    pub quotas: PrincipalQuotas,
    /// How many connections a port may have at once; further ones wait in the kernel's queue.
    pub max_connections: usize,
    /// The room for what clients send; an account is a principal.
    pub client_bodies: BodyLimits,
    /// The room for what workers send.
    pub worker_bodies: WorkerBodyLimits,
    /// How long a client may take to send a request's header, and before that to do the TLS handshake.
    pub header_timeout: Duration,
    /// How long a client may take after the header to send the body.
    pub body_timeout: Duration,
    /// How long a client may not read what it is sent before its stream is cut.
    pub reader_patience: Duration,
    /// Who reviews the tokens of worker pods; absent: nobody does, and no pod can be a worker here.
    pub reviewer: Option<Arc<dyn Reviewer>>,
    /// How long a worker's stop waits for the reason of the stop to be recorded.
    pub cause_window: Duration,
    /// How long open requests may take to finish at shutdown.
    pub shutdown_grace: Duration,
    /// Which addresses the webhooks of guardrails may have.
    pub egress: Egress,
    /// Where the Secrets are read that hold these webhooks' URLs.
    pub secrets: Arc<dyn Secrets>,
    /// The processes that evaluate guardrails' expressions.
    pub evaluators: Evaluators,
}

/// TLS on the worker port, which workers and other replicas connect to.
#[derive(Debug, Clone)]
pub struct WorkerTls {
    /// The certificate and key that the port shows.
    pub port: Renewed<Arc<rustls::ServerConfig>>,
    /// The client that other replicas' worker ports are called with.
    pub peers: Renewed<reqwest::Client>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        GatewayConfig {
            auth: AuthMode::None,
            oidc: None,
            hosts: Vec::new(),
            origins: Vec::new(),
            advertise: "http://127.0.0.1:8081".into(),
            worker_tls: None,
            client_tls: None,
            max_streams: 20_000,
            quotas: PrincipalQuotas::default(),
            max_connections: 40_000,
            client_bodies: BodyLimits { body: MIB, account: 8 * MIB, total: 128 * MIB },
            worker_bodies: WorkerBodyLimits::default(),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            reader_patience: Duration::from_secs(30),
            reviewer: None,
            cause_window: Duration::from_secs(5),
            shutdown_grace: Duration::from_secs(5),
            egress: Egress::default(),
            secrets: Arc::new(NoSecrets),
            evaluators: Evaluators::default(),
        }
    }
}
