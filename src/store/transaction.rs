//! One way to run a transaction: acquire a connection, begin, commit; under the deadline, and again if it loses a race.

use super::StoreError;
use super::pool::bounded;

/// Tries of a transaction that loses a deadlock or a serialization race (SQLSTATE 40P01 and 40001).
const RACE_TRIES: u32 = 5;

/// Runs a block as one transaction on a connection of a [`Pool`](super::Pool): `transaction!(pool, |tx| { … }).await`.
///
/// - The block is a `Result<_, StoreError>` and sees `tx` as a `&mut DbConnection`. `Ok` commits, `Err` rolls back; both
///   `?` and `return` leave the block, not the function around it.
/// - The whole of it, waiting for a connection included, has the deadline of [`bounded`].
/// - A block that loses a race runs again from its beginning, so what it does outside the database it must do twice as
///   well as once.
///
/// It is a macro because rustc cannot prove yet that a future is `Send` which holds an async closure that borrows both
/// from its caller and from its argument.
macro_rules! transaction {
    ($pool:expr, |$tx:ident| $block:expr) => {
        $crate::store::transaction::retry_races(|| async {
            let mut connection = $pool.begin().await?;
            let done: Result<_, $crate::store::StoreError> = {
                let $tx: &mut $crate::store::connection::DbConnection = &mut connection;
                async { $block }.await
            };
            let done = done?;
            connection.commit().await?;
            Ok(done)
        })
    };
}
pub(super) use transaction;

/// Runs a whole transaction under the deadline, again while it loses races. See [`transaction!`], which calls it.
pub(super) async fn retry_races<T, F>(attempt: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    for _ in 1..RACE_TRIES {
        match bounded(attempt()).await {
            Err(StoreError::Raced(why)) => tracing::debug!(%why, "a transaction lost a race and runs again"),
            done => return done,
        }
    }
    bounded(attempt()).await
}
