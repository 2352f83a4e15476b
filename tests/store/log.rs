//! A turn's log: the worker that holds the turn appends to it, without gaps, and it is cut only between characters.

use lastword::store::{Append, AppendError, FinishError};
use lastword::turn::frame::{Frame, Span};
use lastword::turn::reason::Reason;
use serde_json::json;

use crate::support::Db;
use crate::support::actors::{Worker, failure, finish};

async fn text(db: &Db, turn: lastword::turn::keys::TurnId, offset: u64) -> String {
    db.store.read_log(turn, offset, 1000).await.expect("reads").text()
}

/// What overlaps is cut off, what leaves a gap is refused with the durable end, and nothing is stored twice.
async fn overlaps_are_trimmed_and_gaps_refused(db: Db) {
    let worker = Worker::live(&db.store).await;
    let turn = db.in_hand(&worker).await;
    assert_eq!(worker.append(&db.store, turn, 0, "hello ").await, Ok(6));
    assert_eq!(worker.append(&db.store, turn, 0, "hello ").await, Ok(6), "a repeat");
    assert_eq!(worker.append(&db.store, turn, 2, "llo w").await, Ok(7), "an overlap");
    assert_eq!(worker.append(&db.store, turn, 3, "lo").await, Ok(7), "all of it known");
    assert_eq!(worker.append(&db.store, turn, 8, "rld").await, Err(AppendError::Gap(7)));
    assert_eq!(worker.append(&db.another_store(), turn, 7, "orld").await, Ok(11));
    assert_eq!(text(&db, turn, 0).await, "hello world");
    assert_eq!(text(&db, turn, 4).await, "o world");
    assert_eq!(text(&db, turn, 99).await, "");
    assert_eq!(db.store.log_ends(&[turn]).await.expect("reads"), [(turn, 11)].into());
    assert_eq!(db.number("SELECT sum(end_at - start_at) FROM output").await, 11);
}

/// The same piece at once from two replicas, as when a gateway dies: it is stored once.
async fn a_piece_that_comes_twice_at_once_is_stored_once(db: Db) {
    let worker = Worker::live(&db.store).await;
    let other = db.another_store();
    let turn = db.in_hand(&worker).await;
    let mut end = 0;
    for _ in 0..50 {
        let answers = tokio::join!(
            worker.append(&db.store, turn, end, "abc"),
            worker.append(&other, turn, end, "abcd"),
            worker.append(&db.store, turn, end, "ab"),
        );
        assert!([&answers.0, &answers.1, &answers.2].iter().all(|a| a.as_ref().is_ok_and(|e| *e > end)), "{answers:?}");
        end += 4;
    }
    assert_eq!(text(&db, turn, 0).await, "abcd".repeat(50));
}

fn large(bytes: usize) -> Frame {
    Frame::Data { name: "d".into(), value: json!("x".repeat(bytes)) }
}

/// Large frames lie in rows of their own, and a reading ends when it has enough bytes; nothing is lost or doubled.
async fn large_frames_are_read_in_parts(db: Db) {
    let worker = Worker::live(&db.store).await;
    let turn = db.in_hand(&worker).await;
    let frames: Vec<Frame> = (0..9).flat_map(|i| [Frame::text(format!("{i}")), large(700_000)]).collect();
    let span = Span::new(0, frames.clone());
    let append = Append { turn_id: turn, incarnation: worker.incarnation, span };
    assert_eq!(db.store.append_output(append).await, Ok(18));
    assert!(db.number("SELECT max(octet_length(frames)) FROM output").await < 2_200_000);
    let (mut read, mut readings) = (Span::default(), 0);
    while read.end() < 18 {
        let part = db.store.read_log(turn, read.end(), 64).await.expect("reads");
        assert!(part.start == read.end() && !part.is_empty() && part.weight() < 1_000_000);
        read.frames.extend(part.frames);
        readings += 1;
    }
    // A row a reading, since each has more than enough.
    assert_eq!((readings, read.frames), (9, frames));
}

/// Large pieces of many turns are not one statement.
async fn large_pieces_of_many_turns_are_several_statements(db: Db) {
    let worker = Worker::live(&db.store).await;
    let turns = crate::race::many_in_hand(&db.store, &worker, 12).await;
    let appends = turns.into_iter().map(|turn_id| {
        let span = Span::new(0, vec![large(3_000_000)]);
        db.store.append_output(Append { turn_id, incarnation: worker.incarnation, span })
    });
    for answer in futures::future::join_all(appends).await {
        assert_eq!(answer, Ok(1));
    }
    let most = "SELECT max(n) FROM (SELECT count(*) AS n FROM output GROUP BY xmin::text) AS transactions";
    assert!(db.number(most).await <= 2);
}

/// Only the incarnation that the marker names appends: not a stranger, not the dead, not after the terminal.
async fn only_the_holder_appends(db: Db) {
    let (worker, other) = (Worker::live(&db.store).await, Worker::live(&db.store).await);
    let turn = db.in_hand(&worker).await;
    let waiting = db.armed("waiting").await.turn_id;
    assert_eq!(other.append(&db.store, turn, 0, "x").await, Err(AppendError::NotHeld));
    assert_eq!(worker.append(&db.store, waiting, 0, "x").await, Err(AppendError::NotHeld));
    assert_eq!(worker.append(&db.store, turn, 0, "mine").await, Ok(4));
    db.store.fail_worker(worker.incarnation, &failure(Reason::WorkerExited)).await.expect("answers");
    assert_eq!(worker.append(&db.store, turn, 4, "x").await, Err(AppendError::NotHeld));
    assert_eq!(text(&db, turn, 0).await, "mine");
    let terminal = db.store.turn_view(turn).await.expect("answers").expect("exists").terminal.expect("ended");
    assert_eq!(terminal.end, 4, "what was said before the failure is shown");

    let turn = waiting;
    assert_eq!(other.claim_ids(&db.store, 1).await, [turn]);
    assert_eq!(finish(&db.store, other.reply(&[turn], "done")).await, Ok(true));
    assert_eq!(other.append(&db.store, turn, 4, "x").await, Err(AppendError::NotHeld));
}

