//! What the database refuses for its content ends as `Internal`, and poisons nobody's batch.

use lastword::store::{ArmError, StoreError};
use lastword::turn::keys::TurnId;
use lastword::turn::reason::Reason;
use lastword::turn::terminal::Outcome;

use crate::race::many_in_hand;
use crate::support::Db;
use crate::support::actors::{Worker, arm, armed, failure, finish};

/// Makes the database refuse every log that holds the word.
async fn refuse_poison(db: &Db) {
    db.sql("ALTER TABLE output ADD CHECK (frames NOT LIKE '%poison%')").await;
}

/// One of a hundred replies that finish together is refused: it ends as `Internal`, the others are as they are.
async fn a_refused_reply_ends_alone(db: Db) {
    refuse_poison(&db).await;
    let worker = Worker::live(&db.store).await;
    let turns = many_in_hand(&db.store, &worker, 100).await;
    let words = turns.iter().enumerate().map(|(i, &t)| worker.reply(&[t], if i == 57 { "poison" } else { "fine" }));
    let answers = futures::future::join_all(words.map(|word| finish(&db.store, word))).await;
    assert!(answers.iter().all(|a| *a == Ok(true)), "{answers:?}");
    assert_eq!(db.count("terminal WHERE outcome = 'reply'").await, 99);
    assert_eq!(db.count("output WHERE frames LIKE '%fine%'").await, 99);
    assert_eq!(db.outcome(turns[57]).await.as_deref(), Some("Internal"));
    assert_eq!((db.count("delivery").await, db.count("marker").await), (100, 0));

    let alone = db.in_hand(&worker).await;
    let word = worker.reply(&[alone], "poison");
    assert_eq!(finish(&db.store, word.clone()).await, Ok(true));
    assert_eq!(db.outcome(alone).await.as_deref(), Some("Internal"));
    assert_eq!(finish(&db.store, word).await, Ok(true), "its repeat");
}

/// NUL, which no Postgres text holds, in everything that a worker says; alone and among a hundred.
async fn a_nul_loses_no_turn(db: Db) {
    let worker = Worker::live(&db.store).await;
    let turns = many_in_hand(&db.store, &worker, 100).await;
    let words = turns.iter().enumerate().map(|(i, &turn)| {
        let mut word = worker.reply(&[turn], if i % 10 == 0 { "a\0b" } else { "fine" });
        if i % 10 == 1 {
            word.reply_id.push('\0');
        }
        if i % 10 == 2 {
            word.outcome = Outcome::Error(failure(Reason::AgentError).with_message("\0"));
        }
        word
    });
    let words: Vec<_> = words.collect();
    for _ in 0..2 {
        let answers = futures::future::join_all(words.iter().map(|word| db.store.finish(word.clone()))).await;
        for (i, answer) in answers.into_iter().enumerate() {
            assert!(matches!(answer, Ok(true)), "{i}: {answer:?}");
        }
    }
    assert_eq!((db.count("terminal").await, db.count("marker").await, db.count("superseded").await), (100, 0, 0));
    for (i, turn) in turns.iter().enumerate().filter(|(i, _)| i % 10 > 2) {
        assert_eq!(db.outcome(*turn).await.as_deref(), Some("reply"), "{i}");
    }

    // Too late, and unstorable as well.
    let late = db.in_hand(&worker).await;
    db.store.fail_turn(late, &failure(Reason::Cancelled)).await.expect("answers");
    let mut word = worker.reply(&[late], "a\0b");
    word.reply_id.push('\0');
    assert_eq!(finish(&db.store, word).await, Ok(false));
    assert_eq!(db.count("superseded").await, 1);
}

/// A message that the database refuses is not armed, and those armed beside it are.
async fn a_refused_arm_is_refused_alone(db: Db) {
    let arms = (0..100).map(|i| {
        let mut arm = arm(&format!("c{i}"));
        if i == 42 {
            arm.input.push('\0');
        }
        db.store.arm(arm)
    });
    let answers = futures::future::join_all(arms).await;
    for (i, answer) in answers.iter().enumerate() {
        match answer {
            Err(ArmError::Store(StoreError::Refused(_))) => assert_eq!(i, 42),
            armed => assert!(armed.is_ok() && i != 42, "{i}: {armed:?}"),
        }
    }
    assert_eq!((db.count("marker").await, db.count("turn").await), (99, 99));
}

/// A fault that should never be: a marker of a turn that has its terminal. The unique key holds.
async fn faulty(db: &Db, turn: TurnId) {
    db.sql(format!(
        "INSERT INTO terminal (turn_id, conversation_id, number, organization, outcome, holder, end_at)
         SELECT turn_id, conversation_id, number, organization, 'reply', turn_id, 0 FROM marker WHERE turn_id = '{turn}'"
    ))
    .await;
}

/// A marker that cannot end (its turn has a terminal: the second fence) is in no other's way: not in a batch of
/// words, not at the death of its worker, not in the sweep.
async fn a_marker_that_cannot_end_poisons_nobody(db: Db) {
    let worker = Worker::live(&db.store).await;
    let turns = many_in_hand(&db.store, &worker, 8).await;
    faulty(&db, turns[3]).await;
    let words = turns[..6].iter().map(|&t| db.store.finish(worker.reply(&[t], "fine")));
    let answers = futures::future::join_all(words).await;
    for (i, answer) in answers.into_iter().enumerate() {
        assert_eq!(matches!(answer, Ok(true)), i != 3, "{i}: {answer:?}");
    }
    let died = db.store.fail_worker(worker.incarnation, &failure(Reason::WorkerExited)).await.expect("answers");
    assert!(died.died_now);
    assert_eq!(db.lease(worker.incarnation).await.as_deref(), Some("dead"));
    for turn in &turns[6..] {
        assert_eq!(db.outcome(*turn).await.as_deref(), Some("WorkerExited"));
    }

    let overdue: Vec<TurnId> = futures::future::join_all((0..3).map(|_| armed(&db.store, arm("c"))))
        .await
        .into_iter()
        .map(|armed| armed.turn_id)
        .collect();
    for turn in &overdue {
        db.overdue(*turn).await;
    }
    faulty(&db, overdue[0]).await;
    db.settled().await;
    let silent = Worker::with(&db.store, |start| start.agent = "other".into()).await;
    db.silent(silent.incarnation, 1).await;
    db.store.sweep().await.expect("sweeps");
    assert_eq!(db.lease(silent.incarnation).await.as_deref(), Some("dead"));
    for turn in &overdue[1..] {
        assert_eq!(db.outcome(*turn).await.as_deref(), Some("DeadlineExceeded"));
    }
    let first = db.outcome(overdue[0]).await;
    assert_eq!(first.as_deref(), Some("reply"), "its terminal is the first one");
}

crate::both!(
    a_refused_reply_ends_alone,
    a_nul_loses_no_turn,
    a_refused_arm_is_refused_alone,
    a_marker_that_cannot_end_poisons_nobody,
);
