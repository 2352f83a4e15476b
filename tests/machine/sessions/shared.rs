//! One reply for several messages, of which the client sees some on one page or connection and some on another.

use std::collections::BTreeMap;

use lastword::turn::frame::Frame;
use lastword::turn::keys::TurnId;
use reqwest::StatusCode;
use serde_json::Value;

use crate::support::Db;
use crate::support::client::{Client, Event, Submitted, text};
use crate::support::fake_worker::{FakeWorker, whole_reply};
use crate::support::forwarder::Forwarder;
use crate::support::gateway::Gateway;
use crate::support::wait::eventually;

crate::newest! {
    a_reply_over_a_pages_end_is_shown_once_behind_every_cursor,
    a_reply_is_shown_once_though_the_store_fails_behind_it,
    the_holder_may_be_any_of_the_turns,
}

/// Submits this many turns and cancels them.
async fn cancelled(client: &Client, conversation: &str, turns: usize) {
    for part in 0..turns.div_ceil(30) {
        let some = (0..30.min(turns - 30 * part)).map(|i| async move {
            let turn = client.submit(conversation, &format!("x{part}-{i}"), "hello").await;
            client.cancel(turn.turn_id).await;
        });
        futures::future::join_all(some).await;
    }
}

/// How often each turn was named by a `complete`.
fn completed(events: &[Event]) -> BTreeMap<TurnId, usize> {
    let mut times = BTreeMap::new();
    for event in events.iter().filter(|e| e.name == "complete") {
        for id in event.data["turnIds"].as_array().expect("ids") {
            *times.entry(id.as_str().and_then(|id| id.parse().ok()).expect("an id")).or_default() += 1;
        }
    }
    times
}

/// A reply to a conversation's first turn and to two that came 210 turns later: they are on two pages, and further from each
/// other than turns are open at once. Behind every cursor that a session gives, what it has shown is not shown again.
async fn a_reply_over_a_pages_end_is_shown_once_behind_every_cursor(db: Db) {
    const BETWEEN: usize = 210;
    let gateway = Gateway::start(&db).await;
    let client = gateway.client();
    let mut shared: Vec<Submitted> = vec![client.submit("c", "first", "hello").await];
    let behind = client.submit("c", "behind", "hello").await;
    client.cancel(behind.turn_id).await;
    cancelled(&client, "c", BETWEEN).await;
    for message in ["second", "third"] {
        shared.push(client.submit("c", message, "hello").await);
    }
    let mut worker = FakeWorker::new(&db.store, |_| {}).await;
    worker.together = true;
    worker.connect(&gateway, &[]).await;
    for turn in &shared {
        assert_eq!(worker.turn().await.turn_id, turn.turn_id);
    }
    let ids: Vec<TurnId> = shared.iter().map(|t| t.turn_id).collect();
    worker.reply(&ids, "to all").await.expect("accepted");
    let last = client.submit("c", "last", "hello").await.turn_id;
    client.cancel(last).await;

    for begin in [&shared[0].cursor, &behind.cursor] {
        let mut session = client.session("c", Some(begin)).await;
        let mut events = Vec::new();
        while !events.last().is_some_and(|e: &Event| e.name == "complete" && e.turn() == last) {
            events.push(session.next().await.expect("goes on"));
        }
        let times = completed(&events);
        assert_eq!(times.len(), BETWEEN + 1 + shared.len() + 1, "from {begin}");
        assert!(times.values().all(|n| *n == 1), "from {begin}: each once");
        assert_eq!(text(&events), "to all");
        assert!(events.iter().all(|e| e.id.len() < 200), "cursors are short");
        // From the reply's own frames, and from some between, to the end.
        let reply = events.iter().position(|e| e.data["turnIds"].as_array().is_some_and(|ids| ids.len() == 3));
        let reply = reply.expect("the reply");
        for at in [reply.saturating_sub(1), reply, reply + 1, events.len() / 2, events.len() - 7] {
            let mut session = client.session("c", Some(&events[at].id)).await;
            let mut rest = Vec::new();
            while !rest.last().is_some_and(|e: &Event| e.name == "complete" && e.turn() == last) {
                rest.push(session.next().await.expect("goes on"));
            }
            let names = |events: &[Event]| events.iter().map(|e| (e.name.clone(), e.turn())).collect::<Vec<_>>();
            assert_eq!(names(&rest), names(&events[at + 1..]), "behind event {at} from {begin}");
        }
    }
}

