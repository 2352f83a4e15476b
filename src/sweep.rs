//! The loop of the sweep, which every controller replica (and `dev`) runs. What a pass ends, and why, is decided in the
//! store.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::every::{Again, Every};
use crate::store::{Retention, Store, StoreError};

/// The period of the sweep; a lapse is noticed this much late at the most.
pub const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// A pass that takes longer is given up: its connection may be lost without the kernel's knowing.
const MAX_PASS: Duration = Duration::from_secs(30);
/// The retention runs with one of so many passes.
const PRUNE_EVERY: u32 = 30;

/// Sweeps until `shutdown`; the first pass is made at once, then one every `every`.
pub async fn sweep(store: Store, retention: Retention, every: Duration, shutdown: CancellationToken) {
    let mut passes = Every::new("the sweep", every).at_once();
    let mut count: u32 = 0;
    while passes.next(&shutdown).await.is_some() {
        let swept = pass(&store).await;
        if swept.is_ok() && count.is_multiple_of(PRUNE_EVERY) {
            prune(&store, &retention).await;
        }
        count = count.wrapping_add(1);
        passes.ended(swept);
    }
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

async fn prune(store: &Store, retention: &Retention) {
    match store.prune_past_retention(retention).await {
        Ok(0) => {}
        Ok(turns) => tracing::info!(turns, "the retention removed {turns} turns"),
        Err(error) => tracing::warn!(%error, "the retention did not run; it runs again with a later pass"),
    }
    if let Err(error) = store.forget_lost_gateways().await {
        tracing::warn!(%error, "rows of gateways that are gone were not removed; a later pass removes them");
    }
}
