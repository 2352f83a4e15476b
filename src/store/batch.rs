//! Group commit: all calls of a verb that wait go into one transaction, since a commit costs the same for one as for many.
//!
//! There is no timer. Each verb has one task, its *lane*, that takes all calls that are queued (up to a bound), commits
//! them, answers the callers, and looks again. So an idle system commits a single call at once, and a busy one commits as
//! many as arrived while the last batch was under way.
//!
//! A batch that the database refuses for the content of one of its rows is halved until that row is alone, so that one bad
//! row fails alone.

use tokio::sync::{mpsc, oneshot};

use super::StoreError;
use super::connection::DbConnection;
use super::pool::Pool;
use super::transaction::transaction;
use crate::every::supervised;

/// Items of one transaction at the most. More would gain little (measured on one machine: 17,800 turns a second at 100
/// items, 30,000 at 500) and hold the locks longer.
const MAX_BATCH: usize = 256;
/// The most bytes of one transaction's items, since a statement with the large outputs of many turns would be too big.
/// One item that is heavier goes alone.
const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Items that may be queued. Beyond it callers wait for a place in the queue, which is the back-pressure.
const MAX_QUEUE: usize = 4096;

/// A verb that can be done for many items in one transaction.
///
/// `Answer` is a `Result` where a verb can refuse one item, as `arm` does when the conversation belongs to another
/// user.
pub(super) trait BatchedVerb: Clone + Send + Sync + 'static {
    /// What one call brings.
    type Item: Clone + Send + Sync + 'static;
    /// What one call is told after the commit.
    type Answer: Send + 'static;

    /// Does all items in the transaction `tx`; the answers are in the order of the items, one an item.
    fn run(
        &self,
        tx: &mut DbConnection,
        items: &[Self::Item],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, StoreError>> + Send;

    /// About what an item adds to a statement, in bytes.
    fn weight(&self, item: &Self::Item) -> usize;

    /// An item to write in place of one that the database refused for its content. `None`, the default: the refusal is the
    /// call's answer.
    fn mend(&self, _item: &Self::Item) -> Option<Self::Item> {
        None
    }
}

/// A call in the queue: its item, and where its answer goes.
type QueuedCall<V> = (<V as BatchedVerb>::Item, oneshot::Sender<Result<<V as BatchedVerb>::Answer, StoreError>>);

/// A handle on a verb's lane; cheap to clone.
pub(super) struct Batcher<V: BatchedVerb> {
    queue: mpsc::Sender<QueuedCall<V>>,
}

impl<V: BatchedVerb> Clone for Batcher<V> {
    fn clone(&self) -> Self {
        Batcher { queue: self.queue.clone() }
    }
}

impl<V: BatchedVerb> Batcher<V> {
    /// Starts the lane, which ends when the last handle is dropped.
    pub fn start(pool: Pool, verb: V) -> Self {
        let (queue, waiting) = mpsc::channel(MAX_QUEUE);
        supervised("a lane of group commit", lane(pool, verb, waiting));
        Batcher { queue }
    }

    /// Does one item, and answers after its commit. The item is done even if the caller stops waiting.
    pub async fn call(&self, item: V::Item) -> Result<V::Answer, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.queue.send((item, answer)).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

async fn lane<V: BatchedVerb>(pool: Pool, verb: V, mut waiting: mpsc::Receiver<QueuedCall<V>>) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    while !batch.is_empty() || waiting.recv_many(&mut batch, MAX_BATCH).await > 0 {
        let fit = fits_in_one(batch.iter().map(|(item, _)| verb.weight(item)));
        let (items, answers): (Vec<_>, Vec<_>) = batch.drain(..fit).unzip();
        // The batch runs in a task of its own: a panic in it is the fault of these items, and must not end the lane.
        let (pool, verb, count) = (pool.clone(), verb.clone(), items.len());
        let settled = tokio::spawn(async move { settle(&pool, &verb, &items).await }).await.unwrap_or_else(|panic| {
            tracing::error!(%panic, "a batch panicked; this is a bug in Lastword");
            (0..count).map(|_| Err(StoreError::Bug("a batch panicked".into()))).collect()
        });
        for (answer, result) in answers.into_iter().zip(settled) {
            // The caller may have gone away; its item is done all the same.
            let _ = answer.send(result);
        }
    }
}

/// How many items, from the first on, go into one transaction: at least one.
fn fits_in_one(weights: impl Iterator<Item = usize>) -> usize {
    let mut sum = 0;
    let fits = weights.take_while(|weight| {
        sum += weight;
        sum <= MAX_BATCH_BYTES
    });
    fits.count().max(1)
}

/// Does the items, and halves a batch whose content is refused.
async fn settle<V: BatchedVerb>(pool: &Pool, verb: &V, items: &[V::Item]) -> Vec<Result<V::Answer, StoreError>> {
    let mut results = Vec::with_capacity(items.len());
    // A stack of the parts that are still to do, the first one on top.
    let mut todo = vec![items];
    while let Some(part) = todo.pop() {
        match run_in_transaction(pool, verb, part).await {
            Ok(answers) => results.extend(answers.into_iter().map(Ok)),
            Err(StoreError::Refused(_)) if part.len() > 1 => {
                let (first, second) = part.split_at(part.len() / 2);
                todo.push(second);
                todo.push(first);
            }
            Err(StoreError::Refused(why)) => results.push(match verb.mend(&part[0]) {
                Some(mended) => {
                    tracing::warn!(%why, "a row was refused for its content; writing a fallback");
                    match run_in_transaction(pool, verb, &[mended]).await {
                        Ok(mut answers) => Ok(answers.remove(0)),
                        Err(error) => Err(error),
                    }
                }
                None => Err(StoreError::Refused(why)),
            }),
            Err(error) => results.extend(part.iter().map(|_| Err(error.clone()))),
        }
    }
    results
}

async fn run_in_transaction<V: BatchedVerb>(
    pool: &Pool,
    verb: &V,
    items: &[V::Item],
) -> Result<Vec<V::Answer>, StoreError> {
    transaction!(pool, |tx| {
        let answers = verb.run(tx, items).await?;
        debug_assert_eq!(answers.len(), items.len(), "one answer an item");
        Ok(answers)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_have_a_weight() {
        let half = MAX_BATCH_BYTES / 2;
        for (weights, count) in [
            (&[1, 1, 1][..], 3),
            (&[half, half, 1], 2),
            (&[half + 1, half, 1], 1),
            (&[MAX_BATCH_BYTES + 1, 1], 1),
            (&[usize::MAX / 2, usize::MAX / 2], 1),
        ] {
            assert_eq!(fits_in_one(weights.iter().copied()), count, "{weights:?}");
        }
    }
}
