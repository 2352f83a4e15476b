//! Posts: deliveries on the platforms that an Agent names itself (webhook, slack). A renderer takes the rows that are due, and
//! removes those that it has posted. A post that failed is put off and tried again; at last it is given up: its row is
//! parked, with its problem for operators, until the retention removes its turn.

use sqlx::Row;

use super::phase::DeliveryState;
use super::{Store, StoreError, elect};
use crate::turn::frame::storable;
use crate::turn::keys::{GatewayId, TurnId};
use crate::turn::terminal::cut;

/// The longest text of a problem that is kept, in bytes.
const MAX_PROBLEM_BYTES: usize = 512;

/// A post that a renderer has taken, for the length of its claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DuePost {
    pub turn_id: TurnId,
    pub organization: String,
    /// The name of one of the Agent's platforms.
    pub platform: String,
    /// How often it was taken, this time included.
    pub attempts: u32,
    /// The renderer that has taken it.
    by: GatewayId,
}

/// Where posts go: one platform of an organization, or (`None`) all of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PostPlace {
    pub organization: String,
    pub platform: Option<String>,
}

impl DuePost {
    /// Where it is to be posted, as its renderer counts what is under way.
    pub fn place(&self) -> PostPlace {
        PostPlace { organization: self.organization.clone(), platform: Some(self.platform.clone()) }
    }
}

impl Store {
    /// Takes rows of all platforms but `api` and `kubernetes` that are due, at most `limit`, for `seconds`, which must exceed
    /// the time that the renderer takes for one. Rows of the places in `busy` are left.
    pub async fn take_posts(
        &self,
        by: GatewayId,
        seconds: u32,
        limit: u32,
        busy: &[PostPlace],
    ) -> Result<Vec<DuePost>, StoreError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        // The condition on platforms is written exactly as in the partial index `delivery_posts_idx`, so that it is used.
        let rows = sqlx::query(
            "WITH due AS MATERIALIZED (
               SELECT turn_id, platform FROM delivery
               WHERE state = 'ready' AND platform NOT IN ('api', 'kubernetes') AND due_at < statement_timestamp()
                 AND NOT EXISTS (SELECT FROM unnest($4::text[], $5::text[]) AS busy(organization, platform)
                                 WHERE busy.organization = delivery.organization
                                   AND coalesce(busy.platform, delivery.platform) = delivery.platform)
               ORDER BY due_at LIMIT $3 FOR UPDATE SKIP LOCKED)
             UPDATE delivery d SET due_at = clock_timestamp() + make_interval(secs => $2), claimed_by = $1,
                    attempts = d.attempts + 1
             FROM due WHERE d.turn_id = due.turn_id AND d.platform = due.platform
             RETURNING d.turn_id, d.organization, d.platform, d.attempts",
        )
        .bind(by.0)
        .bind(f64::from(seconds))
        .bind(i64::from(limit))
        .bind(busy.iter().map(|b| b.organization.as_str()).collect::<Vec<_>>())
        .bind(busy.iter().map(|b| b.platform.as_deref()).collect::<Vec<_>>())
        .fetch_all(&self.general)
        .await?;
        rows.iter()
            .map(|r| {
                Ok(DuePost {
                    turn_id: TurnId(r.try_get("turn_id")?),
                    organization: r.try_get("organization")?,
                    platform: r.try_get("platform")?,
                    attempts: r.try_get::<i32, _>("attempts")? as u32,
                    by,
                })
            })
            .collect()
    }

    /// Puts a post off for so many seconds, unless another renderer has taken it meanwhile.
    pub async fn put_off_post(&self, post: &DuePost, seconds: f64, problem: &str) -> Result<(), StoreError> {
        self.leave_post(post, DeliveryState::Ready, seconds, problem).await
    }

    /// Gives a post up, unless another renderer has taken it meanwhile.
    pub async fn give_up_post(&self, post: &DuePost, problem: &str) -> Result<(), StoreError> {
        self.leave_post(post, DeliveryState::Parked, 0.0, problem).await
    }

    async fn leave_post(
        &self,
        post: &DuePost,
        state: DeliveryState,
        seconds: f64,
        problem: &str,
    ) -> Result<(), StoreError> {
        let problem = cut(storable(problem.to_string()), MAX_PROBLEM_BYTES);
        sqlx::query(
            "UPDATE delivery SET state = $5, due_at = clock_timestamp() + make_interval(secs => $6), problem = $7,
                    claimed_by = NULL
             WHERE turn_id = $1 AND platform = $2 AND claimed_by = $3 AND attempts = $4",
        )
        .bind(post.turn_id.0)
        .bind(&post.platform)
        .bind(post.by.0)
        .bind(post.attempts as i32)
        .bind(state.as_str())
        .bind(seconds)
        .bind(problem)
        .execute(&self.general)
        .await?;
        Ok(())
    }

    /// The platform that a turn came in on.
    pub async fn platform_of_turn(&self, turn: TurnId) -> Result<Option<String>, StoreError> {
        let row =
            sqlx::query("SELECT routing FROM turn WHERE id = $1").bind(turn.0).fetch_optional(&self.general).await?;
        Ok(row.map(|r| elect::routing(&r).unwrap_or_default().platform))
    }
}
