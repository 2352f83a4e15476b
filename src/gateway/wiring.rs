//! Makes a gateway of its parts and runs it.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::audit::ReadAudit;
use super::auth::{Auth, AuthMode};
use super::config::{GatewayConfig, WorkerTls};
use super::limits::PrincipalCounters;
use super::notices::{self, NoticeRouter};
use super::oidc::Oidc;
use super::origin::{FLAG, ServedHost, ServedHosts};
use super::{Gateway, router};
use crate::agents::Agents;
use crate::dispatch::follow::{self, Follower};
use crate::dispatch::live::LiveLogs;
use crate::dispatch::subscriptions::Subscriptions;
use crate::dispatch::workers::Workers;
use crate::edge::bodies::Bodies;
use crate::edge::files::affordable_connections;
use crate::edge::{PortLimits, serve};
use crate::egress::{Outbound, Reach};
use crate::every::watched;
use crate::guard::Services;
use crate::heartbeat::Heartbeats;
use crate::store::{Replica, Store};
use crate::stream::delivery::{self, ShownTerminals};
use crate::stream::registry::SessionRegistry;
use crate::stream::session::Streams;
use crate::submit::Submitter;
use crate::tls::never_renewed;
use crate::worker_port::{WorkerPort, WorkerRoom};

/// The largest header of a client's request, in bytes: proxies add some, and a cursor has 4 KiB at most.
const CLIENT_HEADER_BYTES: usize = 32 * 1024;
/// The same for a worker, which names all its turns in hand in a URL of up to 64 KiB.
const WORKER_HEADER_BYTES: usize = 80 * 1024;

/// The open ports that a gateway is given.
pub struct Listeners {
    pub clients: TcpListener,
    pub workers: TcpListener,
}

