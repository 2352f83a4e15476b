//! What a client sees of its turns: A6 (one reply for several messages) and A12 (clients that come and go).
//!
//! Real gateways and a real Postgres; time passes by moving timestamps in the database.

mod support;

#[path = "support/gateway.rs"]
mod gateway;

use std::collections::BTreeMap;
use std::time::Duration;

use gateway::client::{Client, End, Event, Stream, Submitted, names, text};
use gateway::{AGENT, FakeWorker, Gateway, eventually};
use lastword::store::Retention;
use lastword::turn::frame::Frame;
use lastword::turn::keys::TurnId;
use lastword::wire::FinishResult;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use reqwest::{Method, StatusCode};
use serde_json::json;
use support::Db;
use tokio::io::AsyncWriteExt;

newest! {
    one_reply_answers_three_messages,
    a_cancelled_follower_keeps_its_own_last_word,
    a_session_from_a_followers_cursor_shows_the_reply,
    a_client_that_comes_and_goes_sees_every_byte_once,
    a_client_that_left_right_after_its_submit_finds_the_reply,
    days_later_after_a_restart_and_past_the_retention,
    nothing_follows_a_turns_terminal,
    a_shutdown_aborts_what_lacks_its_terminal,
    a_turn_that_arrives_with_the_shutdown_is_no_clean_end,
    text_is_cut_between_characters,
    an_erased_conversation_ends_its_streams,
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

/// A6: the first of three messages was cancelled; the reply to all ends the other two, once on a session, in full on
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

/// A6: the same with the one in the middle cancelled: the reply stays with the first.
async fn a_cancelled_follower_keeps_its_own_last_word(db: Db) {
    let gateway = Gateway::start(&db).await;
    let (mut worker, turns) = three(&db, &gateway, "c").await;
    let client = gateway.client();
    let end = worker.say(turns[0].turn_id, 0, "both").await;
    client.cancel(turns[1].turn_id).await;
    assert_eq!(worker.cancelled().await, turns[1].turn_id);
    let word = lastword::wire::Finish { end, ..gateway::fake_worker::whole_reply(&ids(&turns), "both") };
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

/// A6: a session that was opened with the last message's cursor shows that turn whole, though its reply lies with an
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

/// What a client has pieced together over its connections.
#[derive(Default)]
struct Seen {
    cursor: Option<String>,
    text: BTreeMap<TurnId, String>,
    endings: BTreeMap<TurnId, Vec<String>>,
}

impl Seen {
    fn take(&mut self, event: &Event) {
        self.cursor = Some(event.id.clone());
        match event.name.as_str() {
            "connected" => {}
            "text" => self.text.entry(event.turn()).or_default().push_str(event.text()),
            ending => {
                self.endings.entry(event.turn()).or_default().push(ending.to_owned());
            }
        }
    }

    /// Whether all of these turns were shown, each byte and each ending once.
    fn complete(&self, sent: &[(TurnId, String)]) -> bool {
        if !sent.iter().all(|(t, _)| self.endings.get(t).is_some_and(|e| e.last().is_some_and(|l| l == "complete"))) {
            return false;
        }
        for (turn, message) in sent {
            let expected: &[&str] =
                if message.starts_with("fail") { &["error", "agent-error", "complete"] } else { &["complete"] };
            assert_eq!(self.endings[turn], expected, "{turn}");
            assert_eq!(self.text.get(turn), Some(message), "{turn}");
        }
        assert_eq!(self.endings.len(), sent.len(), "no terminal of anything else");
        true
    }

    /// Connects again and again, each time for a random number of events, until everything was shown.
    async fn follow(mut self, client: Client, path: String, seed: u64, sent: Vec<(TurnId, String)>) -> Seen {
        let mut random = SmallRng::seed_from_u64(seed);
        while !self.complete(&sent) {
            let mut stream: Stream = client.stream(&path, self.cursor.as_deref()).await.expect("a stream");
            for _ in 0..random.random_range(0..12) {
                match stream.next_within(Duration::from_millis(200)).await {
                    Some(Ok(event)) => self.take(&event),
                    Some(Err(_)) | None => break,
                }
            }
        }
        self
    }
}

fn message(random: &mut SmallRng) -> String {
    const LETTERS: [char; 8] = ['a', 'ß', '語', '🦀', '\n', '"', ' ', 'z'];
    let begin = if random.random_ratio(1, 4) { "fail" } else { "say" };
    let length = random.random_range(1..60);
    begin.chars().chain((0..length).map(|_| LETTERS[random.random_range(0..LETTERS.len())])).collect()
}

/// A12: three tabs on one conversation, a tab on each turn, and one that comes after the end; all break off after a
/// random number of events and resume by Last-Event-ID. Each sees every byte once and each terminal once.
async fn a_client_that_comes_and_goes_sees_every_byte_once(db: Db) {
    let seed = support::seed();
    let mut random = SmallRng::seed_from_u64(seed);
    let gateway = Gateway::start(&db).await;
    let client = gateway.client();
    for round in 0..6 {
        let conversation = format!("c{round}");
        let mut sent = Vec::new();
        let mut first = None;
        for i in 0..random.random_range(2..6) {
            let message = message(&mut random);
            let turn = client.submit(&conversation, &format!("m{i}"), &message).await;
            first.get_or_insert(turn.cursor);
            sent.push((turn.turn_id, message));
        }
        let mut tabs = Vec::new();
        let path = format!("/v1/conversations/{conversation}/events");
        for tab in 0..3 {
            let seen = Seen { cursor: first.clone(), ..Seen::default() };
            tabs.push(tokio::spawn(seen.follow(client.clone(), path.clone(), seed ^ tab, sent.clone())));
        }
        for (turn, message) in &sent {
            let path = format!("/v1/turns/{turn}/events");
            let only = vec![(*turn, message.clone())];
            tabs.push(tokio::spawn(Seen::default().follow(client.clone(), path, seed ^ 99, only)));
        }
        let worker = FakeWorker::on(&db.store, &gateway).await;
        let serving = worker.serve(random.random_range(1..9));
        for tab in tabs {
            gateway::within("a tab sees all", tab).await.expect("no panic");
        }
        let late = Seen { cursor: first, ..Seen::default() };
        gateway::within("the late one sees all", late.follow(client.clone(), path, seed ^ 7, sent)).await;
        serving.abort();
        db.all_delivered().await;
    }
}

/// A12: the client is gone as soon as its request is sent; the turn runs, and its terminal waits for the client.
async fn a_client_that_left_right_after_its_submit_finds_the_reply(db: Db) {
    let gateway = Gateway::start(&db).await;
    let _serving = FakeWorker::on(&db.store, &gateway).await.serve(4);
    let address = gateway.clients.strip_prefix("http://").expect("http");
    for i in 0..10 {
        let body = json!({"agent": AGENT, "message": format!("say {i}"), "messageId": "m"}).to_string();
        let head = format!("POST /v1/conversations/gone{i}/turns HTTP/1.1\r\nhost: localhost\r\n");
        let request = format!("{head}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let mut connection = tokio::net::TcpStream::connect(address).await.expect("connects");
        connection.write_all(request.as_bytes()).await.expect("sends");
        connection.shutdown().await.expect("closes");
        drop(connection);
    }
    for i in 0..10 {
        // Whether that submit was heard, its sender cannot know: it says the same again.
        let (status, answer) = gateway.client().try_submit(&format!("gone{i}"), "m", &format!("say {i}")).await;
        assert!(status == StatusCode::OK || status == StatusCode::ACCEPTED, "{answer}");
        let turn: TurnId = serde_json::from_value(answer["turnId"].clone()).expect("an id");
        assert_eq!(db.ending(turn).await, "reply");
        let shown = gateway.client().session(&format!("gone{i}"), None).await.until("complete").await;
        assert_eq!(text(&shown), format!("say {i}"));
    }
    assert_eq!(db.count("terminal").await, 10);
    db.all_delivered().await;
}

/// A12: the terminal waits for days and over a restart of the gateway; what was seen is not shown again; past the
/// retention a cursor before it is told so.
async fn days_later_after_a_restart_and_past_the_retention(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let client = gateway.client();
    let seen = client.submit("c", "m1", "hello").await;
    worker.turn().await;
    worker.reply(&[seen.turn_id], "seen").await.expect("accepted");
    let mut session = client.session("c", None).await;
    session.until("complete").await;
    let done = session.last_id.clone().expect("a cursor");
    db.all_delivered().await;
    drop(session);
    let unseen = client.submit("c", "m2", "hello").await;
    worker.turn().await;
    worker.reply(&[unseen.turn_id], "unseen").await.expect("accepted");
    eventually("the row is parked", async || db.count("delivery WHERE state = 'parked'").await == 1).await;

    for (table, column) in [("terminal", "ended_at"), ("turn", "armed_at"), ("delivery", "due_at")] {
        db.sql(format!("UPDATE {table} SET {column} = {column} - interval '5 days'")).await;
    }
    gateway.stop().await;
    let gateway = Gateway::start(&db).await;
    let client = gateway.client();
    for cursor in [None, Some(done.as_str())] {
        let shown = client.session("c", cursor).await.until("complete").await;
        assert_eq!(text(&shown), "unseen", "{cursor:?}");
        db.all_delivered().await;
    }
    let retention = Retention { turn_seconds: 3600, ..Retention::default() };
    assert_eq!(db.store.prune_past_retention(&retention).await.expect("prunes"), 2);
    let path = "/v1/conversations/c/events";
    assert_eq!(client.stream(path, Some(&seen.cursor)).await.err(), Some(StatusCode::GONE));
    assert_eq!(client.stream(path, Some(&done)).await.err(), Some(StatusCode::GONE), "the second is lost to it");
    assert!(client.stream(path, None).await.is_ok());
    assert_eq!(client.get(&format!("/v1/turns/{}", seen.turn_id)).await.0, StatusCode::NOT_FOUND);

    // A cursor that has seen all that is gone misses nothing.
    let third = client.submit("c", "m3", "hello").await;
    client.cancel(third.turn_id).await;
    let mut session = client.session("c", Some(&third.cursor)).await;
    session.until("complete").await;
    let done = session.last_id.clone().expect("a cursor");
    db.sql("UPDATE terminal SET ended_at = ended_at - interval '5 days'").await;
    db.store.prune_past_retention(&retention).await.expect("prunes");
    drop(session);
    assert!(client.stream(path, Some(&done)).await.is_ok());

    // The conversation itself goes another retention later. Who comes back to it is told, and makes no new one.
    eventually("its sessions are over", async || db.count("session").await == 0).await;
    db.sql("UPDATE conversation SET empty_since = empty_since - interval '5 days'").await;
    db.store.prune_past_retention(&retention).await.expect("prunes");
    assert_eq!(db.count("conversation").await, 0);
    assert_eq!(client.stream(path, Some(&seen.cursor)).await.err(), Some(StatusCode::GONE));
    assert_eq!(client.stream(path, Some("nonsense")).await.err(), Some(StatusCode::BAD_REQUEST));
    assert_eq!(db.count("conversation").await, 0);
    assert!(client.stream(path, None).await.is_ok());
}

/// A12: a turn's stream closes cleanly with its terminal, also for those who come back behind it.
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
    for event in &events {
        let (rest, ended) = client.turn_stream(turn, Some(&event.id)).await.rest().await;
        let at = events.iter().position(|e| e.id == event.id).expect("there");
        assert_eq!((names(&rest), ended), (names(&events[at + 1..]), End::Clean), "behind {}", event.name);
    }
}

/// A12: a gateway that stops aborts the streams that lack a terminal, and ends the others cleanly.
async fn a_shutdown_aborts_what_lacks_its_terminal(db: Db) {
    let gateway = Gateway::start(&db).await;
    let client = gateway.client();
    let open = client.submit("open", "m", "hello").await;
    let done = client.submit("done", "m", "hello").await;
    client.cancel(done.turn_id).await;
    let mut lacking = [client.session("open", None).await, client.turn_stream(open.turn_id, None).await];
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

/// A12: a turn was armed that the session has not heard of; the shutdown is no clean end for it.
async fn a_turn_that_arrives_with_the_shutdown_is_no_clean_end(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut session = gateway.client().session("c", None).await;
    // Another replica arms it, and the notice is still on its way.
    let mut arm = support::actors::arm("c");
    (arm.organization, arm.user) = ("default".into(), "local".into());
    db.store.arm(arm).await.expect("armed");
    gateway.begin_shutdown();
    assert_eq!(session.rest().await.1, End::Aborted);
}

/// A12: pieces of text end between characters, wherever the worker, the log or a cursor cut.
async fn text_is_cut_between_characters(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let client = gateway.client();
    let reply = "grüße 語 🦀 ".repeat(12_000);
    let turn = client.submit("c", "m1", "hello").await;
    worker.turn().await;
    let mut at = 0;
    for piece in [&reply[..90_000], &reply[90_000..]] {
        assert!(reply.is_char_boundary(90_000));
        at = worker.say(turn.turn_id, at, piece).await;
    }
    worker.end(turn.turn_id, at).await.expect("accepted");
    let (events, _) = client.turn_stream(turn.turn_id, None).await.rest().await;
    assert_eq!(text(&events), reply);
    // A cursor of our own making, inside a character: nothing is lost, and nothing is half.
    let prefix = turn.cursor.clone();
    for offset in 0..20u64 {
        let cursor = format!("{prefix}.1-{offset}-0");
        let (events, _) = client.turn_stream(turn.turn_id, Some(&cursor)).await.rest().await;
        let mut boundary = offset as usize;
        while !reply.is_char_boundary(boundary) {
            boundary -= 1;
        }
        assert_eq!(text(&events), reply[boundary..], "from {offset}");
    }
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
    assert_eq!(db.text("SELECT counts->>'cancelled' FROM audit").await.as_deref(), Some("1"));
    assert_eq!(client.call(Method::DELETE, "/v1/conversations/c", None).await.0, StatusCode::NOT_FOUND);
    assert_eq!(client.get(&format!("/v1/turns/{}", open.turn_id)).await.0, StatusCode::NOT_FOUND);
    client.submit("c", "m1", "anew").await;
    client.call(Method::DELETE, "/v1/conversations/idle", None).await;
    idle.rest().await;
}
