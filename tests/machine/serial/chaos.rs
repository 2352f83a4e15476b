//! The promise: whatever was acknowledged has exactly one last word, also when everything is killed at any moment.
//!
//! Each round starts `lastword dev` on the same directory, submits a load, and kills it, Postgres and workers included,
//! with SIGKILL at a random moment. `LASTWORD_CHAOS_ROUNDS` says how many rounds, `LASTWORD_TEST_SEED` repeats a run's
//! choices (not its timing).

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::time::{Duration, Instant};

use futures::StreamExt;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::support::api::{Api, End};
use crate::support::dev::{Dev, agent};
use crate::support::wait::eventually_within;
use crate::support::{count, seed};

/// Turns of a round.
const LOAD: usize = 20;
/// Every so many rounds, what is open is let end, and how long that takes is measured.
const QUIET_EVERY: usize = 10;
/// "Within seconds of the restart".
const SETTLED_WITHIN: Duration = Duration::from_secs(30);
/// Notes that it began, and takes as long as the message says.
const PROGRAM: &str = "echo $LASTWORD_TURN_ID >> begun; read delay; echo begun; sleep $delay; echo ended";

/// What was submitted, by message id: the conversation, and the turn once it was acknowledged.
type Submitted = BTreeMap<String, (String, String, Option<String>)>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_dev_leaves_one_last_word_a_turn_and_nothing_else() {
    let rounds: usize = count("LASTWORD_CHAOS_ROUNDS").unwrap_or(50);
    println!("LASTWORD_CHAOS_ROUNDS={rounds}");
    let mut random = StdRng::seed_from_u64(seed());
    let limits = json!({"turnsPerWorker": 4, "maxWorkers": 4});
    let agents = agent("echo", json!({"scope": "Agent", "limits": limits}), &["sh", "-c", PROGRAM]);
    let mut dev = Dev::prepare(&agents, &["--sweep-milliseconds", "200"]);
    let (mut submitted, mut slowest) = (Submitted::new(), Duration::ZERO);
    let begun = Instant::now();
    for round in 0..rounds {
        dev.restart().await;
        if round % QUIET_EVERY == QUIET_EVERY - 1 {
            slowest = slowest.max(settle(&dev.api(), &mut submitted).await);
        }
        let load = load(&mut random, round);
        let moment = Duration::from_millis(random.random_range(50..=800));
        let answers = submit_until(&mut dev, &load, moment).await;
        for (id, (conversation, message)) in load {
            submitted.insert(id.clone(), (conversation, message, answers.get(&id).cloned()));
        }
    }
    let acknowledged = submitted.values().filter(|(_, _, turn)| turn.is_some()).count();
    println!(
        "{rounds} rounds in {:?}; {acknowledged} of {} acknowledged before a kill",
        begun.elapsed(),
        submitted.len()
    );

    dev.nothing_left().await;
    dev.restart().await;
    slowest = slowest.max(settle(&dev.api(), &mut submitted).await);
    println!("at the latest {slowest:?} after a restart, everything had its last word");
    every_turn_has_one_last_word(&dev.api(), &submitted).await;
    none_began_twice(&dev, &submitted);
    assert!(dev.interrupt().await.success());
    assert!(dev.processes().is_empty(), "{:#?}", dev.processes());
}

/// The messages of a round: some in conversations of their own, some behind each other in one.
fn load(random: &mut StdRng, round: usize) -> Vec<(String, (String, String))> {
    (0..LOAD)
        .map(|n| {
            let conversation = match n % 4 {
                0 => format!("shared-{}", n % 3),
                _ => format!("c-{round}-{n}"),
            };
            let delay = format!("0.{:02}", random.random_range(0..30));
            (format!("m-{round}-{n}"), (conversation, delay))
        })
        .collect()
}

