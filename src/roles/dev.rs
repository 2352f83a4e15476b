//! The role `dev`: everything on one machine, in one process. Postgres is embedded unless told otherwise, and workers are
//! child processes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::error::RoleError;
use super::ports::Ports;
use super::timing::TimingArgs;
use crate::admin::{self, AdminArgs, CannotListen, Readiness};
use crate::child::ours::adopt_orphans;
use crate::egress::{EgressArgs, Outbound, Reach};
use crate::every::supervised;
use crate::fleet::process::{ProcessConfig, ProcessRuntime};
use crate::fleet::{self, FleetConfig};
use crate::gateway::args::GatewayArgs;
use crate::gateway::{self, GatewayConfig, GatewayError};
use crate::leadership::Leadership;
use crate::local::agents_file;
use crate::local::database::{self, DatabaseArgs};
use crate::local::postgres::Embedded;
use crate::local::secrets::LocalSecrets;
use crate::post;
use crate::private::{self, Others};
use crate::store::Store;
use crate::sweep;
use crate::telemetry::LogArgs;

/// The Agents' file, if none is named.
const AGENTS: &str = "examples/agents.yaml";

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
    #[arg(long, env = "LASTWORD_AGENTS", value_name = "FILE", default_value = AGENTS)]
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

/// Opens the role's ports.
pub(super) async fn ports(args: &DevArgs) -> Result<Ports, CannotListen> {
    Ports::open(&args.gateway, &args.admin).await
}

/// Runs until `shutdown` or a fault. It stops in an order: first the fleet, whose workers need the gateway for their last
/// words; then everything else; Postgres at the end.
pub(super) async fn run(args: DevArgs, ports: Ports, shutdown: CancellationToken) -> Result<(), RoleError> {
    args.gateway.check_cleartext(false, args.database.allow_cleartext)?;
    if args.agents == Path::new(AGENTS) {
        // Nobody named it: it was found in the working directory, and says which programs to run.
        private::check_file(&args.agents, Others::GroupMayWrite)?;
    }
    adopt_orphans();
    let database = database::open(&args.database).await?;
    let store = Store::reach(database.options.clone(), args.database.pools(), args.database.reach()?);
    store.migrate().await?;
    let node = node(database.directory.as_deref())?;
    let boot = Uuid::now_v7();
    let former = fleet::fail_former_boots(&store, &node, boot).await?;
    if former > 0 {
        tracing::warn!(workers = former, "{former} workers of a former run were still in hand; their turns are failed");
    }
    let agents = agents_file::apply(&store, &args.agents).await?;

    let readiness = Readiness::default();
    let worker_address = ports.gateway.workers.local_addr().map_err(GatewayError::Io)?;
    let client_address = ports.gateway.clients.local_addr().map_err(GatewayError::Io)?;
    let secrets = LocalSecrets { directory: args.secrets.clone() };
    // Whoever runs `dev` may reach their own machine anyway.
    let egress = args.egress.egress().with_loopback();
    let config = GatewayConfig {
        egress: egress.clone(),
        secrets: Arc::new(secrets.clone()),
        client_tls: args.gateway.client_tls()?,
        ..args.gateway.config(worker_address, None)
    };
    let runtime =
        Arc::new(ProcessRuntime::new(process_config(&args, &node, boot, &config.advertise, secrets.clone())?));
    let stop_fleet = shutdown.child_token();
    let stop_rest = CancellationToken::new();
    let outbound = Outbound::new(egress, Reach::Public)?;
    let admin = admin::run(ports.admin, store.clone(), readiness.clone(), stop_rest.clone());
    supervised("the admin port", admin);
    let watch = agents_file::watch(store.clone(), args.agents.clone(), stop_rest.clone());
    supervised("the watch of the Agents' file", watch);
    let (retention, every) = (args.timing.retention(), args.timing.sweep_every());
    let sweep = supervised("the sweep", sweep::sweep(store.clone(), retention, every, stop_rest.clone()));
    let posts = post::run(store.clone(), Arc::new(secrets), outbound, stop_rest.clone());
    let posts = supervised("the posts to platforms", posts);
    let gateway = gateway::run(config, store.clone(), ports.gateway, stop_rest.clone());
    let mut gateway = supervised("the gateway", gateway);
    let fleet = spawn_fleet(&store, runtime, args.timing.cause_window(), &stop_fleet);
    readiness.set();
    let scheme = if args.gateway.tls_cert.is_some() { "https" } else { "http" };
    banner(&agents, &format!("{scheme}://{client_address}"));

    let ended = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        ended = &mut gateway => ended.unwrap_or(Ok(())).map_err(RoleError::from),
        () = postgres_ended(database.embedded.as_ref()) => Err(RoleError::PostgresEnded),
    };
    stop_fleet.cancel();
    // Each of these tasks ends with its token. One that panicked has ended the process.
    let _ = fleet.await;
    stop_rest.cancel();
    if !gateway.is_finished() {
        let _ = gateway.await;
    }
    let _ = tokio::join!(sweep, posts);
    store.close().await;
    if let Some(embedded) = database.embedded {
        embedded.stop().await;
    }
    ended
}

