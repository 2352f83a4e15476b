//! The protocol, whatever the adapter.

use lastword::wire::GoodbyePhase;

use super::*;
use crate::support::http::free_address;
use crate::support::process::signal;
use crate::support::repository;

async fn conforms(worker: &[&str]) {
    let output = conformance(worker).await;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.ends_with("13 passed, 0 failed, 0 skipped\n"), "{said}");
}

#[tokio::test]
async fn echo_conforms() {
    conforms(&[LASTWORD, "worker", "echo"]).await;
}

#[tokio::test]
async fn exec_conforms() {
    let script = "read m; case \"$m\" in conformance-slow*) sleep 3;; esac; echo \"$m\"";
    conforms(&[LASTWORD, "worker", "exec", "--", "sh", "-c", script]).await;
}

#[tokio::test]
async fn the_python_example_conforms() {
    conforms(&["python3", repository("examples/worker.py").to_str().unwrap()]).await;
}

#[tokio::test]
async fn conformance_tells_what_does_not_conform() {
    let output = conformance(&["sh", "-c", "exec sleep 100"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("FAILED  connects"));
}

#[tokio::test]
async fn a_refused_credential_and_a_dead_lease_have_their_exit_codes() {
    let mut bench = Bench::with(&["echo"], |state| state.gone = true).await;
    assert_eq!(bench.exit_code().await, Some(3));
    let mut worker = Command::new(LASTWORD);
    worker.args(["worker", "echo"]).env("LASTWORD_WORKER_GATEWAY", bench.gateway.url().as_str());
    let status = worker.env("LASTWORD_CREDENTIAL", "another").kill_on_drop(true).status().await.unwrap();
    assert_eq!(status.code(), Some(4));
}

#[tokio::test]
async fn a_worker_goes_to_the_next_gateway() {
    let gateway = FakeGateway::start(SECRET.into(), 8).await.unwrap();
    let gateways = format!("http://{},{}", free_address(), gateway.url());
    let mut worker = Command::new(LASTWORD);
    worker.args(["worker", "echo", "--gateway", &gateways]).env("LASTWORD_CREDENTIAL", SECRET);
    let _worker = worker.kill_on_drop(true).spawn().unwrap();
    gateway.wait(BOUND, |state| (!state.connects.is_empty()).then_some(())).await.expect("connects");
}

#[tokio::test]
async fn a_worker_that_takes_turns_together_says_one_word_for_all() {
    let bench = Bench::with(&["echo", "--together"], |state| state.unavailable_streams = u32::MAX).await;
    let turns = ["a", "b", "c"].map(|message| bench.gateway.push(message));
    bench.gateway.with(|state| state.unavailable_streams = 0);
    let ids = bench
        .gateway
        .wait(BOUND, |state| {
            let finishes: Vec<_> = turns.iter().flat_map(|id| &state.turns[id].finishes).collect();
            let all = turns.iter().all(|id| state.turns[id].closed);
            (all && finishes.len() == 1).then(|| finishes[0].turn_ids.clone())
        })
        .await
        .expect("one finish for all");
    assert_eq!(ids.len(), 3);
}

#[tokio::test]
async fn what_a_drain_does_not_finish_is_left_to_the_server() {
    let mut bench = Bench::start(&["exec", "--drain-seconds", "1", "--", "sleep", "100"]).await;
    let turn = bench.gateway.push("m");
    let named = |state: &GatewayState| state.heartbeats.last().filter(|(_, turns)| turns.contains(&turn)).map(|_| ());
    bench.gateway.wait(BOUND, named).await.expect("in hand");
    signal(bench.worker.id().unwrap(), rustix::process::Signal::TERM);
    assert_eq!(bench.exit_code().await, Some(0));
    let (phases, finishes) = bench.gateway.with(|state| {
        let phases: Vec<_> = state.goodbyes.iter().map(|goodbye| goodbye.phase).collect();
        (phases, state.turns[&turn].finishes.len())
    });
    assert_eq!((phases, finishes), (vec![GoodbyePhase::Draining, GoodbyePhase::Gone], 0));
}
