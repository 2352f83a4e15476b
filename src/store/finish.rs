//! Finish: a worker's last word on one or several turns of a conversation.

use std::collections::{HashMap, HashSet};

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::batch::Verb as BatchVerb;
use super::elect::{self, Ended, Ending, Open};
use super::output::{self, Piece};
use super::{Notice, Store, StoreError};
use crate::turn::cause;
use crate::turn::decide::{self, By, Election, ElectionSummary, TurnState};
use crate::turn::frame::{Span, storable};
use crate::turn::keys::{ConversationId, Incarnation, TurnId};
use crate::turn::routing::API;
use crate::turn::terminal::{Outcome, cut};

/// The longest text of a late reply that is kept for operators, in bytes.
const MAX_SUPERSEDED_BYTES: usize = 64 * 1024;

/// What a worker says, with the part of the log that may not be durable yet.
#[derive(Debug, Clone)]
pub struct WorkerWord {
    pub incarnation: Incarnation,
    /// In one conversation; the log is the first one's. Not empty.
    pub turn_ids: Vec<TurnId>,
    pub reply_id: String,
    pub outcome: Outcome,
    /// Length of the whole log.
    pub end: u64,
    /// What is at hand of the log's last part; may overlap what is durable.
    pub tail: Span,
}

/// Why a word was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FinishError {
    /// The log lacks something between here and the word's `end`.
    #[error("the log is durable up to {acked} only")]
    Missing { acked: u64 },
    /// None of the turns is the caller's.
    #[error("none of these turns is held by this worker")]
    Foreign,
    #[error("the turns are of several conversations")]
    SeveralConversations,
}

impl Store {
    /// Elects a worker's word. `Ok(Ok(true))`: it is the last word of at least one turn, now or by an earlier sending;
    /// `Ok(Ok(false))`: it came too late and is kept as superseded.
    pub async fn finish(&self, word: WorkerWord) -> Result<Result<bool, FinishError>, StoreError> {
        let answer = self.finish.call(word).await?;
        Ok(answer.map(|(accepted, ended)| {
            // The worker knows its own word.
            ended.iter().for_each(|e| self.notices.send(Notice::Conversation(e.conversation_id)));
            accepted
        }))
    }
}

#[derive(Clone)]
pub(super) struct Verb;

impl BatchVerb for Verb {
    type Item = WorkerWord;
    type Answer = Result<(bool, Vec<Ended>), FinishError>;

    fn weight(&self, word: &WorkerWord) -> usize {
        word.tail.weight()
    }

    async fn run(&self, tx: &mut PgConnection, items: &[WorkerWord]) -> Result<Vec<Self::Answer>, StoreError> {
        let all: Vec<TurnId> =
            items.iter().flat_map(|w| w.turn_ids.iter().copied()).collect::<HashSet<_>>().into_iter().collect();
        let open = elect::lock(tx, &all).await?;
        let closed: Vec<TurnId> = all.iter().filter(|t| !open.contains_key(t)).copied().collect();
        let mut batch = Batch { ended: read_ended(tx, &closed).await?, open, plan: Plan::default() };
        let answers = items.iter().map(|word| batch.decide(word)).collect();
        batch.plan.carry_out(tx).await?;
        Ok(answers)
    }

    /// A word that the database refuses for its content still ends its turns.
    fn mend(&self, word: &WorkerWord) -> Option<WorkerWord> {
        let was = word.outcome.as_str();
        let failure = cause::rule::unstorable(was);
        let reply_id = storable(word.reply_id.clone());
        Some(WorkerWord { outcome: Outcome::Error(failure), tail: Span::default(), end: 0, reply_id, ..word.clone() })
    }
}

/// A turn that has its terminal.
struct Closed {
    conversation_id: ConversationId,
    by: Option<Incarnation>,
    reply: Option<String>,
    log_end: u64,
}

