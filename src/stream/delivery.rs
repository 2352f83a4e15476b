//! The delivery loop of the platform `api`: what a terminal that nobody was shown yet leads to.

use std::collections::HashSet;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::dispatch::feeds::Feeds;
use crate::store::Store;
use crate::turn::keys::{GatewayId, TurnId};
use crate::turn::routing::API;

/// Pause between looks for due rows.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A claim of a row; longer than any session takes to show a terminal.
const CLAIM_SECONDS: u32 = 10;
/// Rows of one look.
const MAX_ROWS: u32 = 500;
/// The pause after the database refused.
const RETRY: Duration = Duration::from_millis(500);
/// A session polls its conversation by way of this, for wake-ups that were lost.
const POLL_EVERY: Duration = Duration::from_secs(2);

/// Takes note of what sessions have shown, and removes the rows in batches.
#[derive(Clone)]
pub struct Shown {
    queue: mpsc::UnboundedSender<TurnId>,
}

impl Shown {
    /// Starts the remover; it ends when the last handle is dropped.
    pub fn start(store: Store) -> Self {
        let (queue, mut waiting) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut batch = Vec::new();
            while waiting.recv_many(&mut batch, 500).await > 0 {
                batch.sort();
                batch.dedup();
                // Nobody notes them again: cursors know that they were shown.
                while let Err(error) = store.remove_deliveries(API, &batch).await {
                    tracing::debug!(%error, "shown terminals are not taken off the list yet");
                    tokio::time::sleep(RETRY).await;
                }
                batch.clear();
            }
        });
        Shown { queue }
    }

    /// The terminal of this turn was flushed to its conversation's owner.
    pub fn note(&self, turn: TurnId) {
        let _ = self.queue.send(turn);
    }
}

/// The delivery loop of the `api` platform: wakes the sessions here that a due row is for; puts the others back.
pub async fn run(store: Store, gateway: GatewayId, feeds: Feeds, shutdown: CancellationToken) {
    let mut away = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
        match look(&store, gateway, &feeds).await {
            Ok(()) => away = false,
            Err(error) if !std::mem::replace(&mut away, true) => {
                tracing::warn!(%error, "deliveries wait for the database");
            }
            Err(_) => {}
        }
    }
}

async fn look(store: &Store, gateway: GatewayId, feeds: &Feeds) -> Result<(), crate::store::StoreError> {
    loop {
        let due = store.take_deliveries(API, gateway, CLAIM_SECONDS, MAX_ROWS).await?;
        let full = due.len() == MAX_ROWS as usize;
        let here: HashSet<_> = feeds.conversations().into_iter().collect();
        let (mine, others): (Vec<_>, Vec<_>) = due.into_iter().partition(|d| here.contains(&d.conversation_id));
        mine.iter().for_each(|d| feeds.store_changed(d.conversation_id));
        store.put_back_deliveries(&others).await?;
        if !full {
            return Ok(());
        }
    }
}

/// Polls for all sessions of this replica at once, and wakes those whose conversation changed unheard.
pub async fn poll(store: Store, feeds: Feeds, shutdown: CancellationToken) {
    let mut known = std::collections::HashMap::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(POLL_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
        let conversations = feeds.conversations();
        let wanted: HashSet<_> = conversations.iter().copied().collect();
        known.retain(|c, _| wanted.contains(c));
        for part in conversations.chunks(1000) {
            // Without the database there is nothing new to see; sessions keep their clients meanwhile.
            let Ok(states) = store.conversation_states(part).await else { break };
            let mut gone: HashSet<_> = part.iter().copied().collect();
            for (conversation, state) in states {
                gone.remove(&conversation);
                // The first look counts as news too: what came between the session's own look and this one was not seen.
                if known.insert(conversation, state) != Some(state) {
                    feeds.store_changed(conversation);
                }
            }
            // Erased: their sessions end.
            gone.into_iter().for_each(|c| feeds.store_changed(c));
        }
    }
}
