//! What a gateway does when it hears that something changed: it wakes whoever waits for it, or reads it again.
//!
//! A notice may be lost; so everybody who is woken here also polls. Nothing here takes long: what has to be read again is read
//! by a loop of its own, so that whoever waits for a turn is woken at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

use super::Gateway;
use crate::agents::Agents;
use crate::dispatch::subscriptions::Subscriptions;
use crate::every::{Again, Every};
use crate::store::{Heard, Notice, Store, StoreError};

/// Agents are read again this often, whatever was heard.
const REFRESH_EVERY: Duration = Duration::from_secs(5);

/// Hands each notice to the part of the gateway that it is for.
pub(super) struct NoticeRouter {
    pub gateway: Gateway,
    pub subscriptions: Subscriptions,
    /// Wakes [`refresh_agents`].
    pub agents_changed: Arc<Notify>,
    /// Held while every worker is told what changed for it.
    pub refreshing: Arc<Mutex<()>>,
}

impl NoticeRouter {
    /// Hears notices until `shutdown`.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        let mut hearing = self.gateway.store.hear();
        loop {
            tokio::select! {
                heard = hearing.next() => match heard {
                    Heard::Notice(notice) => self.take(notice),
                    Heard::Missed => self.look_at_everything(),
                },
                () = shutdown.cancelled() => return,
            }
        }
    }

    fn take(&self, notice: Notice) {
        match notice {
            Notice::Conversation(conversation) => self.subscriptions.store_changed(conversation),
            Notice::WorkerGroup(organization, agent, worker_group) => {
                self.gateway.workers.wake_worker_group(&organization, &agent, worker_group);
            }
            Notice::Worker(incarnation) => {
                let workers = self.gateway.workers.clone();
                tokio::spawn(async move { workers.refresh(incarnation).await });
            }
            Notice::Agents => self.agents_changed.notify_one(),
            Notice::Keys => self.gateway.auth.forget(),
        }
    }

    fn look_at_everything(&self) {
        self.subscriptions.everything_changed();
        self.gateway.workers.wake_all();
        self.gateway.auth.forget();
        // One pass at a time: behind a pooler this comes every second. What a pass left out is told by the next heartbeat.
        if let Ok(pass) = self.refreshing.clone().try_lock_owned() {
            let workers = self.gateway.workers.clone();
            tokio::spawn(async move {
                workers.refresh_all().await;
                drop(pass);
            });
        }
    }
}

/// Reads the Agents again when they changed, and every few seconds, until `shutdown`. When they cannot be read, those that
/// were read before are served on.
pub(super) async fn refresh_agents(agents: Agents, store: Store, changed: Arc<Notify>, shutdown: CancellationToken) {
    let mut readings = Every::new("the reading of Agents", REFRESH_EVERY).at_once().woken_by(&changed);
    while readings.next(&shutdown).await.is_some() {
        let read: Result<(), StoreError> = agents.refresh(&store).await;
        readings.ended(read.map(|()| Again::Later));
    }
}