/// A session has shown a reply with its holder; then its gateway loses the database for a while, and looks at all turns anew.
async fn a_reply_is_shown_once_though_the_store_fails_behind_it(db: Db) {
    let forwarder = Forwarder::start(db.options());
    let viewing = Gateway::with(forwarder.options(), |_| {}).await;
    let working = Gateway::start(&db).await;
    let client = working.client();
    let mut turns = Vec::new();
    for message in ["first", "long", "second"] {
        turns.push(client.submit("c", message, "hello").await);
    }
    let mut worker = FakeWorker::new(&db.store, |_| {}).await;
    worker.together = true;
    worker.connect(&working, &[]).await;
    for turn in &turns {
        worker.this_turn(turn.turn_id).await;
    }
    // Between the two lies more output than a connection takes up while nobody reads it.
    let piece = "x".repeat(1024 * 1024);
    let mut end = 0;
    for _ in 0..15 {
        let frames = || vec![Frame::text(piece.as_str())];
        let taken = async || worker.output(turns[1].turn_id, end, frames()).await.map_err(|e: (StatusCode, Value)| e.1);
        end = eventually("a piece is taken", taken).await.received;
    }
    worker.fail(turns[1].turn_id, end).await.expect("accepted");
    worker.reply(&[turns[0].turn_id, turns[2].turn_id], "to both").await.expect("accepted");

    let mut session = viewing.client().session("c", Some(&turns[0].cursor)).await;
    let shown = session.until("complete").await;
    assert_eq!(text(&shown), "to both");
    session.until("text").await;
    forwarder.cut();
    // What is on its way is read, and then the session needs the store.
    while let Some(event) = session.next_within(std::time::Duration::from_millis(700)).await {
        assert_eq!(event.expect("no end").name, "text", "the gateway has no database");
    }
    forwarder.mend();
    let rest = session.until("complete").await;
    assert_eq!(rest.last().expect("complete").turn(), turns[1].turn_id);
    let last = client.submit("c", "last", "hello").await.turn_id;
    client.cancel(last).await;
    let rest = session.until("complete").await;
    assert!(rest.iter().all(|e| e.turn() == last), "{rest:?}");
}

/// A worker may name any of the turns first, whose log then has the reply. What was streamed with that turn goes on with it.
async fn the_holder_may_be_any_of_the_turns(db: Db) {
    let gateway = Gateway::start(&db).await;
    let client = gateway.client();
    let mut turns = Vec::new();
    for i in 1..=3 {
        turns.push(client.submit("c", &format!("m{i}"), "hello").await);
    }
    let mut worker = FakeWorker::new(&db.store, |_| {}).await;
    worker.together = true;
    worker.connect(&gateway, &[]).await;
    for turn in &turns {
        worker.this_turn(turn.turn_id).await;
    }
    let mut live = client.session("c", Some(&turns[0].cursor)).await;
    let end = worker.say(turns[1].turn_id, 0, "streamed").await;
    assert_eq!(live.until("text").await[0].turn(), turns[1].turn_id);
    let named: Vec<TurnId> = [1, 2, 0].iter().map(|&i: &usize| turns[i].turn_id).collect();
    let word = lastword::wire::Finish { end, tail: None, ..whole_reply(&named, "") };
    worker.finish(&word).await.expect("accepted");
    let last = client.submit("c", "last", "hello").await.turn_id;
    client.cancel(last).await;

    let complete = live.until("complete").await;
    assert_eq!((complete.len(), complete[0].turn()), (1, turns[1].turn_id), "{complete:?}");
    assert_eq!(complete[0].data["messageIds"], serde_json::json!(["m1", "m2", "m3"]));
    assert!(live.until("complete").await.iter().all(|e| e.turn() == last));
    // Who comes later sees it once from each turn on.
    for turn in &turns {
        let mut session = client.session("c", Some(&turn.cursor)).await;
        assert_eq!(text(&session.until("complete").await), "streamed");
        assert!(session.until("complete").await.iter().all(|e| e.turn() == last));
    }
}
