//! The sweep's loop; every controller replica (and `dev`) runs it. The verdicts are the store's.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::store::{Retention, Store, StoreError};

/// Pause between passes; a lapse is noticed this much late at the most.
pub const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// A pass that takes longer is given up: its connection may be dead, unknown to the kernel.
const MAX_PASS: Duration = Duration::from_secs(30);
/// Passes between two passes of the retention.
const PRUNE_EVERY: u32 = 30;

/// Sweeps until `shutdown`.
pub async fn sweep(store: Store, retention: Retention, every: Duration, shutdown: CancellationToken) {
    let mut away = false;
    let mut passes: u32 = 0;
    while !shutdown.is_cancelled() {
        let pass = tokio::time::timeout(MAX_PASS, store.sweep()).await;
        let pass = pass.unwrap_or_else(|_| Err(StoreError::Unavailable("a pass took too long".into())));
        let more = match pass {
            Ok(swept) => {
                if std::mem::take(&mut away) {
                    tracing::info!("the sweep has its database again");
                }
                if swept.workers + swept.turns > 0 {
                    tracing::info!(
                        workers = swept.workers,
                        turns = swept.turns,
                        "the sweep ended {} workers and {} turns",
                        swept.workers,
                        swept.turns
                    );
                }
                swept.more
            }
            Err(error) => {
                if !std::mem::replace(&mut away, true) {
                    tracing::warn!(%error, "the sweep has no database; it goes on when it is back");
                }
                false
            }
        };
        if passes.is_multiple_of(PRUNE_EVERY) && !away {
            prune(&store, &retention).await;
        }
        passes = passes.wrapping_add(1);
        if !more {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }
}

async fn prune(store: &Store, retention: &Retention) {
    match store.prune_past_retention(retention).await {
        Ok(0) => {}
        Ok(turns) => tracing::info!(turns, "the retention removed {turns} turns"),
        Err(error) => tracing::warn!(%error, "the retention did not run; the next pass does"),
    }
    if let Err(error) = store.forget_lost_gateways().await {
        tracing::warn!(%error, "gone gateways were not forgotten; the next pass does");
    }
}
