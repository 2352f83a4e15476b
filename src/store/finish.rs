//! Finish: a worker's last word on one or several turns of a conversation, a reply or an error.
//!
//! All words of a batch are decided in memory, on what was read under the markers' locks. Each sees the result of the
//! words before it; then the results of the whole batch are written at once. How an election works: `elect`.

use std::collections::{HashMap, HashSet};

use sqlx::Row;
use uuid::Uuid;

use super::append::{self, Piece};
use super::batch::BatchedVerb;
use super::connection::DbConnection;
use super::elect::{self, Ended, NewTerminal, OpenTurn};
use super::{Notice, Store, StoreError};
use crate::telemetry::turns::TurnEvent;
use crate::turn::cause;
use crate::turn::decide::{self, Election, ElectionSummary, TurnEnder, TurnState};
use crate::turn::frame::{Span, storable};
use crate::turn::keys::{ConversationId, Incarnation, TurnId};
use crate::turn::routing::API;
use crate::turn::terminal::{Outcome, cut, finish_reason};

/// The longest text of a late reply that is kept for operators, in bytes.
const MAX_SUPERSEDED_BYTES: usize = 64 * 1024;

/// A worker's last word, with the part of the log that may not be durable yet.
#[derive(Debug, Clone)]
pub struct WorkerWord {
    pub incarnation: Incarnation,
    /// The turns that the word ends, all of one conversation; the first one's log has the reply. Not empty.
    pub turn_ids: Vec<TurnId>,
    pub reply_id: String,
    pub outcome: Outcome,
    /// Why the model stopped, in its server's words.
    pub finish_reason: Option<String>,
    /// Length of the whole log, as the worker knows it.
    pub end: u64,
    /// As much of the log's last part as the gateway has. It may overlap what is durable.
    pub tail: Span,
}

/// Why a word was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FinishError {
    /// The log lacks something between here and the word's `end`.
    #[error("the log is durable up to {acked} only")]
    Missing { acked: u64 },
    /// The worker that sends the word holds none of the turns.
    #[error("none of these turns is held by this worker")]
    Foreign,
    #[error("the turns are of several conversations")]
    SeveralConversations,
    /// It is not known whether the word was taken: send it again under the same reply id.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Elects a worker's word. True: it is the last word of at least one of its turns, now or by an earlier sending. False:
    /// it came too late, and is kept as superseded.
    pub async fn finish(&self, word: WorkerWord) -> Result<bool, FinishError> {
        let (accepted, ended) = self.finish.call(word).await??;
        // Only sessions are woken, since the worker knows its own word.
        ended.iter().for_each(|turn| self.notices.send(Notice::Conversation(turn.conversation_id)));
        Ok(accepted)
    }
}

#[derive(Clone)]
pub(super) struct FinishVerb;

impl BatchedVerb for FinishVerb {
    type Item = WorkerWord;
    type Answer = Result<(bool, Vec<Ended>), FinishError>;

    fn weight(&self, word: &WorkerWord) -> usize {
        word.tail.weight()
    }

    async fn run(&self, tx: &mut DbConnection, items: &[WorkerWord]) -> Result<Vec<Self::Answer>, StoreError> {
        let all: Vec<TurnId> =
            items.iter().flat_map(|w| w.turn_ids.iter().copied()).collect::<HashSet<_>>().into_iter().collect();
        let open = elect::lock(tx, &all).await?;
        let ended: Vec<TurnId> = all.iter().filter(|t| !open.contains_key(t)).copied().collect();
        let mut batch = DecidedBatch { ended: read_ended(tx, &ended).await?, open, writes: Writes::default() };
        let answers = items.iter().map(|word| batch.decide(word)).collect();
        batch.writes.carry_out(tx).await?;
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
struct EndedTurn {
    conversation_id: ConversationId,
    /// The worker whose word it was, and the id of its reply.
    by: Option<Incarnation>,
    reply: Option<String>,
    /// Length of the turn's own log.
    log_end: u64,
}

async fn read_ended(tx: &mut DbConnection, turns: &[TurnId]) -> Result<HashMap<TurnId, EndedTurn>, StoreError> {
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
            let ended = EndedTurn {
                conversation_id: ConversationId(row.try_get("conversation_id")?),
                by: row.try_get::<Option<Uuid>, _>("incarnation")?.map(Incarnation),
                reply: row.try_get("reply_id")?,
                log_end: row.try_get::<Option<i64>, _>("log_end")?.unwrap_or(0) as u64,
            };
            Ok((TurnId(row.try_get("turn_id")?), ended))
        })
        .collect()
}

