//! The controller of AgentTurns: it arms their turns, shows on their status what became of them, cancels and deletes.
//!
//! ```text
//!  watch ──────────────────▶ work queue (pure) ──▶ operations: arm · cancel · patch the status · delete
//!  deliveries, polls, audit ─▶    ▲                       │  one at a time for an object, 64 at a time in all
//!                                 └── what they came to ──┘
//! ```
//!
//! - [`controller`] is the loop. [`work_queue`] holds the AgentTurns that need something, and [`tracked`] decides what one of
//!   them needs next. [`reconcile`] carries an operation out.
//! - [`object`] is what is kept in memory of an AgentTurn; [`status`] computes the status that the state of its turn amounts
//!   to; [`audit`] finds objects that were deleted while nobody watched.
//! - Statuses are level-based: each is computed as a whole from the database's state of the turn, so one that was missed or
//!   overtaken needs no repair.
//! - The tie between an object and its turn is written by the transaction that arms the turn (`store/arm.rs`;
//!   `store/agent_turn.rs` describes the tie). The turn's delivery row for the platform `kubernetes` triggers the
//!   terminal status. The status patch is fenced by the object's `resourceVersion`; when it is written, the delivery
//!   row and the tie are removed.
//! - Only the leader runs this. A new leader takes a fresh list and goes by the ties. It may arm an object again: the
//!   message id is the object's UID unless the object names one, so arming finds the same turn.

mod audit;
mod controller;
mod object;
mod reconcile;
mod status;
mod tracked;
mod work_queue;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio_util::sync::CancellationToken;

use self::controller::WakeUps;
use self::reconcile::TurnContext;
use crate::agents::Agents;
use crate::every::{Again, Every};
use crate::guard::Services;
use crate::leadership::Leadership;
use crate::store::{Heard, Notice, Store, StoreError};
use crate::submit::Submitter;
use crate::turn::keys::GatewayId;

/// Agents are read from the database again this often, whatever notices came.
const REFRESH_PERIOD: Duration = Duration::from_secs(5);

/// Serves AgentTurns until `shutdown`, whenever this replica leads.
pub async fn run(
    store: Store,
    client: Client,
    services: Services,
    namespaces: Arc<[String]>,
    leadership: Leadership,
    shutdown: CancellationToken,
) {
    let submitter = Submitter { store: store.clone(), agents: Agents::default(), gateway: GatewayId::new(), services };
    let context = TurnContext { store: store.clone(), submitter, client };
    let wake_ups = WakeUps::default();
    tokio::select! {
        () = leadership.while_leading(|| controller::run(context.clone(), namespaces.clone(), wake_ups.clone())) => {}
        () = follow(store, context.submitter.agents.clone(), wake_ups.clone(), shutdown.clone()) => {}
        () = shutdown.cancelled() => {}
    }
}

/// Wakes the controller when notices tell of ended turns or changed Agents, and keeps the Agents that turns are submitted to
/// up to date.
async fn follow(store: Store, agents: Agents, wake_ups: WakeUps, shutdown: CancellationToken) {
    let hear = async {
        let mut hearing = store.hear();
        loop {
            let heard = hearing.next().await;
            if matches!(heard, Heard::Notice(Notice::Agents) | Heard::Missed) {
                // The periodic refresh tries again, and says that the database is away.
                let _ = refresh(&store, &agents, &wake_ups).await;
            }
            if matches!(heard, Heard::Notice(Notice::Conversation(_)) | Heard::Missed) {
                wake_ups.terminals.notify_one();
            }
        }
    };
    tokio::join!(hear, refresh_periodically(store.clone(), agents.clone(), wake_ups.clone(), shutdown));
}

/// What a pass needs is owned, so that the future is `Send`, which the compiler cannot prove of a pass that borrows.
async fn refresh_periodically(store: Store, agents: Agents, wake_ups: WakeUps, shutdown: CancellationToken) {
    let pass = async move |_| {
        refresh(&store, &agents, &wake_ups).await?;
        Ok::<_, StoreError>(Again::Later)
    };
    Every::new("reading Agents for AgentTurns", REFRESH_PERIOD).at_once().run(&shutdown, pass).await;
}

/// Reads Agents again. AgentTurns that wait for one are looked at afterwards.
async fn refresh(store: &Store, agents: &Agents, wake_ups: &WakeUps) -> Result<(), StoreError> {
    agents.refresh(store).await?;
    wake_ups.agents.notify_one();
    Ok(())
}
