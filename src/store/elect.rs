//! The election: how a turn ends exactly once, whoever tries to end it.
//!
//! # The design
//!
//! Many may want to end one turn: its worker with a reply, a controller that has proof of the worker's death, a person who
//! cancels, the sweep when a deadline or a lease has run out; each on several replicas at once. Nobody is in charge. An
//! armed turn has a row in `marker`, and who deletes that row has won:
//!
//! ```text
//!            lock (in key order)      decide            DELETE … RETURNING        COMMIT
//!   marker ──────────────────────► open, held by? ───► marker gone, terminal ──────────► wake-ups
//!            no row: somebody won     not mine: no      and delivery written
//! ```
//!
//! **Delete-returning.** [`write()`] is one statement: it deletes the markers, and inserts a terminal and a delivery for the
//! rows that the DELETE *returned*, not for those that it was asked for. So a terminal is written if and only if this very
//! transaction removed the marker, and no check that was made earlier can go stale.
//!
//! **The second fence.** `terminal` has the turn's id as its primary key. Should the first fence have a bug, the second
//! terminal is an error (SQLSTATE 23505) and not a second last word. [`fail_open`] tries its endings again by halves behind
//! savepoints, so that such a turn, which cannot be ended, keeps no other from being ended beside it.
//!
//! **Who may end what.** Lastword's own parts are fenced by the marker alone ([`Fence::AnyHolder`]), except where their
//! reason holds for one holder only: what a dead worker leaves behind, what nobody has claimed. A worker's word needs the
//! marker to name that worker's incarnation; `finish` decides it with `turn::decide`.
//!
//! **Lock order.** Markers are locked by turn id, so that two transactions with several turns in common cannot wait for
//! each other. Rows of other tables are locked in this order: conversation, lease, marker, delivery. (What loses a deadlock
//! all the same runs again, see `transaction!`.)
//!
//! **Snapshots.** Under READ COMMITTED each statement sees what was committed when it *began*. A statement that waits for
//! a lock goes on with the locked row's newest version, but with its old view of every other table. So [`lock`] takes the
//! locks in one statement and reads the end of the log in the next: an append that committed while it waited would
//! otherwise be missing in the reply. Appends, claims and hand-backs lock the same marker first, so none comes between.
//!
//! **What the loser learns.** It finds no marker, writes nothing, and is told so: a verb answers that nothing ended, a
//! worker is answered `superseded`, and its word is kept once for operators. A worker that repeats the word which had won,
//! after a lost answer, is told `accepted` again: the terminal has its incarnation and the reply's id.
//!
//! **Crashes.** Before the COMMIT: the marker is there, the turn is open, somebody will end it: the worker sends its word
//! again, and if the worker is gone too, the sweep knows its lease and the turn's deadline. In the COMMIT: it happened or
//! not; the caller is told that nobody knows, and asks again with the same keys. Behind it, before the wake-ups: the
//! delivery row is committed, and whoever renders polls for those that are due. There is no instant at which a turn has
//! neither marker nor terminal, or both.
//!
//! **One reply for several turns.** A worker that took all waiting messages of a conversation may answer them with one
//! reply. One election runs over all of them: each turn whose marker is still there gets a terminal of its own, and all
//! of these point with `holder` to the one turn whose log has the text, with the number of turns that share it. Turns that
//! had another last word (cancelled, say) keep it, and the reply is a reply all the same if at least one turn was won.

use std::collections::HashMap;

use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{Executor, Row};
use uuid::Uuid;

use super::connection::DbConnection;
use super::transaction::transaction;
use super::{Notice, Store, StoreError};
use crate::telemetry::turns::{ToldTurn, TurnEvent};
use crate::turn::decide;
use crate::turn::keys::{ConversationId, Incarnation, TurnId};
use crate::turn::routing::{API, Routing, Unreadable};
use crate::turn::terminal::{Failure, Outcome};

