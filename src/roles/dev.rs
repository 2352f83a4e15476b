//! `lastword dev`: every role in one process, with an embedded Postgres, for one machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::timing::TimingArgs;
use crate::admin::{self, AdminArgs, CannotListen, Readiness, listen};
use crate::egress::{EgressArgs, Outbound, Reach};
use crate::fleet::process::{ProcessConfig, ProcessRuntime};
use crate::fleet::{self, FleetConfig};
use crate::gateway::args::GatewayArgs;
use crate::gateway::{self, GatewayConfig, GatewayError, Listeners};
use crate::leadership::Leadership;
use crate::local::agents_file::{self, AgentsFileError};
use crate::local::database::{self, DatabaseArgs, DatabaseError};
use crate::local::postgres::Embedded;
use crate::local::secrets::LocalSecrets;
use crate::post;
use crate::store::{Store, StoreError};
use crate::sweep;
use crate::telemetry::LogArgs;

/// Run everything on one machine: Postgres, gateway, controller, and workers as child processes.
#[derive(Debug, Clone, clap::Args)]
pub struct DevArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub gateway: GatewayArgs,
    #[command(flatten)]
    pub admin: AdminArgs,
    #[command(flatten)]
    pub timing: TimingArgs,
    /// YAML with Agents; watched.
    #[arg(long, env = "LASTWORD_AGENTS", value_name = "FILE", default_value = "examples/agents.yaml")]
    pub agents: PathBuf,
    /// A directory with Secrets, one file a key: DIR/NAME/KEY. What is not there is looked for as a variable NAME_KEY.
    #[arg(long, env = "LASTWORD_SECRETS", value_name = "DIR")]
    pub secrets: Option<PathBuf>,
    #[command(flatten)]
    pub egress: EgressArgs,
    /// How long workers may take to finish what they hold when `dev` is told to stop.
    #[arg(long, env = "LASTWORD_STOP_SECONDS", value_name = "SECONDS", default_value_t = 3)]
    pub stop_seconds: u64,
    #[command(flatten)]
    pub log: LogArgs,
}

/// Why `dev` did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Agents(#[from] AgentsFileError),
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    #[error(transparent)]
    Listen(#[from] CannotListen),
    #[error("cannot keep this machine's identity in {path}: {error}")]
    Node { path: PathBuf, error: std::io::Error },
    #[error("the embedded Postgres ended by itself; its log is postgres.log in the data directory")]
    PostgresEnded,
}

