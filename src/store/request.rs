//! Requests of clients whose protocol has no message id: what a turn was asked for with, and how a request that is sent again
//! finds its turn.
//!
//! A library sends a request again when it was not answered, and says nothing of which one it repeats. What is alike has one
//! *digest*, and the turns of one digest have *places*, 0, 1, 2, …; the place is part of the turn's message id. So whoever arms a
//! place that is taken is answered with its turn, whichever replica it is on, and however late the first arm was committed.

use std::time::Duration;

use serde_json::Value;
use sqlx::Row;
use uuid::Uuid;

use super::connection::DbConnection;
use super::{Store, StoreError};
use crate::turn::keys::TurnId;

/// Turns of one conversation context that are looked at.
const MAX_CONTEXTS: i64 = 8;

/// A request that a turn is armed for.
#[derive(Debug, Clone, PartialEq)]
pub struct TurnRequest {
    /// A digest of what makes two requests the same one.
    pub digest: Vec<u8>,
    /// The turn's place among those of this digest, from 0 on.
    pub place: i32,
    /// A digest of all that was asked.
    pub body: Vec<u8>,
    /// Whether this is a repeat.
    pub by_retry: bool,
    /// A digest of the messages that a reply would be appended to, where the client sends all of them each time.
    pub context: Option<Vec<u8>>,
    /// What is shown with the response; `None`: it cannot be retrieved.
    pub asked: Option<Value>,
}

/// The last turn of a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlikeRequest {
    pub turn_id: TurnId,
    pub place: i32,
    pub body: Vec<u8>,
    /// Whether it was armed within the time that was asked for, by the database's clock.
    pub recent: bool,
    /// Whether a repeat armed it after the caller's request had come: that may be the request that it repeats.
    pub overtook: bool,
    /// The owner's name of the conversation.
    pub conversation: String,
    pub message_id: String,
}

/// Writes the requests of turns that this transaction has inserted. Of those that it found none is written: they have other ids,
/// or theirs was written when nobody knew that the arm had been committed.
pub(super) async fn insert<'a>(
    tx: &mut DbConnection,
    requests: impl Iterator<Item = (TurnId, &'a TurnRequest)>,
) -> Result<(), StoreError> {
    let requests: Vec<_> = requests.collect();
    if requests.is_empty() {
        return Ok(());
    }
    let pick = |f: fn(&TurnRequest) -> &[u8]| -> Vec<&[u8]> { requests.iter().map(|(_, r)| f(r)).collect() };
    sqlx::query(
        r#"INSERT INTO request (turn_id, organization, owner, digest, place, body, by_retry, context, asked, armed_at)
           SELECT t.id, t.organization, t."user", i.digest, i.place, i.body, i.by_retry, i.context, i.asked, t.armed_at
           FROM unnest($1::uuid[], $2::bytea[], $3::int[], $4::bytea[], $5::bool[], $6::bytea[], $7::jsonb[])
                AS i(id, digest, place, body, by_retry, context, asked) JOIN turn t USING (id)
           ON CONFLICT (turn_id) DO NOTHING"#,
    )
    .bind(requests.iter().map(|(turn, _)| turn.0).collect::<Vec<Uuid>>())
    .bind(pick(|r| &r.digest))
    .bind(requests.iter().map(|(_, r)| r.place).collect::<Vec<i32>>())
    .bind(pick(|r| &r.body))
    .bind(requests.iter().map(|(_, r)| r.by_retry).collect::<Vec<bool>>())
    .bind(requests.iter().map(|(_, r)| r.context.as_deref()).collect::<Vec<Option<&[u8]>>>())
    .bind(requests.iter().map(|(_, r)| r.asked.clone()).collect::<Vec<Option<Value>>>())
    .execute(tx)
    .await?;
    Ok(())
}

