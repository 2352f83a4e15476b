//! Wake-ups between replicas: NOTIFY after commit, coalesced, from one task a replica.
//!
//! A notice is a hint. Whoever waits for one also polls, and a listener that lost its connection is told so
//! ([`Heard::Missed`]), because what came meanwhile is lost.

use std::collections::HashSet;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgListener;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::BroadcastStream;
use uuid::Uuid;

use super::pool::{Pool, bounded};
use super::{Store, StoreError};
use crate::turn::keys::{ConversationId, Incarnation};

/// After this long without a notice the connection is asked whether it lives: nothing else is ever sent on it.
const QUIET: Duration = Duration::from_secs(10);
const CHANNEL: &str = "lastword";
/// The pause before listening again.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
/// Notices gather this long; NOTIFY takes a global lock at commit, so one for many is what keeps it cheap.
const COALESCE: Duration = Duration::from_millis(10);
/// Postgres' limit for a payload is 8,000 bytes.
const MAX_PAYLOAD: usize = 7_500;

/// What may have changed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Notice {
    /// A conversation has a new turn or a new terminal.
    #[serde(rename = "c")]
    Conversation(ConversationId),
    /// A worker group (organization, name) has something to claim.
    #[serde(rename = "d")]
    WorkerGroup(String, String),
    /// A worker is to be looked at, drained, or was failed; or one of its turns was ended by another.
    #[serde(rename = "w")]
    Worker(Incarnation),
    /// An agent's spec changed.
    #[serde(rename = "a")]
    Agents,
    /// An API key was revoked.
    #[serde(rename = "k")]
    Keys,
}

/// Notices that a slow local listener may lag behind; it is told, and looks at everything.
const LOCAL_BACKLOG: usize = 4096;

#[derive(Clone)]
pub(super) struct Sender {
    queue: mpsc::UnboundedSender<Notice>,
    local: broadcast::Sender<Notice>,
    /// Names this store's notices, so that it does not hear itself through the database.
    id: Uuid,
}

impl Sender {
    pub fn start(pool: Pool) -> Self {
        let (queue, waiting) = mpsc::unbounded_channel();
        let id = Uuid::now_v7();
        tokio::spawn(send(pool, waiting, id));
        Sender { queue, local: broadcast::channel(LOCAL_BACKLOG).0, id }
    }

    /// Sends a notice soon, at most once for all that are equal.
    pub fn send(&self, notice: Notice) {
        // Nobody may listen here; and the queue is bounded by what is committed within one round trip.
        let _ = self.local.send(notice.clone());
        let _ = self.queue.send(notice);
    }
}

async fn send(pool: Pool, mut waiting: mpsc::UnboundedReceiver<Notice>, id: Uuid) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, 4096).await > 0 {
        let notices: HashSet<Notice> = batch.drain(..).collect();
        let payloads = pack(id, notices.into_iter());
        if let Err(error) = sqlx::query("SELECT pg_notify($1, p) FROM unnest($2::text[]) AS p")
            .bind(CHANNEL)
            .bind(&payloads)
            .execute(&pool)
            .await
        {
            tracing::debug!(%error, "notices were lost; polling finds what they told of");
        }
        tokio::time::sleep(COALESCE).await;
    }
}

/// Payloads of one sender's id and a notice a line.
fn pack(id: Uuid, notices: impl Iterator<Item = Notice>) -> Vec<String> {
    let mut payloads = Vec::new();
    let head = format!("{id}\n");
    let mut lines = head.clone();
    for notice in notices {
        let Ok(line) = serde_json::to_string(&notice) else { continue };
        if lines.len() + line.len() + 1 > MAX_PAYLOAD {
            payloads.push(std::mem::replace(&mut lines, head.clone()));
        }
        lines.push_str(&line);
        lines.push('\n');
    }
    payloads.push(lines);
    payloads
}

/// One connection's LISTEN.
struct Listener {
    listener: PgListener,
    own: Uuid,
}

/// What somebody who waits for changes is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// This may have changed.
    Notice(Notice),
    /// Something may have been missed: look at everything.
    Missed,
}

