//! Which of several controller replicas leads. Only the leader starts and stops workers.
//!
//! Leadership spares work and proves nothing: for a moment two replicas may both take themselves for the leader.
//! Correctness does not rest on it, because each write of a leader has a fence of its own: a lease row for starts and
//! stops, the message id for an arm, the `resourceVersion` for a status. The table is in `operator::leader`.
//!
//! `operator::leader` also says how a leader is elected: by a Lease object in Kubernetes.

use tokio::sync::watch;

use crate::metrics::METRICS;

/// Tells whether this replica leads, as far as it knows. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Leadership(watch::Receiver<bool>);

impl Leadership {
    /// Follows what an election says, `true` for a leader. When the sender is gone, its last value stays.
    pub fn follow(leading: watch::Receiver<bool>) -> Self {
        Leadership(leading)
    }

    /// Leads always: for a process that is the only one.
    pub fn always() -> Self {
        METRICS.leader.set(1);
        Leadership(watch::channel(true).1)
    }

    /// Whether this replica leads now.
    pub fn is_leader(&self) -> bool {
        *self.0.borrow()
    }

    /// Runs the future that `lead` makes while this replica leads, and drops it when leadership is lost; a new one is made
    /// each time that leadership is gained, and when the last one has ended. Never returns.
    pub async fn while_leading<F: Future<Output = ()>>(mut self, lead: impl Fn() -> F) {
        loop {
            self.gained().await;
            tokio::select! {
                () = lead() => {}
                () = self.lost() => {}
            }
        }
    }

    /// Waits until this replica leads. Cancel-safe.
    pub async fn gained(&mut self) {
        if self.0.wait_for(|leads| *leads).await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits until this replica does not lead. Cancel-safe.
    pub async fn lost(&mut self) {
        if self.0.wait_for(|leads| !*leads).await.is_err() {
            std::future::pending().await
        }
    }
}
