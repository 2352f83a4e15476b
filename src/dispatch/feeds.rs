//! News of conversations, for the streams that wait for them. News carry nothing: whoever is woken pulls, so a slow client
//! queues nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::turn::keys::ConversationId;

/// How often each kind of news came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct News {
    /// A turn was armed, or ended: read the store.
    pub store: u64,
    /// Frames came in: read the live logs.
    pub live: u64,
}

/// All conversations that somebody waits for here.
#[derive(Clone, Default)]
pub struct Feeds {
    feeds: Arc<Mutex<HashMap<ConversationId, watch::Sender<News>>>>,
}

/// A place to wait for a conversation's news.
pub struct Feed {
    conversation: ConversationId,
    news: watch::Receiver<News>,
    feeds: Feeds,
}

impl Feeds {
    fn with<T>(&self, f: impl FnOnce(&mut HashMap<ConversationId, watch::Sender<News>>) -> T) -> T {
        // The map stays sound whatever a panicking holder did: every change is one call.
        f(&mut self.feeds.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts to wait for a conversation's news.
    pub fn subscribe(&self, conversation: ConversationId) -> Feed {
        let news = self
            .with(|feeds| feeds.entry(conversation).or_insert_with(|| watch::channel(News::default()).0).subscribe());
        Feed { conversation, news, feeds: self.clone() }
    }

    /// A turn of the conversation was armed or ended.
    pub fn store_changed(&self, conversation: ConversationId) {
        self.with(|feeds| {
            if let Some(feed) = feeds.get(&conversation) {
                feed.send_modify(|n| n.store += 1);
            }
        });
    }

    /// Frames of a turn of the conversation came in.
    pub fn frames_came(&self, conversation: ConversationId) {
        self.with(|feeds| {
            if let Some(feed) = feeds.get(&conversation) {
                feed.send_modify(|n| n.live += 1);
            }
        });
    }

    /// Something was missed: everybody looks.
    pub fn everything_changed(&self) {
        self.with(|feeds| feeds.values().for_each(|feed| feed.send_modify(|n| n.store += 1)));
    }

    /// Whether somebody waits for a conversation's news.
    pub fn is_wanted(&self, conversation: ConversationId) -> bool {
        self.with(|feeds| feeds.contains_key(&conversation))
    }

    /// The conversations that somebody waits for.
    pub fn conversations(&self) -> Vec<ConversationId> {
        self.with(|feeds| feeds.keys().copied().collect())
    }
}

impl Feed {
    /// Waits for news after those of the last call; returns what there has been in all.
    pub async fn changed(&mut self) -> News {
        // The sender lives in the map for as long as this receiver does.
        let _ = self.news.changed().await;
        *self.news.borrow_and_update()
    }

    /// What there has been in all; later news count as new.
    pub fn seen(&mut self) -> News {
        *self.news.borrow_and_update()
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.feeds.with(|feeds| {
            if feeds.get(&self.conversation).is_some_and(|feed| feed.receiver_count() <= 1) {
                feeds.remove(&self.conversation);
            }
        });
    }
}
