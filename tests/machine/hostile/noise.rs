//! Noise on both ports: requests made at random, repeated by their seed.

use std::time::Duration;

use lastword::turn::keys::TurnId;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::raw;
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::Gateway;
use crate::support::wait::{eventually, within};
use crate::support::{Db, seed};

crate::newest! {
    two_thousand_random_requests_lose_nothing,
}

/// A request made of good and bad pieces.
fn random_request(random: &mut SmallRng, turns: &[TurnId]) -> Vec<u8> {
    let pick = |random: &mut SmallRng, of: &[&str]| of[random.random_range(0..of.len())].to_owned();
    let method = pick(random, &["GET", "GET", "POST", "POST", "POST", "DELETE", "PUT", "HEAD", "OPTIONS", "BREW"]);
    let turn = if random.random_bool(0.5) { turns[random.random_range(0..turns.len())] } else { TurnId::new() };
    let name =
        pick(random, &["f1", "f2", "%00", "%FF", "%0A", "..", "a%2Fb", "%F0%9F%A6%80", "'; DROP TABLE turn; --"]);
    let path = match random.random_range(0..9) {
        0 | 1 => format!("/v1/conversations/{name}/turns"),
        2 => format!("/v1/conversations/{name}"),
        3 => format!("/v1/turns/{turn}"),
        4 => format!("/v1/turns/{turn}/cancel"),
        5 => "/v1/turns".to_owned(),
        6 => format!("/worker/v1/turns/{turn}/output"),
        7 => pick(random, &["/worker/v1/finish", "/worker/v1/heartbeat", "/worker/v1/goodbye"]),
        _ => (0..random.random_range(0..30)).map(|_| random.random_range('!'..'~')).collect(),
    };
    let query = pick(
        random,
        &[
            "",
            "",
            "?limit=0",
            "?limit=1e9",
            "?before=-1",
            "?offset=-1",
            "?offset=18446744073709551615",
            "?%",
            "?a=%FF&a=1",
        ],
    );
    let kind =
        pick(random, &["application/json", "application/json", "application/json; charset=utf-8", "text/html", ""]);
    let mut body = match random.random_range(0..6) {
        0 | 1 => format!("{{\"agent\": \"bot\", \"message\": \"fuzz {}\"}}", random.random_range(0..9)),
        2 => "{\"agent\": \"bot\", \"message\": \"x\", \"messageId\": \"same\"}".to_owned(),
        3 => format!(
            "{{\"turnIds\": [\"{turn}\"], \"replyId\": \"r\", \"outcome\": {{\"type\": \"reply\"}}, \"end\": 3}}"
        ),
        4 => "{\"frames\": [{\"type\": \"text\", \"text\": \"hi\"}]}".to_owned(),
        _ => String::new(),
    }
    .into_bytes();
    for _ in 0..random.random_range(0..3) {
        if !body.is_empty() && random.random_bool(0.5) {
            let at = random.random_range(0..body.len());
            body[at] = random.random();
        }
    }
    let length = if random.random_ratio(1, 20) { body.len() / 2 } else { body.len() };
    let cursor = pick(random, &["", "1.0.0", "1.aaaaaaaa.99999999999999999999", "\u{e4}", "1.aaaaaaaa.0.1-1-300"]);
    let mut request = format!(
        "{method} {path}{query} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: {kind}\r\n\
         last-event-id: {cursor}\r\ncontent-length: {length}\r\n\r\n"
    )
    .into_bytes();
    request.extend(body);
    for _ in 0..random.random_range(0..8) / 6 {
        let at = random.random_range(0..request.len());
        request[at] = random.random();
    }
    request
}

/// Seeded random requests to both ports, among the turns of a client that means well: never a 5xx, no turn is lost,
/// every turn that was armed by the noise has its terminal in the end.
async fn two_thousand_random_requests_lose_nothing(db: Db) {
    let seed = seed();
    let short = Duration::from_millis(500);
    let gateway = Gateway::with(db.options(), |c| (c.header_timeout, c.body_timeout) = (short, short)).await;
    let serving = FakeWorker::on(&db.store, &gateway).await.serve(7);
    let client = gateway.client();
    let mut known = Vec::new();
    for i in 0..10 {
        known.push(client.submit("good", &format!("m{i}"), &format!("say {i}")).await.turn_id);
    }
    let mut noise = tokio::task::JoinSet::new();
    for part in 0..8 {
        let (known, clients, workers) = (known.clone(), gateway.clients.clone(), gateway.workers.clone());
        noise.spawn(async move {
            let mut random = SmallRng::seed_from_u64(seed.wrapping_add(part));
            for _ in 0..250 {
                let request = random_request(&mut random, &known);
                let base = if random.random_bool(0.7) { &clients } else { &workers };
                let answer = raw(base, &request).await;
                let shown = String::from_utf8_lossy(&request).into_owned();
                let fine = ["HTTP/1.1 2", "HTTP/1.1 4", "HTTP/1.0 4"].iter().any(|s| answer.starts_with(s));
                assert!(answer.is_empty() || fine, "{shown}\n{answer}");
            }
        });
    }
    while let Some(done) = within("the noise ends", noise.join_next()).await {
        done.expect("nothing but 2xx and 4xx");
    }
    for turn in known {
        // The noise may have cancelled it; it has a last word.
        db.ending(turn).await;
    }
    let last = client.submit("after", "m", "still here").await.turn_id;
    assert_eq!(db.ending(last).await, "reply");
    eventually("nothing is open", async || db.count("marker").await == 0).await;
    let turns = db.count("turn").await;
    println!("{turns} turns");
    assert_eq!(db.count("terminal").await, turns);
    serving.abort();
}