/// An open turn, its marker locked by this transaction.
#[derive(Debug, Clone)]
pub(super) struct OpenTurn {
    pub conversation_id: ConversationId,
    /// The worker that has claimed the turn.
    pub held_by: Option<Incarnation>,
    pub routing: Result<Routing, Unreadable>,
    /// Length of the durable log.
    pub log_end: u64,
}

/// A turn that just ended, for wake-ups after the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub turn_id: TurnId,
    pub conversation_id: ConversationId,
    /// The worker that had claimed the turn.
    pub held_by: Option<Incarnation>,
}

/// A terminal to write for a turn that [`lock`] found open.
#[derive(Debug, Clone)]
pub(super) struct NewTerminal {
    pub turn_id: TurnId,
    pub outcome: Outcome,
    /// Why the model stopped, in its server's words, as the worker said.
    pub finish_reason: Option<String>,
    /// The worker whose word this is, and the id of its reply; `None`: one of Lastword's own parts ends the turn.
    pub by: Option<(Incarnation, String)>,
    /// The turn whose log has the text of the reply: this one, or another that shares the reply.
    pub holder: TurnId,
    /// Where the reply ends in that log. Renderers show the log up to here, then the terminal.
    pub end: u64,
    /// How many turns share the reply.
    pub turns_answered: usize,
    /// The platform whose renderer shows the terminal.
    pub platform: String,
}

/// Locks the markers of these turns in key order, then reads what an election needs. A turn that is absent in the answer is
/// not open.
pub(super) async fn lock(tx: &mut DbConnection, turns: &[TurnId]) -> Result<HashMap<TurnId, OpenTurn>, StoreError> {
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
    // The logs are read in a second statement, whose snapshot is younger than the locks, so that no row of them is
    // missed.
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
            let open = OpenTurn {
                conversation_id: ConversationId(row.try_get("conversation_id")?),
                held_by: row.try_get::<Option<Uuid>, _>("incarnation")?.map(Incarnation),
                routing,
                log_end,
            };
            Ok((TurnId(id), open))
        })
        .collect()
}

/// The routing of a row that selects `routing`. A value that no parser here takes (jsonb holds numbers and nestings of any
/// size) makes it [`Unreadable`], like everything else that may be wrong with it; an error would fail the whole query, and
/// with it all other turns that were read beside this one.
pub(super) fn routing(row: &PgRow) -> Result<Routing, Unreadable> {
    match row.try_get::<Option<Value>, _>("routing") {
        Ok(stored) => Routing::read(stored.as_ref()),
        Err(error) => Err(Unreadable(error.to_string())),
    }
}

impl OpenTurn {
    /// The platform whose renderer shows the terminal.
    pub fn platform(&self) -> String {
        self.routing.as_ref().map_or_else(|_| API.to_string(), |r| r.platform.clone())
    }

    /// The terminal with which one of Lastword's own parts ends this turn.
    pub fn failed(&self, turn_id: TurnId, failure: &Failure) -> NewTerminal {
        let failure = Outcome::Error(failure.clone().storable());
        NewTerminal {
            turn_id,
            outcome: decide::outcome_to_write(&failure, self.routing.as_ref().err()),
            finish_reason: None,
            by: None,
            holder: turn_id,
            end: self.log_end,
            turns_answered: 1,
            platform: self.platform(),
        }
    }
}

