//! The fleet: as many workers as the turns need, no more than an Agent allows, and none that nobody needs.
//!
//! ```text
//!  agent, marker, lease (read) ─▶ plan (pure) ─▶ Start   lease row, then the runtime
//!        ▲                                       Drain   lease `draining`, then the runtime: SIGTERM … SIGKILL
//!        └ each second, and at a wake-up         Look    at what is suspected; a proof goes to the reports
//!                                                Shed    turns beyond maxQueuedTurns
//!  runtime ── proofs of death ─▶ reports ─▶ fail_worker, again until the database took it
//! ```
//!
//! - **Passes** ([`pass`]) run one at a time; wake-ups during one lead to one more. What a pass does is decided by [`plan`]
//!   from one reading of the database, so a pass that was lost, or made twice by two leaders, does no harm: the election
//!   and the leases' locks are the fences.
//! - **Reports** ([`report`]) have a task of their own: a slow start delays nobody's last word. A death is kept until the
//!   database took it.
//! - A worker that runs without a lease (it lapsed, or the worker said goodbye and did not leave) is killed.
//!
//! The runtimes: [`process`] for one machine; Kubernetes' is in `operator`.

mod child;
mod command;
mod pass;
mod pauses;
pub mod plan;
pub mod process;
mod report;
pub mod runtime;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::leadership::Leadership;
use crate::store::{Heard, Hearing, Notice, Store};
pub use process::fail_former_boots;
pub use runtime::{Death, StartRequest, WorkerRuntime};

/// How the fleet works.
#[derive(Debug, Clone)]
pub struct FleetConfig {
    /// Between two passes when nothing wakes the fleet.
    pub poll: Duration,
    /// The time between the starts of two passes, however many wake-ups come. Within this range it is five times what a
    /// pass takes: under load, when each turn is a wake-up, passes leave the database four fifths of the time.
    pub spacing: Range<Duration>,
    /// How long the cause of a proven death is waited for.
    pub cause_window: Duration,
    /// Actions of one pass at the most; the next pass follows at once.
    pub max_actions: usize,
    /// Actions that are carried out at a time.
    pub concurrency: usize,
    /// How long a worker may run after its lease died: the time to leave after a goodbye.
    pub stray: Duration,
}

impl Default for FleetConfig {
    fn default() -> Self {
        FleetConfig {
            poll: Duration::from_secs(1),
            spacing: Duration::from_millis(10)..Duration::from_millis(100),
            cause_window: Duration::from_secs(5),
            max_actions: 256,
            concurrency: 16,
            stray: Duration::from_secs(5),
        }
    }
}

/// How long the fleet's end waits for the database to take what it has to say.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Runs the fleet until `shutdown`. Whoever listens to notices calls [`Notify::notify_one`] on `wake` for a worker group,
/// a worker, the Agents, and after a listener's reconnect.
///
/// Only a leader starts and stops workers; looking at suspected ones, reporting deaths and shedding is every replica's.
///
/// At the end nothing more is started; workers that cannot outlive this process are drained (within the longest
/// `drainSeconds` among them), and their deaths are reported.
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
    let mut reports = tokio::spawn(reports.run(deaths, looked, all_said.clone()));
    let mut passes = pass::Passes::new(store.clone(), runtime.clone(), config.clone(), leadership, looks);
    passes.run(&wake, &shutdown).await;
    if runtime.ends_with_us() {
        passes.leave(LAST_WORDS).await;
        runtime.shutdown().await;
    }
    all_said.cancel();
    if tokio::time::timeout(LAST_WORDS, &mut reports).await.is_err() {
        tracing::warn!("the database did not take all deaths; the leases will end those turns");
        reports.abort();
    }
}

/// Wakes the fleet, until `shutdown`, when something changed that may have to be started, looked at or stopped.
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