/// Why a gateway did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error("--auth none serves loopback only, and {0} is not; use --auth keys")]
    NotLoopback(SocketAddr),
    #[error("--oidc-issuer is for a gateway whose callers are known: use --auth keys")]
    KeylessOidc,
    #[error("without keys, {FLAG} '*' would open this gateway to any web page; name the hosts, or use --auth keys")]
    AnyHost,
    #[error("cannot serve: {0}")]
    Io(#[from] std::io::Error),
    #[error("cannot make an HTTP client: {0}")]
    Http(#[from] reqwest::Error),
}

/// Serves until `shutdown`. Then it accepts no more connections, aborts the client streams whose turns lack their terminal,
/// gives requests the configured grace to finish, and returns when its background loops have ended.
pub async fn run(
    config: GatewayConfig,
    store: Store,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> Result<(), GatewayError> {
    let address = listeners.clients.local_addr()?;
    if config.auth == AuthMode::None {
        if !address.ip().is_loopback() {
            return Err(GatewayError::NotLoopback(address));
        }
        if config.hosts.contains(&ServedHost::Any) {
            return Err(GatewayError::AnyHost);
        }
        if config.oidc.is_some() {
            return Err(GatewayError::KeylessOidc);
        }
    }
    let background = shutdown.child_token();
    let replica = Replica::new(config.advertise.clone());
    let subscriptions = Subscriptions::default();
    let live = LiveLogs::new(subscriptions.clone());
    let (port_tls, peers) = match config.worker_tls.clone() {
        Some(WorkerTls { port, peers }) => (Some(port), peers),
        None => (None, never_renewed(follow::client(crate::tls::http())?)),
    };
    // It ticks for as long as workers are connected, and stops behind them.
    let ticking = CancellationToken::new();
    let _stops = ticking.clone().drop_guard();
    let heartbeats = Heartbeats::start(store.clone(), replica.clone(), ticking.clone());
    let streams = Streams {
        ticks: heartbeats.ticks(),
        follower: Follower::new(replica.id, store.clone(), live.clone(), subscriptions.clone(), peers),
        gateway: replica.id,
        store: store.clone(),
        sessions: SessionRegistry::start(replica.id, store.clone()),
        live: live.clone(),
        subscriptions: subscriptions.clone(),
        shown: ShownTerminals::start(store.clone()),
        shutdown: shutdown.clone(),
    };
    let workers = Workers::new(store.clone(), live.clone());
    let gateway = gateway(&config, store.clone(), streams, workers.clone()).await?;
    let room = WorkerRoom::new(config.worker_bodies, config.body_timeout);
    let port = WorkerPort::new(replica, store, live.clone(), workers.clone(), heartbeats.clone(), room)
        .for_pods(config.reviewer.clone(), config.cause_window);

    let tasks = TaskTracker::new();
    spawn_loops(&tasks, &gateway, live, subscriptions, &background);
    let limits = limits(&config);
    let hosts = ServedHosts::new(config.hosts.clone(), config.auth == AuthMode::Keys).allowing(config.origins.clone());
    let router = router::router(gateway, hosts, &config.origins);
    let clients = serve(listeners.clients, router, &limits.clients, config.client_tls.clone(), shutdown.clone());
    let worker_side = serve(listeners.workers, port.router(), &limits.workers, port_tls, shutdown.clone());
    let closing = async {
        shutdown.cancelled().await;
        workers.close_all();
    };
    let (clients, worker_side, ()) = tokio::join!(clients, worker_side, closing);
    ticking.cancel();
    tasks.close();
    tokio::join!(tasks.wait(), heartbeats.ended());
    clients.and(worker_side).map_err(GatewayError::Io)
}

/// The bounds of both ports.
struct BothPorts {
    clients: PortLimits,
    workers: PortLimits,
}

fn limits(config: &GatewayConfig) -> BothPorts {
    let clients = PortLimits {
        connections: affordable_connections(config.max_connections, 2, "--max-connections"),
        header_timeout: config.header_timeout,
        header_bytes: CLIENT_HEADER_BYTES,
        shutdown_grace: config.shutdown_grace,
        http2: true,
        reader_patience: Some(config.reader_patience),
        know_users: config.auth == AuthMode::None,
    };
    let workers = PortLimits {
        header_bytes: WORKER_HEADER_BYTES,
        http2: false,
        reader_patience: None,
        know_users: false,
        ..clients.clone()
    };
    BothPorts { clients, workers }
}

/// What the client port's handlers work with.
async fn gateway(
    config: &GatewayConfig,
    store: Store,
    streams: Streams,
    workers: Workers,
) -> Result<Gateway, GatewayError> {
    let agents = Agents::default();
    if let Err(error) = agents.refresh(&store).await {
        tracing::warn!(%error, "the agents are not known yet; they are read when the database is back");
    }
    let outbound = Outbound::new(config.egress.clone(), Reach::Cluster)?;
    let services = Services::new(outbound, config.secrets.clone(), config.evaluators.clone());
    let oidc = config.oidc.clone().map(|oidc| Oidc::new(oidc, streams.ticks.clone())).transpose()?;
    let submitter = Submitter { store: store.clone(), agents: agents.clone(), gateway: streams.gateway, services };
    Ok(Gateway {
        auth: Auth::new(config.auth, store.clone(), oidc),
        audit: ReadAudit::new(store.clone()),
        open_streams: Arc::new(Semaphore::new(config.max_streams)),
        counters: PrincipalCounters::new(config.quotas),
        bodies: Bodies::new(config.client_bodies, config.body_timeout),
        store,
        agents,
        submitter,
        streams,
        workers,
    })
}

/// Starts the background loops. They end with `shutdown`; one that panics ends the process.
fn spawn_loops(
    tasks: &TaskTracker,
    gateway: &Gateway,
    live: LiveLogs,
    subscriptions: Subscriptions,
    shutdown: &CancellationToken,
) {
    let Gateway { store, submitter, workers, streams, .. } = gateway;
    tasks.spawn(watched("the look after workers", workers.clone().tidy(shutdown.clone())));
    tasks.spawn(watched("the writing of output", live.flush(store.clone(), shutdown.clone())));
    tasks.spawn(watched(
        "delivery",
        delivery::run(store.clone(), streams.gateway, subscriptions.clone(), shutdown.clone()),
    ));
    tasks.spawn(watched(
        "the polling of conversations",
        delivery::poll(store.clone(), subscriptions.clone(), shutdown.clone()),
    ));
    tasks.spawn(watched("the guarding of waiting turns", submitter.clone().reguard(shutdown.clone())));
    tasks.spawn(watched("the look after keys", gateway.auth.clone().look_after_keys(shutdown.clone())));
    if let Some(oidc) = gateway.auth.oidc() {
        tasks.spawn(watched("the look after the OIDC issuer", oidc.clone().look_after_keys(shutdown.clone())));
    }
    let agents_changed = Arc::new(Notify::new());
    let readings =
        notices::refresh_agents(gateway.agents.clone(), store.clone(), agents_changed.clone(), shutdown.clone());
    tasks.spawn(watched("the reading of Agents", readings));
    let refreshing = Arc::default();
    let notices = NoticeRouter { gateway: gateway.clone(), subscriptions, agents_changed, refreshing };
    tasks.spawn(watched("hearing notices", notices.run(shutdown.clone())));
}
