//! The election: lock the markers, decide, delete them and write the terminals, in one transaction.
//!
//! Used by every verb that ends turns: a worker's finish, the death of a worker, a failed start, a cancel, the sweep.

use std::collections::HashMap;

use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, Row};
use uuid::Uuid;

use super::{Notice, Store, StoreError};
use crate::turn::decide;
use crate::turn::keys::{ConversationId, Incarnation, TurnId};
use crate::turn::routing::{API, Routing, Unreadable};
use crate::turn::terminal::{Failure, Outcome};

/// An open turn, its marker locked.
#[derive(Debug, Clone)]
pub(super) struct Open {
    pub conversation_id: ConversationId,
    pub holder: Option<Incarnation>,
    pub routing: Result<Routing, Unreadable>,
    /// Length of the durable log.
    pub log_end: u64,
}

/// A turn that just ended, for wake-ups after the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub turn_id: TurnId,
    pub conversation_id: ConversationId,
    /// Whose hand it was in.
    pub holder: Option<Incarnation>,
}

/// A terminal to write for a turn that [`lock`] found open.
#[derive(Debug, Clone)]
pub(super) struct Ending {
    pub turn_id: TurnId,
    pub outcome: Outcome,
    pub by: Option<(Incarnation, String)>,
    pub holder: TurnId,
    pub end: u64,
    /// How many turns share the reply.
    pub answers: usize,
    pub platform: String,
}

/// Locks the markers of these turns in key order, then reads what an election needs; absent turns are not open.
pub(super) async fn lock(tx: &mut PgConnection, turns: &[TurnId]) -> Result<HashMap<TurnId, Open>, StoreError> {
    let ids: Vec<Uuid> = turns.iter().map(|t| t.0).collect();
    let markers = sqlx::query(
        "SELECT turn_id, conversation_id, incarnation FROM marker WHERE turn_id = ANY($1) ORDER BY turn_id FOR UPDATE",
    )
    .bind(&ids)
    .fetch_all(&mut *tx)
    .await?;
    if markers.is_empty() {
        return Ok(HashMap::new());
    }
    let open: Vec<Uuid> = markers.iter().map(|row| row.try_get("turn_id")).collect::<Result<_, _>>()?;
    // A statement of its own: its snapshot is younger than the locks, so no output row of theirs is missed.
    let rows = sqlx::query(
        "SELECT i.id, t.routing, (SELECT max(end_at) FROM output o WHERE o.turn_id = i.id) AS log_end
         FROM unnest($1::uuid[]) AS i(id) LEFT JOIN turn t ON t.id = i.id",
    )
    .bind(&open)
    .fetch_all(&mut *tx)
    .await?;
    let mut details = HashMap::with_capacity(rows.len());
    for row in rows {
        let id: Uuid = row.try_get("id")?;
        let log_end: Option<i64> = row.try_get("log_end")?;
        details.insert(id, (routing(&row), log_end.unwrap_or(0) as u64));
    }
    markers
        .iter()
        .map(|row| {
            let id: Uuid = row.try_get("turn_id")?;
            let (routing, log_end) = details.remove(&id).unwrap_or_else(|| (Routing::read(None), 0));
            let open = Open {
                conversation_id: ConversationId(row.try_get("conversation_id")?),
                holder: row.try_get::<Option<Uuid>, _>("incarnation")?.map(Incarnation),
                routing,
                log_end,
            };
            Ok((TurnId(id), open))
        })
        .collect()
}

/// The routing of a turn's row. What no parser of ours takes (jsonb holds numbers and depths of any size) is unreadable
/// like all else that is wrong with it: an error of the query would take everybody along that was asked for with it.
pub(super) fn routing(row: &PgRow) -> Result<Routing, Unreadable> {
    match row.try_get::<Option<Value>, _>("routing") {
        Ok(stored) => Routing::read(stored.as_ref()),
        Err(error) => Err(Unreadable(error.to_string())),
    }
}

impl Open {
    /// The platform whose renderer shows the terminal.
    pub fn platform(&self) -> String {
        self.routing.as_ref().map_or_else(|_| API.to_string(), |r| r.platform.clone())
    }

    /// An ending of this turn by the system.
    pub fn failed(&self, turn_id: TurnId, failure: &Failure) -> Ending {
        let failure = Outcome::Error(failure.clone().storable());
        Ending {
            turn_id,
            outcome: decide::written(&failure, self.routing.as_ref().err()),
            by: None,
            holder: turn_id,
            end: self.log_end,
            answers: 1,
            platform: self.platform(),
        }
    }
}

