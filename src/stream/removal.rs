//! Rows that are no longer needed are removed in batches, and until it works: nobody names them again.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::every::supervised;
use crate::store::StoreError;

/// The most rows of one statement.
const MAX_ROWS: usize = 500;
/// The pause before rows are removed again after the database failed.
const RETRY: Duration = Duration::from_millis(500);

/// Starts the task that removes what is sent to the answer by `remove`; it ends when the last sender is dropped. The queue has
/// no bound: it holds an id for each row while the database does not answer. `what` names the task in logs.
pub(super) fn removals<T: Ord + Send + Sync + 'static, F>(
    what: &'static str,
    remove: impl Fn(Vec<T>) -> F + Send + 'static,
) -> mpsc::UnboundedSender<T>
where
    T: Clone,
    F: Future<Output = Result<(), StoreError>> + Send,
{
    let (queue, mut waiting) = mpsc::unbounded_channel();
    supervised(what, async move {
        let mut batch: Vec<T> = Vec::new();
        while waiting.recv_many(&mut batch, MAX_ROWS).await > 0 {
            batch.sort();
            batch.dedup();
            while let Err(error) = remove(batch.clone()).await {
                tracing::debug!(%error, "{what} waits for the database");
                tokio::time::sleep(RETRY).await;
            }
            batch.clear();
        }
    });
    queue
}
