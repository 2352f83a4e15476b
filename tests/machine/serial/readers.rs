//! Readers who do not read, beside chats.

use std::time::{Duration, Instant};

use axum::body::Bytes;
use lastword::metrics::METRICS;
use lastword::turn::keys::TurnId;
use lastword::wire::FinishResult;
use tokio::net::TcpStream;

use crate::support::Db;
use crate::support::client::{Client, End, Stream, text};
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::Gateway;
use crate::support::wait::{eventually, within};

crate::newest! { who_does_not_read_is_cut_and_delays_nobody }

/// Readers of each protocol that stall, and chats beside them.
const STALLED: usize = 25;
const CHATS: usize = 50;
/// More than the kernel's buffers take.
const PIECES: usize = 16;
const PIECE: usize = 512 * 1024;

fn stalled_streams_cut() -> u64 {
    METRICS.streams_cut.with_label_values(&["stalled"]).get()
}

/// A part of the long reply, which no other part is like.
fn piece(n: usize) -> String {
    format!("{n:02}").repeat(PIECE / 2)
}

/// What this process has of the machine's memory, in bytes.
fn memory() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("pages") * 4096
}

/// Asks for a turn's stream by HTTP/2, on a connection of its own, and reads nothing of it.
async fn by_http2(gateway: &Gateway, turn: TurnId) -> (h2::client::SendRequest<Bytes>, h2::RecvStream) {
    let address = gateway.clients.strip_prefix("http://").expect("http");
    let stream = TcpStream::connect(address).await.expect("connects");
    let (sender, connection) = h2::client::handshake(stream).await.expect("a handshake");
    tokio::spawn(connection);
    let mut sender = sender.ready().await.expect("ready");
    let request =
        axum::http::Request::get(format!("{}/v1/turns/{turn}/events", gateway.clients)).body(()).expect("a request");
    let (answer, _) = sender.send_request(request, true).expect("sent");
    let answer = within("an answer", answer).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    (sender, answer.into_body())
}

/// Chats one after the other, and what the slowest took.
async fn chat(client: &Client, name: &str) -> Duration {
    let mut slowest = Duration::ZERO;
    for n in 0..CHATS {
        let begun = Instant::now();
        let turn = client.submit(&format!("{name}-{n}"), "m", "hello").await;
        let (events, end) = client.turn_stream(turn.turn_id, None).await.rest().await;
        assert_eq!((text(&events).as_str(), end), ("hello", End::Clean));
        slowest = slowest.max(begun.elapsed());
    }
    slowest
}

/// Fifty readers of a long reply stall; chats go on as before, the stalled are cut, and they catch up by their cursors.
async fn who_does_not_read_is_cut_and_delays_nobody(db: Db) {
    let patience = Duration::from_secs(3);
    let gateway = Gateway::with(db.options(), |c| c.reader_patience = patience).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let client = gateway.client();
    let long = client.submit("long", "m", "hello").await.turn_id;
    worker.turn().await;
    let mut end = 0;
    for n in 0..PIECES {
        end = worker.say(long, end, &piece(n)).await;
    }
    assert_eq!(worker.end(long, end).await, Ok(FinishResult::Accepted));
    let whole: String = (0..PIECES).map(piece).collect();
    // From now on it answers at once.
    tokio::spawn(async move {
        loop {
            let turn = worker.turn().await.turn_id;
            let _ = worker.reply(&[turn], "hello").await;
        }
    });
    let alone = chat(&client, "alone").await;
    let (before, cut) = (memory(), stalled_streams_cut());
    let mut first: Vec<Stream> = Vec::new();
    let mut second = Vec::new();
    for _ in 0..STALLED {
        first.push(client.turn_stream(long, None).await);
        second.push(by_http2(&gateway, long).await);
    }
    let beside = chat(&client, "beside").await;
    let grown = memory().saturating_sub(before) / (1024 * 1024);
    println!(
        "the slowest chat: {alone:?} alone, {beside:?} beside {} stalled readers, who took {grown} MiB",
        2 * STALLED
    );
    assert!(grown < 200, "{grown} MiB");
    let all = cut + 2 * STALLED as u64;
    eventually("all that stall are cut", async || match stalled_streams_cut() {
        now if now >= all => Ok(()),
        now => Err(format!("{} of {}", now - cut, 2 * STALLED)),
    })
    .await;
    // Whoever comes back has missed nothing.
    let mut stalled = first.pop().expect("one");
    let (events, end) = stalled.rest().await;
    assert_eq!(end, End::Aborted);
    let mut read = text(&events);
    let mut again = client.turn_stream(long, stalled.last_id.as_deref()).await;
    let (events, end) = again.rest().await;
    read.push_str(&text(&events));
    assert!(end == End::Clean && read == whole, "{} of {} bytes", read.len(), whole.len());
    let (_sender, mut body) = second.pop().expect("one");
    let broken = loop {
        match within("what is left of the stream", body.data()).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("a clean end"),
        }
    };
    assert!(broken.is_reset() && broken.is_remote(), "{broken}");
}
