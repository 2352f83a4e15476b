//! Logs of which a part is gone: half a reply is never shown as a whole one, and what comes behind it is shown.

use lastword::turn::frame::Frame;
use lastword::turn::keys::TurnId;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::support::Db;
use crate::support::client::{Client, End, Event, Stream, names, text};
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::Gateway;
use crate::support::wait::eventually;

crate::newest! {
    half_a_reply_is_not_shown_as_a_whole_one,
    a_shared_reply_without_its_log_is_past_its_retention_for_all_its_turns,
    an_error_is_shown_without_the_output_that_is_gone,
    an_erased_log_is_no_end_of_a_reply_that_is_being_read,
    a_frame_of_a_later_version_hides_nothing,
}

/// Says each of these pieces as a row of its own in the turn's log; answers with the log's end.
async fn say_in_rows(db: &Db, worker: &FakeWorker, turn: TurnId, pieces: &[&str]) -> u64 {
    let mut end = 0;
    for piece in pieces {
        end = worker.say(turn, end, piece).await;
        let written = format!("SELECT coalesce(max(end_at), 0) FROM output WHERE turn_id = '{turn}'");
        eventually("the piece is written", async || db.number(&written).await == end as i64).await;
    }
    end
}

async fn path_status(client: &Client, path: &str, cursor: Option<&str>) -> Result<Stream, StatusCode> {
    client.stream(path, cursor).await
}

/// A reply in three rows, of which one is removed or made unreadable. What is shown is a beginning of it, and no `complete`; who
/// comes back is told, once, and sees what comes behind it.
async fn half_a_reply_is_not_shown_as_a_whole_one(db: Db) {
    const PIECES: [&str; 3] = ["one, ", "two, ", "three"];
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let client = gateway.client();
    let damages = [
        "DELETE FROM output WHERE start_at = 0",
        "DELETE FROM output WHERE start_at = 5",
        "DELETE FROM output WHERE start_at = 10",
        "DELETE FROM output WHERE start_at >= 0",
        "UPDATE output SET frames = '[{\"type\":\"text\"}]' WHERE start_at = 5",
        "UPDATE output SET frames = 'nonsense' WHERE start_at = 10",
    ];
    for (nth, damage) in damages.into_iter().enumerate() {
        let conversation = format!("c{nth}");
        let path = format!("/v1/conversations/{conversation}/events");
        let turn = client.submit(&conversation, "m1", "hello").await;
        worker.this_turn(turn.turn_id).await;
        let end = say_in_rows(&db, &worker, turn.turn_id, &PIECES).await;
        worker.end(turn.turn_id, end).await.expect("accepted");
        let next = client.submit(&conversation, "m2", "hello").await;
        worker.this_turn(next.turn_id).await;
        worker.reply(&[next.turn_id], "behind it").await.expect("accepted");
        db.sql(format!("{damage} AND turn_id = '{}'", turn.turn_id)).await;

        let mut session = client.session(&conversation, Some(&turn.cursor)).await;
        // Whichever of the two finds the log gone first notes it; the other one may come after that.
        let mut own = client.stream(&format!("/v1/turns/{}/events", turn.turn_id), None).await;
        assert!(own.is_ok() || own.as_ref().is_err_and(|status| *status == StatusCode::GONE), "{damage}");
        for stream in [Some(&mut session), own.as_mut().ok()].into_iter().flatten() {
            let (shown, ended) = stream.rest().await;
            assert_eq!(ended, End::Aborted, "{damage}");
            assert!(PIECES.concat().starts_with(&text(&shown)) && shown.iter().all(|e| e.name == "text"), "{shown:?}");
        }
        assert_eq!(db.count(&format!("terminal WHERE log_gone AND turn_id = '{}'", turn.turn_id)).await, 1);
        let own_path = format!("/v1/turns/{}/events", turn.turn_id);
        for (path, cursor) in [
            (&path, Some(&turn.cursor)),
            (&path, session.last_id.as_ref()),
            (&own_path, None),
            (&own_path, own.as_ref().ok().and_then(|own| own.last_id.as_ref())),
        ] {
            let answer = path_status(&client, path, cursor.map(String::as_str)).await.err();
            assert_eq!(answer, Some(StatusCode::GONE), "{damage}: {path} behind {cursor:?}");
        }
        // What comes behind it, for those who begin anew and for those who have passed it.
        for cursor in [None, Some(next.cursor.as_str())] {
            let shown = client.session(&conversation, cursor).await.until("complete").await;
            assert_eq!((text(&shown).as_str(), shown[0].turn()), ("behind it", next.turn_id), "{damage}");
        }
        db.all_delivered().await;
    }
}

