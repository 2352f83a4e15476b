//! The sweep: ends what has lapsed: workers that were silent for a whole lease, starts and drains that took too long, turns
//! past their deadline. Its cost follows what has lapsed, not what is armed.

use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::elect::Fence;
use super::gate::ReadGate;
use super::{Store, StoreError};
use crate::turn::cause;
use crate::turn::cause::lease::Ground;
use crate::turn::keys::{Incarnation, TurnId};
use crate::turn::terminal::Failure;

/// Workers that one pass ends at the most, for each of the two causes; the next pass takes the rest.
const MAX_WORKERS: i64 = 100;
/// Turns that one pass ends at the most, for each of the two causes, apart from those that end with their workers.
const MAX_TURNS: i64 = 500;

/// A dead incarnation, the turns that still name it, and the reason and detail of its death.
type LeftBehind = (Uuid, Vec<Uuid>, Option<String>, Option<String>);

/// What a pass of the sweep ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    pub workers: u32,
    pub turns: u32,
    /// Whether there may be more to do at once.
    pub more: bool,
}

impl Store {
    /// Makes one pass. Every verdict is made under the settling gate, one of silence again under the lease's own lock, so that a
    /// heartbeat that commits meanwhile spares its worker.
    pub async fn sweep(&self) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        let gate = self.read_gate().await?;
        let silent = self.silent_workers(&gate, MAX_WORKERS).await?;
        for (incarnation, phase) in &silent {
            let failure = cause::lease::lapsed(*phase);
            let done = self.end_lease(*incarnation, &failure, Ground::Silence).await?;
            swept.workers += u32::from(done.died_now);
            swept.turns += done.ended.len() as u32;
        }
        let drained = self.undrained_workers(&gate).await?;
        for incarnation in &drained {
            let failure = cause::lease::not_drained();
            let done = self.end_lease(*incarnation, &failure, Ground::DrainOver).await?;
            swept.workers += u32::from(done.died_now);
            swept.turns += done.ended.len() as u32;
        }
        let late = self.sweep_deadlines(&gate).await?;
        let left = self.sweep_dead().await?;
        swept.turns += late + left;
        swept.more = [silent.len(), drained.len()].iter().any(|n| *n as i64 == MAX_WORKERS)
            || i64::from(late.max(left)) == MAX_TURNS;
        Ok(swept)
    }

    /// Workers that were told to stop, and whose time to drain is over.
    async fn undrained_workers(&self, gate: &ReadGate) -> Result<Vec<Incarnation>, StoreError> {
        if !gate.judges_deadlines() {
            return Ok(Vec::new());
        }
        let undrained: Vec<Uuid> = sqlx::query_scalar(
            "SELECT incarnation FROM lease
             WHERE phase = 'draining' AND drain_until < statement_timestamp() AND drain_until <= $1 LIMIT $2",
        )
        .bind(gate.seen)
        .bind(MAX_WORKERS)
        .fetch_all(self.vital())
        .await?;
        Ok(undrained.into_iter().map(Incarnation).collect())
    }

    /// Ends turns that were not finished by their deadline.
    async fn sweep_deadlines(&self, gate: &ReadGate) -> Result<u32, StoreError> {
        if !gate.judges_deadlines() {
            return Ok(0);
        }
        let lapsed: Vec<Uuid> = sqlx::query_scalar(
            "SELECT turn_id FROM marker
             WHERE deadline_at < statement_timestamp() AND deadline_at <= $1 ORDER BY deadline_at LIMIT $2",
        )
        .bind(gate.seen)
        .bind(MAX_TURNS)
        .fetch_all(self.vital())
        .await?;
        self.sweep_turns(&lapsed, Fence::AnyHolder, &cause::rule::too_late()).await
    }

    /// Ends turns whose markers name a worker that died lately, as the worker did. There are none unless a claim slipped past
    /// a death.
    async fn sweep_dead(&self) -> Result<u32, StoreError> {
        let left: Vec<LeftBehind> = sqlx::query_as(AssertSqlSafe(format!(
            "SELECT incarnation, array_agg(turn_id), death_reason, death_detail FROM (
               SELECT l.incarnation, m.turn_id, l.death_reason, l.death_detail
               FROM lease l JOIN marker m ON m.incarnation = l.incarnation
               WHERE l.phase = 'dead' AND l.died_at > statement_timestamp() - 2 * make_interval(secs => l.lease_seconds)
               LIMIT {MAX_TURNS}) AS dead GROUP BY 1, 3, 4"
        )))
        .fetch_all(self.vital())
        .await?;
        let mut ended = 0;
        for (incarnation, turns, reason, detail) in left {
            let failure = cause::lease::died_before(reason.and_then(|r| r.parse().ok()), detail);
            ended += self.sweep_turns(&turns, Fence::HeldBy(Incarnation(incarnation)), &failure).await?;
        }
        Ok(ended)
    }

    async fn sweep_turns(&self, lapsed: &[Uuid], fence: Fence, failure: &Failure) -> Result<u32, StoreError> {
        if lapsed.is_empty() {
            return Ok(0);
        }
        let lapsed: Vec<TurnId> = lapsed.iter().copied().map(TurnId).collect();
        Ok(self.end_turns(&lapsed, fence, failure).await?.len() as u32)
    }
}
