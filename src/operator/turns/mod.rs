//! AgentTurns: armed, followed, cancelled, removed; their statuses are level-based from the store.
//!
//! ```text
//!  watch ───────▶ table (pure) ──▶ steps: arm · cancel · write · delete   one at a time an object, 64 at a time in all
//!  deliveries ──▶   ▲  what came of them ─┘
//!  polls, audit ────┘
//! ```
//!
//! - [`object`]: what is kept of one; [`status`]: the status that a turn's standing amounts to; [`entry`], [`table`]: who needs what;
//!   [`act`]: a step; [`drive`]: the loop; [`audit`]: what vanished unseen.
//! - The tie between object and turn is written by the arm's own transaction (`store/agent_turn.rs`). The delivery row of the
//!   platform `kubernetes` is the trigger of the terminal status; the patch is fenced by the object's version, and both rows
//!   go once it is written.
//! - Only the leader writes. A new one takes a fresh list and goes by the ties; arming again finds the same turn, since the
//!   message id is the object's UID. Two leaders at once cost work, nothing else.

mod act;
mod audit;
mod drive;
mod entry;
mod object;
mod status;
mod table;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

pub use drive::Wakes;
pub use status::stamp;

use crate::agents::Agents;
use crate::guard::Services;
use crate::leadership::Leadership;
use crate::store::{Heard, Notice, Store};
use crate::submit::Submitter;
use crate::turn::keys::GatewayId;
use act::Hands;

/// Agents are read again this often, whatever was heard.
const REFRESH: Duration = Duration::from_secs(5);

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
    let hands = Hands { store: store.clone(), submitter, client };
    let wakes = Wakes::default();
    tokio::select! {
        () = leadership.while_leading(|| drive::run(hands.clone(), namespaces.clone(), wakes.clone())) => {}
        () = hear(&store, &hands.submitter.agents, &wakes) => {}
        () = shutdown.cancelled() => {}
    }
}

/// Turns notices of this process and of others into wake-ups; keeps the Agents fresh.
async fn hear(store: &Store, agents: &Agents, wakes: &Wakes) {
    let changed = async || {
        // Without the database nothing is armed either.
        if agents.refresh(store).await.is_ok() {
            wakes.agents.notify_one();
        }
    };
    let heard = async {
        let mut hearing = store.hear();
        loop {
            let heard = hearing.next().await;
            if matches!(heard, Heard::Notice(Notice::Agents) | Heard::Missed) {
                changed().await;
            }
            if matches!(heard, Heard::Notice(Notice::Conversation(_)) | Heard::Missed) {
                wakes.terminals.notify_one();
            }
        }
    };
    let refresh = async {
        let mut every = interval(REFRESH);
        loop {
            every.tick().await;
            changed().await;
        }
    };
    tokio::join!(heard, refresh);
}
