//! The admin port: `/livez`, `/readyz`, `/metrics`. Once a role has started, neither liveness nor readiness depends on
//! Postgres: a restart does not end an outage of the database. Nor do the metrics: what the tables say is read in the
//! background, and told with its age.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use clap::Args;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::edge::{PortLimits, serve};
use crate::every::{Again, Every, supervised};
use crate::metrics::METRICS;
use crate::store::{Store, StoreMetrics};

/// Few connect here: probes and scrapers, which send a small header at once.
const LIMITS: PortLimits = PortLimits {
    connections: 128,
    header_timeout: Duration::from_secs(5),
    header_bytes: 16 * 1024,
    shutdown_grace: Duration::from_secs(5),
    http2: false,
    reader_patience: None,
    know_users: false,
};

/// Health, readiness and metrics.
#[derive(Debug, Clone, Args)]
pub struct AdminArgs {
    /// Where health, readiness and metrics are served.
    #[arg(long, env = "LASTWORD_ADMIN_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:9090")]
    pub admin_listen: SocketAddr,
}

/// Why a port cannot be opened, and the flag that chooses another.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({error}); choose another with {flag}")]
pub struct CannotListen {
    address: SocketAddr,
    flag: &'static str,
    error: std::io::Error,
}

/// Opens the port that `flag` names.
pub async fn listen(address: SocketAddr, flag: &'static str) -> Result<TcpListener, CannotListen> {
    TcpListener::bind(address).await.map_err(|error| CannotListen { address, flag, error })
}

/// Whether the role serves: it has started and is not about to end.
#[derive(Clone, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// The role has started.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// The role is about to end.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// What `/readyz` answers.
    pub fn is_ready(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Serves the admin port until `shutdown`.
pub async fn run(listener: TcpListener, store: Store, readiness: Readiness, shutdown: CancellationToken) {
    let (figures, seen) = watch::channel(None);
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(move || async move { ready(&readiness) }))
        .route("/metrics", get(move || async move { metrics(&seen.borrow()) }));
    supervised("the reading of figures", read_figures(store, figures, shutdown.clone()));
    if let Err(error) = serve(listener, router, &LIMITS, None, shutdown).await {
        tracing::error!(%error, "the admin port failed");
    }
}

fn ready(readiness: &Readiness) -> Response {
    if readiness.is_ready() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready: it waits for the database and its schema, or is about to end\n")
            .into_response()
    }
}

/// What the tables said, and when.
type Figures = Option<(StoreMetrics, Instant)>;

/// How often the figures of the tables are read. A scraper comes about as often.
const READ_EVERY: Duration = Duration::from_secs(5);

async fn read_figures(store: Store, figures: watch::Sender<Figures>, shutdown: CancellationToken) {
    let reads = Every::new("the reading of figures", READ_EVERY).at_once();
    reads
        .run(&shutdown, async move |_| {
            let read = store.metrics().await?;
            figures.send_replace(Some((read, Instant::now())));
            Ok::<_, crate::store::StoreError>(Again::Later)
        })
        .await;
}

/// Metrics in Prometheus' text format: of this process, and of the tables as they were when they could last be read.
fn metrics(figures: &Figures) -> Response {
    let mut text = METRICS.text();
    if let Some((figures, read)) = figures {
        text.push_str(&figures.text(read.elapsed()));
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