/// Deletes the markers, and writes terminals and deliveries for those that it deleted. This is the only place where a turn
/// ends. Answers with the turns that ended, and the seconds since each was armed.
pub(super) async fn write(
    tx: &mut DbConnection,
    terminals: &[NewTerminal],
) -> Result<Vec<(ToldTurn, f64)>, StoreError> {
    if terminals.is_empty() {
        return Ok(Vec::new());
    }
    let failure = |e: &NewTerminal| match &e.outcome {
        Outcome::Error(failure) => Some(failure.clone()),
        Outcome::Reply => None,
    };
    let failures: Vec<Option<Failure>> = terminals.iter().map(failure).collect();
    let ids: Vec<Uuid> = terminals.iter().map(|e| e.turn_id.0).collect();
    let outcomes: Vec<&str> = terminals.iter().map(|e| e.outcome.as_str()).collect();
    let reasons: Vec<Option<&str>> = failures.iter().map(|f| f.as_ref().map(|f| f.reason.as_str())).collect();
    let messages: Vec<Option<&str>> = failures.iter().map(|f| f.as_ref().map(|f| f.message.as_str())).collect();
    let retryable: Vec<Option<bool>> = failures.iter().map(|f| f.as_ref().map(Failure::retryable)).collect();
    let details: Vec<Option<&str>> = failures.iter().map(|f| f.as_ref().and_then(|f| f.detail.as_deref())).collect();
    let replies: Vec<Option<&str>> = terminals.iter().map(|e| e.by.as_ref().map(|b| b.1.as_str())).collect();
    let incarnations: Vec<Option<Uuid>> = terminals.iter().map(|e| e.by.as_ref().map(|b| b.0.0)).collect();
    let holders: Vec<Uuid> = terminals.iter().map(|e| e.holder.0).collect();
    let ends: Vec<i64> = terminals.iter().map(|e| e.end as i64).collect();
    let answers: Vec<i16> = terminals.iter().map(|e| e.turns_answered as i16).collect();
    let finishes: Vec<Option<&str>> = terminals.iter().map(|e| e.finish_reason.as_deref()).collect();
    let platforms: Vec<&str> = terminals.iter().map(|e| e.platform.as_str()).collect();
    // An `api` row is due after a second only: the sessions that are woken at once have shown nearly all of them by then.
    let rows = sqlx::query(
        "WITH ending AS (
           SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bool[], $6::text[], $7::text[],
                                $8::uuid[], $9::uuid[], $10::bigint[], $11::text[], $12::smallint[], $13::text[])
                         AS e(turn_id, outcome, reason, message, retryable, detail, reply_id,
                              incarnation, holder, end_at, platform, answers, finish_reason)
         ), elected AS (
           DELETE FROM marker m USING ending e WHERE m.turn_id = e.turn_id
           RETURNING m.turn_id, m.conversation_id, m.number, m.organization, m.agent, m.armed_at, m.claimed_at,
                     m.incarnation AS held_by
         ), written AS (
           INSERT INTO terminal (turn_id, conversation_id, number, organization, outcome, reason, message, retryable,
                                 detail, reply_id, incarnation, holder, end_at, answers, claimed_at, held_by,
                                 finish_reason)
           SELECT turn_id, conversation_id, number, organization, outcome, reason, message, retryable,
                  detail, reply_id, incarnation, holder, end_at, answers, claimed_at, held_by, finish_reason
           FROM elected JOIN ending USING (turn_id)
         ), due AS (
           INSERT INTO delivery (turn_id, platform, organization, conversation_id, number, due_at)
           SELECT turn_id, platform, organization, conversation_id, number,
                  clock_timestamp() + CASE platform WHEN 'api' THEN interval '1 second' ELSE interval '0' END
           FROM elected JOIN ending USING (turn_id)
         )
         SELECT e.turn_id, e.organization, e.agent, t.traceparent,
                extract(epoch FROM clock_timestamp() - e.armed_at)::float8 AS after
         FROM elected e LEFT JOIN turn t ON t.id = e.turn_id",
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
    .bind(&finishes)
    .fetch_all(&mut *tx)
    .await?;
    let mut failures: HashMap<TurnId, Failure> =
        terminals.iter().zip(failures).filter_map(|(terminal, failure)| Some((terminal.turn_id, failure?))).collect();
    let mut ended = Vec::with_capacity(rows.len());
    for row in &rows {
        let (turn, after) = (told_turn(row)?, row.try_get("after")?);
        let failure = failures.remove(&turn.turn_id).map(|failure| (failure.reason, failure.detail));
        tx.note(TurnEvent::Ended { turn: turn.clone(), after, failure });
        ended.push((turn, after));
    }
    Ok(ended)
}

