//! The worker port: the server of the worker protocol (`docs/worker-protocol.md` describes it, [`crate::wire`] has its
//! types), and of the other replicas that follow a turn whose worker is connected here.
//!
//! - [`identity`]: who calls. A pod shows its ServiceAccount token once and is given a credential; every other call shows
//!   the credential
//! - `stream`: `GET /worker/v1/turns`, the stream on which a worker is sent its turns, and what it means when it closes
//! - `output`: what a worker says of a turn while the turn runs
//! - `words`: a turn's end, the heartbeat, the goodbye
//! - `stops`: why a worker was stopped, where only the controller knows
//! - `peers`: what other replicas are served
//! - `body`: checks of what callers send; `state`: what all handlers share

mod body;
pub mod identity;
mod output;
mod peers;
mod state;
mod stops;
mod stream;
mod words;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{get, post};

pub use state::{WorkerBodyLimits, WorkerPort, WorkerRoom};
pub use stream::SUSPICION_GRACE;

use crate::edge::framing::needs_framing;
use crate::problem::Problem;

impl WorkerPort {
    /// The routes of the worker port.
    pub fn router(self) -> Router {
        Router::new()
            .route("/worker/v1/turns", get(stream::turns))
            .route("/peer/v1/turns/{id}/frames", get(peers::frames))
            // Those above are streams.
            .route_layer(middleware::from_fn(needs_framing))
            .route("/worker/v1/credential", post(identity::exchange_token))
            .route("/worker/v1/turns/{id}/output", post(output::output))
            .route("/worker/v1/finish", post(words::finish))
            .route("/worker/v1/heartbeat", post(words::heartbeat))
            .route("/worker/v1/goodbye", post(words::goodbye))
            .fallback(|| async { Problem::not_found("path; this is the worker port") })
            // Bodies are read by `Bodies::whole` alone.
            .layer(DefaultBodyLimit::max(0))
            .with_state(self)
    }
}
