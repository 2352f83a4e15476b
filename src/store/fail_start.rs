//! The death of a worker that is named by its start, which is how runtimes report deaths: they know no incarnations. It
//! is the way of every proven death, not only of starts that failed.

use uuid::Uuid;

use super::fail_worker::{FailedWorker, end_lease_within};
use super::transaction::transaction;
use super::{Notice, Store, StoreError};
use crate::turn::cause::lease::Ground;
use crate::turn::keys::{Incarnation, StartId};
use crate::turn::terminal::Failure;

impl Store {
    /// Does what [`fail_worker`](Self::fail_worker) does, to the incarnation that a start has now; gives that incarnation, or
    /// `None` if the start has none that lives.
    ///
    /// The worker may be connecting just now, which gives its start another incarnation. Both transactions lock the start's
    /// rows first: either the new incarnation is the one that is failed here, or the connect finds the start dead.
    pub async fn fail_start(
        &self,
        start: StartId,
        failure: &Failure,
    ) -> Result<Option<(Incarnation, FailedWorker)>, StoreError> {
        let done = transaction!(self.vital(), |tx| {
            sqlx::query("SELECT FROM lease WHERE start_id = $1 ORDER BY incarnation FOR UPDATE")
                .bind(start.0)
                .execute(&mut *tx)
                .await?;
            // This is a second statement, because its snapshot must be younger than the locks: so it sees what was
            // committed while the first one waited for them.
            let living: Option<Uuid> =
                sqlx::query_scalar("SELECT incarnation FROM lease WHERE start_id = $1 AND phase <> 'dead'")
                    .bind(start.0)
                    .fetch_optional(&mut *tx)
                    .await?;
            let Some(incarnation) = living.map(Incarnation) else { return Ok(None) };
            let (failed, ended) = end_lease_within(tx, incarnation, failure, Ground::Proof).await?;
            Ok(Some((incarnation, failed, ended)))
        })
        .await?;
        let Some((incarnation, failed, ended)) = done else { return Ok(None) };
        self.announce(&ended);
        if failed.died_now {
            self.notices.send(Notice::Worker(incarnation));
        }
        Ok(Some((incarnation, failed)))
    }
}
