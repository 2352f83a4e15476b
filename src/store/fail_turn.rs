//! Turns that one of Lastword's parts ends while no worker's life is in question: a cancel, a lost turn, a queue over its
//! limit, an Agent that was removed.

use std::time::Duration;

use uuid::Uuid;

use super::audit::{self, Actor, Audited};
use super::elect::{self, Ended, Fence};
use super::transaction::transaction;
use super::{Store, StoreError};
use crate::turn::cause;
use crate::turn::keys::{Incarnation, TurnId};
use crate::turn::terminal::Failure;

/// How long a removed Agent may take to come back before its waiting turns end: many people replace a thing by deleting it
/// and making it again.
const MADE_AGAIN: Duration = Duration::from_secs(3);

impl Store {
    /// Ends one turn, whoever holds it; `None` when it has its terminal already.
    pub async fn fail_turn(&self, turn: TurnId, failure: &Failure) -> Result<Option<Ended>, StoreError> {
        Ok(self.end_turns(&[turn], Fence::AnyHolder, failure).await?.into_iter().next())
    }

    /// Ends one turn, whoever holds it, because somebody demands it, and writes the audit; `None` when it has its terminal
    /// already.
    pub async fn cancel_turn(&self, turn: TurnId, actor: Actor<'_>) -> Result<Option<Ended>, StoreError> {
        let failure = cause::rule::cancelled();
        let ended = transaction!(self.vital(), |tx| {
            let ended = elect::fail_open(tx, &[turn], Fence::AnyHolder, &failure).await?;
            if !ended.is_empty() {
                audit::write(tx, actor, Audited::Cancel, &turn.to_string()).await?;
            }
            Ok(ended)
        })
        .await?;
        self.announce(&ended);
        Ok(ended.into_iter().next())
    }

    /// Ends a turn whose marker names this worker, and which the worker has lost, as its own heartbeats say. False if
    /// the marker does not name the worker.
    pub async fn fail_lost_turn(
        &self,
        turn: TurnId,
        worker: Incarnation,
        failure: &Failure,
    ) -> Result<bool, StoreError> {
        Ok(!self.end_turns(&[turn], Fence::HeldBy(worker), failure).await?.is_empty())
    }

    /// Ends the newest waiting turns of an Agent, those beyond its queue's limit of `max_queued`; at most 500 a call.
    /// Answers how many ended.
    pub async fn shed_queue_of_agent(
        &self,
        organization: &str,
        agent: &str,
        max_queued: u32,
    ) -> Result<u32, StoreError> {
        let failure = cause::rule::shed();
        let ended = transaction!(self.vital(), |tx| {
            let over: Vec<Uuid> = sqlx::query_scalar(
                "SELECT turn_id FROM marker WHERE organization = $1 AND agent = $2 AND incarnation IS NULL AND phase = 'waiting'
                 ORDER BY armed_at OFFSET $3 LIMIT 500",
            )
            .bind(organization)
            .bind(agent)
            .bind(i64::from(max_queued))
            .fetch_all(&mut *tx)
            .await?;
            let over: Vec<TurnId> = over.into_iter().map(TurnId).collect();
            elect::fail_open(tx, &over, Fence::Unclaimed, &failure).await
        })
        .await?;
        self.announce(&ended);
        Ok(ended.len() as u32)
    }

    /// Ends the open turns of an Agent that no longer exists, apart from those that a worker holds; at most 500 a call.
    /// Answers how many ended: none while the Agent has been gone for less than [`MADE_AGAIN`].
    pub async fn end_turns_of_removed_agent(&self, organization: &str, agent: &str) -> Result<u32, StoreError> {
        let failure = cause::rule::agent_gone();
        let ended = transaction!(self.vital(), |tx| {
            let unclaimed: Vec<Uuid> = sqlx::query_scalar(
                "SELECT turn_id FROM marker WHERE organization = $1 AND agent = $2 AND incarnation IS NULL
                   AND EXISTS (SELECT FROM agent WHERE namespace = $1 AND name = $2
                               AND deleted_at < statement_timestamp() - make_interval(secs => $3)) LIMIT 500",
            )
            .bind(organization)
            .bind(agent)
            .bind(MADE_AGAIN.as_secs_f64())
            .fetch_all(&mut *tx)
            .await?;
            let unclaimed: Vec<TurnId> = unclaimed.into_iter().map(TurnId).collect();
            elect::fail_open(tx, &unclaimed, Fence::Unclaimed, &failure).await
        })
        .await?;
        self.announce(&ended);
        Ok(ended.len() as u32)
    }
}