/// Cuts fall between characters only, wherever the offsets of two senders fall.
async fn characters_stay_whole(db: Db) {
    let worker = Worker::live(&db.store).await;
    let said = "a\u{e4}\u{20ac}\u{1f600}z";
    let turn = db.in_hand(&worker).await;
    let mut sent = String::new();
    for c in said.chars() {
        // Everything from the start again, one character longer.
        sent.push(c);
        assert_eq!(worker.append(&db.store, turn, 0, &sent).await, Ok(sent.len() as u64));
    }
    assert_eq!(text(&db, turn, 0).await, said);
    for offset in 0..=said.len() {
        let whole = (0..=offset).rev().find(|&i| said.is_char_boundary(i)).expect("0 is one");
        assert_eq!(text(&db, turn, offset as u64).await, said[whole..], "from {offset}");
        let until = db.store.read_log(turn, 0, 1000).await.expect("reads").until(offset as u64).text();
        assert_eq!(until, said[..whole], "until {offset}");
    }
}

/// Frames that are no text count one unit, keep their order and are never joined.
async fn frames_keep_their_order(db: Db) {
    let worker = Worker::live(&db.store).await;
    let turn = db.in_hand(&worker).await;
    let call = Frame::ToolCall { id: "1".into(), name: "look".into(), arguments: json!({"b": 1, "a": 2}) };
    let result = Frame::ToolResult { id: "1".into(), result: json!(["\u{fffd}"]) };
    let frames = vec![Frame::text("a"), Frame::text("b"), call.clone(), result.clone(), Frame::text("c")];
    let mut word = worker.reply(&[turn], "");
    (word.tail, word.end) = (Span::new(0, frames), 5);
    assert_eq!(finish(&db.store, word).await, Ok(true));
    let log = db.store.read_log(turn, 0, 10).await.expect("reads");
    assert_eq!(log.frames, [Frame::text("ab"), call, result.clone(), Frame::text("c")]);
    assert_eq!(db.store.read_log(turn, 3, 10).await.expect("reads").frames, [result, Frame::text("c")]);
    let record = db.store.turn_record(turn).await.expect("answers").expect("exists");
    assert_eq!(record.reply.expect("a reply").text.as_deref(), Some("abc"));
}

/// A reply takes its unflushed tail along, and none with a hole in it; what lies beyond its end was preview.
async fn a_reply_takes_its_tail_along_and_has_no_hole(db: Db) {
    let worker = Worker::live(&db.store).await;
    let turn = db.in_hand(&worker).await;
    assert_eq!(worker.append(&db.store, turn, 0, "hello").await, Ok(5));
    let mut word = worker.reply(&[turn], "");
    (word.tail, word.end) = (Span::new(7, vec![Frame::text("orld")]), 11);
    assert_eq!(finish(&db.store, word.clone()).await, Err(FinishError::Missing { acked: 5 }));
    word.tail = Span::default();
    assert_eq!(finish(&db.store, word.clone()).await, Err(FinishError::Missing { acked: 5 }));
    assert_eq!(db.phase(turn).await.as_deref(), Some("claimed"));
    word.tail = Span::new(3, vec![Frame::text("lo world, and what was preview")]);
    assert_eq!(finish(&db.store, word).await, Ok(true));
    assert_eq!(text(&db, turn, 0).await, "hello world");

    let turn = db.in_hand(&worker).await;
    assert_eq!(worker.append(&db.store, turn, 0, "hello and more").await, Ok(14));
    let mut word = worker.reply(&[turn], "");
    (word.tail, word.end) = (Span::default(), 5);
    assert_eq!(finish(&db.store, word).await, Ok(true));
    let record = db.store.turn_record(turn).await.expect("answers").expect("exists");
    assert_eq!(record.reply.map(|r| (r.end, r.text)), Some((5, Some("hello".into()))));
}

/// A reply without a word is a reply: what it means is the adapter's to say.
async fn an_empty_reply_is_a_reply(db: Db) {
    let worker = Worker::live(&db.store).await;
    let turn = db.in_hand(&worker).await;
    assert_eq!(finish(&db.store, worker.reply(&[turn], "")).await, Ok(true));
    let record = db.store.turn_record(turn).await.expect("answers").expect("exists");
    assert_eq!(record.reply.map(|r| (r.end, r.text)), Some((0, Some(String::new()))));
}

crate::both!(
    large_frames_are_read_in_parts,
    large_pieces_of_many_turns_are_several_statements,
    overlaps_are_trimmed_and_gaps_refused,
    a_piece_that_comes_twice_at_once_is_stored_once,
    only_the_holder_appends,
    characters_stay_whole,
    frames_keep_their_order,
    a_reply_takes_its_tail_along_and_has_no_hole,
    an_empty_reply_is_a_reply,
);
