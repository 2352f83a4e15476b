//! The loops of the sweep and of the retention, which every controller replica (and `dev`) runs. What a pass ends, and why,
//! is decided in the store.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::every::{Again, Every};
use crate::store::{Retention, Store, StoreError};

/// The period of the sweep; a lapse is noticed this much late at the most.
pub const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// A pass that takes longer is given up: its connection may be lost without the kernel's knowing.
const MAX_PASS: Duration = Duration::from_secs(30);
/// The period of the retention. Together with the budget of its passes it keeps up with some 4,000 turns a second.
const PRUNE_EVERY: Duration = Duration::from_secs(5);

/// Sweeps until `shutdown`; the first pass is made at once, then one every `every`. Beside it, so that no verdict waits for it,
/// the retention runs.
pub async fn sweep(store: Store, retention: Retention, every: Duration, shutdown: CancellationToken) {
    let sweeping = async {
        let mut passes = Every::new("the sweep", every).at_once();
        while passes.next(&shutdown).await.is_some() {
            passes.ended(pass(&store).await);
        }
    };
    let pruning = async {
        let mut passes = Every::new("the retention", PRUNE_EVERY).at_once();
        while passes.next(&shutdown).await.is_some() {
            passes.ended(prune(&store, &retention).await);
        }
    };
    tokio::join!(sweeping, pruning);
}

async fn pass(store: &Store) -> Result<Again, StoreError> {
    let pass = tokio::time::timeout(MAX_PASS, store.sweep()).await;
    let swept = pass.unwrap_or_else(|_| Err(StoreError::Unavailable("a pass took too long".into())))?;
    let (workers, turns) = (swept.workers, swept.turns);
    if workers + turns > 0 {
        tracing::info!(workers, turns, "the sweep ended {workers} workers and {turns} turns");
    }
    Ok(if swept.more { Again::AtOnce } else { Again::Later })
}

async fn prune(store: &Store, retention: &Retention) -> Result<Again, StoreError> {
    let turns = store.prune_past_retention(retention).await?;
    if turns > 0 {
        tracing::info!(turns, "the retention removed {turns} turns");
    }
    store.forget_lost_gateways().await?;
    Ok(Again::Later)
}
