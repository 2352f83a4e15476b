//! The gateway: clients on one port, workers on another, health and metrics on a third.
//!
//! Every replica serves every client and every worker; what ties a stream to a replica is only where it is connected.

mod api;
pub mod args;
pub mod auth;
mod openapi;
mod serve;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agents::Agents;
use crate::dispatch::follow::{self, Follower};
use crate::dispatch::live::LiveLogs;
use crate::dispatch::subscriptions::Subscriptions;
use crate::dispatch::workers::Workers;
use crate::egress::{Egress, Outbound, Reach};
use crate::guard::Services;
use crate::heartbeat::Heartbeats;
use crate::secrets::{NoSecrets, Secrets};
use crate::store::{Heard, Notice, Replica, Store};
use crate::stream::delivery::{self, ShownTerminals};
use crate::stream::session::Streams;
use crate::submit::Submitter;
use crate::tls::{Renewed, never_renewed};
use crate::worker_port::WorkerPort;
use crate::worker_port::identity::Reviewer;
pub use auth::{Auth, AuthMode};

/// The gateway's limits and addresses.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    pub auth: AuthMode,
    /// Base URL of the worker port, as other replicas and workers reach it.
    pub advertise: String,
    /// TLS on the worker port; absent: plain HTTP.
    pub worker_tls: Option<WorkerTls>,
    /// SSE streams at once; more are answered 429.
    pub max_streams: usize,
    /// Connections at once on a port; more wait in the kernel's queue.
    pub max_connections: usize,
    /// A client must have sent its whole header by then; and, before that, have done its TLS handshake.
    pub header_timeout: Duration,
    /// And its whole body within this time after that.
    pub body_timeout: Duration,
    /// Who reviews the tokens of pods; absent: nobody, and no pod can be a worker here.
    pub reviewer: Option<std::sync::Arc<dyn Reviewer>>,
    /// How long it is waited for that somebody records why a worker was stopped.
    pub cause_window: Duration,
    /// How long open requests may take to finish at shutdown.
    pub shutdown_grace: Duration,
    /// Where guardrails may be.
    pub egress: Egress,
    /// Where their URLs may be.
    pub secrets: Arc<dyn Secrets>,
}

/// TLS on the worker port, which workers and other replicas connect to.
#[derive(Debug, Clone)]
pub struct WorkerTls {
    /// What the port shows.
    pub port: Renewed<Arc<rustls::ServerConfig>>,
    /// What other replicas are asked with.
    pub peers: Renewed<reqwest::Client>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        GatewayConfig {
            auth: AuthMode::None,
            advertise: "http://127.0.0.1:8081".into(),
            worker_tls: None,
            max_streams: 20_000,
            max_connections: 40_000,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            reviewer: None,
            cause_window: Duration::from_secs(5),
            shutdown_grace: Duration::from_secs(5),
            egress: Egress::default(),
            secrets: Arc::new(NoSecrets),
        }
    }
}

/// The edges that a gateway is given.
pub struct Listeners {
    pub clients: TcpListener,
    pub workers: TcpListener,
}

