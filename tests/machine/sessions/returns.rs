//! Clients that come and go, and what they find when they are back.

use std::collections::BTreeMap;
use std::time::Duration;

use lastword::store::Retention;
use lastword::turn::keys::TurnId;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use reqwest::StatusCode;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::client::{Client, Event, Stream, text};
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::{AGENT, Gateway};
use crate::support::wait::{eventually, within};
use crate::support::{Db, seed};

crate::newest! {
    a_client_that_comes_and_goes_sees_every_byte_once,
    a_client_that_left_right_after_its_submit_finds_the_reply,
    a_reply_waits_for_days_and_over_a_restart_until_its_retention,
    a_long_history_is_shown_page_by_page_at_once,
    text_is_cut_between_characters,
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

/// Three tabs on one conversation, a tab on each turn, and one that comes after the end; all break off after a
/// random number of events and resume by Last-Event-ID. Each sees every byte once and each terminal once.
async fn a_client_that_comes_and_goes_sees_every_byte_once(db: Db) {
    let seed = seed();
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
            within("a tab sees all", tab).await.expect("no panic");
        }
        let late = Seen { cursor: first, ..Seen::default() };
        within("the late one sees all", late.follow(client.clone(), path, seed ^ 7, sent)).await;
        serving.abort();
        db.all_delivered().await;
    }
}

/// The client is gone as soon as its request is sent; the turn runs, and its terminal waits for the client.
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

/// The terminal waits for days and over a restart of the gateway; what was seen is not shown again; past the
/// retention a cursor before it is told so.
async fn a_reply_waits_for_days_and_over_a_restart_until_its_retention(db: Db) {
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
    assert_eq!(client.stream(path, None).await.err(), Some(StatusCode::NOT_FOUND));
    assert_eq!(db.count("conversation").await, 0, "only a message makes one");
}

/// Whoever comes back to more turns than one reading of the store gives is shown them all at once, also when the first of them
/// is open and keeps the cursor's base before it. Nothing is shown twice behind any cursor.
async fn a_long_history_is_shown_page_by_page_at_once(db: Db) {
    /// More than two readings of the store.
    const TURNS: usize = 430;
    /// A session that waits sends a comment after 15 s: nothing here may wait for that.
    const AT_ONCE: Duration = Duration::from_secs(10);
    let gateway = Gateway::start(&db).await;
    let client = gateway.client();
    for open in [false, true] {
        let name = format!("open-{open}");
        let first = client.submit(&name, "first", "hello").await;
        if !open {
            client.cancel(first.turn_id).await;
        }
        for part in 0..TURNS / 43 {
            let turns = (0..43).map(|i| {
                let (client, name) = (client.clone(), &name);
                async move {
                    let turn = client.submit(name, &format!("m{part}-{i}"), "hello").await.turn_id;
                    client.cancel(turn).await;
                }
            });
            futures::future::join_all(turns).await;
        }
        let mut session = client.session(&name, Some(&first.cursor)).await;
        let mut ended = Vec::new();
        while ended.len() < TURNS + usize::from(!open) {
            let event =
                session.next_within(AT_ONCE).await.unwrap_or_else(|| panic!("{name}: waits after {}", ended.len()));
            let event = event.expect("no end");
            if event.name == "complete" {
                ended.push(event.turn());
            }
        }
        assert_eq!(ended.contains(&first.turn_id), !open);
        // The session goes on, and so does whoever has its cursor.
        let cursor = session.last_id.clone().expect("a cursor");
        let mut other = client.session(&name, Some(&cursor)).await;
        let last = if open { first.turn_id } else { client.submit(&name, "last", "hello").await.turn_id };
        client.cancel(last).await;
        for stream in [&mut session, &mut other] {
            let events = stream.until("complete").await;
            assert!(events.iter().all(|e| e.name == "connected" || e.turn() == last), "{name}: {events:?}");
        }
        let distinct: std::collections::HashSet<_> = ended.iter().collect();
        assert_eq!(distinct.len(), ended.len(), "{name}");
    }
}

/// Pieces of text end between characters, wherever the worker, the log or a cursor cut.
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