fn process_config(
    args: &DevArgs,
    node: &str,
    boot: Uuid,
    gateway: &str,
    secrets: LocalSecrets,
) -> Result<ProcessConfig, RoleError> {
    Ok(ProcessConfig {
        boot,
        secrets: Arc::new(move |key| secrets.read(key).ok().flatten()),
        stop_within: Some(Duration::from_secs(args.stop_seconds)),
        traces: args.log.otlp_endpoint.clone(),
        ..ProcessConfig::new(node, gateway, base_dir(&args.agents)).map_err(GatewayError::Io)?
    })
}

/// Starts the fleet, which starts and stops workers, and what wakes it. One process leads itself.
fn spawn_fleet(
    store: &Store,
    runtime: Arc<ProcessRuntime>,
    cause_window: Duration,
    stop: &CancellationToken,
) -> JoinHandle<()> {
    let wake = Arc::new(Notify::new());
    let waker = fleet::wake_on_notices(store.hear_own(), wake.clone(), stop.clone());
    supervised("the fleet's wake-ups", waker);
    let config = FleetConfig { cause_window, ..FleetConfig::default() };
    let fleet = fleet::run(store.clone(), runtime, config, Leadership::always(), wake, stop.clone());
    supervised("the fleet", fleet)
}

/// Waits until an embedded Postgres ends by itself.
async fn postgres_ended(embedded: Option<&Embedded>) {
    match embedded {
        Some(embedded) => drop(embedded.exited().await),
        None => std::future::pending().await,
    }
}

/// The directory of the Agents' file, which paths in it are relative to.
fn base_dir(agents: &Path) -> PathBuf {
    let parent = agents.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    parent.canonicalize().unwrap_or_else(|_| parent.to_path_buf())
}

/// The name of this machine's `dev`, the same over its runs, so that it knows the workers of its former run. It is kept in
/// the file `node`, in the embedded database's directory, or in `.lastword` in the working directory.
fn node(directory: Option<&Path>) -> Result<String, RoleError> {
    let directory = directory.unwrap_or(Path::new(".lastword"));
    let path = directory.join("node");
    private::directory(directory, Others::GroupMayWrite)?;
    match private::read(&path, Others::MayRead)? {
        Some(text) => match text.trim().parse::<Uuid>() {
            Ok(node) => Ok(node.to_string()),
            Err(_) => Err(RoleError::Node(path)),
        },
        None => {
            let node = Uuid::now_v7();
            private::write(&path, &format!("{node}\n"))?;
            Ok(node.to_string())
        }
    }
}

/// Says on stderr that everything is ready, and what to try.
fn banner(agents: &[String], url: &str) {
    let first = agents.first().map_or("NAME", String::as_str);
    eprintln!("\nLastword is ready on {url}\n  page:   {url}/\n  agents: {}", agents.join(", "));
    eprintln!("  try:    lastword chat --gateway {url} --agent {first} \"6*7\"");
    eprintln!("  stop:   Ctrl-C\n");
}
