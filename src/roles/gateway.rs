//! The role `gateway`: serves clients and workers; one of several replicas.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::error::RoleError;
use super::ports::Ports;
use super::schema::{open_store, wait_for_schema};
use crate::admin::{self, AdminArgs, CannotListen, Readiness};
use crate::edge::files;
use crate::egress::EgressArgs;
use crate::every::supervised;
use crate::gateway::args::{GatewayArgs, ReviewArgs, WorkerTlsArgs};
use crate::gateway::{self, GatewayError};
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

/// Opens the role's ports.
pub(super) async fn ports(args: &GatewayRole) -> Result<Ports, CannotListen> {
    Ports::open(&args.gateway, &args.admin).await
}

/// Runs until `shutdown`, and then on for the drain delay.
pub(super) async fn run(args: GatewayRole, ports: Ports, shutdown: CancellationToken) -> Result<(), RoleError> {
    // Streams are files, and this process starts no programs.
    files::raise_limit();
    let worker_tls = args.worker_tls.worker_tls()?;
    args.gateway.check_cleartext(worker_tls.is_some(), args.database.allow_cleartext)?;
    let readiness = Readiness::default();
    let end = CancellationToken::new();
    let store = open_store(&args.database)?;
    let admin = supervised("the admin port", admin::run(ports.admin, store.clone(), readiness.clone(), end.clone()));
    if wait_for_schema(&store, &shutdown).await {
        let mut config = args.gateway.config(ports.gateway.workers.local_addr().map_err(GatewayError::Io)?, worker_tls);
        config.egress = args.egress.egress();
        config.client_tls = args.gateway.client_tls()?;
        if args.review.token_review {
            let client = operator::client().await?;
            config.reviewer = Some(Arc::new(TokenReviewer::new(client.clone())));
            config.secrets = Arc::new(KubeSecrets::new(client));
        }
        readiness.set();
        let delay = Duration::from_secs(args.drain_delay_seconds);
        supervised("the drain delay", end_later(shutdown, delay, readiness.clone(), end.clone()));
        gateway::run(config, store.clone(), ports.gateway, end.clone()).await?;
    }
    end.cancel();
    // The admin port only answers questions; if it failed, it has logged that.
    let _ = admin.await;
    store.close().await;
    Ok(())
}

/// Ends the replica `delay` after `shutdown`. It is unready at once, and serves on until load balancers have noticed.
async fn end_later(shutdown: CancellationToken, delay: Duration, readiness: Readiness, end: CancellationToken) {
    shutdown.cancelled().await;
    readiness.clear();
    if !delay.is_zero() {
        tracing::info!("told to stop; serving on for {} s until no more requests are sent here", delay.as_secs());
        tokio::time::sleep(delay).await;
    }
    end.cancel();
}
