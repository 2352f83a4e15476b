//! Requests of clients without message ids: written with their turn, found by what is alike in them, gone with it.

use std::time::Duration;

use lastword::store::{Arm, TurnRequest};
use lastword::turn::keys::TurnId;
use lastword::turn::reason::Reason;
use serde_json::json;

use crate::support::Db;
use crate::support::actors::{ORGANIZATION, USER, Worker, armed, failure, finish, message};

const ANY: u32 = 3600;
const NOW: Duration = Duration::from_secs(5);

fn asked(conversation: &str, place: i32, by_retry: bool) -> Arm {
    let request = TurnRequest {
        digest: b"alike".to_vec(),
        place,
        body: b"body".to_vec(),
        by_retry,
        context: Some(b"context".to_vec()),
        asked: Some(json!({"model": "bot"})),
    };
    Arm { request: Some(request), ..message(conversation, &format!("m-{place}"), "hello") }
}

/// One row with the turn, whoever comes again; of turns with and without requests in one batch each has its own.
async fn a_request_is_written_with_its_turn(db: Db) {
    let first = asked("c", 0, false);
    let turn = armed(&db.store, first.clone()).await.turn_id;
    // Nobody knew that it was committed.
    assert!(armed(&db.store, first.clone()).await.fresh);
    assert!(!armed(&db.store, Arm { turn_id: TurnId::new(), ..first }).await.fresh);
    assert_eq!((db.count("turn").await, db.count("request").await), (1, 1));
    let arms = (0..20).map(|i| {
        let plain = message("c", &format!("plain-{i}"), "hello");
        armed(&db.store, if i % 2 == 0 { plain } else { asked("c", i, false) })
    });
    let turns = futures::future::join_all(arms).await;
    assert_eq!(db.count("request").await, 11);
    for (i, armed) in turns.iter().enumerate() {
        let known = db.store.asked_for(armed.turn_id).await.expect("reads");
        assert_eq!(known.is_some(), i % 2 == 1);
    }
    let newest = async |organization, owner, digest: &[u8]| {
        db.store.newest_request(organization, owner, digest, ANY, NOW).await.expect("reads").map(|found| found.place)
    };
    assert_eq!(newest(ORGANIZATION, USER, b"alike").await, Some(19));
    assert_eq!(newest(ORGANIZATION, USER, b"other").await, None);
    assert_eq!(newest(ORGANIZATION, "eve", b"alike").await, None);
    assert_eq!(newest("umbrella", USER, b"alike").await, None);
    assert!(db.store.withdraw_response(turn).await.expect("writes"));
    assert!(!db.store.withdraw_response(turn).await.expect("writes"));
    assert_eq!(db.store.asked_for(turn).await.expect("reads"), None);
    db.erase("c").await.expect("erases");
    assert_eq!(db.count("request").await, 0);
}

/// A turn that a repeat armed is taken once, and by a request that came before it alone.
async fn what_a_repeat_armed_is_taken_once(db: Db) {
    let turn = armed(&db.store, asked("c", 0, true)).await.turn_id;
    let overtook = async |waited| {
        let found = db.store.newest_request(ORGANIZATION, USER, b"alike", ANY, waited).await.expect("reads");
        found.expect("a turn").overtook
    };
    db.sql("UPDATE request SET armed_at = armed_at - interval '10 seconds'").await;
    assert!(!overtook(NOW).await && overtook(Duration::from_secs(60)).await);
    assert!(!db.store.take_repeated(turn, NOW).await.expect("writes"), "it was there before the request came");
    assert!(db.store.take_repeated(turn, Duration::from_secs(60)).await.expect("writes"));
    assert!(!db.store.take_repeated(turn, Duration::from_secs(60)).await.expect("writes"));
    assert!(!overtook(Duration::from_secs(60)).await);
}

/// A conversation is gone on with where a reply is the last that it has.
async fn a_context_is_found_while_its_reply_is_the_last(db: Db) {
    let worker = Worker::live(&db.store).await;
    let behind = async |owner: &str| {
        let found = db.store.turns_behind(ORGANIZATION, owner, b"context").await.expect("reads");
        found.into_iter().map(|(turn, _)| turn).collect::<Vec<_>>()
    };
    let turn = armed(&db.store, asked("c", 0, false)).await.turn_id;
    assert!(behind(USER).await.is_empty(), "it has no reply yet");
    assert_eq!(worker.claim_ids(&db.store, 1).await, [turn]);
    assert_eq!(finish(&db.store, worker.reply(&[turn], "hello")).await, Ok(true));
    assert_eq!(behind(USER).await, [turn]);
    assert!(behind("eve").await.is_empty());
    let next = armed(&db.store, message("c", "next", "and?")).await.turn_id;
    assert!(behind(USER).await.is_empty(), "another turn is under way");
    db.store.fail_turn(next, &failure(Reason::AgentError)).await.expect("answers");
    assert_eq!(behind(USER).await, [turn], "what failed is not in the history");
}

crate::both!(
    a_request_is_written_with_its_turn,
    what_a_repeat_armed_is_taken_once,
    a_context_is_found_while_its_reply_is_the_last,
);
