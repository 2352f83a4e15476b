//! One reply for several turns.

use lastword::store::FinishError;
use lastword::turn::frame::{Frame, Span};
use lastword::turn::keys::TurnId;
use lastword::turn::reason::Reason;

use crate::support::Db;
use crate::support::actors::{Worker, failure, finish};

/// Three turns of one conversation in one worker's hand.
async fn three(db: &Db) -> (Worker, Vec<TurnId>) {
    let worker = Worker::together(&db.store).await;
    let mut turns = Vec::new();
    for _ in 0..3 {
        turns.push(db.armed("c").await.turn_id);
    }
    assert_eq!(worker.claim_ids(&db.store, 1).await, turns);
    (worker, turns)
}

/// The holder of a turn's reply and the turns that the record names with it.
async fn shown(db: &Db, turn: TurnId) -> (TurnId, String, Vec<TurnId>) {
    let record = db.store.turn_record(turn).await.expect("answers").expect("exists");
    let reply = record.reply.expect("a reply");
    let view = db.store.turn_view(turn).await.expect("answers").expect("exists");
    let terminal = view.terminal.expect("ended");
    assert_eq!((terminal.holder, terminal.end, terminal.failure), (reply.holder, reply.end, None));
    let answered = db.store.turns_answered_by(reply.holder).await.expect("answers");
    assert_eq!(answered, reply.turns);
    assert_eq!(
        db.store.read_log(reply.holder, 0, 100).await.expect("answers").until(reply.end).text(),
        reply.text.clone().expect("whole")
    );
    (reply.holder, reply.text.expect("whole"), reply.turns.into_iter().map(|t| t.0).collect())
}

/// One of three turns has failed already: the reply resolves the other two, one holds the text, the other points to
/// it.
async fn a_reply_resolves_those_that_are_open(db: Db) {
    let (worker, turns) = three(&db).await;
    assert!(db.store.fail_turn(turns[1], &failure(Reason::Cancelled)).await.expect("answers").is_some());
    let word = worker.reply(&turns, "for all of you");
    assert_eq!(finish(&db.store, word.clone()).await, Ok(true));
    assert_eq!(finish(&db.store, word).await, Ok(true), "its repeat");

    let both = vec![turns[0], turns[2]];
    for turn in &both {
        assert_eq!(shown(&db, *turn).await, (turns[0], "for all of you".into(), both.clone()));
    }
    assert_eq!(db.outcome(turns[1]).await.as_deref(), Some("Cancelled"));
    assert_eq!((db.count("terminal").await, db.count("delivery").await, db.count("marker").await), (3, 3, 0));
    assert_eq!(db.count("output").await, 1, "one log holds the text");
    let conversation = db.store.conversation("acme", "ada", "c").await.expect("answers").expect("exists");
    let views = db.store.turn_views_after(&[(conversation.id, 0)]).await.expect("answers");
    let holders: Vec<TurnId> = views.iter().map(|v| v.terminal.as_ref().expect("ended").holder).collect();
    assert_eq!(holders, [turns[0], turns[1], turns[0]]);
    // The history that a later turn is pushed with has the exchange once.
    assert_eq!(db.store.conversation_exchanges(conversation.id, 10, 10).await.expect("answers").len(), 1);
}

/// The failed one is the lead, whose log has the first part: the next one gets all of it.
async fn a_failed_lead_leaves_its_log_to_the_next(db: Db) {
    let (worker, turns) = three(&db).await;
    assert_eq!(worker.append(&db.store, turns[0], 0, "begun, ").await, Ok(7));
    assert!(db.store.fail_turn(turns[0], &failure(Reason::Cancelled)).await.expect("answers").is_some());
    let mut word = worker.reply(&turns, "");
    (word.tail, word.end) = (Span::new(7, vec![Frame::text("and done")]), 15);
    let mut gap = word.clone();
    (gap.tail, gap.end) = (Span::new(9, vec![Frame::text("d done")]), 15);
    assert_eq!(finish(&db.store, gap).await, Err(FinishError::Missing { acked: 7 }));
    assert_eq!(finish(&db.store, word.clone()).await, Ok(true));
    assert_eq!(finish(&db.another_store(), word).await, Ok(true), "its repeat");

    let both = vec![turns[1], turns[2]];
    for turn in &both {
        assert_eq!(shown(&db, *turn).await, (turns[1], "begun, and done".into(), both.clone()));
    }
    let lead = db.store.turn_record(turns[0]).await.expect("answers").expect("exists");
    assert!(lead.reply.is_none());
    assert_eq!(lead.failure.map(|f| f.reason), Some(Reason::Cancelled));
    assert_eq!(db.count("superseded").await, 1, "the lead's word came too late, once");
}

