//! Deliver: a `delivery` row says that a terminal was not shown yet on its platform. Renderers take the rows that are due and
//! remove those that they have shown.

use sqlx::Row;
use uuid::Uuid;

use super::phase::DeliveryState;
use super::{Notice, Store, StoreError, elect};
use crate::telemetry::turns::TurnEvent;
use crate::turn::keys::{ConversationId, GatewayId, TurnId};

/// An `api` row that was taken this often is parked, even if the registry names a session for it: sessions poll anyway.
const MAX_ATTEMPTS: i32 = 20;

/// A delivery that a renderer has taken, for the length of its claim.
#[derive(Debug, Clone)]
pub struct DueDelivery {
    pub turn_id: TurnId,
    pub conversation_id: ConversationId,
    pub organization: String,
    /// How often it was taken, this time included.
    pub attempts: u32,
}

impl Store {
    /// Takes rows of a platform that are due, at most `limit`, for `seconds`, which must exceed the renderer's own timeout.
    pub async fn take_deliveries(
        &self,
        platform: &str,
        by: GatewayId,
        seconds: u32,
        limit: u32,
    ) -> Result<Vec<DueDelivery>, StoreError> {
        let rows = sqlx::query(
            "WITH due AS MATERIALIZED (
               SELECT turn_id, platform FROM delivery
               WHERE platform = $1 AND state = 'ready' AND due_at < statement_timestamp()
               ORDER BY due_at LIMIT $4 FOR UPDATE SKIP LOCKED)
             UPDATE delivery d SET due_at = clock_timestamp() + make_interval(secs => $3), claimed_by = $2,
                    attempts = d.attempts + 1
             FROM due WHERE d.turn_id = due.turn_id AND d.platform = due.platform
             RETURNING d.turn_id, d.conversation_id, d.organization, d.attempts",
        )
        .bind(platform)
        .bind(by.0)
        .bind(f64::from(seconds))
        .bind(i64::from(limit))
        .fetch_all(&self.general)
        .await?;
        rows.iter()
            .map(|r| {
                Ok(DueDelivery {
                    turn_id: TurnId(r.try_get("turn_id")?),
                    conversation_id: ConversationId(r.try_get("conversation_id")?),
                    organization: r.try_get("organization")?,
                    attempts: r.try_get::<i32, _>("attempts")? as u32,
                })
            })
            .collect()
    }

    /// Removes the deliveries of these turns on a platform, which were shown; parked ones too.
    pub async fn remove_deliveries(&self, platform: &str, turns: &[TurnId]) -> Result<(), StoreError> {
        if turns.is_empty() {
            return Ok(());
        }
        let ids: Vec<Uuid> = turns.iter().map(|t| t.0).collect();
        let rows = sqlx::query(
            "WITH shown AS MATERIALIZED (SELECT turn_id FROM delivery WHERE turn_id = ANY($1) AND platform = $2
                                         ORDER BY turn_id FOR UPDATE),
                  removed AS (DELETE FROM delivery d USING shown s WHERE d.turn_id = s.turn_id AND d.platform = $2
                              RETURNING d.turn_id)
             SELECT r.turn_id, t.organization, t.agent, t.traceparent,
                    extract(epoch FROM clock_timestamp() - t.armed_at)::float8 AS after,
                    extract(epoch FROM clock_timestamp() - e.ended_at)::float8 AS after_end
             FROM removed r JOIN turn t ON t.id = r.turn_id JOIN terminal e ON e.turn_id = r.turn_id",
        )
        .bind(&ids)
        .bind(platform)
        .fetch_all(&self.general)
        .await?;
        for row in &rows {
            let (after, after_end) = (row.try_get("after")?, row.try_get("after_end")?);
            let turn = elect::told_turn(row)?;
            TurnEvent::Shown { turn, platform: platform.to_owned(), after, after_end }.tell();
        }
        Ok(())
    }

    /// Puts back `api` rows for which this replica holds no session. Where the registry names a session on another replica the
    /// row is ready again after 2 s, and that replica is woken; where it names none, the row is parked. A session that
    /// registers later reads the terminal by its cursor, whatever the row's state.
    pub async fn put_back_deliveries(&self, rows: &[DueDelivery]) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let ids: Vec<Uuid> = rows.iter().map(|r| r.turn_id.0).collect();
        let ready: Vec<Option<Uuid>> = sqlx::query_scalar(
            "WITH mine AS MATERIALIZED (SELECT turn_id FROM delivery WHERE turn_id = ANY($1) AND platform = 'api'
                                        ORDER BY turn_id FOR UPDATE)
             UPDATE delivery d SET claimed_by = NULL, due_at = clock_timestamp() + interval '2 seconds',
                    state = CASE WHEN d.attempts < $2 AND EXISTS (
                      SELECT FROM session s JOIN gateway g ON g.id = s.gateway AND g.expires_at > statement_timestamp()
                      WHERE s.conversation_id = d.conversation_id) THEN $3 ELSE $4 END
             FROM mine WHERE d.turn_id = mine.turn_id AND d.platform = 'api'
             RETURNING CASE d.state WHEN $3 THEN d.conversation_id END",
        )
        .bind(&ids)
        .bind(MAX_ATTEMPTS)
        .bind(DeliveryState::Ready.as_str())
        .bind(DeliveryState::Parked.as_str())
        .fetch_all(&self.general)
        .await?;
        for conversation in ready.into_iter().flatten() {
            self.notices.send(Notice::Conversation(ConversationId(conversation)));
        }
        Ok(())
    }
}
