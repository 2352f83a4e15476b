//! The fleet of workers: as many as the waiting turns need, no more than their Agent allows, and none that nobody needs.
//!
//! ```text
//!  agent, marker, lease (read) ─▶ plan (pure) ─▶ Start   the lease's row, then the runtime
//!        ▲                                       Drain   the lease is `draining`, then the runtime: SIGTERM … SIGKILL
//!        └ each second, and at a wake-up         Look    ask the runtime for a suspected worker; a proof is reported
//!                                                Shed    end the waiting turns beyond maxQueuedTurns
//!  runtime ── proofs of death ─▶ reports ─▶ fail_start, again until the database took it
//! ```
//!
//! - **Passes** (`pass`) run one at a time; wake-ups during one lead to one more. [`plan`] decides what a pass does, from one
//!   reading of the database, and `action` does it. A pass that was lost, or that two leaders made at the same time, does no
//!   harm: turns are fenced by the election, workers by the locks on their leases.
//! - **Reports** (`report`) of deaths have a task of their own, so that a slow start delays no turn's terminal. A death is
//!   kept until the database took it.
//! - A worker that runs without a lease is killed: its lease has lapsed, or it said goodbye and did not leave.
//!
//! A [`WorkerRuntime`] runs the workers: [`process`] on one machine, `operator::pods` in Kubernetes.

mod action;
mod config;
mod model;
mod pass;
mod pauses;
pub mod plan;
pub mod process;
mod report;
pub mod runtime;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::every;
use crate::leadership::Leadership;
use crate::store::{Heard, Hearing, Notice, Store};
pub use config::FleetConfig;
pub use model::{ModelAdapter, ModelValue, model_adapter};
pub use process::fail_former_boots;
pub use runtime::{Death, StartRequest, WorkerRuntime};

/// How long the fleet waits, when it ends, for the database to take the drains, and then the deaths, of its workers.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Runs the fleet until `shutdown`. A pass is made each [`FleetConfig::poll`], and whenever `wake` is notified, see
/// [`wake_on_notices`].
///
/// Only a leader starts and stops workers. Every replica looks at suspected workers, reports deaths, and sheds.
///
/// After `shutdown` nothing is started any more. Workers that cannot outlive this process are drained, within the longest
/// `drainSeconds` among them, and their deaths are reported.
pub async fn run(
    store: Store,
    runtime: Arc<dyn WorkerRuntime>,
    config: FleetConfig,
    leadership: Leadership,
    wake: Arc<Notify>,
    shutdown: CancellationToken,
) {
    let (looks, looked) = mpsc::unbounded_channel();
    let deaths = runtime.deaths();
    let all_said = CancellationToken::new();
    let reports = report::Reports::new(store.clone(), config.cause_window, wake.clone());
    let reports = reports.run(deaths, looked, all_said.clone());
    let mut reports = every::supervised("the reports of workers' deaths", reports);
    let mut passes = pass::Passes::new(store.clone(), runtime.clone(), config.clone(), leadership, looks);
    passes.run(&wake, &shutdown).await;
    if runtime.ends_with_us() {
        passes.leave(LAST_WORDS).await;
        runtime.shutdown().await;
    }
    all_said.cancel();
    if tokio::time::timeout(LAST_WORDS, &mut reports).await.is_err() {
        tracing::warn!("the database did not take all deaths of workers; their turns end when the leases lapse");
        reports.abort();
    }
}

/// Notifies `wake`, until `shutdown`, of each change after which workers may have to be started, looked at or stopped: of a
/// worker group's turns, of a worker, or of the Agents.
pub async fn wake_on_notices(mut hearing: Hearing, wake: Arc<Notify>, shutdown: CancellationToken) {
    loop {
        let heard = tokio::select! {
            heard = hearing.next() => heard,
            () = shutdown.cancelled() => return,
        };
        match heard {
            Heard::Missed | Heard::Notice(Notice::WorkerGroup(..) | Notice::Worker(_) | Notice::Agents) => {
                wake.notify_one();
            }
            Heard::Notice(Notice::Conversation(_) | Notice::Keys) => {}
        }
    }
}
