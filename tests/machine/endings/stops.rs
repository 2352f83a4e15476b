//! A stop that somebody asked for. What is in hand is finished, or failed with the stop's reason; what never began
//! is answered by another worker; what began is never run twice; who has nothing in hand goes unnoticed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::Bench;
use crate::support::chat::Chat;
use crate::support::dev::{Dev, agent};
use crate::support::process::{environment_has, parent, signal};
use crate::support::wait::eventually;
use crate::support::{LASTWORD, skipped};

/// Notes that it began, then ends when it is let go.
const PATIENT: &str = "echo $LASTWORD_TURN_ID >> begun; echo begun; while [ ! -e go ]; do sleep 0.05; done; echo done";

fn patient(version: &str) -> String {
    let spec = json!({"scope": "Agent", "timing": {"drainSeconds": 60}});
    agent("patient", spec, &["sh", "-c", PATIENT, "patient", version])
}

/// Waits until so many workers were told to stop.
async fn told_to_stop(bench: &Bench, workers: usize) {
    told(bench, "draining worker ", workers).await;
}

/// Waits until so many workers were told to take no more turns.
async fn retired(bench: &Bench, workers: usize) {
    told(bench, "takes no more turns", workers).await;
}

/// Waits until the log has these words so many times.
async fn told(bench: &Bench, words: &str, times: usize) {
    eventually(words, async || bench.dev.log().matches(words).count() >= times).await;
}

/// Every line of `begun` is there once.
fn none_began_twice(bench: &Bench) {
    let mut count = BTreeMap::new();
    for line in fs::read_to_string(bench.dev.path("begun")).unwrap().lines() {
        *count.entry(line.to_string()).or_insert(0) += 1;
    }
    assert!(count.values().all(|n| *n == 1), "begun twice: {count:?}");
}

async fn replied(bench: &Bench, turn: &Chat, text: &str) -> Value {
    let complete = turn.session.complete(&turn.turn).await;
    assert_eq!(complete.data["outcome"], "reply", "{:#?}", turn.session.frames());
    assert_eq!(turn.session.text(&turn.turn), text);
    let names = turn.session.names(&turn.turn);
    assert!(!names.iter().any(|n| n.ends_with("error")), "{names:?}");
    bench.dev.api().phase(&turn.turn, "Succeeded").await
}

#[tokio::test]
async fn a_stop_with_nothing_in_hand_is_noticed_by_nobody() {
    let says = |word: &str| {
        let program = format!("echo $LASTWORD_TURN_ID >> begun; echo {word}");
        agent("idle", json!({"scope": "Agent"}), &["sh", "-c", &program, "idle"])
    };
    let mut bench = Bench::start(&[("idle", says("one"))]).await;
    let first = bench.submit("c", "idle", "x").await;
    replied(&bench, &first, "one\n").await;
    let old = bench.dev.process(&["worker exec", "idle"]).await;
    bench.change("idle", Some(says("two")));
    let gone = async || !bench.dev.processes().iter().any(|p| p.pid == old);
    eventually("the end of the old worker", gone).await;
    let second = bench.submit("c", "idle", "y").await;
    replied(&bench, &second, "two\n").await;

    // The session that was open through it all saw two replies and nothing else.
    first.session.complete(&second.turn).await;
    let names: Vec<String> = first.session.frames().into_iter().map(|f| f.event).collect();
    assert_eq!(names, ["connected", "text", "complete", "text", "complete"]);
    let records = bench.dev.api().records("idle").await;
    assert_eq!(records.iter().filter(|r| r["phase"] == "Succeeded").count(), 2, "{records:?}");
    none_began_twice(&bench);
    assert!(bench.dev.interrupt().await.success());
    assert!(bench.dev.processes().is_empty());
}