/// Deletes the markers and writes terminals and deliveries: the only place where a turn ends.
pub(super) async fn write(tx: &mut PgConnection, endings: &[Ending]) -> Result<(), StoreError> {
    if endings.is_empty() {
        return Ok(());
    }
    let failure = |e: &Ending| match &e.outcome {
        Outcome::Error(failure) => Some(failure.clone()),
        Outcome::Reply => None,
    };
    let failures: Vec<Option<Failure>> = endings.iter().map(failure).collect();
    let ids: Vec<Uuid> = endings.iter().map(|e| e.turn_id.0).collect();
    let outcomes: Vec<&str> = endings.iter().map(|e| e.outcome.as_str()).collect();
    let reasons: Vec<Option<&str>> = failures.iter().map(|f| f.as_ref().map(|f| f.reason.as_str())).collect();
    let messages: Vec<Option<&str>> = failures.iter().map(|f| f.as_ref().map(|f| f.message.as_str())).collect();
    let retryable: Vec<Option<bool>> = failures.iter().map(|f| f.as_ref().map(Failure::retryable)).collect();
    let details: Vec<Option<&str>> = failures.iter().map(|f| f.as_ref().and_then(|f| f.detail.as_deref())).collect();
    let replies: Vec<Option<&str>> = endings.iter().map(|e| e.by.as_ref().map(|b| b.1.as_str())).collect();
    let incarnations: Vec<Option<Uuid>> = endings.iter().map(|e| e.by.as_ref().map(|b| b.0.0)).collect();
    let holders: Vec<Uuid> = endings.iter().map(|e| e.holder.0).collect();
    let ends: Vec<i64> = endings.iter().map(|e| e.end as i64).collect();
    let answers: Vec<i16> = endings.iter().map(|e| e.answers as i16).collect();
    let platforms: Vec<&str> = endings.iter().map(|e| e.platform.as_str()).collect();
    // An `api` row waits a second for the sessions that are woken at once; only what they leave is looked at again.
    sqlx::query(
        "WITH ending AS (
           SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bool[], $6::text[], $7::text[],
                                $8::uuid[], $9::uuid[], $10::bigint[], $11::text[], $12::smallint[])
                         AS e(turn_id, outcome, reason, message, retryable, detail, reply_id,
                              incarnation, holder, end_at, platform, answers)
         ), elected AS (
           DELETE FROM marker m USING ending e WHERE m.turn_id = e.turn_id
           RETURNING m.turn_id, m.conversation_id, m.number, m.organization, m.claimed_at, m.incarnation AS held_by
         ), written AS (
           INSERT INTO terminal (turn_id, conversation_id, number, organization, outcome, reason, message, retryable,
                                 detail, reply_id, incarnation, holder, end_at, answers, claimed_at, held_by)
           SELECT turn_id, conversation_id, number, organization, outcome, reason, message, retryable,
                  detail, reply_id, incarnation, holder, end_at, answers, claimed_at, held_by
           FROM elected JOIN ending USING (turn_id)
         )
         INSERT INTO delivery (turn_id, platform, organization, conversation_id, number, due_at)
         SELECT turn_id, platform, organization, conversation_id, number,
                clock_timestamp() + CASE platform WHEN 'api' THEN interval '1 second' ELSE interval '0' END
         FROM elected JOIN ending USING (turn_id)",
    )
    .bind(&ids)
    .bind(&outcomes)
    .bind(&reasons)
    .bind(&messages)
    .bind(&retryable)
    .bind(&details)
    .bind(&replies)
    .bind(&incarnations)
    .bind(&holders)
    .bind(&ends)
    .bind(&platforms)
    .bind(&answers)
    .execute(tx)
    .await?;
    Ok(())
}

/// In whose hand a turn must still be, under its lock, to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hand {
    Anybodys,
    /// This worker's.
    Of(Incarnation),
    /// Nobody's: it waits. A turn that was claimed meanwhile is alive.
    Nobodys,
}

/// Ends with this failure whichever of these turns are open and still in this hand.
pub(super) async fn fail_open(
    tx: &mut PgConnection,
    turns: &[TurnId],
    hand: Hand,
    failure: &Failure,
) -> Result<Vec<Ended>, StoreError> {
    if turns.is_empty() {
        return Ok(Vec::new());
    }
    let open = lock(tx, turns).await?;
    let mine = |o: &Open| match hand {
        Hand::Anybodys => true,
        Hand::Of(worker) => o.holder == Some(worker),
        Hand::Nobodys => o.holder.is_none(),
    };
    let endings: Vec<Ending> = open.iter().filter(|(_, o)| mine(o)).map(|(&id, o)| o.failed(id, failure)).collect();
    Ok(write_what_goes(tx, &endings)
        .await?
        .into_iter()
        .map(|e| Ended {
            turn_id: e.turn_id,
            conversation_id: open[&e.turn_id].conversation_id,
            holder: open[&e.turn_id].holder,
        })
        .collect())
}

/// Writes all endings but those that the database refuses, and answers with what it wrote: a turn that cannot end (it has
/// a terminal already: the second fence) keeps neither its worker's death nor the sweep from ending the others.
async fn write_what_goes<'e>(tx: &mut PgConnection, endings: &'e [Ending]) -> Result<Vec<&'e Ending>, StoreError> {
    let mut written = Vec::with_capacity(endings.len());
    let mut todo = vec![endings];
    while let Some(part) = todo.pop() {
        if part.is_empty() {
            continue;
        }
        let mut savepoint = tx.begin().await?;
        match write(&mut savepoint, part).await {
            Ok(()) => {
                savepoint.commit().await?;
                written.extend(part);
            }
            Err(StoreError::Refused(why)) => {
                savepoint.rollback().await?;
                if let [ending] = part {
                    tracing::error!(turn = %ending.turn_id, %why, "turn {} cannot be ended", ending.turn_id);
                } else {
                    let (first, second) = part.split_at(part.len() / 2);
                    todo.extend([second, first]);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

impl Store {
    /// Wakes whoever waits for these turns: sessions of their conversations, and the workers that held them.
    pub(super) fn announce(&self, ended: &[Ended]) {
        for e in ended {
            self.notices.send(Notice::Conversation(e.conversation_id));
            if let Some(holder) = e.holder {
                self.notices.send(Notice::Worker(holder));
            }
        }
    }
}
