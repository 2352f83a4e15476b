//! The credential exchange: a pod that has proven its identity by its ServiceAccount token gets the secret of its start,
//! which any replica's worker port accepts.

use sqlx::Row;

use super::{Pool, Store, StoreError};
use crate::turn::keys::StartId;
use crate::turn::phase::LeasePhase;

/// What a pod that asks for a worker credential is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialExchange {
    /// The pod belongs to this start, which has the new secret from now on.
    Granted(StartId),
    /// A start waits for a pod of this name, but nobody has recorded its UID yet: ask again.
    NotRecorded,
    /// The start is dead, or is being stopped.
    Dead,
    /// The start's worker has connected with the credential that it got. Whoever asks now is the agent program beside it,
    /// which can read the pod's token too.
    AlreadyConnected,
    /// No start has this pod.
    Unknown,
}

impl Store {
    /// A pod has proven its `namespace/name` and UID, and asks for a credential: `secret` makes a new secret for the pod's
    /// start and gives its hash.
    ///
    /// Once a worker has connected, only a worker of the adapter `Custom` may ask for another credential, because its
    /// process may be started anew within its container. Lastword's own adapters keep their credential until the
    /// container ends.
    pub async fn exchange_credential_of_pod(
        &self,
        runtime_ref: &str,
        uid: &str,
        secret: impl Fn(StartId) -> Vec<u8>,
    ) -> Result<CredentialExchange, StoreError> {
        match self.start_to_give_credential(self.vital(), runtime_ref, uid).await? {
            Ok((start, again)) => self.replace_secret(start, uid, again, secret(start)).await,
            Err(answer) => Ok(answer),
        }
    }

    /// What [`exchange_credential_of_pod`](Self::exchange_credential_of_pod) would answer to a pod of this name and UID;
    /// nothing is changed.
    pub async fn would_give_credential_to_pod(
        &self,
        runtime_ref: &str,
        uid: &str,
    ) -> Result<CredentialExchange, StoreError> {
        let found = self.start_to_give_credential(&self.general, runtime_ref, uid).await?;
        Ok(found.map_or_else(|answer| answer, |(start, _)| CredentialExchange::Granted(start)))
    }

    /// The start that a pod may have a credential for, and whether also while its worker is live; or why there is none.
    async fn start_to_give_credential(
        &self,
        pool: &Pool,
        runtime_ref: &str,
        uid: &str,
    ) -> Result<Result<(StartId, bool), CredentialExchange>, StoreError> {
        let rows = sqlx::query(
            "SELECT l.start_id, l.phase, l.pod_uid, coalesce(a.spec->>'adapter' = 'Custom', false) AS again
             FROM lease l LEFT JOIN agent a ON a.namespace = l.organization AND a.name = l.agent
             WHERE l.runtime_ref = $1 AND l.runtime = 'kubernetes' ORDER BY l.phase = 'dead', l.started_at DESC LIMIT 10",
        )
        .bind(runtime_ref)
        .fetch_all(pool)
        .await?;
        let mut answer = CredentialExchange::Unknown;
        for row in &rows {
            let (phase, recorded): (_, Option<&str>) = (LeasePhase::of(row)?, row.try_get("pod_uid")?);
            match recorded {
                Some(recorded) if recorded != uid => {}
                // A worker that is being stopped needs no new credential: if it holds turns, it has one already.
                Some(_) if matches!(phase, LeasePhase::Dead | LeasePhase::Draining) => {
                    return Ok(Err(CredentialExchange::Dead));
                }
                Some(_) => {
                    let (start, again): (_, bool) = (StartId(row.try_get("start_id")?), row.try_get("again")?);
                    let connected = phase == LeasePhase::Live && !again;
                    return Ok(if connected { Err(CredentialExchange::AlreadyConnected) } else { Ok((start, again)) });
                }
                None if phase != LeasePhase::Dead => answer = CredentialExchange::NotRecorded,
                None => {}
            }
        }
        Ok(Err(answer))
    }

    /// Replaces the secret of a start whose worker has not connected. With `again`, also that of a start whose worker
    /// is live.
    async fn replace_secret(
        &self,
        start: StartId,
        uid: &str,
        again: bool,
        secret_hash: Vec<u8>,
    ) -> Result<CredentialExchange, StoreError> {
        // The UPDATE checks the UID again, since the lease was read without a lock.
        let done = sqlx::query(
            "UPDATE lease SET secret_hash = $3
             WHERE start_id = $1 AND pod_uid = $2 AND (phase = 'starting' OR (phase = 'live' AND $4))",
        )
        .bind(start.0)
        .bind(uid)
        .bind(secret_hash)
        .bind(again)
        .execute(self.vital())
        .await?;
        Ok(match done.rows_affected() {
            0 if again => CredentialExchange::Dead,
            0 => CredentialExchange::AlreadyConnected,
            _ => CredentialExchange::Granted(start),
        })
    }
}
