//! Group commit: what waits goes into one transaction.
//!
//! There is no timer. A lane takes all that is queued (up to a bound), commits it, answers, and looks again; so an idle
//! system commits a single item at once, and a busy one commits as many as arrived while the last batch was under way.

use std::sync::Arc;

use sqlx::PgConnection;
use tokio::sync::{mpsc, oneshot};

use super::StoreError;
use super::pool::{Pool, bounded};

/// Items of one transaction at the most. Beyond some hundreds the gain is small (`shared/facts`: 17.8 k/s at 100, 30 k/s
/// at 500) and the locks are held longer.
const MAX_BATCH: usize = 256;
/// What the items of one transaction weigh together at the most, in bytes, unless one alone is heavier: large outputs of
/// many turns are no one statement.
const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Items that may wait; beyond it callers wait to enqueue, which is the back-pressure.
const MAX_QUEUE: usize = 4096;
/// Tries of a batch that lost a deadlock or a serialization race (40P01, 40001).
const RACE_TRIES: u32 = 5;

/// A verb that can be done for many items in one transaction.
pub(super) trait Verb: Clone + Send + Sync + 'static {
    type Item: Clone + Send + Sync + 'static;
    type Answer: Send + 'static;

    /// Does all items in the transaction at hand; one answer an item, in order.
    fn run(
        &self,
        tx: &mut PgConnection,
        items: &[Self::Item],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, StoreError>> + Send;

    /// About what an item adds to a statement, in bytes.
    fn weight(&self, item: &Self::Item) -> usize;

    /// What to do with a single item that the database refuses for its content; by default the refusal is its answer.
    fn mend(&self, _item: &Self::Item) -> Option<Self::Item> {
        None
    }
}

type Waiting<V> = (<V as Verb>::Item, oneshot::Sender<Result<<V as Verb>::Answer, StoreError>>);

pub(super) struct Batcher<V: Verb> {
    queue: mpsc::Sender<Waiting<V>>,
}

impl<V: Verb> Clone for Batcher<V> {
    fn clone(&self) -> Self {
        Batcher { queue: self.queue.clone() }
    }
}

impl<V: Verb> Batcher<V> {
    /// Starts the lane; it ends when the last handle is dropped.
    pub fn start(pool: Pool, verb: V) -> Self {
        let (queue, waiting) = mpsc::channel(MAX_QUEUE);
        tokio::spawn(lane(pool, verb, waiting));
        Batcher { queue }
    }

    /// Does one item and answers after its commit.
    ///
    /// The item is done even if the caller stops waiting: no obligation hangs on a request.
    pub async fn call(&self, item: V::Item) -> Result<V::Answer, StoreError> {
        let (answer, answered) = oneshot::channel();
        let closed = || StoreError::Unavailable(Arc::from("the store is closed"));
        self.queue.send((item, answer)).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }
}

async fn lane<V: Verb>(pool: Pool, verb: V, mut waiting: mpsc::Receiver<Waiting<V>>) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    while !batch.is_empty() || waiting.recv_many(&mut batch, MAX_BATCH).await > 0 {
        let some = light(batch.iter().map(|(item, _)| verb.weight(item)));
        let (items, answers): (Vec<_>, Vec<_>) = batch.drain(..some).unzip();
        // A task of its own: a panic is these items' fault, and must not end the lane.
        let (pool, verb, count) = (pool.clone(), verb.clone(), items.len());
        let settled = tokio::spawn(async move { settle(&pool, &verb, &items).await }).await.unwrap_or_else(|panic| {
            tracing::error!(%panic, "a batch panicked; this is a bug in Lastword");
            (0..count).map(|_| Err(StoreError::Unavailable("a fault of Lastword".into()))).collect()
        });
        for (answer, result) in answers.into_iter().zip(settled) {
            // A caller that went away has its item done all the same.
            let _ = answer.send(result);
        }
    }
}

/// How many items, from the first on, go into one transaction: at least one.
fn light(weights: impl Iterator<Item = usize>) -> usize {
    let mut sum = 0;
    let fits = weights.take_while(|weight| {
        sum += weight;
        sum <= MAX_BATCH_BYTES
    });
    fits.count().max(1)
}

/// Does the items, bisecting where content is refused.
async fn settle<V: Verb>(pool: &Pool, verb: &V, items: &[V::Item]) -> Vec<Result<V::Answer, StoreError>> {
    let mut results = Vec::with_capacity(items.len());
    // Ranges still to do, first on top.
    let mut todo = vec![items];
    while let Some(part) = todo.pop() {
        match transaction(pool, verb, part).await {
            Ok(answers) => results.extend(answers.into_iter().map(Ok)),
            Err(StoreError::Refused(_)) if part.len() > 1 => {
                let (first, second) = part.split_at(part.len() / 2);
                todo.push(second);
                todo.push(first);
            }
            Err(StoreError::Refused(why)) => results.push(match verb.mend(&part[0]) {
                Some(mended) => {
                    tracing::warn!(%why, "a row was refused for its content; writing a fallback");
                    match transaction(pool, verb, &[mended]).await {
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

/// One transaction over these items, tried again when it loses a deadlock or a serialization race.
async fn transaction<V: Verb>(pool: &Pool, verb: &V, items: &[V::Item]) -> Result<Vec<V::Answer>, StoreError> {
    retry_races(|| async {
        let mut connection = pool.acquire().await?;
        let mut tx = connection.begin().await?;
        let answers = verb.run(&mut tx, items).await?;
        debug_assert_eq!(answers.len(), items.len(), "one answer an item");
        tx.commit().await?;
        Ok(answers)
    })
    .await
}

/// Runs a whole transaction under the application's deadline, again while it loses races.
pub(super) async fn retry_races<T, F>(attempt: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    for _ in 1..RACE_TRIES {
        match bounded(attempt()).await {
            Err(StoreError::Raced(why)) => tracing::debug!(%why, "a transaction lost a race; again"),
            done => return done,
        }
    }
    bounded(attempt()).await
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
            assert_eq!(light(weights.iter().copied()), count, "{weights:?}");
        }
    }
}
