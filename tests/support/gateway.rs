//! Gateways in this process, each in a runtime of its own so that it can be killed as a process is; clients and workers
//! that speak HTTP to them.

#![allow(dead_code, reason = "each test target uses a part of it")]

pub mod client;
pub mod fake_worker;
pub mod forwarder;

use std::time::{Duration, Instant};

use lastword::gateway::{self, GatewayConfig, GatewayError, Listeners};
use lastword::local::postgres::{Embedded, Options, Version};
use lastword::store::{PoolSizes, Retention, Store};
use lastword::sweep;
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{self, Db};
pub use client::Client;
pub use fake_worker::FakeWorker;

/// Whose turns these are, where nobody says otherwise.
pub const ORGANIZATION: &str = "default";
/// An Agent whose conversations share a worker group of the same name.
pub const AGENT: &str = "bot";
/// The longest that anything is waited for.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Makes a test of each `async fn name(db: Db)`, on a fresh database of the newest Postgres.
#[macro_export]
macro_rules! newest {
    ($($name:ident),* $(,)?) => {$(
        mod $name {
            #[test]
            fn on_18() {
                $crate::support::run(lastword::local::postgres::Version::V18, |db| async {
                    $crate::gateway::prepare(&db).await;
                    super::$name(db).await;
                });
            }
        }
    )*};
}

/// What every test starts from: the Agent [`AGENT`], and a log on stderr for those who ask (`RUST_LOG`).
pub async fn prepare(db: &Db) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    put_agent(&db.store, AGENT, json!({})).await;
}

/// Puts an Agent with `scope: Agent`, changed by `more`.
pub async fn put_agent(store: &Store, name: &str, more: Value) {
    let mut spec = json!({"scope": "Agent", "adapter": "Custom"});
    let Value::Object(more) = more else { panic!("an object") };
    spec.as_object_mut().expect("an object").extend(more);
    store.put_agent(ORGANIZATION, name, &spec).await.expect("the Agent is put");
}

/// Waits until `holds`, looking often.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A bound on what ends by itself.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// A gateway on free loopback ports.
pub struct Gateway {
    runtime: Option<Runtime>,
    shutdown: CancellationToken,
    ended: Option<JoinHandle<Result<(), GatewayError>>>,
    /// Base URL of the client port.
    pub clients: String,
    /// Base URL of the worker port.
    pub workers: String,
}

impl Gateway {
    /// One without authentication.
    pub async fn start(db: &Db) -> Gateway {
        Gateway::with(db.options(), |_| {}).await
    }

    /// One whose configuration was changed before.
    pub async fn with(database: PgConnectOptions, change: impl FnOnce(&mut GatewayConfig)) -> Gateway {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let (listeners, clients, workers) = {
            let _inside = runtime.enter();
            let (clients, client_url) = listen();
            let (workers, worker_url) = listen();
            (Listeners { clients, workers }, client_url, worker_url)
        };
        let mut config = GatewayConfig { advertise: workers.clone(), ..GatewayConfig::default() };
        config.shutdown_grace = Duration::from_secs(2);
        config.egress = config.egress.with_loopback();
        change(&mut config);
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let ended = runtime.spawn(async move {
            let store = Store::open(database, PoolSizes { general: 6, vital: 4 });
            gateway::run(config, store, listeners, stop).await
        });
        Gateway { runtime: Some(runtime), shutdown, ended: Some(ended), clients, workers }
    }

    /// A client of it, without a key.
    pub fn client(&self) -> Client {
        Client::new(&self.clients, None)
    }

    /// A client of it with this key.
    pub fn client_with(&self, key: &str) -> Client {
        Client::new(&self.clients, Some(key))
    }

    /// Begins a clean shutdown.
    pub fn begin_shutdown(&self) {
        self.shutdown.cancel();
    }

    /// Shuts down as on SIGTERM, and waits for the end.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        let ended = self.ended.take().expect("it ran");
        within("the gateway's shutdown", ended).await.expect("no panic").expect("a clean end");
    }

    /// Dies as by SIGKILL: nothing of it runs on, its connections are gone.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.end();
    }
}

fn listen() -> (tokio::net::TcpListener, String) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("nonblocking");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    (tokio::net::TcpListener::from_std(listener).expect("inside the runtime"), url)
}

/// A sweeper, often; it ends with this value.
pub struct Sweeper(CancellationToken);

impl Sweeper {
    pub fn start(store: Store) -> Sweeper {
        let shutdown = CancellationToken::new();
        let every = Duration::from_millis(100);
        tokio::spawn(sweep::sweep(store, Retention::default(), every, shutdown.clone()));
        Sweeper(shutdown)
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// A server of this test alone, which may be stopped, with a fresh database on it.
pub async fn own_server(name: &str) -> (Embedded, Db) {
    let root = support::cache().parent().expect("a parent").join("servers");
    let mut options = Options::new(root.join(format!("{}-{name}", std::process::id())), support::cache());
    options.version = Version::V18;
    options.ephemeral = true;
    options.max_connections = 60;
    let server = Embedded::start(options).await.expect("Postgres starts");
    let db = Db::on(server.connect_options("lastword"), Version::V18).await;
    prepare(&db).await;
    (server, db)
}

impl Db {
    /// How a turn ended, when it did: `reply` or its error's reason.
    pub async fn ending(&self, turn: lastword::turn::keys::TurnId) -> String {
        let mut ending = None;
        eventually("the turn ends", async || {
            ending = self.outcome(turn).await;
            ending.is_some()
        })
        .await;
        ending.expect("it ended")
    }

    /// Nothing is left to deliver.
    pub async fn all_delivered(&self) {
        eventually("all is delivered", async || self.count("delivery").await == 0).await;
    }
}
