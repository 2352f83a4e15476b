//! Gateways in this process, each in a runtime of its own so that it can be killed as a process is; clients and workers
//! that speak HTTP to them.

use std::time::Duration;

use lastword::gateway::{self, GatewayConfig, GatewayError, Listeners};
use lastword::store::keys::{self, KeyRole, NewKey};
use lastword::store::{PoolSizes, Retention, Store};
use lastword::sweep;
use lastword::turn::keys::TurnId;
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Db;
use super::client::Client;
use super::wait::{eventually, within};

/// Whose turns these are, where nobody says otherwise.
pub const ORGANIZATION: &str = "default";
/// An Agent whose conversations share a worker group of the same name.
pub const AGENT: &str = "bot";

/// Makes a test of each `async fn name(db: Db)`, on a fresh database of the newest Postgres.
#[macro_export]
macro_rules! newest {
    ($($name:ident),* $(,)?) => {$(
        mod $name {
            #[test]
            fn on_18() {
                $crate::support::db::run(lastword::local::postgres::Version::V18, |db| async {
                    $crate::support::gateway::prepare(&db).await;
                    super::$name(db).await;
                });
            }
        }
    )*};
}

/// What every test starts from: the Agent [`AGENT`], and a log on stderr for those who ask (`RUST_LOG`).
pub async fn prepare(db: &Db) {
    super::crypto();
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    put_agent(&db.store, AGENT, json!({})).await;
    // The workers of tests have terms of their own, which a connect leaves to them where the Agent has none.
    db.sql("UPDATE agent SET capacity = NULL, heartbeat_seconds = NULL, lease_seconds = NULL").await;
}

/// Puts an Agent with `scope: Agent`, changed by `more`.
pub async fn put_agent(store: &Store, name: &str, more: Value) {
    let mut spec = json!({"scope": "Agent", "adapter": "Custom"});
    let Value::Object(more) = more else { panic!("an object") };
    spec.as_object_mut().expect("an object").extend(more);
    store.put_agent(ORGANIZATION, name, &spec).await.expect("the Agent is put");
}

/// An API key for a user of an organization: its id, and what its bearer shows.
pub async fn api_key(store: &Store, organization: &str, user: &str, role: KeyRole) -> (Uuid, String) {
    let new = NewKey { organization: organization.into(), name: user.into(), user: user.into(), role, valid_for: None };
    let (info, key) = keys::create(store.pool(), &new).await.expect("a key");
    (info.id, key.reveal())
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
        config.evaluators = lastword::guard::Evaluators::new(super::LASTWORD);
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

impl Db {
    /// How a turn ended, when it did: `reply` or its error's reason.
    pub async fn ending(&self, turn: TurnId) -> String {
        eventually("the turn ends", async || self.outcome(turn).await).await
    }

    /// A conversation of the local user's whose turns are all past their retention.
    pub async fn spoken(&self, conversation: &str) {
        self.sql(format!(
            "INSERT INTO conversation (id, organization, owner, name, agent, last_number, pruned_through, empty_since)
             VALUES (gen_random_uuid(), '{ORGANIZATION}', 'local', '{conversation}', '{AGENT}', 3, 3, clock_timestamp())"
        ))
        .await;
        self.sql(format!(
            "INSERT INTO principal AS p VALUES ('{ORGANIZATION}', 'local', 1)
             ON CONFLICT (organization, owner) DO UPDATE SET conversations = p.conversations + 1"
        ))
        .await;
    }

    /// Nothing is left to deliver.
    pub async fn all_delivered(&self) {
        eventually("all is delivered", async || self.count("delivery").await == 0).await;
    }
}
