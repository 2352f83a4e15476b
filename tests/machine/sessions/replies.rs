//! One reply for several messages.

use lastword::turn::keys::TurnId;
use lastword::wire::FinishResult;
use serde_json::json;

use crate::support::Db;
use crate::support::client::{End, Submitted, names, text};
use crate::support::fake_worker::{FakeWorker, whole_reply};
use crate::support::gateway::Gateway;

crate::newest! {
    one_reply_answers_three_messages,
    a_cancelled_follower_keeps_its_own_last_word,
    a_session_from_a_followers_cursor_shows_the_reply,
}

/// Three turns of a conversation in the hand of a worker that takes them together.
async fn three(db: &Db, gateway: &Gateway, conversation: &str) -> (FakeWorker, Vec<Submitted>) {
    let client = gateway.client();
    let mut turns = Vec::new();
    for i in 1..=3 {
        turns.push(client.submit(conversation, &format!("m{i}"), "hello").await);
    }
    let mut worker = FakeWorker::new(&db.store, |_| {}).await;
    worker.together = true;
    worker.connect(gateway, &[]).await;
    for turn in &turns {
        assert_eq!(worker.turn().await.turn_id, turn.turn_id);
    }
    (worker, turns)
}

fn ids(turns: &[Submitted]) -> Vec<TurnId> {
    turns.iter().map(|t| t.turn_id).collect()
}

/// The first of three messages was cancelled; the reply to all ends the other two, once on a session, in full on
/// each turn's own stream.
async fn one_reply_answers_three_messages(db: Db) {
    let gateway = Gateway::start(&db).await;
    let (mut worker, turns) = three(&db, &gateway, "c").await;
    let client = gateway.client();
    let mut session = client.session("c", None).await;
    worker.say(turns[0].turn_id, 0, "so f").await;
    assert_eq!(text(&session.until("text").await), "so f");
    assert_eq!(client.cancel(turns[0].turn_id).await.1["error"]["reason"], "Cancelled");
    assert_eq!(worker.cancelled().await, turns[0].turn_id);
    assert_eq!(worker.reply(&ids(&turns), "so far so good").await, Ok(FinishResult::Accepted));

    let first = session.until("complete").await;
    assert_eq!(names(&first), ["error", "agent-error", "complete"]);
    assert_eq!(first[2].data["messageIds"], json!(["m1"]));
    let reply = session.until("complete").await;
    assert_eq!(text(&reply), "so far so good");
    let complete = reply.last().expect("complete");
    assert_eq!(complete.data["messageIds"], json!(["m2", "m3"]));
    assert_eq!(complete.data["turnIds"], json!(ids(&turns[1..])));
    // What comes next on the session is the next turn's: nothing of these is said again.
    let next = client.submit("c", "m4", "hello").await;
    assert_eq!(worker.turn().await.turn_id, next.turn_id);
    worker.reply(&[next.turn_id], "next").await.expect("accepted");
    let rest = session.until("complete").await;
    assert_eq!((text(&rest).as_str(), rest.last().expect("complete").turn()), ("next", next.turn_id));

    for turn in &turns[1..] {
        let (events, end) = client.turn_stream(turn.turn_id, None).await.rest().await;
        assert_eq!((text(&events).as_str(), end), ("so far so good", End::Clean));
        assert_eq!(events.last().map(|e| e.data["outcome"].clone()), Some(json!("reply")));
        let record = client.record(turn.turn_id).await;
        assert_eq!(record["reply"]["messageIds"], json!(["m2", "m3"]), "{record}");
        assert_eq!(record["reply"]["text"], "so far so good");
    }
    let (events, end) = client.turn_stream(turns[0].turn_id, None).await.rest().await;
    assert_eq!((events.last().map(|e| e.name.as_str()), end), (Some("complete"), End::Clean));
    assert_eq!(client.record(turns[0].turn_id).await["phase"], "Failed");
    // The winner's repeat is accepted, and nothing is said again.
    assert_eq!(db.count("terminal").await, 4);
    db.all_delivered().await;
}

/// The same with the one in the middle cancelled: the reply stays with the first.
async fn a_cancelled_follower_keeps_its_own_last_word(db: Db) {
    let gateway = Gateway::start(&db).await;
    let (mut worker, turns) = three(&db, &gateway, "c").await;
    let client = gateway.client();
    let end = worker.say(turns[0].turn_id, 0, "both").await;
    client.cancel(turns[1].turn_id).await;
    assert_eq!(worker.cancelled().await, turns[1].turn_id);
    let word = lastword::wire::Finish { end, ..whole_reply(&ids(&turns), "both") };
    assert_eq!(worker.finish(&word).await, Ok(FinishResult::Accepted));
    assert_eq!(worker.finish(&word).await, Ok(FinishResult::Accepted), "a repeat after a lost answer");

    let mut session = client.session("c", None).await;
    let reply = session.until("complete").await;
    assert_eq!(text(&reply), "both");
    assert_eq!(reply.last().expect("complete").data["messageIds"], json!(["m1", "m3"]));
    let cancelled = session.until("complete").await;
    assert_eq!(names(&cancelled), ["error", "agent-error", "complete"]);
    assert_eq!(cancelled[0].turn(), turns[1].turn_id);
    db.all_delivered().await;
    assert_eq!(db.count("superseded").await, 1, "the late word on the cancelled one; the repeat is recorded nowhere");
}

/// A session that was opened with the last message's cursor shows that turn whole, though its reply lies with an
/// earlier one that this session never shows.
async fn a_session_from_a_followers_cursor_shows_the_reply(db: Db) {
    let gateway = Gateway::start(&db).await;
    let (worker, turns) = three(&db, &gateway, "c").await;
    worker.reply(&ids(&turns), "to all").await.expect("accepted");
    let mut session = gateway.client().session("c", Some(&turns[2].cursor)).await;
    let shown = session.until("complete").await;
    assert_eq!(text(&shown), "to all");
    let complete = shown.last().expect("complete");
    assert_eq!(complete.data["messageIds"], json!(["m1", "m2", "m3"]));
    // Opened from the start, it is shown once.
    let mut session = gateway.client().session("c", Some(&turns[0].cursor)).await;
    assert_eq!(text(&session.until("complete").await), "to all");
    let next = gateway.client().submit("c", "m4", "hello").await;
    gateway.client().cancel(next.turn_id).await;
    assert_eq!(session.until("complete").await[0].turn(), next.turn_id);
}