async fn read_ended(tx: &mut PgConnection, turns: &[TurnId]) -> Result<HashMap<TurnId, Closed>, StoreError> {
    if turns.is_empty() {
        return Ok(HashMap::new());
    }
    let ids: Vec<Uuid> = turns.iter().map(|t| t.0).collect();
    let rows = sqlx::query(
        "SELECT turn_id, conversation_id, incarnation, reply_id,
                (SELECT max(end_at) FROM output o WHERE o.turn_id = t.turn_id) AS log_end
         FROM terminal t WHERE turn_id = ANY($1)",
    )
    .bind(&ids)
    .fetch_all(tx)
    .await?;
    rows.iter()
        .map(|row| {
            let closed = Closed {
                conversation_id: ConversationId(row.try_get("conversation_id")?),
                by: row.try_get::<Option<Uuid>, _>("incarnation")?.map(Incarnation),
                reply: row.try_get("reply_id")?,
                log_end: row.try_get::<Option<i64>, _>("log_end")?.unwrap_or(0) as u64,
            };
            Ok((TurnId(row.try_get("turn_id")?), closed))
        })
        .collect()
}

/// The batch's view of its turns, moved on as words are decided, and what is to be written.
struct Batch {
    open: HashMap<TurnId, Open>,
    ended: HashMap<TurnId, Closed>,
    plan: Plan,
}

impl Batch {
    fn standing(&self, turn: TurnId) -> TurnState {
        match (self.open.get(&turn), self.ended.get(&turn)) {
            (Some(open), _) => TurnState::Open { holder: open.holder },
            (None, Some(closed)) => TurnState::Ended { by: closed.by, reply: closed.reply.clone() },
            (None, None) => TurnState::Unknown,
        }
    }

    fn conversation(&self, turn: TurnId) -> Option<ConversationId> {
        let open = self.open.get(&turn).map(|o| o.conversation_id);
        open.or_else(|| self.ended.get(&turn).map(|c| c.conversation_id))
    }

    fn log_end(&self, turn: TurnId) -> u64 {
        let open = self.open.get(&turn).map(|o| o.log_end);
        open.or_else(|| self.ended.get(&turn).map(|c| c.log_end)).unwrap_or(0)
    }

    fn decide(&mut self, word: &WorkerWord) -> Result<(bool, Vec<Ended>), FinishError> {
        let by = By::Worker { incarnation: word.incarnation, reply: word.reply_id.clone() };
        // A turn that is named twice ends once.
        let mut named = HashSet::new();
        let turns: Vec<TurnId> = word.turn_ids.iter().copied().filter(|t| named.insert(*t)).collect();
        let elections: Vec<Election> = turns.iter().map(|&t| decide::elect(&self.standing(t), &by)).collect();
        let with = |wanted: Election| -> Vec<TurnId> {
            turns.iter().zip(&elections).filter(|(_, e)| **e == wanted).map(|(t, _)| *t).collect()
        };
        let won = with(Election::Win);
        match decide::summary(&elections) {
            ElectionSummary::Foreign => {
                // Kept for operators; of a turn that nobody knows there is nothing to keep it with.
                let open: Vec<TurnId> = turns.into_iter().filter(|t| self.open.contains_key(t)).collect();
                self.plan.superseded.extend(open.into_iter().map(|turn| (turn, word.clone())));
                return Err(FinishError::Foreign);
            }
            ElectionSummary::Accepted if won.is_empty() => return Ok((true, Vec::new())),
            _ => {}
        }
        if let [first, rest @ ..] = won.as_slice() {
            // The log is the first turn's: a foreign one's would become part of this worker's reply.
            if elections[0] == Election::Foreign {
                return Err(FinishError::Foreign);
            }
            let conversation = self.conversation(*first);
            if rest.iter().chain(&turns[..1]).any(|t| self.conversation(*t) != conversation) {
                return Err(FinishError::SeveralConversations);
            }
        }
        let ended = if won.is_empty() { Vec::new() } else { self.win(word, &won)? };
        for turn in with(Election::Late) {
            self.plan.superseded.push((turn, word.clone()));
        }
        Ok((!won.is_empty(), ended))
    }

