//! The role `controller`: the sweep, the renderers of other platforms, and the operator; one of several replicas.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::timing::TimingArgs;
use super::{RoleError, open_store};
use crate::admin::{self, AdminArgs, Readiness, listen};
use crate::egress::{EgressArgs, Outbound, Reach};
use crate::guard::Services;
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
pub async fn run(args: ControllerRole, shutdown: CancellationToken) -> Result<(), RoleError> {
    let admin = listen(args.admin.admin_listen, "--admin-listen").await?;
    let config = args.operator.config()?;
    let client = operator::client().await?;
    let outbound = Outbound::new(args.egress.egress(), Reach::Public)?;
    let to_guards = Outbound::new(args.egress.egress(), Reach::Cluster)?;
    let readiness = Readiness::default();
    let end = CancellationToken::new();
    let store = open_store(&args.database)?;
    let admin = tokio::spawn(admin::run(admin, store.clone(), readiness.clone(), end.clone()));
    if super::schema(&store, &shutdown).await {
        readiness.set();
        let every = args.timing.sweep_every();
        let sweep = sweep::sweep(store.clone(), args.timing.retention(), every, shutdown.clone());
        let secrets = Arc::new(KubeSecrets::new(client.clone()));
        let posts = post::run(store.clone(), secrets.clone(), outbound, shutdown.clone());
        let services = Services { outbound: to_guards, secrets };
        let cause_window = args.timing.cause_window();
        let operate = operator::run(config, store.clone(), client, services, cause_window, shutdown.clone());
        tokio::join!(sweep, posts, operate);
    }
    end.cancel();
    // It only answers questions; one that failed has said so.
    let _ = admin.await;
    store.close().await;
    Ok(())
}
