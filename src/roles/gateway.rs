//! The role `gateway`: serves clients and workers; one of several replicas.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{RoleError, open_store};
use crate::admin::{self, AdminArgs, Readiness, listen};
use crate::egress::EgressArgs;
use crate::gateway::args::{GatewayArgs, ReviewArgs, WorkerTlsArgs};
use crate::gateway::{self, GatewayError, Listeners};
use crate::local::database::DatabaseArgs;
use crate::operator::{self, review::TokenReviewer, secrets::KubeSecrets};
use crate::telemetry::LogArgs;

/// Serve clients and workers; run as many replicas as you like.
#[derive(Debug, Clone, clap::Args)]
pub struct GatewayRole {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub gateway: GatewayArgs,
    #[command(flatten)]
    pub worker_tls: WorkerTlsArgs,
    /// How long requests are still taken after a SIGTERM: the time until Services and Ingresses send no more.
    #[arg(long, env = "LASTWORD_DRAIN_DELAY_SECONDS", value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=300))]
    pub drain_delay_seconds: u64,
    #[command(flatten)]
    pub egress: EgressArgs,
    #[command(flatten)]
    pub review: ReviewArgs,
    #[command(flatten)]
    pub admin: AdminArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

/// Runs until `shutdown`, and then on for the drain delay.
pub async fn run(args: GatewayRole, shutdown: CancellationToken) -> Result<(), RoleError> {
    let worker_tls = args.worker_tls.worker_tls()?;
    let clients = listen(args.gateway.listen, "--listen").await?;
    let workers = listen(args.gateway.worker_listen, "--worker-listen").await?;
    let admin = listen(args.admin.admin_listen, "--admin-listen").await?;
    let readiness = Readiness::default();
    let end = CancellationToken::new();
    let store = open_store(&args.database)?;
    let admin = tokio::spawn(admin::run(admin, store.clone(), readiness.clone(), end.clone()));
    if super::schema(&store, &shutdown).await {
        let mut config = args.gateway.config(workers.local_addr().map_err(GatewayError::Io)?, worker_tls);
        config.egress = args.egress.egress();
        if args.review.token_review {
            let client = operator::client().await?;
            config.reviewer = Some(Arc::new(TokenReviewer::new(client.clone())));
            config.secrets = Arc::new(KubeSecrets::new(client));
        }
        readiness.set();
        let delay = Duration::from_secs(args.drain_delay_seconds);
        tokio::spawn(delayed(shutdown, delay, readiness.clone(), end.clone()));
        gateway::run(config, store.clone(), Listeners { clients, workers }, end.clone()).await?;
    }
    end.cancel();
    // It only answers questions; one that failed has said so.
    let _ = admin.await;
    store.close().await;
    Ok(())
}

/// After `shutdown` the replica is unready at once, and serves on until those who route to it have noticed.
async fn delayed(shutdown: CancellationToken, delay: Duration, readiness: Readiness, end: CancellationToken) {
    shutdown.cancelled().await;
    readiness.clear();
    if !delay.is_zero() {
        tracing::info!("told to stop; serving on for {} s until no more requests are sent here", delay.as_secs());
        tokio::time::sleep(delay).await;
    }
    end.cancel();
}