/// The turns of a batch as the words that were decided so far leave them, and what these words write.
struct DecidedBatch {
    open: HashMap<TurnId, OpenTurn>,
    ended: HashMap<TurnId, EndedTurn>,
    writes: Writes,
}

impl DecidedBatch {
    /// Where a turn stands after the words that were decided so far.
    fn state_of(&self, turn: TurnId) -> TurnState {
        match (self.open.get(&turn), self.ended.get(&turn)) {
            (Some(open), _) => TurnState::Open { holder: open.held_by },
            (None, Some(ended)) => TurnState::Ended { by: ended.by, reply: ended.reply.clone() },
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
        let by = TurnEnder::Worker { incarnation: word.incarnation, reply: word.reply_id.clone() };
        // A turn that is named twice ends once.
        let mut named = HashSet::new();
        let turns: Vec<TurnId> = word.turn_ids.iter().copied().filter(|t| named.insert(*t)).collect();
        let elections: Vec<Election> = turns.iter().map(|&t| decide::elect(&self.state_of(t), &by)).collect();
        let with = |wanted: Election| -> Vec<TurnId> {
            turns.iter().zip(&elections).filter(|(_, e)| **e == wanted).map(|(t, _)| *t).collect()
        };
        let won = with(Election::Win);
        match decide::summary(&elections) {
            ElectionSummary::Foreign => {
                // The word is kept for operators with the turns that exist; a turn that nobody knows has nowhere to
                // keep it.
                let open: Vec<TurnId> = turns.into_iter().filter(|t| self.open.contains_key(t)).collect();
                self.writes.superseded.extend(open.into_iter().map(|turn| (turn, word.clone())));
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
            self.writes.superseded.push((turn, word.clone()));
        }
        Ok((!won.is_empty(), ended))
    }

    /// Notes what is to be written for the turns that this word wins.
    fn win(&mut self, word: &WorkerWord, won: &[TurnId]) -> Result<Vec<Ended>, FinishError> {
        let lead = word.turn_ids[0];
        let durable = self.log_end(lead);
        let tail = word.tail.clone().from(durable).until(word.end).coalesced();
        let reached = if tail.is_empty() || tail.start != durable { durable } else { tail.end() };
        if word.outcome == Outcome::Reply && reached < word.end {
            return Err(FinishError::Missing { acked: durable });
        }
        // The reply lies in one log: the lead's, or, if that turn has another last word, a copy in the next one's.
        let holder = won.iter().copied().find(|t| self.open[t].routing.is_ok()).unwrap_or(won[0]);
        if holder != lead {
            self.writes.copies.push((lead, holder));
        }
        if reached > durable {
            self.writes.pieces.push(Piece { turn_id: holder, span: tail });
        }
        let shared = SharedLog {
            holder,
            end: end_of_log(&word.outcome, durable, reached, word.end),
            turns_answered: won.iter().filter(|t| self.open[t].routing.is_ok()).count(),
        };
        Ok(won.iter().map(|&turn| self.end(turn, &shared, word)).collect())
    }

    fn end(&mut self, turn: TurnId, log: &SharedLog, word: &WorkerWord) -> Ended {
        let open = self.open.remove(&turn);
        let outcome = match &word.outcome {
            Outcome::Error(failure) => Outcome::Error(failure.clone().storable()),
            Outcome::Reply => Outcome::Reply,
        };
        let outcome = decide::outcome_to_write(&outcome, open.as_ref().and_then(|o| o.routing.as_ref().err()));
        let shares = outcome == Outcome::Reply;
        let own_end = open.as_ref().map_or(0, |o| o.log_end);
        let conversation_id = open.as_ref().map_or(ConversationId(Uuid::nil()), |o| o.conversation_id);
        let ended = EndedTurn {
            conversation_id,
            by: Some(word.incarnation),
            reply: Some(word.reply_id.clone()),
            log_end: log.end,
        };
        self.ended.insert(turn, ended);
        self.writes.terminals.push(NewTerminal {
            turn_id: turn,
            by: Some((word.incarnation, word.reply_id.clone())),
            holder: if shares { log.holder } else { turn },
            end: if shares || log.holder == turn { log.end } else { own_end },
            turns_answered: if shares { log.turns_answered } else { 1 },
            platform: open.as_ref().map_or_else(|| API.to_string(), OpenTurn::platform),
            outcome,
            finish_reason: finish_reason(word.finish_reason.clone()),
        });
        Ended { turn_id: turn, conversation_id, held_by: Some(word.incarnation) }
    }
}

/// The log that the turns of one word share.
struct SharedLog {
    /// The turn whose log it is.
    holder: TurnId,
    /// See [`end_of_log`].
    end: u64,
    /// How many turns share the reply.
    turns_answered: usize,
}

/// The `end` that a word's terminals record. It is what everybody goes by later: renderers show the log exactly up to it
/// and then the terminal, whatever was shown live beyond it, and a cursor that lies behind it counts as `end`.
///
/// - `durable`: the log is in the database up to here.
/// - `reached`: with what this word brings, up to here; the bytes between the two are written with the terminal.
/// - `said`: the worker's own length of the log.
///
/// A reply ends where its worker says. The log is complete up to there, since a word that lacks something below `said` was
/// refused before. It may be longer: what the worker streamed beyond the reply that it decided on was preview.
///
/// An error needs no complete log. What is missing below `said` is not promised, and nothing that is durable is cut off,
/// even if the worker says less: it may have been shown, and the worker may have missed an acknowledgement.
fn end_of_log(outcome: &Outcome, durable: u64, reached: u64, said: u64) -> u64 {
    match outcome {
        Outcome::Reply => reached.min(said),
        Outcome::Error(_) => reached.min(said.max(durable)),
    }
}

/// What a batch writes, in this order.
#[derive(Default)]
struct Writes {
    /// Logs to copy, from one turn to another.
    copies: Vec<(TurnId, TurnId)>,
    /// Tails of logs that come with the words.
    pieces: Vec<Piece>,
    terminals: Vec<NewTerminal>,
    /// Words that came too late, by turn.
    superseded: Vec<(TurnId, WorkerWord)>,
}

impl Writes {
    async fn carry_out(&self, tx: &mut DbConnection) -> Result<(), StoreError> {
        if !self.copies.is_empty() {
            append::copy(tx, &self.copies).await?;
        }
        append::insert(tx, &self.pieces).await?;
        let ended = elect::write(tx, &self.terminals).await?;
        // A short reply comes whole with its word, so that is its first output.
        let begun: HashSet<TurnId> = self.pieces.iter().filter(|p| p.span.start == 0).map(|p| p.turn_id).collect();
        for (turn, after) in ended.into_iter().filter(|(turn, _)| begun.contains(&turn.turn_id)) {
            tx.note(TurnEvent::BegunOutput(turn, after));
        }
        self.keep_superseded(tx).await
    }

    async fn keep_superseded(&self, tx: &mut DbConnection) -> Result<(), StoreError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::reason::Reason;
    use crate::turn::terminal::Failure;

    #[test]
    fn the_end_of_a_log() {
        let error = Outcome::Error(Failure::new(Reason::AgentError));
        for (outcome, durable, reached, said, expected, why) in [
            (&Outcome::Reply, 5, 11, 11, 11, "all that the worker wrote"),
            (&Outcome::Reply, 14, 14, 5, 5, "what is durable beyond the reply is preview"),
            (&Outcome::Reply, 0, 0, 0, 0, "an empty reply"),
            (&error, 5, 11, 11, 11, "its tail is at hand"),
            (&error, 5, 5, 11, 5, "its tail is lost: nothing is promised that is not there"),
            (&error, 14, 14, 5, 14, "nothing that is durable is cut off"),
            (&error, 0, 0, 0, 0, "no output"),
        ] {
            assert_eq!(end_of_log(outcome, durable, reached, said), expected, "{why}");
        }
    }
}