#[tokio::test]
async fn what_is_in_hand_at_a_stop_is_finished_and_a_death_in_the_stop_fails_it() {
    let bench =
        Bench::start(&[("patient", patient("1")), ("stays", agent("stays", json!({"scope": "Agent"}), &["cat"]))])
            .await;
    let finishes = bench.in_hand("c-1", "patient", "x").await;
    let dies = bench.in_hand("c-2", "patient", "x").await;
    let worker = |record: &Value| record["worker"].as_str().unwrap().to_string();
    assert_ne!(
        worker(&bench.dev.api().record(&finishes.turn).await),
        worker(&bench.dev.api().record(&dies.turn).await),
        "each has a worker of its own"
    );
    bench.change("patient", None);
    told_to_stop(&bench, 2).await;

    let adapter = adapter_of(&bench, &dies.turn);
    signal(adapter, Signal::KILL);
    dies.failed(&bench, "Deleted").await;

    assert_eq!(bench.dev.api().record(&finishes.turn).await["phase"], "Running", "the other one is left alone");
    fs::write(bench.dev.path("go"), "").unwrap();
    replied(&bench, &finishes, "begun\ndone\n").await;
    dies.shows_one_error("Deleted");
    none_began_twice(&bench);
}

/// The adapter that runs this turn's program: the parent of the program's keeper.
fn adapter_of(bench: &Bench, turn: &str) -> u32 {
    let wanted = format!("LASTWORD_TURN_ID={turn}");
    let runs = |pid, command: &str| command.starts_with("sh -c") && environment_has(pid, &wanted);
    let program = bench.dev.processes().into_iter().find(|p| runs(p.pid, &p.command));
    parent(parent(program.expect("it runs").pid).unwrap()).unwrap()
}

/// SIGTERM reaches a stopped process when it goes on, not before: until then nothing is proven.
#[tokio::test]
async fn a_signal_that_is_not_delivered_to_a_living_worker_is_not_its_death() {
    let bench =
        Bench::start(&[("patient", patient("1")), ("stays", agent("stays", json!({"scope": "Agent"}), &["cat"]))])
            .await;
    let turn = bench.in_hand("c", "patient", "x").await;
    let adapter = adapter_of(&bench, &turn.turn);
    signal(adapter, Signal::STOP);
    bench.change("patient", None);
    told_to_stop(&bench, 1).await;
    // Passes of the fleet and the sweep go by: another agent's turn is served meanwhile by a worker that starts.
    bench.change("other", Some(agent("other", json!({"scope": "Agent"}), &["cat"])));
    eventually("the other agent", async || bench.dev.log().contains("default/other is configured")).await;
    let other = bench.submit_when_known("other").await;
    replied(&bench, &other, "x\n").await;
    assert_eq!(bench.dev.api().record(&turn.turn).await["phase"], "Running");
    signal(adapter, Signal::CONT);
    fs::write(bench.dev.path("go"), "").unwrap();
    replied(&bench, &turn, "begun\ndone\n").await;
    none_began_twice(&bench);
}

/// A worker that begins nothing, and hands everything back when it is to stop; or, as number 2, answers.
const KEEPER: &str = r#"
import os, sys, threading, types
sys.path.insert(0, sys.argv[1])
sys.dont_write_bytecode = True
import worker

class Keeper(worker.Worker):
    def take(self, push):
        with self.lock:
            if push["turnId"] in self.seen:
                return
            self.seen.add(push["turnId"])
            if not self.draining:
                self.turns[push["turnId"]] = types.SimpleNamespace(cancelled=threading.Event(), sent=0)
                return
        self.goodbye("draining", [push["turnId"]])

    def leave(self, seconds, reason):
        self.goodbye("draining", self.in_hand())
        self.goodbye("gone")
        os._exit(0)

def answer(message, history, cancelled):
    with open("begun", "a") as begun:
        begun.write(message + "\n")
    yield {"type": "text", "text": "answered " + message}

worker.answer = answer
(Keeper if sys.argv[2] == "1" else worker.Worker)().run()
"#;

