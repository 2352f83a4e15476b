//! What a gateway does when it hears that something changed: it wakes whoever waits for it, or reads it again.
//!
//! A notice may be lost; so everybody who is woken here also polls.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::Gateway;
use crate::dispatch::subscriptions::Subscriptions;
use crate::store::{Heard, Notice};

/// Agents are read again this often, whatever was heard.
const REFRESH_EVERY: Duration = Duration::from_secs(5);

/// Hands each notice to the part of the gateway that it is for.
pub(super) struct NoticeRouter {
    pub gateway: Gateway,
    pub subscriptions: Subscriptions,
    /// Held while every worker is told what changed for it.
    pub refreshing: Arc<Mutex<()>>,
}

impl NoticeRouter {
    /// Hears notices until `shutdown`.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        let mut hearing = self.gateway.store.hear();
        let mut refresh = tokio::time::interval(REFRESH_EVERY);
        loop {
            tokio::select! {
                heard = hearing.next() => match heard {
                    Heard::Notice(notice) => self.take(notice).await,
                    Heard::Missed => self.look_at_everything(),
                },
                _ = refresh.tick() => self.refresh_agents().await,
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn take(&self, notice: Notice) {
        match notice {
            Notice::Conversation(conversation) => self.subscriptions.store_changed(conversation),
            Notice::WorkerGroup(organization, worker_group) => {
                self.gateway.workers.wake_worker_group(&organization, &worker_group);
            }
            Notice::Worker(incarnation) => {
                let workers = self.gateway.workers.clone();
                tokio::spawn(async move { workers.refresh(incarnation).await });
            }
            Notice::Agents => self.refresh_agents().await,
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

    async fn refresh_agents(&self) {
        if let Err(error) = self.gateway.agents.refresh(&self.gateway.store).await {
            tracing::debug!(%error, "the agents were not read; those that were read before are served on");
        }
    }
}
