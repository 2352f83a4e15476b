//! Arm: a message id arms one turn, turns are numbered in order, and a conversation is its owner's alone.

use std::collections::HashSet;

use lastword::store::{Arm, ArmError, Armed};
use lastword::turn::keys::TurnId;

use crate::support::Db;
use crate::support::actors::{arm, armed, message};

/// The same messageId again is the same turn; with other content, or for another agent, it is none.
async fn a_repeat_is_the_same_turn(db: Db) {
    let first = armed(&db.store, message("c", "m1", "hello")).await;
    assert!(first.fresh);
    assert_eq!(first.number, 1);
    for store in [&db.store, &db.another_store()] {
        let again = armed(store, message("c", "m1", "hello")).await;
        assert_eq!(again, Armed { fresh: false, ..first.clone() });
    }
    let answer = async |arm: Arm| db.store.arm(arm).await.expect_err("refused");
    assert_eq!(answer(message("c", "m1", "good bye")).await, ArmError::OtherContent);
    let other = Arm { agent: "cat".into(), ..arm("c") };
    assert_eq!(answer(other).await, ArmError::OtherAgent("bot".into()));
    assert_eq!((db.count("turn").await, db.count("marker").await), (1, 1));

    // It stays so when the turn has ended.
    db.store
        .fail_turn(first.turn_id, &crate::support::actors::failure(lastword::turn::reason::Reason::Cancelled))
        .await
        .expect("answers");
    assert!(!armed(&db.store, message("c", "m1", "hello")).await.fresh);
    assert_eq!((db.count("marker").await, db.count("terminal").await), (0, 1));

    // Another user's conversation of the same name is another one, and so is another organization's.
    let eves = Arm { user: "eve".into(), ..message("c", "m1", "good bye") };
    let elsewhere = armed(&db.store, Arm { organization: "umbrella".into(), ..eves.clone() }).await;
    let eves = armed(&db.store, Arm { turn_id: TurnId::new(), ..eves }).await;
    assert!(eves.fresh && elsewhere.fresh);
    assert_eq!((eves.number, elsewhere.number), (1, 1));
    let conversations = [first.conversation_id, eves.conversation_id, elsewhere.conversation_id];
    assert_eq!(conversations.iter().collect::<HashSet<_>>().len(), 3);
}

/// The caller's own repeat with the same turn id, after a commit that nobody knew of, still says that it armed it.
async fn a_repeat_after_an_unknown_commit_still_armed_it(db: Db) {
    let arm = arm("c");
    assert!(armed(&db.store, arm.clone()).await.fresh);
    assert!(armed(&db.store, arm).await.fresh);
    assert_eq!(db.count("turn").await, 1);
}

/// 64 concurrent arms on one conversation, from two replicas: numbered in the order of their commits, without a repeat.
async fn concurrent_arms_are_numbered_as_they_commit(db: Db) {
    let other = db.another_store();
    let arms = (0..64).map(|i| armed(if i % 2 == 0 { &db.store } else { &other }, arm("c")));
    let numbers: HashSet<i64> = futures::future::join_all(arms).await.into_iter().map(|a| a.number).collect();
    assert_eq!(numbers.len(), 64);
    // A turn with a smaller number is armed no later: its transaction committed before the next one got the lock.
    let swapped = "turn a JOIN turn b ON a.conversation_id = b.conversation_id
                   WHERE a.number < b.number AND a.armed_at > b.armed_at";
    assert_eq!(db.count(swapped).await, 0);
    assert_eq!(db.count("conversation WHERE last_number >= 64").await, 1);
    assert_eq!(db.count("marker m JOIN turn t ON t.id = m.turn_id AND t.number = m.number").await, 64);
}

/// One messageId many times at once, from two replicas: one turn, one caller that armed it.
async fn one_message_many_times_at_once_is_one_turn(db: Db) {
    let other = db.another_store();
    for round in 0..10 {
        let conversation = format!("c{round}");
        let arms =
            (0..64).map(|i| armed(if i % 2 == 0 { &db.store } else { &other }, message(&conversation, "m", "hello")));
        let answers = futures::future::join_all(arms).await;
        assert_eq!(answers.iter().filter(|a| a.fresh).count(), 1);
        assert_eq!(answers.iter().map(|a| a.turn_id).collect::<HashSet<TurnId>>().len(), 1);
    }
    assert_eq!(db.count("marker").await, 10);
}

/// A mixed batch: the first turn of a conversation names its agent; the others are told so, one by one.
async fn a_batch_answers_each_its_own(db: Db) {
    let arms = [
        message("c", "m1", "hello"),
        message("c", "m1", "hello"),
        message("c", "m1", "else"),
        Arm { user: "eve".into(), ..arm("c") },
        Arm { agent: "cat".into(), ..arm("c") },
        arm("c"),
        Arm { agent: "cat".into(), ..arm("d") },
        arm("d"),
    ];
    let answers = futures::future::join_all(arms.map(|arm| db.store.arm(arm))).await;
    let answers: Vec<Result<bool, ArmError>> = answers.into_iter().map(|a| a.map(|armed| armed.fresh)).collect();
    let expected = [
        Ok(true),
        Ok(false),
        Err(ArmError::OtherContent),
        Ok(true),
        Err(ArmError::OtherAgent("bot".into())),
        Ok(true),
        Ok(true),
        Err(ArmError::OtherAgent("cat".into())),
    ];
    assert_eq!(answers, expected);
    assert_eq!((db.count("turn").await, db.count("marker").await), (4, 4));
}

/// More than one transaction takes (256): all of them are armed, each once.
async fn more_than_a_batch_are_all_armed_once(db: Db) {
    let arms: Vec<Arm> = (0..700).map(|_| arm("c")).collect();
    let sent: Vec<TurnId> = arms.iter().map(|a| a.turn_id).collect();
    let answers = futures::future::join_all(arms.into_iter().map(|a| armed(&db.store, a))).await;
    assert!(answers.iter().map(|a| a.turn_id).eq(sent) && answers.iter().all(|a| a.fresh));
    let mut numbers: Vec<i64> = answers.iter().map(|a| a.number).collect();
    numbers.sort();
    assert_eq!(numbers, (1..=700).collect::<Vec<_>>());
}

/// Names that the schema refuses are refused, and harm nobody.
async fn bad_names_are_refused(db: Db) {
    let long = "x".repeat(257);
    let bad = [arm(""), arm(&long), message("c", "", "hello"), message("c", &long, "hello")];
    for arm in bad {
        assert!(matches!(db.store.arm(arm).await, Err(ArmError::Store(lastword::store::StoreError::Refused(_)))));
    }
    assert_eq!((db.count("turn").await, db.count("conversation").await), (0, 0));
}

crate::both!(
    a_repeat_is_the_same_turn,
    a_repeat_after_an_unknown_commit_still_armed_it,
    concurrent_arms_are_numbered_as_they_commit,
    one_message_many_times_at_once_is_one_turn,
    a_batch_answers_each_its_own,
    more_than_a_batch_are_all_armed_once,
    bad_names_are_refused,
);