#[tokio::test]
async fn what_was_claimed_and_never_begun_is_answered_by_another_worker() {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    let keeper = |number: &str| {
        let spec = json!({"scope": "Agent", "adapter": "Custom", "limits": {"turnsPerWorker": 2, "maxWorkers": 1}});
        agent("keeper", spec, &["python3", "keeper.py", examples, number])
    };
    let bench = Bench::start(&[("keeper", keeper("1"))]).await;
    fs::write(bench.dev.path("keeper.py"), KEEPER).unwrap();
    let turns = [bench.submit("c-1", "keeper", "a").await, bench.submit("c-2", "keeper", "b").await];
    let mut first = Vec::new();
    for turn in &turns {
        first.push(bench.dev.api().phase(&turn.turn, "Running").await["worker"].clone());
    }
    let keeps = bench.dev.process(&["keeper.py", "1"]).await;
    bench.change("keeper", Some(keeper("2")));
    retired(&bench, 1).await;
    // It holds what it has for as long as it may; now somebody stops it.
    signal(keeps, Signal::TERM);
    for (turn, message) in turns.iter().zip(["a", "b"]) {
        let record = replied(&bench, turn, &format!("answered {message}")).await;
        assert!(!first.contains(&record["worker"]), "another worker answered: {record}");
    }
    none_began_twice(&bench);
}

impl Bench {
    /// Submits to an Agent that has only just been configured: the gateway may hear of it a moment later.
    async fn submit_when_known(&self, agent: &str) -> Chat {
        let api = self.dev.api();
        eventually("the gateway knows the Agent", async || {
            let (status, body) = api.try_submit("probe", agent, "x", Some("probe")).await.unwrap();
            match status {
                404 => Err(body),
                202 => Ok(()),
                _ => panic!("{status}: {body}"),
            }
        })
        .await;
        self.submit(agent, agent, "x").await
    }
}

/// `dev` without the right to signal others, and a worker that is somebody else.
#[tokio::test]
async fn a_worker_that_cannot_be_signalled_is_not_dead() {
    if !rustix::process::getuid().is_root() {
        skipped("only root can run a worker as somebody else");
        return;
    }
    let patient = |version: &str| {
        let spec = json!({"scope": "Agent", "adapter": "Custom", "timing": {"drainSeconds": 60}});
        let us = ["setpriv", "--reuid=65534", "--clear-groups", "./lastword", "worker", "exec", "--"];
        agent("foreign", spec, &[&us[..], &["sh", "-c", PATIENT, "foreign", version]].concat())
    };
    let mut dev = Dev::prepare(&patient("1"), &[]);
    dev.by(&["setpriv", "--bounding-set=-kill"]);
    fs::set_permissions(dev.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::copy(LASTWORD, dev.path("lastword")).unwrap();
    dev.restart().await;
    let bench = Bench { dev, agents: Mutex::default() };
    let turn = bench.in_hand("c", "foreign", "x").await;
    bench.change("foreign", Some(patient("2")));
    retired(&bench, 1).await;
    // A worker that started later answers meanwhile.
    let next = bench.submit("d", "foreign", "y").await;
    next.stream.frame("another worker's first words", |f| f.event == "text").await;
    assert_eq!(bench.dev.api().record(&turn.turn).await["phase"], "Running");
    fs::write(bench.dev.path("go"), "").unwrap();
    replied(&bench, &turn, "begun\ndone\n").await;
    replied(&bench, &next, "begun\ndone\n").await;
    none_began_twice(&bench);
    // The worker is told on its stream; the signal fails.
    told_to_stop(&bench, 1).await;
    // Not even a killed dev takes such a worker along: it is the test that can.
    let foreign: Vec<_> = bench.dev.processes().into_iter().filter(|p| p.command.starts_with("./lastword")).collect();
    foreign.iter().for_each(|p| signal(p.pid, Signal::KILL));
}
