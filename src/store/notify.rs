//! Wake-ups between replicas: each replica has one task that sends what it committed with NOTIFY, many notices at once.
//!
//! Behind a pooler in transaction mode nobody can listen, since that is a session's. A direct connection is used where one is
//! given; else a hearer is told [`Heard::Missed`] each second, and looks at everything.
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

use super::pool::{Pool, bounded, one_session};
use super::{Store, StoreError};
use crate::every::supervised;
use crate::turn::keys::{ConversationId, Incarnation};

/// After this long without a notice the connection is asked whether it lives: nothing else is ever sent on it.
const QUIET: Duration = Duration::from_secs(10);
const CHANNEL: &str = "lastword";
/// The pause before a listener whose connection failed tries again.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
/// Where nobody can listen, everything is looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Notices gather this long before they are sent together: a NOTIFY takes a lock at its commit that all of the cluster's
/// databases share.
const COALESCE: Duration = Duration::from_millis(10);
/// Postgres' limit for a payload is 8,000 bytes.
const MAX_PAYLOAD: usize = 7_500;

/// What may have changed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Notice {
    /// A conversation has a new turn or a new terminal.
    Conversation(ConversationId),
    /// A worker group (organization, name) has something to claim.
    WorkerGroup(String, String),
    /// A worker is to be looked at, is to drain or was failed; or somebody else ended one of its turns.
    Worker(Incarnation),
    /// An Agent was written or removed.
    Agents,
    /// An API key was revoked.
    Keys,
}

/// Notices that a slow listener in this process may lag behind. One that lags further is told [`Heard::Missed`].
const LOCAL_BACKLOG: usize = 4096;

/// Sends notices; cheap to clone.
#[derive(Clone)]
pub(super) struct NoticeSender {
    queue: mpsc::UnboundedSender<Notice>,
    local: broadcast::Sender<Notice>,
    /// Names this store's notices, so that it does not hear itself through the database.
    id: Uuid,
}

impl NoticeSender {
    pub fn start(pool: Pool) -> Self {
        let (queue, waiting) = mpsc::unbounded_channel();
        let id = Uuid::now_v7();
        supervised("the sender of notices", send(pool, waiting, id));
        NoticeSender { queue, local: broadcast::channel(LOCAL_BACKLOG).0, id }
    }

    /// Sends a notice soon, at most once for all that are equal.
    pub fn send(&self, notice: Notice) {
        // It is no error if nobody listens in this process. The queue has no bound; it holds the notices of what is
        // committed while one NOTIFY is under way.
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

/// Payloads that begin with a line for the sender's id and have a notice on each further line.
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

/// A connection that listens.
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
            Some((futures::stream::iter(heard), (store, listener)))
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

    /// The next notices of other processes, and the connection that they came by, if they are heard by one.
    async fn hear_others(&self, listener: Option<Listener>) -> (Vec<Heard>, Option<Listener>) {
        let mut listener = listener;
        loop {
            match listener.take() {
                Some(mut open) => match open.next().await {
                    Ok(heard) => return (heard, Some(open)),
                    // The connection is made again after a pause.
                    Err(error) => tracing::debug!(%error, "the connection that hears notices is lost"),
                },
                None => match self.listen().await {
                    Ok(Some(open)) => return (vec![Heard::Missed], Some(open)),
                    Ok(None) => {
                        tokio::time::sleep(LOOK_EVERY).await;
                        return (vec![Heard::Missed], None);
                    }
                    Err(error) => tracing::debug!(%error, "no connection for notices"),
                },
            }
            tokio::time::sleep(LISTEN_AGAIN).await;
        }
    }

    /// Starts to listen to the other replicas, on a connection of its own. `None`: behind a pooler nobody can listen, unless
    /// there is a way past it.
    async fn listen(&self) -> Result<Option<Listener>, StoreError> {
        let Some(options) = self.session_options().await? else { return Ok(None) };
        let mut listener = PgListener::connect_with(&one_session(options)).await?;
        bounded(async { Ok(listener.listen(CHANNEL).await?) }).await?;
        Ok(Some(Listener { listener, own: self.notices.id }))
    }

    /// Tells all gateways that API keys were changed, before this returns: the process that changed them is about to end.
    pub async fn notify_keys_changed(&self) {
        let payload = pack(self.notices.id, std::iter::once(Notice::Keys));
        // If the notice is lost, gateways find out within a second all the same.
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
        // `None`: the connection was lost and made again, and some notices may have been lost with it.
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
