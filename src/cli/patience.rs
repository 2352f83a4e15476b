//! How long, and with which pauses, the commands try to reach a gateway.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;

/// The shortest pause between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A back-off with an end: tries go on until this long after the first failure.
pub(super) struct Patience {
    backoff: Backoff,
    patience: Duration,
    /// When the first failure in a row was noticed.
    since: Option<Instant>,
}

impl Patience {
    pub(super) fn new(patience: Duration) -> Self {
        Patience { backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE), patience, since: None }
    }

    /// Forgets the failures so far. Call it when a try has succeeded.
    pub(super) fn reset(&mut self) {
        self.backoff.reset();
        self.since = None;
    }

    /// Notes a failure, and says whether the patience has passed since the first one.
    pub(super) fn is_over(&mut self) -> bool {
        self.since.get_or_insert_with(Instant::now).elapsed() >= self.patience
    }

    /// Waits before the next try.
    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.backoff.next()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn patience_counts_from_the_first_failure() {
        let mut patience = Patience::new(Duration::from_millis(40));
        assert!(!patience.is_over());
        patience.pause().await; // The first pause is 100 ms, shortened by at most half.
        assert!(patience.is_over());
        patience.reset();
        assert!(!patience.is_over());
    }
}