/// Runs until `shutdown` or a fault.
pub async fn run(args: DevArgs, shutdown: CancellationToken) -> Result<(), DevError> {
    // Ports first: a second `dev` is told so before it touches anything.
    let clients = listen(args.gateway.listen, "--listen").await?;
    let workers = listen(args.gateway.worker_listen, "--worker-listen").await?;
    let admin = listen(args.admin.admin_listen, "--admin-listen").await?;
    let database = database::open(&args.database).await?;
    let store = Store::open(database.options.clone(), args.database.pools());
    store.migrate().await?;
    let node = node(database.directory.as_deref()).map_err(|(path, error)| DevError::Node { path, error })?;
    let boot = Uuid::now_v7();
    let former = fleet::fail_former_boots(&store, &node, boot).await?;
    if former > 0 {
        tracing::warn!(workers = former, "{former} workers of a former run were still in hand; their turns are failed");
    }
    let names = agents_file::apply(&store, &args.agents).await?;

    let readiness = Readiness::default();
    let worker_address = workers.local_addr().map_err(GatewayError::Io)?;
    let client_address = clients.local_addr().map_err(GatewayError::Io)?;
    let secrets = LocalSecrets { directory: args.secrets.clone() };
    // Whoever runs it may reach their own machine anyway.
    let egress = args.egress.egress().with_loopback();
    let outbound = Outbound::new(egress.clone(), Reach::Public).map_err(GatewayError::Http)?;
    let config =
        GatewayConfig { egress, secrets: Arc::new(secrets.clone()), ..args.gateway.config(worker_address, None) };
    // Stopped in this order: the fleet, which needs the gateway for its workers' last words; then the rest.
    let stop_rest = CancellationToken::new();
    let stop_fleet = shutdown.child_token();
    tokio::spawn(admin::run(admin, store.clone(), readiness.clone(), stop_rest.clone()));
    tokio::spawn(agents_file::watch(store.clone(), args.agents.clone(), stop_rest.clone()));
    let sweep = tokio::spawn(sweep::sweep(
        store.clone(),
        args.timing.retention(),
        args.timing.sweep_every(),
        stop_rest.clone(),
    ));
    let posts = tokio::spawn(post::run(store.clone(), Arc::new(secrets.clone()), outbound, stop_rest.clone()));
    let mut gateway =
        tokio::spawn(gateway::run(config.clone(), store.clone(), Listeners { clients, workers }, stop_rest.clone()));
    let runtime = Arc::new(ProcessRuntime::new(ProcessConfig {
        boot,
        secrets: Arc::new(move |key| secrets.read(key).ok().flatten()),
        stop_within: Some(Duration::from_secs(args.stop_seconds)),
        ..ProcessConfig::new(&node, &config.advertise, base_dir(&args.agents)).map_err(GatewayError::Io)?
    }));
    let fleet_config = FleetConfig { cause_window: args.timing.cause_window(), ..FleetConfig::default() };
    let wake = Arc::new(Notify::new());
    tokio::spawn(fleet::wake_on_notices(store.hear_own(), wake.clone(), stop_fleet.clone()));
    let fleet =
        tokio::spawn(fleet::run(store.clone(), runtime, fleet_config, Leadership::always(), wake, stop_fleet.clone()));
    readiness.set();
    banner(&names, client_address);

    let ended = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        ended = &mut gateway => ended.unwrap_or(Ok(())).map_err(DevError::from),
        () = postgres_ended(database.embedded.as_ref()) => Err(DevError::PostgresEnded),
    };
    stop_fleet.cancel();
    // A task that panicked has logged it; stopping goes on.
    let _ = fleet.await;
    stop_rest.cancel();
    if !gateway.is_finished() {
        let _ = gateway.await;
    }
    let _ = sweep.await;
    let _ = posts.await;
    store.close().await;
    if let Some(embedded) = database.embedded {
        embedded.stop().await;
    }
    ended
}

async fn postgres_ended(embedded: Option<&Embedded>) {
    match embedded {
        Some(embedded) => drop(embedded.exited().await),
        None => std::future::pending().await,
    }
}

/// Paths in an Agent are relative to its file.
fn base_dir(agents: &Path) -> PathBuf {
    let parent = agents.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    parent.canonicalize().unwrap_or_else(|_| parent.to_path_buf())
}

/// Names this machine's `dev` over its runs, so that it knows its former workers: kept in the data directory, or beside
/// the working directory's configuration.
fn node(directory: Option<&Path>) -> Result<String, (PathBuf, std::io::Error)> {
    let directory = directory.unwrap_or(Path::new(".lastword"));
    let path = directory.join("node");
    let failed = |error| (path.clone(), error);
    match std::fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse::<Uuid>() {
            Ok(node) => Ok(node.to_string()),
            Err(error) => Err(failed(std::io::Error::other(error))),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let node = Uuid::now_v7();
            std::fs::create_dir_all(directory).map_err(failed)?;
            std::fs::write(&path, format!("{node}\n")).map_err(failed)?;
            Ok(node.to_string())
        }
        Err(error) => Err(failed(error)),
    }
}

fn banner(agents: &[String], address: std::net::SocketAddr) {
    let first = agents.first().map_or("NAME", String::as_str);
    eprintln!("\nLastword is ready on http://{address}\n  agents: {}", agents.join(", "));
    eprintln!("  try:    lastword chat --gateway http://{address} --agent {first} \"6*7\"");
    eprintln!("  stop:   Ctrl-C\n");
}