/// What the client endpoints need.
#[derive(Clone)]
pub struct Gateway {
    pub store: Store,
    pub auth: Auth,
    pub agents: Agents,
    pub submitter: Submitter,
    pub streams: Streams,
    pub workers: Workers,
    pub open_streams: Arc<tokio::sync::Semaphore>,
}

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error("--auth none serves loopback only, and {0} is not; use --auth keys")]
    NotLoopback(std::net::SocketAddr),
    #[error("cannot serve: {0}")]
    Io(#[from] std::io::Error),
    #[error("cannot make an HTTP client: {0}")]
    Http(#[from] reqwest::Error),
}

/// Serves until `shutdown`; then takes no more, aborts the streams that lack a terminal, and ends.
pub async fn run(
    config: GatewayConfig,
    store: Store,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> Result<(), GatewayError> {
    let address = listeners.clients.local_addr()?;
    if config.auth == AuthMode::None && !address.ip().is_loopback() {
        return Err(GatewayError::NotLoopback(address));
    }
    let replica = Replica::new(config.advertise.clone());
    let id = replica.id;
    let tasks = TaskTracker::new();
    let background = shutdown.child_token();
    let subscriptions = Subscriptions::default();
    let live = LiveLogs::new(subscriptions.clone());
    let workers = Workers::new(store.clone(), live.clone());
    let shown = ShownTerminals::start(store.clone());
    let agents = Agents::default();
    if let Err(error) = agents.refresh(&store).await {
        tracing::warn!(%error, "the agents are not known yet; they are read when the database is back");
    }
    let heartbeats = Heartbeats::start(store.clone(), replica.clone(), background.clone());
    let (port_tls, peers) = match config.worker_tls.clone() {
        Some(WorkerTls { port, peers }) => (Some(port), peers),
        None => (None, never_renewed(follow::client(crate::tls::http())?)),
    };
    let follower = Follower::new(id, store.clone(), live.clone(), subscriptions.clone(), peers);
    let streams = Streams {
        follower,
        gateway: id,
        store: store.clone(),
        live: live.clone(),
        subscriptions: subscriptions.clone(),
        shown,
        shutdown: shutdown.clone(),
    };
    let outbound = Outbound::new(config.egress.clone(), Reach::Cluster)?;
    let services = Services { outbound, secrets: config.secrets.clone() };
    let submitter = Submitter { store: store.clone(), agents: agents.clone(), gateway: id, services };
    let gateway = Gateway {
        auth: Auth::new(config.auth, store.clone()),
        open_streams: Arc::new(tokio::sync::Semaphore::new(config.max_streams)),
        store: store.clone(),
        agents: agents.clone(),
        submitter: submitter.clone(),
        streams,
        workers: workers.clone(),
    };
    let port = WorkerPort::new(replica, store.clone(), live.clone(), workers.clone(), heartbeats)
        .for_pods(config.reviewer.clone(), config.cause_window);

    tasks.spawn(workers.clone().tidy(background.clone()));
    tasks.spawn(live.flush(store.clone(), background.clone()));
    tasks.spawn(delivery::run(store.clone(), id, subscriptions.clone(), background.clone()));
    tasks.spawn(delivery::poll(store.clone(), subscriptions.clone(), background.clone()));
    tasks.spawn(submitter.reguard(background.clone()));
    let hints = Hints { store, gateway: gateway.clone(), subscriptions, workers: workers.clone() };
    tasks.spawn(hints.hear(background.clone()));

    let clients = serve::serve(listeners.clients, api::router(gateway), &config, None, shutdown.clone());
    let worker_side = serve::serve(listeners.workers, port.router(), &config, port_tls, shutdown.clone());
    let closing = async {
        shutdown.cancelled().await;
        workers.close_all();
    };
    let (clients, worker_side, ()) = tokio::join!(clients, worker_side, closing);
    tasks.close();
    tasks.wait().await;
    clients.and(worker_side).map_err(GatewayError::Io)
}

/// Turns notices into looks.
struct Hints {
    store: Store,
    gateway: Gateway,
    subscriptions: Subscriptions,
    workers: Workers,
}

/// Agents are read again this often, whatever was heard.
const REFRESH_EVERY: Duration = Duration::from_secs(5);

impl Hints {
    async fn take(&self, notice: Notice) {
        match notice {
            Notice::Conversation(conversation) => self.subscriptions.store_changed(conversation),
            Notice::WorkerGroup(organization, worker_group) => {
                self.workers.wake_worker_group(&organization, &worker_group)
            }
            Notice::Worker(incarnation) => {
                let workers = self.workers.clone();
                tokio::spawn(async move { workers.refresh(incarnation).await });
            }
            Notice::Agents => self.refresh_agents().await,
            Notice::Keys => self.gateway.auth.forget(),
        }
    }

    async fn refresh_agents(&self) {
        if let Err(error) = self.gateway.agents.refresh(&self.store).await {
            tracing::debug!(%error, "the agents were not read; the last ones known serve on");
        }
    }

    fn look_at_everything(&self) {
        self.subscriptions.everything_changed();
        self.workers.wake_all();
        self.gateway.auth.forget();
    }

    /// Hears of changes until `shutdown`.
    async fn hear(self, shutdown: CancellationToken) {
        let mut hearing = self.store.hear();
        let mut refresh = tokio::time::interval(REFRESH_EVERY);
        loop {
            tokio::select! {
                heard = hearing.next() => match heard {
                    Heard::Notice(notice) => self.take(notice).await,
                    Heard::Missed => self.look_at_everything(),
                },
                _ = refresh.tick() => self.refresh_agents().await,
                () = shutdown.cancelled() => return,
            }
        }
    }
}
