//! Leadership among the controller's replicas: one Lease in its namespace.
//!
//! Losing it stops writes of Kubernetes objects only; nothing that is correct rests on it.

use std::time::Duration;

use kube_lease_manager::{LeaseManager, LeaseManagerBuilder};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::OperatorConfig;
use crate::fleet::Leadership;

/// The Lease's name.
const LEASE: &str = "lastword-controller";
/// A leader that does not renew for this long has lost: the longest that nobody starts workers after a leader's death.
const DURATION_SECONDS: u64 = 10;
/// The leader renews this long before that.
const GRACE_SECONDS: u64 = 4;
/// A call to the API server takes no longer; less than [`GRACE_SECONDS`].
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause before another try when the API server is away.
const RETRY: Duration = Duration::from_secs(1);

/// Takes part in the election until `shutdown`; the answer follows it.
pub fn elect(config: &OperatorConfig, shutdown: CancellationToken) -> Leadership {
    let (leading, seen) = watch::channel(false);
    let (namespace, identity) = (config.own_namespace.clone(), config.identity.clone());
    tokio::spawn(async move {
        while !shutdown.is_cancelled() {
            campaign(&namespace, &identity, &leading, &shutdown).await;
            leading.send_replace(false);
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = shutdown.cancelled() => {}
            }
        }
    });
    Leadership::follow(seen)
}

/// Leads and follows until the Lease cannot be reached, or `shutdown`, when it is given up for others to take at once.
async fn campaign(namespace: &str, identity: &str, leading: &watch::Sender<bool>, shutdown: &CancellationToken) {
    let made = tokio::select! {
        made = manager(namespace, identity) => made,
        () = shutdown.cancelled() => return,
    };
    let manager = match made {
        Ok(manager) => manager,
        Err(error) => return tracing::warn!("no leader election now: {error}"),
    };
    loop {
        let changed = tokio::select! {
            changed = manager.changed() => changed,
            () = shutdown.cancelled() => {
                // Best effort: else the others wait until it runs out.
                let _ = tokio::time::timeout(RETRY, manager.release()).await;
                return;
            }
        };
        match changed {
            Ok(leads) => {
                if leading.send_replace(leads) != leads {
                    tracing::info!(leads, identity, "this replica {}", if leads { "leads" } else { "follows" });
                }
            }
            Err(error) => return tracing::warn!("leadership is in doubt: {error}"),
        }
    }
}

async fn manager(namespace: &str, identity: &str) -> Result<LeaseManager, Box<dyn std::error::Error + Send + Sync>> {
    // A client of its own: a call that hangs in a dead connection must not outlast the Lease.
    let client = super::client_within(CALL_TIMEOUT).await?;
    let manager = LeaseManagerBuilder::new(client, LEASE)
        .with_namespace(namespace)
        .with_identity(identity)
        .with_duration(DURATION_SECONDS)
        .with_grace(GRACE_SECONDS)
        .build()
        .await?;
    Ok(manager)
}