    /// Plans the terminals of the turns that this word wins.
    fn win(&mut self, word: &WorkerWord, won: &[TurnId]) -> Result<Vec<Ended>, FinishError> {
        let lead = word.turn_ids[0];
        let durable = self.log_end(lead);
        let tail = word.tail.clone().from(durable).until(word.end).coalesced();
        let reached = if tail.is_empty() || tail.start != durable { durable } else { tail.end() };
        if word.outcome == Outcome::Reply && reached < word.end {
            return Err(FinishError::Missing { acked: durable });
        }
        let end = reached.min(word.end.max(if word.outcome == Outcome::Reply { 0 } else { durable }));
        // The reply lies in one log: the lead's, or, if that turn has another last word, a copy in the next one's.
        let holder = won.iter().copied().find(|t| self.open[t].routing.is_ok()).unwrap_or(won[0]);
        if holder != lead {
            self.plan.copies.push((lead, holder));
        }
        if reached > durable {
            self.plan.pieces.push(Piece { turn_id: holder, span: tail });
        }
        let answers = won.iter().filter(|t| self.open[t].routing.is_ok()).count();
        Ok(won.iter().map(|&turn| self.end(turn, holder, end, answers, word)).collect())
    }

    fn end(&mut self, turn: TurnId, holder: TurnId, end: u64, answers: usize, word: &WorkerWord) -> Ended {
        let open = self.open.remove(&turn);
        let outcome = match &word.outcome {
            Outcome::Error(failure) => Outcome::Error(failure.clone().storable()),
            Outcome::Reply => Outcome::Reply,
        };
        let outcome = decide::written(&outcome, open.as_ref().and_then(|o| o.routing.as_ref().err()));
        let shared = outcome == Outcome::Reply;
        let own_end = open.as_ref().map_or(0, |o| o.log_end);
        let conversation_id = open.as_ref().map_or(ConversationId(Uuid::nil()), |o| o.conversation_id);
        let closed =
            Closed { conversation_id, by: Some(word.incarnation), reply: Some(word.reply_id.clone()), log_end: end };
        self.ended.insert(turn, closed);
        self.plan.endings.push(Ending {
            turn_id: turn,
            by: Some((word.incarnation, word.reply_id.clone())),
            holder: if shared { holder } else { turn },
            end: if shared || holder == turn { end } else { own_end },
            answers: if shared { answers } else { 1 },
            platform: open.as_ref().map_or_else(|| API.to_string(), Open::platform),
            outcome,
        });
        Ended { turn_id: turn, conversation_id, holder: Some(word.incarnation) }
    }
}

/// What a batch writes, in this order.
#[derive(Default)]
struct Plan {
    copies: Vec<(TurnId, TurnId)>,
    pieces: Vec<Piece>,
    endings: Vec<Ending>,
    superseded: Vec<(TurnId, WorkerWord)>,
}

impl Plan {
    async fn carry_out(&self, tx: &mut PgConnection) -> Result<(), StoreError> {
        if !self.copies.is_empty() {
            output::copy(tx, &self.copies).await?;
        }
        output::insert(tx, &self.pieces).await?;
        elect::write(tx, &self.endings).await?;
        self.keep_superseded(tx).await
    }

    async fn keep_superseded(&self, tx: &mut PgConnection) -> Result<(), StoreError> {
        if self.superseded.is_empty() {
            return Ok(());
        }
        let mut ids = Vec::new();
        let (mut incarnations, mut replies, mut outcomes) = (Vec::new(), Vec::new(), Vec::new());
        let (mut reasons, mut messages, mut texts) = (Vec::new(), Vec::new(), Vec::new());
        for (turn, word) in &self.superseded {
            ids.push(turn.0);
            incarnations.push(word.incarnation.0);
            replies.push(word.reply_id.as_str());
            outcomes.push(word.outcome.as_str());
            let failure = match &word.outcome {
                Outcome::Error(failure) => Some(failure.clone().storable()),
                Outcome::Reply => None,
            };
            reasons.push(failure.as_ref().map(|f| f.reason.as_str()));
            messages.push(failure.map(|f| f.message));
            texts.push(cut(word.tail.text(), MAX_SUPERSEDED_BYTES));
        }
        sqlx::query(
            "INSERT INTO superseded (turn_id, incarnation, reply_id, outcome, reason, message, text)
             SELECT DISTINCT ON (turn_id) * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
                    AS s(turn_id, incarnation, reply_id, outcome, reason, message, text)
             ORDER BY turn_id
             ON CONFLICT (turn_id) DO NOTHING",
        )
        .bind(&ids)
        .bind(&incarnations)
        .bind(&replies)
        .bind(&outcomes)
        .bind(&reasons)
        .bind(&messages)
        .bind(&texts)
        .execute(tx)
        .await?;
        Ok(())
    }
}
