//! Guarding: a gateway checks a turn against its Agent's guardrails before a worker may claim it. While it does it holds the
//! turn: the marker names the gateway and a time. When that time has run out, because the gateway died say, another one
//! takes the turn over.

use sqlx::Row;
use uuid::Uuid;

use super::elect::{self, Fence};
use super::transaction::transaction;
use super::{Notice, Store, StoreError};
use crate::turn::keys::{GatewayId, TurnId, WorkerGroup};
use crate::turn::routing::Routing;
use crate::turn::terminal::Failure;

/// A turn to check.
#[derive(Debug, Clone)]
pub struct GuardedTurn {
    pub turn_id: TurnId,
    pub organization: String,
    pub conversation: String,
    pub user: String,
    pub agent: String,
    pub message_id: String,
    pub routing: Routing,
    pub input: String,
}

impl Store {
    /// Takes over turns whose guard let its time run out, and holds them for `seconds`; at most 50 a call.
    pub async fn take_unguarded_turns(&self, guard: GatewayId, seconds: u32) -> Result<Vec<GuardedTurn>, StoreError> {
        let rows = sqlx::query(
            r#"WITH lapsed AS MATERIALIZED (
                 SELECT turn_id FROM marker WHERE phase = 'guarding' AND guard_until < statement_timestamp()
                 ORDER BY guard_until LIMIT 50 FOR UPDATE SKIP LOCKED
               ), taken AS (
                 UPDATE marker m SET guard = $1, guard_until = clock_timestamp() + make_interval(secs => $2)
                 FROM lapsed WHERE m.turn_id = lapsed.turn_id RETURNING m.turn_id)
               SELECT t.id, t.organization, t.conversation, t."user", t.agent, t.message_id, t.routing, t.input
               FROM taken JOIN turn t ON t.id = taken.turn_id"#,
        )
        .bind(guard.0)
        .bind(f64::from(seconds))
        .fetch_all(&self.general)
        .await?;
        rows.iter()
            .map(|r| {
                Ok(GuardedTurn {
                    turn_id: TurnId(r.try_get("id")?),
                    organization: r.try_get("organization")?,
                    conversation: r.try_get("conversation")?,
                    user: r.try_get("user")?,
                    agent: r.try_get("agent")?,
                    message_id: r.try_get("message_id")?,
                    routing: elect::routing(r).unwrap_or_default(),
                    input: r.try_get("input")?,
                })
            })
            .collect()
    }

    /// Holds a turn for another `seconds`; false when it is not this guard's any more.
    pub async fn keep_guarding_turn(&self, turn: TurnId, guard: GatewayId, seconds: u32) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE marker SET guard_until = clock_timestamp() + make_interval(secs => $3)
             WHERE turn_id = $1 AND phase = 'guarding' AND guard = $2",
        )
        .bind(turn.0)
        .bind(guard.0)
        .bind(f64::from(seconds))
        .execute(&self.general)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The turn did not pass: it ends with `failure`. False when it is no longer this guard's to reject.
    pub async fn reject_guarded_turn(
        &self,
        turn: TurnId,
        guard: GatewayId,
        failure: &Failure,
    ) -> Result<bool, StoreError> {
        let ended = transaction!(self.vital(), |tx| {
            let mine: Option<Uuid> = sqlx::query_scalar(
                "SELECT turn_id FROM marker WHERE turn_id = $1 AND phase = 'guarding' AND guard = $2 FOR UPDATE",
            )
            .bind(turn.0)
            .bind(guard.0)
            .fetch_optional(&mut *tx)
            .await?;
            let mine: Vec<TurnId> = mine.into_iter().map(TurnId).collect();
            elect::fail_open(tx, &mine, Fence::Unclaimed, failure).await
        })
        .await?;
        self.announce(&ended);
        Ok(!ended.is_empty())
    }

    /// The turn passed: it may be claimed. False when it is no longer this guard's to pass.
    pub async fn pass_guarded_turn(&self, turn: TurnId, guard: GatewayId) -> Result<bool, StoreError> {
        let passed: Option<(String, String, Uuid)> = sqlx::query_as(
            "UPDATE marker SET phase = 'waiting', guard = NULL, guard_until = NULL
             WHERE turn_id = $1 AND phase = 'guarding' AND guard = $2
             RETURNING organization, agent, worker_group",
        )
        .bind(turn.0)
        .bind(guard.0)
        .fetch_optional(&self.general)
        .await?;
        let Some((organization, agent, worker_group)) = passed else { return Ok(false) };
        self.notices.send(Notice::WorkerGroup(organization, agent, WorkerGroup::from_key(worker_group)));
        Ok(true)
    }
}
