//! This replica's sessions in the database's registry, by which others find out where somebody listens.

use tokio::sync::mpsc;

use super::removal::removals;
use crate::store::{Store, StoreError};
use crate::turn::keys::{ConversationId, GatewayId, SessionId};

/// Registers the sessions of this replica, and takes them off. Cheap to clone.
#[derive(Clone)]
pub struct SessionRegistry {
    gateway: GatewayId,
    store: Store,
    ended: mpsc::UnboundedSender<SessionId>,
}

impl SessionRegistry {
    /// Starts the task that takes sessions off; it ends when the last handle is dropped.
    pub fn start(gateway: GatewayId, store: Store) -> Self {
        let of = store.clone();
        let ended = removals("the removal of ended sessions", move |sessions: Vec<SessionId>| {
            let store = of.clone();
            async move { store.forget_sessions(&sessions).await }
        });
        SessionRegistry { gateway, store, ended }
    }

    /// Registers a session, and answers when that is committed: every terminal that is written from now on wakes it. Dropping
    /// the answer takes the session off.
    ///
    /// # Errors
    /// As [`Store::register_session`]. A session of which it is not known whether it was registered is taken off too.
    pub async fn register(
        &self,
        organization: &str,
        conversation: ConversationId,
        owner: bool,
    ) -> Result<SessionRegistration, StoreError> {
        let registration = SessionRegistration { id: SessionId::new(), ended: self.ended.clone() };
        let (store, gateway, organization) = (self.store.clone(), self.gateway, organization.to_string());
        // In a task of its own: a client that goes away meanwhile must not leave a row that is written behind its removal.
        let registering = tokio::spawn(async move {
            let id = registration.id;
            store.register_session(id, gateway, &organization, conversation, owner).await.map(|()| registration)
        });
        registering.await.map_err(|_| StoreError::Unavailable("the registration was broken off".into()))?
    }
}

/// A session in the database's registry; dropping it takes it off.
pub struct SessionRegistration {
    id: SessionId,
    ended: mpsc::UnboundedSender<SessionId>,
}

impl Drop for SessionRegistration {
    fn drop(&mut self) {
        // The receiver is there as long as this sender is.
        let _ = self.ended.send(self.id);
    }
}
