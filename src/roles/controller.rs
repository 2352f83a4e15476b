//! The role `controller`: the operator, the sweep, and the posts to webhooks and Slack; one of several replicas.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::error::RoleError;
use super::schema::{open_store, wait_for_schema};
use super::timing::TimingArgs;
use crate::admin::{self, AdminArgs, Readiness};
use crate::egress::{EgressArgs, Outbound, Reach};
use crate::every::supervised;
use crate::guard::{Evaluators, Services};
use crate::local::database::DatabaseArgs;
use crate::operator::args::OperatorArgs;
use crate::operator::secrets::KubeSecrets;
use crate::post;
use crate::telemetry::LogArgs;
use crate::{operator, sweep};

/// Be the operator: Agents, AgentTurns and worker pods in Kubernetes, and the sweep; run two or more replicas.
#[derive(Debug, Clone, clap::Args)]
pub struct ControllerRole {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub operator: OperatorArgs,
    #[command(flatten)]
    pub egress: EgressArgs,
    #[command(flatten)]
    pub timing: TimingArgs,
    #[command(flatten)]
    pub admin: AdminArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

/// Runs until `shutdown`. The API server may be away at any time, at the start too.
pub(super) async fn run(
    args: ControllerRole,
    admin: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), RoleError> {
    let config = args.operator.config()?;
    let in_cleartext = config.worker_gateways.iter().find(|gateway| gateway.starts_with("http://"));
    if let Some(gateway) = in_cleartext.filter(|_| !args.database.allow_cleartext) {
        return Err(RoleError::CleartextGateway(gateway.clone()));
    }
    let store = open_store(&args.database)?;
    let client = operator::client().await?;
    let for_posts = Outbound::new(args.egress.egress(), Reach::Public)?;
    let for_guards = Outbound::new(args.egress.egress(), Reach::Cluster)?;
    let readiness = Readiness::default();
    let end = CancellationToken::new();
    let admin = supervised("the admin port", admin::run(admin, store.clone(), readiness.clone(), end.clone()));
    if wait_for_schema(&store, &shutdown).await {
        readiness.set();
        let secrets = Arc::new(KubeSecrets::new(client.clone()));
        let (retention, every) = (args.timing.retention(), args.timing.sweep_every());
        let sweep = supervised("the sweep", sweep::sweep(store.clone(), retention, every, shutdown.clone()));
        let posts = post::run(store.clone(), secrets.clone(), for_posts, shutdown.clone());
        let posts = supervised("the posts to platforms", posts);
        let services = Services::new(for_guards, secrets, Evaluators::default());
        let cause_window = args.timing.cause_window();
        operator::run(config, store.clone(), client, services, cause_window, shutdown.clone()).await;
        // Supervised tasks end with the shutdown, or with the process.
        let _ = tokio::join!(sweep, posts);
    }
    end.cancel();
    // The admin port only answers questions; if it failed, it has logged that.
    let _ = admin.await;
    store.close().await;
    Ok(())
}
