//! Wake-ups for whoever waits for changes of a conversation.
//!
//! A wake-up carries no content, only the count of changes of its kind: whoever is woken reads what is new. So nothing
//! queues up for a slow client, and any number of changes costs it one wake-up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::turn::keys::ConversationId;

/// How many changes of each kind there were since the conversation's entry was made. The counts begin again at 0 after
/// its last subscriber is gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChangeCounts {
    /// Counts turns that were armed or ended, which subscribers read from the store.
    pub store: u64,
    /// Counts arrivals of frames, which subscribers read from the live logs.
    pub live: u64,
}

/// The conversations that somebody in this process has subscribed to. Cheap to clone.
#[derive(Clone, Default)]
pub struct Subscriptions {
    by_conversation: Arc<Mutex<HashMap<ConversationId, Subscribed>>>,
}

/// A conversation that has subscribers.
struct Subscribed {
    changes: watch::Sender<ChangeCounts>,
    /// Counted under the map's lock, as the channel's own count is not: of two that go at once, one is the last.
    subscribers: usize,
}

/// One subscriber's place to wait for changes of a conversation.
pub struct Subscription {
    conversation: ConversationId,
    changes: watch::Receiver<ChangeCounts>,
    subscriptions: Subscriptions,
}

impl Subscriptions {
    fn with<T>(&self, f: impl FnOnce(&mut HashMap<ConversationId, Subscribed>) -> T) -> T {
        // A panic of another holder leaves the map sound, since every change of it is one call.
        f(&mut self.by_conversation.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts to wait for changes of a conversation.
    pub fn subscribe(&self, conversation: ConversationId) -> Subscription {
        let changes = self.with(|by_conversation| {
            let new = || Subscribed { changes: watch::channel(ChangeCounts::default()).0, subscribers: 0 };
            let subscribed = by_conversation.entry(conversation).or_insert_with(new);
            subscribed.subscribers += 1;
            subscribed.changes.subscribe()
        });
        Subscription { conversation, changes, subscriptions: self.clone() }
    }

    /// Wakes the conversation's subscribers: the store has something new.
    pub fn store_changed(&self, conversation: ConversationId) {
        self.with(|by_conversation| {
            if let Some(subscribed) = by_conversation.get(&conversation) {
                subscribed.changes.send_modify(|n| n.store += 1);
            }
        });
    }

    /// Wakes the conversation's subscribers: the live log of one of its turns has something new.
    pub fn frames_came(&self, conversation: ConversationId) {
        self.with(|by_conversation| {
            if let Some(subscribed) = by_conversation.get(&conversation) {
                subscribed.changes.send_modify(|n| n.live += 1);
            }
        });
    }

    /// Notices may have been missed: every subscriber reads the store.
    pub fn everything_changed(&self) {
        self.with(|by_conversation| {
            by_conversation.values().for_each(|subscribed| subscribed.changes.send_modify(|n| n.store += 1));
        });
    }

    /// Whether a conversation has a subscriber.
    pub fn is_wanted(&self, conversation: ConversationId) -> bool {
        self.with(|by_conversation| by_conversation.contains_key(&conversation))
    }

    /// The conversations that have a subscriber.
    pub fn conversations(&self) -> Vec<ConversationId> {
        self.with(|by_conversation| by_conversation.keys().copied().collect())
    }
}

impl Subscription {
    /// Waits for a change after those that the last call returned; returns the counts. Cancel-safe.
    pub async fn changed(&mut self) -> ChangeCounts {
        // `changed` fails only when the sender is dropped, and the map keeps the sender while a receiver exists.
        let _ = self.changes.changed().await;
        *self.changes.borrow_and_update()
    }

    /// The counts so far; [`changed`](Self::changed) waits for later changes.
    pub fn seen(&mut self) -> ChangeCounts {
        *self.changes.borrow_and_update()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.subscriptions.with(|by_conversation| {
            let Some(subscribed) = by_conversation.get_mut(&self.conversation) else { return };
            subscribed.subscribers -= 1;
            if subscribed.subscribers == 0 {
                by_conversation.remove(&self.conversation);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn nothing_is_left_of_subscribers_that_go_at_once() {
        let subscriptions = Subscriptions::default();
        for _ in 0..20_000 {
            let conversation = ConversationId::new();
            let both = [subscriptions.subscribe(conversation), subscriptions.subscribe(conversation)];
            let together = Barrier::new(2);
            std::thread::scope(|scope| {
                for one in both {
                    scope.spawn(|| {
                        together.wait();
                        drop(one);
                    });
                }
            });
            assert!(!subscriptions.is_wanted(conversation) && subscriptions.conversations().is_empty());
        }
    }
}