impl Store {
    /// The last turn that a request of this digest armed, if there is one. The caller's request came `waited` ago.
    pub async fn newest_request(
        &self,
        organization: &str,
        owner: &str,
        digest: &[u8],
        recent_seconds: u32,
        waited: Duration,
    ) -> Result<Option<AlikeRequest>, StoreError> {
        let row = sqlx::query(
            "SELECT r.turn_id, r.place, r.body, r.armed_at > statement_timestamp() - make_interval(secs => $4) AS recent,
                    r.by_retry AND r.armed_at > statement_timestamp() - make_interval(secs => $5) AS overtook,
                    t.conversation, t.message_id
             FROM request r JOIN turn t ON t.id = r.turn_id
             WHERE r.organization = $1 AND r.owner = $2 AND r.digest = $3 ORDER BY r.place DESC LIMIT 1",
        )
        .bind(organization)
        .bind(owner)
        .bind(digest)
        .bind(f64::from(recent_seconds))
        .bind(waited.as_secs_f64())
        .fetch_optional(&self.general)
        .await?;
        row.map(|row| {
            Ok(AlikeRequest {
                turn_id: TurnId(row.try_get("turn_id")?),
                place: row.try_get("place")?,
                body: row.try_get("body")?,
                recent: row.try_get("recent")?,
                overtook: row.try_get("overtook")?,
                conversation: row.try_get("conversation")?,
                message_id: row.try_get("message_id")?,
            })
        })
        .transpose()
    }

    /// Gives a turn that a repeat armed to the request that it repeats, which came `waited` ago. False: it was no repeat that
    /// armed it, or it did before, or another request has taken it.
    pub async fn take_repeated(&self, turn: TurnId, waited: Duration) -> Result<bool, StoreError> {
        let taken = sqlx::query(
            "UPDATE request SET by_retry = false
             WHERE turn_id = $1 AND by_retry AND armed_at > statement_timestamp() - make_interval(secs => $2)",
        )
        .bind(turn.0)
        .bind(waited.as_secs_f64())
        .execute(&self.general)
        .await?;
        Ok(taken.rows_affected() > 0)
    }

    /// What a turn was asked for with, if its response can be retrieved.
    pub async fn asked_for(&self, turn: TurnId) -> Result<Option<Value>, StoreError> {
        let asked: Option<Option<Value>> = sqlx::query_scalar("SELECT asked FROM request WHERE turn_id = $1")
            .bind(turn.0)
            .fetch_optional(&self.keyed)
            .await?;
        Ok(asked.flatten())
    }

    /// Makes a response one that cannot be retrieved any more, and forgets what it was asked for with. False: it was none.
    pub async fn withdraw_response(&self, turn: TurnId) -> Result<bool, StoreError> {
        let withdrawn = sqlx::query("UPDATE request SET asked = NULL WHERE turn_id = $1 AND asked IS NOT NULL")
            .bind(turn.0)
            .execute(&self.general)
            .await?;
        Ok(withdrawn.rows_affected() > 0)
    }

    /// The turns that were asked for behind the same messages, newest first, where a reply is the last thing that their
    /// conversation has; with the owner's name of the conversation.
    pub async fn turns_behind(
        &self,
        organization: &str,
        owner: &str,
        context: &[u8],
    ) -> Result<Vec<(TurnId, String)>, StoreError> {
        let rows: Vec<(Uuid, String)> = sqlx::query_as(
            "SELECT r.turn_id, t.conversation FROM request r JOIN turn t ON t.id = r.turn_id
             JOIN terminal e ON e.turn_id = r.turn_id AND e.outcome = 'reply'
             WHERE r.organization = $1 AND r.owner = $2 AND r.context = $3
               AND NOT EXISTS (SELECT FROM turn later LEFT JOIN terminal l ON l.turn_id = later.id
                               WHERE later.conversation_id = t.conversation_id AND later.number > t.number
                                 AND l.outcome IS DISTINCT FROM 'error')
             ORDER BY r.armed_at DESC LIMIT $4",
        )
        .bind(organization)
        .bind(owner)
        .bind(context)
        .bind(MAX_CONTEXTS)
        .fetch_all(&self.general)
        .await?;
        Ok(rows.into_iter().map(|(turn, name)| (TurnId(turn), name)).collect())
    }
}
