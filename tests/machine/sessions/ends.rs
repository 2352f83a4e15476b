//! How streams end: cleanly behind the terminal, and never cleanly while it is owed.

use lastword::turn::frame::Frame;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::support::client::{End, names};
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::Gateway;
use crate::support::{Db, actors};

crate::newest! {
    nothing_follows_a_turns_terminal,
    a_shutdown_aborts_what_lacks_its_terminal,
    a_turn_that_arrives_with_the_shutdown_is_no_clean_end,
    an_erased_conversation_ends_its_streams,
}

/// A turn's stream closes cleanly with its terminal, also for those who come back behind it.
async fn nothing_follows_a_turns_terminal(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let client = gateway.client();
    let turn = client.submit("c", "m1", "hello").await.turn_id;
    let mut stream = client.turn_stream(turn, None).await;
    worker.turn().await;
    let end = worker.say(turn, 0, "word").await;
    worker.output(turn, end, vec![Frame::Progress { message: "nearly".into() }]).await.expect("taken");
    worker.fail(turn, end + 1).await.expect("accepted");
    // Neither a late word nor another turn is on it.
    worker.output(turn, end + 1, vec![Frame::text("late")]).await.expect_err("over");
    client.submit("c", "m2", "hello").await;
    let (events, ended) = stream.rest().await;
    assert_eq!(names(&events), ["text", "progress", "error", "agent-error", "complete"]);
    assert_eq!(ended, End::Clean);
    let (last, others) = events.split_last().expect("some");
    let over = client.stream(&format!("/v1/turns/{turn}/events"), Some(&last.id)).await;
    assert_eq!(over.err(), Some(StatusCode::NO_CONTENT), "an EventSource that comes back stops here");
    for event in others {
        let (rest, ended) = client.turn_stream(turn, Some(&event.id)).await.rest().await;
        let at = events.iter().position(|e| e.id == event.id).expect("there");
        assert_eq!((names(&rest), ended), (names(&events[at + 1..]), End::Clean), "behind {}", event.name);
    }
}

/// A gateway that stops aborts the streams that lack a terminal, and ends the others cleanly.
async fn a_shutdown_aborts_what_lacks_its_terminal(db: Db) {
    let gateway = Gateway::start(&db).await;
    let client = gateway.client();
    let open = client.submit("open", "m", "hello").await;
    let done = client.submit("done", "m", "hello").await;
    client.cancel(done.turn_id).await;
    let mut lacking = [client.session("open", None).await, client.turn_stream(open.turn_id, None).await];
    db.spoken("idle").await;
    let mut idle = [client.session("idle", None).await, client.session("done", None).await];
    idle[1].until("complete").await;
    gateway.begin_shutdown();
    for stream in &mut lacking {
        assert_eq!(stream.rest().await, (Vec::new(), End::Aborted));
    }
    for stream in &mut idle {
        assert_eq!(stream.rest().await, (Vec::new(), End::Clean));
    }
    gateway.stop().await;
    // Elsewhere it goes on where it was.
    let gateway = Gateway::start(&db).await;
    let client = gateway.client();
    let mut session = client.session("open", lacking[0].last_id.as_deref()).await;
    client.cancel(open.turn_id).await;
    assert_eq!(names(&session.until("complete").await), ["error", "agent-error", "complete"]);
}

/// A turn was armed that the session has not heard of; the shutdown is no clean end for it.
async fn a_turn_that_arrives_with_the_shutdown_is_no_clean_end(db: Db) {
    let gateway = Gateway::start(&db).await;
    db.spoken("c").await;
    let mut session = gateway.client().session("c", None).await;
    // Another replica arms it, and the notice is still on its way.
    let mut arm = actors::arm("c");
    (arm.organization, arm.user) = ("default".into(), "local".into());
    db.store.arm(arm).await.expect("armed");
    gateway.begin_shutdown();
    assert_eq!(session.rest().await.1, End::Aborted);
}

/// DELETE: what is open is cancelled, all is gone, streams end without a clean end while a turn on them lacks its
/// terminal, and the name may be used anew.
async fn an_erased_conversation_ends_its_streams(db: Db) {
    let gateway = Gateway::start(&db).await;
    let client = gateway.client();
    let done = client.submit("c", "m1", "hello").await;
    client.cancel(done.turn_id).await;
    let open = client.submit("c", "m2", "hello").await;
    let mut session = client.session("c", Some(&open.cursor)).await;
    let mut stream = client.turn_stream(open.turn_id, None).await;
    db.spoken("idle").await;
    let mut idle = client.session("idle", None).await;
    let (status, erased) = client.call(Method::DELETE, "/v1/conversations/c", None).await;
    assert_eq!((status, erased), (StatusCode::OK, json!({"turns": 2, "cancelled": 1})));
    for stream in [&mut session, &mut stream] {
        let (events, end) = stream.rest().await;
        let shown = events.last().is_some_and(|e| e.name == "complete");
        assert!(shown || end == End::Aborted, "{end:?} after {:?}", names(&events));
    }
    for table in ["turn", "marker", "terminal", "delivery", "output", "conversation WHERE name = 'c'"] {
        assert_eq!(db.count(table).await, 0, "{table}");
    }
    assert_eq!(db.text("SELECT counts->>'cancelled' FROM audit WHERE action = 'erase'").await.as_deref(), Some("1"));
    assert_eq!(client.call(Method::DELETE, "/v1/conversations/c", None).await.0, StatusCode::NOT_FOUND);
    assert_eq!(client.get(&format!("/v1/turns/{}", open.turn_id)).await.0, StatusCode::NOT_FOUND);
    client.submit("c", "m1", "anew").await;
    client.call(Method::DELETE, "/v1/conversations/idle", None).await;
    idle.rest().await;
}