/// The turn of a row that selects `turn_id`, `organization`, `agent` and `traceparent`.
pub(super) fn told_turn(row: &PgRow) -> Result<ToldTurn, StoreError> {
    Ok(ToldTurn {
        turn_id: TurnId(row.try_get("turn_id")?),
        organization: row.try_get("organization")?,
        agent: row.try_get("agent")?,
        traceparent: row.try_get("traceparent")?,
    })
}

/// Who must hold a turn, as its locked marker says, for the turn to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fence {
    /// Whoever it is, or nobody.
    AnyHolder,
    /// This worker.
    HeldBy(Incarnation),
    /// Nobody: the turn waits. If a worker has claimed it meanwhile, it is alive.
    Unclaimed,
}

/// Ends with this failure those of these turns that are open and within the fence.
pub(super) async fn fail_open(
    tx: &mut DbConnection,
    turns: &[TurnId],
    fence: Fence,
    failure: &Failure,
) -> Result<Vec<Ended>, StoreError> {
    if turns.is_empty() {
        return Ok(Vec::new());
    }
    let open = lock(tx, turns).await?;
    let within = |turn: &OpenTurn| match fence {
        Fence::AnyHolder => true,
        Fence::HeldBy(worker) => turn.held_by == Some(worker),
        Fence::Unclaimed => turn.held_by.is_none(),
    };
    let terminals: Vec<NewTerminal> =
        open.iter().filter(|(_, turn)| within(turn)).map(|(&id, turn)| turn.failed(id, failure)).collect();
    let written = write_all_but_refused(tx, &terminals).await?;
    let ended = written.into_iter().map(|terminal| {
        let turn = &open[&terminal.turn_id];
        Ended { turn_id: terminal.turn_id, conversation_id: turn.conversation_id, held_by: turn.held_by }
    });
    Ok(ended.collect())
}

/// Writes all terminals but those that the database refuses, and answers with those that it wrote. A turn that cannot end
/// (it has a terminal already: the second fence) keeps neither its worker's death nor the sweep from ending the others.
async fn write_all_but_refused<'t>(
    tx: &mut DbConnection,
    terminals: &'t [NewTerminal],
) -> Result<Vec<&'t NewTerminal>, StoreError> {
    let mut written = Vec::with_capacity(terminals.len());
    let mut todo = vec![terminals];
    while let Some(part) = todo.pop() {
        if part.is_empty() {
            continue;
        }
        tx.execute("SAVEPOINT part").await?;
        match write(tx, part).await {
            Ok(_) => {
                tx.execute("RELEASE SAVEPOINT part").await?;
                written.extend(part);
            }
            Err(StoreError::Refused(why)) => {
                tx.execute("ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part").await?;
                if let [terminal] = part {
                    tracing::error!(turn = %terminal.turn_id, %why, "turn {} cannot be ended", terminal.turn_id);
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
    /// Wakes whoever waits for the ends of these turns: sessions on their conversations, and the gateways of the workers
    /// that held them. Called after the commit.
    pub(super) fn announce(&self, ended: &[Ended]) {
        for turn in ended {
            self.notices.send(Notice::Conversation(turn.conversation_id));
            if let Some(worker) = turn.held_by {
                self.notices.send(Notice::Worker(worker));
            }
        }
    }

    /// Ends with this failure those of these turns that are open and within the fence, in a transaction of its own, and
    /// wakes whoever waits for them.
    pub(super) async fn end_turns(
        &self,
        turns: &[TurnId],
        fence: Fence,
        failure: &Failure,
    ) -> Result<Vec<Ended>, StoreError> {
        let ended = transaction!(self.vital(), |tx| fail_open(tx, turns, fence, failure).await).await?;
        self.announce(&ended);
        Ok(ended)
    }
}