/// Submits a load and kills dev at this moment after the first submit; the turns that were acknowledged, by message id.
async fn submit_until(dev: &mut Dev, load: &[(String, (String, String))], moment: Duration) -> HashMap<String, String> {
    let (api, kill) = (dev.api(), tokio::time::Instant::now() + moment);
    let calls = load.iter().cloned().map(|(id, (conversation, delay))| {
        let api = api.clone();
        tokio::spawn(async move {
            // Some come as others run.
            let (status, body) = api.try_submit(&conversation, "echo", &delay, Some(&id)).await.ok()?;
            assert!(matches!(status, 202 | 503), "{status}: {body}");
            (status == 202).then(|| (id, body["turnId"].as_str().unwrap().to_string()))
        })
    });
    let calls: Vec<_> = calls.collect();
    // The moment is the experiment's own; nothing is awaited by it.
    tokio::time::sleep_until(kill).await;
    dev.kill9().await;
    let answers = futures::future::join_all(calls).await;
    answers.into_iter().filter_map(|a| a.expect("no answer but 202 and 503")).collect()
}

/// Asks again for what was not acknowledged, and waits until nothing is open; how long that took.
async fn settle(api: &Api, submitted: &mut Submitted) -> Duration {
    let begun = Instant::now();
    for (id, (conversation, delay, turn)) in submitted.iter_mut().filter(|(_, s)| s.2.is_none()) {
        let (status, body) = api.try_submit(conversation, "echo", delay, Some(id)).await.unwrap();
        assert!(matches!(status, 200 | 202), "{status}: {body}");
        *turn = Some(body["turnId"].as_str().unwrap().to_string());
    }
    let open = |phase: &'static str| async move {
        let (status, page) = api.get(&format!("/v1/turns?phase={phase}&limit=1")).await;
        assert_eq!(status, 200, "{page}");
        !page["turns"].as_array().unwrap().is_empty()
    };
    let left = SETTLED_WITHIN.saturating_sub(begun.elapsed());
    eventually_within(left, "nothing is open after a restart", async || {
        !(open("Armed").await || open("Running").await)
    })
    .await;
    begun.elapsed()
}

async fn every_turn_has_one_last_word(api: &Api, submitted: &Submitted) {
    let records = api.records("echo").await;
    let by_id: HashMap<&str, &Value> = records.iter().map(|r| (r["turnId"].as_str().unwrap(), r)).collect();
    assert_eq!(by_id.len(), records.len(), "a turn is listed once");
    assert_eq!(records.len(), submitted.len(), "a turn a message");
    let mut outcomes = BTreeMap::new();
    for (id, (.., turn)) in submitted {
        let record = by_id[turn.as_deref().expect("all are acknowledged by now")];
        assert_eq!(record["messageId"], id.as_str());
        let outcome = match record["phase"].as_str() {
            Some("Succeeded") => "reply".to_string(),
            Some("Failed") => record["error"]["reason"].as_str().unwrap().to_string(),
            _ => panic!("{record}"),
        };
        *outcomes.entry(outcome).or_insert(0) += 1;
    }
    println!("last words of {} turns: {outcomes:?}", records.len());
    for outcome in outcomes.keys() {
        // What waited is answered by the next run's workers; what was in hand died with its worker.
        assert!(["reply", "WorkerExited"].contains(&outcome.as_str()), "a kill is no other failure: {outcomes:?}");
    }
    let streams = by_id.keys().map(|turn| one_terminal(api, turn));
    let terminals: usize =
        futures::stream::iter(streams).buffer_unordered(16).collect::<Vec<_>>().await.into_iter().sum();
    println!("{terminals} terminals on the streams of {} turns", by_id.len());
    assert_eq!(terminals, by_id.len());
}

/// The terminals that a turn's own stream shows.
async fn one_terminal(api: &Api, turn: &str) -> usize {
    let stream = api.turn(turn);
    assert_eq!(stream.ended().await, End::Clean, "{:#?}", stream.frames());
    let names = stream.names(turn);
    assert_eq!(names.last().map(String::as_str), Some("complete"), "{names:?}");
    names.iter().filter(|n| *n == "complete").count()
}

fn none_began_twice(dev: &Dev, submitted: &Submitted) {
    let mut begun = BTreeMap::new();
    for turn in fs::read_to_string(dev.path("begun")).unwrap().lines() {
        *begun.entry(turn.to_string()).or_insert(0) += 1;
    }
    println!("{} turns began", begun.len());
    let twice: Vec<_> = begun.iter().filter(|(_, n)| **n > 1).collect();
    assert!(twice.is_empty(), "begun twice: {twice:?}");
    for (_, _, turn) in submitted.values() {
        begun.remove(turn.as_deref().unwrap());
    }
    assert!(begun.is_empty(), "begun, but nobody's turn: {begun:?}");
}