/// The holder's log is gone: that is so for every turn that its reply answers, wherever a session begins.
async fn a_shared_reply_without_its_log_is_past_its_retention_for_all_its_turns(db: Db) {
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
    let ids: Vec<TurnId> = turns.iter().map(|t| t.turn_id).collect();
    worker.reply(&ids, "to all").await.expect("accepted");
    db.sql("DELETE FROM output").await;
    // The second's session begins behind the holder.
    let (shown, ended) = client.session("c", Some(&turns[1].cursor)).await.rest().await;
    assert_eq!((shown, ended), (Vec::new(), End::Aborted));
    for turn in &turns {
        let path = format!("/v1/turns/{}/events", turn.turn_id);
        assert_eq!(client.stream(&path, None).await.err(), Some(StatusCode::GONE));
        let answer = client.stream("/v1/conversations/c/events", Some(&turn.cursor)).await.err();
        assert_eq!(answer, Some(StatusCode::GONE));
    }
    let next = client.submit("c", "next", "hello").await.turn_id;
    client.cancel(next).await;
    let shown = client.session("c", None).await.until("complete").await;
    assert!(shown.iter().all(|e| e.turn() == next), "{shown:?}");
}

/// An error needs no log: it says what it says, whatever is gone of the output before it.
async fn an_error_is_shown_without_the_output_that_is_gone(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let client = gateway.client();
    let turn = client.submit("c", "m1", "hello").await;
    worker.turn().await;
    let end = say_in_rows(&db, &worker, turn.turn_id, &["one, ", "two"]).await;
    worker.fail(turn.turn_id, end).await.expect("accepted");
    db.sql("DELETE FROM output WHERE start_at > 0").await;
    let shown = client.session("c", Some(&turn.cursor)).await.until("complete").await;
    assert_eq!(names(&shown), ["text", "error", "agent-error", "complete"]);
    let (shown, ended) = client.turn_stream(turn.turn_id, None).await.rest().await;
    assert_eq!((names(&shown), ended), (vec!["text", "error", "agent-error", "complete"], End::Clean));
    db.all_delivered().await;
}

/// A long reply is read page by page, and erased between two of them.
async fn an_erased_log_is_no_end_of_a_reply_that_is_being_read(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let client = gateway.client();
    let turn = client.submit("c", "m1", "hello").await;
    worker.turn().await;
    let piece = "x".repeat(1024 * 1024);
    let mut end = 0;
    for _ in 0..15 {
        // More than may wait to become durable is refused for the moment.
        let frames = || vec![Frame::text(piece.as_str())];
        let taken = async || worker.output(turn.turn_id, end, frames()).await.map_err(|e: (StatusCode, Value)| e.1);
        end = eventually("a piece is taken", taken).await.received;
    }
    worker.end(turn.turn_id, end).await.expect("accepted");
    for kind in ["session", "turn"] {
        let mut stream = match kind {
            "session" => client.session("c", Some(&turn.cursor)).await,
            _ => client.turn_stream(turn.turn_id, None).await,
        };
        stream.until("text").await;
        if kind == "turn" {
            client.call(Method::DELETE, "/v1/conversations/c", None).await;
        } else {
            // A first reader leaves in the middle, and finds the rest later: nothing is gone yet.
            drop(stream);
            continue;
        }
        let (rest, ended): (Vec<Event>, End) = stream.rest().await;
        assert_eq!(ended, End::Aborted);
        assert!(rest.iter().all(|e| e.name == "text"));
        let cursor = stream.last_id.as_deref();
        assert_eq!(client.stream("/v1/conversations/c/events", cursor).await.err(), Some(StatusCode::GONE));
        for cursor in [None, cursor] {
            let own = client.stream(&format!("/v1/turns/{}/events", turn.turn_id), cursor).await.err();
            assert_eq!(own, Some(StatusCode::NOT_FOUND));
        }
    }
}

/// A newer gateway has written a frame that this one does not know: the reply around it is whole.
async fn a_frame_of_a_later_version_hides_nothing(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let client = gateway.client();
    let turn = client.submit("c", "m1", "hello").await;
    worker.turn().await;
    worker
        .output(turn.turn_id, 0, vec![Frame::text("a"), Frame::Progress { message: "p".into() }])
        .await
        .expect("taken");
    let end = worker.say(turn.turn_id, 2, "b").await;
    worker.end(turn.turn_id, end).await.expect("accepted");
    db.sql("UPDATE output SET frames = replace(frames, '\"progress\"', '\"hologram\"')").await;
    let shown = client.session("c", Some(&turn.cursor)).await.until("complete").await;
    assert_eq!((names(&shown), text(&shown).as_str()), (vec!["text", "data", "text", "complete"], "ab"));
    assert_eq!(shown[1].data["name"], "hologram");
}