/// Notices as they come, from this process and, unless only its own are wanted, from others.
///
/// A connection that is lost is made again; since what came meanwhile is lost too, the hearer is told [`Heard::Missed`],
/// also at the beginning. It never ends.
pub struct Hearing {
    heard: BoxStream<'static, Heard>,
}

impl Hearing {
    /// The next notice. Cancel-safe.
    pub async fn next(&mut self) -> Heard {
        match self.heard.next().await {
            Some(heard) => heard,
            None => std::future::pending().await,
        }
    }
}

impl Store {
    /// What this process and others change, from now on.
    pub fn hear(&self) -> Hearing {
        let others = futures::stream::unfold((self.clone(), None), |(store, listener)| async move {
            let (heard, listener) = store.hear_others(listener).await;
            Some((futures::stream::iter(heard), (store, Some(listener))))
        });
        Hearing { heard: futures::stream::select(self.own_notices(), others.flatten()).boxed() }
    }

    /// What this process changes, at once and without the database: for a process that has the database to itself.
    pub fn hear_own(&self) -> Hearing {
        Hearing { heard: self.own_notices().boxed() }
    }

    fn own_notices(&self) -> impl Stream<Item = Heard> + Send + 'static {
        // A hearer that lags behind has missed something.
        BroadcastStream::new(self.notices.local.subscribe()).map(|heard| heard.map_or(Heard::Missed, Heard::Notice))
    }

    /// The next notices of others, and the connection that they came by.
    async fn hear_others(&self, listener: Option<Listener>) -> (Vec<Heard>, Listener) {
        let mut listener = listener;
        loop {
            match listener.take() {
                Some(mut open) => match open.next().await {
                    Ok(heard) => return (heard, open),
                    // It is made again below, after a pause.
                    Err(error) => tracing::debug!(%error, "the connection that hears notices is lost"),
                },
                None => {
                    if let Ok(open) = self.listen().await {
                        return (vec![Heard::Missed], open);
                    }
                }
            }
            tokio::time::sleep(LISTEN_AGAIN).await;
        }
    }

    /// Starts to listen to the other replicas, on a connection of its own.
    async fn listen(&self) -> Result<Listener, StoreError> {
        let pool = super::pool(1).connect_lazy_with((*self.listen).clone());
        let mut listener = PgListener::connect_with(&pool).await?;
        bounded(async { Ok(listener.listen(CHANNEL).await?) }).await?;
        Ok(Listener { listener, own: self.notices.id })
    }

    /// API keys were changed by hand: gateways are told before this returns.
    pub async fn notify_keys_changed(&self) {
        let payload = pack(self.notices.id, std::iter::once(Notice::Keys));
        // Gateways ask again within a second anyway.
        let _ = sqlx::query("SELECT pg_notify($1, p) FROM unnest($2::text[]) AS p")
            .bind(CHANNEL)
            .bind(&payload)
            .execute(&self.general)
            .await;
    }
}

impl Listener {
    /// The next notices of other processes; none if they were this one's own.
    async fn next(&mut self) -> Result<Vec<Heard>, StoreError> {
        let notification = loop {
            match tokio::time::timeout(QUIET, self.listener.try_recv()).await {
                Ok(heard) => break heard?,
                Err(_) => {
                    bounded(async { Ok(sqlx::query("SELECT 1").execute(&mut self.listener).await?) }).await?;
                }
            }
        };
        // `None`: the connection was lost and made again, and with it, perhaps, some notices.
        let Some(notification) = notification else { return Ok(vec![Heard::Missed]) };
        let mut lines = notification.payload().lines();
        if lines.next().is_some_and(|id| id == self.own.to_string()) {
            return Ok(Vec::new());
        }
        Ok(lines.filter_map(|line| serde_json::from_str(line).ok()).map(Heard::Notice).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_stay_below_the_limit() {
        let notices = (0..500).map(|_| Notice::Conversation(ConversationId::new()));
        let payloads = pack(Uuid::nil(), notices);
        assert!(payloads.len() > 1 && payloads.iter().all(|p| p.len() <= MAX_PAYLOAD));
        assert_eq!(payloads.iter().flat_map(|p| p.lines().skip(1)).count(), 500);
    }
}
