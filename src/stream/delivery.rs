//! Delivery on the platform `api`.
//!
//! A delivery row says that a terminal was shown to nobody yet; it has no content. A replica that takes a due row wakes its
//! sessions on the conversation, which read the terminal from the store. Rows of terminals that were shown are removed.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::removal::removals;
use crate::dispatch::subscriptions::Subscriptions;
use crate::every::{Again, Every};
use crate::store::{Store, StoreError};
use crate::turn::keys::{ConversationId, GatewayId, TurnId};
use crate::turn::routing::API;

/// The pause between two looks for due rows.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// For so many seconds no other replica takes a row that this one took: longer than any session takes to show a terminal.
const CLAIM_SECONDS: u32 = 10;
/// The most rows of one look.
const MAX_ROWS: u32 = 500;
/// The period of [`poll`].
const POLL_EVERY: Duration = Duration::from_secs(2);
/// The most conversations that one query asks for.
const MAX_POLLED: usize = 1000;

/// Takes note of the terminals that sessions have shown, and removes their delivery rows. Cheap to clone.
#[derive(Clone)]
pub struct ShownTerminals {
    queue: mpsc::UnboundedSender<TurnId>,
}

impl ShownTerminals {
    /// Starts the task that removes rows; it ends when the last handle is dropped.
    pub fn start(store: Store) -> Self {
        // Until it works: cursors are past these terminals, so no session notes them again.
        let queue = removals("the removal of shown deliveries", move |turns: Vec<TurnId>| {
            let store = store.clone();
            async move { store.remove_deliveries(API, &turns).await }
        });
        ShownTerminals { queue }
    }

    /// The terminal of this turn was passed on to the owner of its conversation.
    pub fn note(&self, turn: TurnId) {
        let _ = self.queue.send(turn);
    }
}

/// Takes due rows until `shutdown`: wakes the sessions here, and puts back the rows that are for no session here.
pub async fn run(store: Store, gateway: GatewayId, subscriptions: Subscriptions, shutdown: CancellationToken) {
    let mut looks = Every::new("the delivery to sessions", LOOK_EVERY);
    while looks.next(&shutdown).await.is_some() {
        looks.ended(take_due(&store, gateway, &subscriptions).await);
    }
}

async fn take_due(store: &Store, gateway: GatewayId, subscriptions: &Subscriptions) -> Result<Again, StoreError> {
    let due = store.take_deliveries(API, gateway, CLAIM_SECONDS, MAX_ROWS).await?;
    let full = due.len() == MAX_ROWS as usize;
    let here: HashSet<_> = subscriptions.conversations().into_iter().collect();
    let (mine, others): (Vec<_>, Vec<_>) = due.into_iter().partition(|d| here.contains(&d.conversation_id));
    mine.iter().for_each(|d| subscriptions.store_changed(d.conversation_id));
    store.put_back_deliveries(&others).await?;
    Ok(if full { Again::AtOnce } else { Again::Later })
}

/// The last known state of each conversation, as [`Store::conversation_states`] has it.
type KnownStates = HashMap<ConversationId, (i64, i64)>;

/// Asks, until `shutdown`, for the state of every conversation that a session here is on, and wakes the sessions whose
/// conversation has changed. It makes up for notices that were lost.
pub async fn poll(store: Store, subscriptions: Subscriptions, shutdown: CancellationToken) {
    let mut known = KnownStates::new();
    let mut polls = Every::new("the poll for sessions", POLL_EVERY);
    while polls.next(&shutdown).await.is_some() {
        polls.ended(wake_changed(&store, &subscriptions, &mut known).await);
    }
}

async fn wake_changed(
    store: &Store,
    subscriptions: &Subscriptions,
    known: &mut KnownStates,
) -> Result<Again, StoreError> {
    let conversations = subscriptions.conversations();
    let wanted: HashSet<_> = conversations.iter().copied().collect();
    known.retain(|c, _| wanted.contains(c));
    for part in conversations.chunks(MAX_POLLED) {
        let mut gone: HashSet<_> = part.iter().copied().collect();
        for (conversation, state) in store.conversation_states(part).await? {
            gone.remove(&conversation);
            // The first state counts as a change too: what happened between the session's own look and this one is in it.
            if known.insert(conversation, state) != Some(state) {
                subscriptions.store_changed(conversation);
            }
        }
        // The conversations that are left in `gone` were erased; their sessions find that out, and end.
        gone.into_iter().for_each(|c| subscriptions.store_changed(c));
    }
    Ok(Again::Later)
}
