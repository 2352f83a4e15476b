//! References to worker processes, `NODE/BOOT/START`, and what they prove about an earlier run of this program.
//!
//! A *boot* is one run of the process that starts workers; a *node* is its data directory, which only one process at a
//! time may use. So a reference with this node and another boot names a worker of an earlier run; its keeper
//! (see [`crate::child::keeper`]) has killed it when that run ended.

use uuid::Uuid;

use crate::store::{Store, StoreError};
use crate::turn::cause::process;
use crate::turn::cause::stop::{self, Stopper};
use crate::turn::keys::StartId;

/// The reference of a worker process, as it is kept in its lease.
pub(super) fn reference(node: &str, boot: Uuid, start_id: StartId) -> String {
    format!("{node}/{boot}/{start_id}")
}

/// Whether a reference names a worker of an earlier boot of this node, which is dead therefore.
pub(super) fn is_former(runtime_ref: &str, node: &str, boot: Uuid) -> bool {
    let mut parts = runtime_ref.split('/');
    let (theirs, former) = (parts.next(), parts.next().and_then(|b| b.parse::<Uuid>().ok()));
    theirs == Some(node) && former.is_some_and(|b| b != boot)
}

/// Fails all workers that an earlier boot of this node left in the database; gives their number. To be called before
/// [`crate::fleet::run`], by the one process that holds the node's data directory. After an error it may be called
/// again.
pub async fn fail_former_boots(store: &Store, node: &str, boot: Uuid) -> Result<u32, StoreError> {
    let mut failed = 0;
    for worker in store.living_workers().await?.iter().filter(|w| is_former(&w.runtime_ref, node, boot)) {
        // The worker is drained first, as if it had been told to stop, so that turns which only waited for it get
        // another start.
        store.drain_worker(worker.incarnation, stop::reason(Stopper::Restart)).await?;
        failed += u32::from(store.fail_worker(worker.incarnation, &process::of_a_former_run()).await?.died_now);
    }
    Ok(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_tells_node_and_boot() {
        let (now, before) = (Uuid::now_v7(), Uuid::now_v7());
        let start = StartId::new();
        assert!(is_former(&reference("n", before, start), "n", now));
        assert!(!is_former(&reference("n", now, start), "n", now));
        assert!(!is_former(&reference("m", before, start), "n", now), "another machine's");
        for other in ["", "n", "n/x/y", "namespace/pod-1", &start.to_string()] {
            assert!(!is_former(other, "n", now), "{other}");
        }
    }
}