/// All have failed: the word is superseded for each of them.
async fn a_reply_to_none_that_is_open_is_late(db: Db) {
    let (worker, turns) = three(&db).await;
    for turn in &turns {
        db.store.fail_turn(*turn, &failure(Reason::Cancelled)).await.expect("answers");
    }
    assert_eq!(finish(&db.store, worker.reply(&turns, "late")).await, Ok(false));
    assert_eq!(db.count("superseded").await, 3);
}

/// An error over several turns is each one's own.
async fn an_error_over_several_turns_is_each_ones_own(db: Db) {
    let (worker, turns) = three(&db).await;
    assert_eq!(finish(&db.store, worker.error(&turns)).await, Ok(true));
    for turn in turns {
        let terminal = db.store.turn_view(turn).await.expect("answers").expect("exists").terminal.expect("ended");
        assert_eq!(terminal.holder, turn);
        assert_eq!(terminal.failure.map(|f| f.reason), Some(Reason::AgentError));
    }
}

/// A turn that the word names twice ends once.
async fn a_turn_that_is_named_twice_ends_once(db: Db) {
    let (worker, turns) = three(&db).await;
    let named = [turns[0], turns[1], turns[0], turns[1]];
    assert_eq!(finish(&db.store, worker.reply(&named, "hello")).await, Ok(true));
    assert_eq!(shown(&db, turns[0]).await, (turns[0], "hello".into(), turns[..2].to_vec()));
    assert_eq!(db.count("terminal").await, 2);
    assert_eq!(finish(&db.store, worker.reply(&[turns[2]], "bye")).await, Ok(true));
}

/// Turns of two conversations have two replies.
async fn one_reply_stays_in_one_conversation(db: Db) {
    let worker = Worker::live(&db.store).await;
    let turns = [db.in_hand(&worker).await, db.in_hand(&worker).await];
    assert_eq!(finish(&db.store, worker.reply(&turns, "hello")).await, Err(FinishError::SeveralConversations));
    assert_eq!((db.count("marker").await, db.count("terminal").await), (2, 0));
}

/// The log of a turn that never was the worker's does not become part of its reply.
async fn a_foreign_log_is_no_part_of_a_reply(db: Db) {
    let (spy, victim) = (Worker::live(&db.store).await, Worker::live(&db.store).await);
    for ended in [false, true] {
        let secret = db.in_hand(&victim).await;
        assert_eq!(victim.append(&db.store, secret, 0, "secret").await, Ok(6));
        if ended {
            assert_eq!(finish(&db.store, victim.reply(&[secret], "secret")).await, Ok(true));
        }
        let mine = db.in_hand(&spy).await;
        let mut word = spy.reply(&[secret, mine], "");
        (word.tail, word.end) = (Span::default(), 6);
        let answer = finish(&db.store, word).await;
        let log = db.store.read_log(mine, 0, 10).await.expect("answers").text();
        assert_eq!(log, "", "ended: {ended}, answer {answer:?}");
        assert_eq!(db.outcome(mine).await, None, "it may still be answered");
        assert_eq!(finish(&db.store, spy.reply(&[mine], "own")).await, Ok(true));
    }
}

crate::both!(
    a_reply_resolves_those_that_are_open,
    a_failed_lead_leaves_its_log_to_the_next,
    a_reply_to_none_that_is_open_is_late,
    an_error_over_several_turns_is_each_ones_own,
    a_turn_that_is_named_twice_ends_once,
    one_reply_stays_in_one_conversation,
    a_foreign_log_is_no_part_of_a_reply,
);
