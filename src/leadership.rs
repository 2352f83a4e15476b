//! Who of several controllers starts and stops workers. An optimisation: two leaders at once cost work, and the leases'
//! locks keep them correct.

use tokio::sync::watch;

/// Whether this replica leads, as far as it knows.
#[derive(Debug, Clone)]
pub struct Leadership(watch::Receiver<bool>);

impl Leadership {
    /// One that follows `leading`; when its sender is gone, the last word holds.
    pub fn follow(leading: watch::Receiver<bool>) -> Self {
        Leadership(leading)
    }

    /// For a single replica: it always leads.
    pub fn always() -> Self {
        Leadership(watch::channel(true).1)
    }

    /// Whether this replica leads now.
    pub fn is_leader(&self) -> bool {
        *self.0.borrow()
    }

    /// Runs `lead` whenever this replica leads, from its beginning each time; it is dropped when it leads no more. Never
    /// ends.
    pub async fn while_leading<F: Future<Output = ()>>(mut self, lead: impl Fn() -> F) {
        loop {
            self.gained().await;
            tokio::select! {
                () = lead() => {}
                () = self.lost() => {}
            }
        }
    }

    /// Returns once this replica leads; at once if it does. Cancel-safe.
    pub async fn gained(&mut self) {
        if self.0.wait_for(|leads| *leads).await.is_err() {
            std::future::pending().await
        }
    }

    /// Returns once this replica does not lead; at once if it does not. Cancel-safe.
    pub async fn lost(&mut self) {
        if self.0.wait_for(|leads| !*leads).await.is_err() {
            std::future::pending().await
        }
    }
}
