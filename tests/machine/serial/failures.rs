//! The promise: every way to fail ends a turn once, with its own reason, in the record as on every stream. Each row makes its
//! cause happen, and waits for the turn's end. How long that takes is measured, so nothing else is to load the machine.

use std::pin::Pin;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::endings::Bench;
use crate::support::api::End;
use crate::support::chat::Chat;
use crate::support::dev::agent;
use crate::support::process::signal;
use crate::support::skipped;
use crate::support::wait::eventually;

/// The row whose time is asserted.
const KILLED: &str = "adapter killed with SIGKILL";
/// Says that it has begun, and never ends by itself. Its last word tells the adapters of several agents apart.
const HANG: &str = "echo begun; exec sleep 1000";

/// A worker that never says anything.
const NEVER: [&str; 2] = ["sleep", "1001"];

/// What a row of the table came to.
struct Row {
    name: &'static str,
    reason: &'static str,
    turn: Chat,
    /// From the cause to the `error` frame in a client.
    took: Duration,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_way_to_fail_ends_its_turn_once_and_says_why() {
    let bench = Bench::start(&agents()).await;
    let rows = run(&bench).await;
    for row in &rows {
        println!("{:<40} {:<18} {:>8.1} ms", row.name, row.reason, row.took.as_secs_f64() * 1000.0);
    }
    // Sessions were open all the while: nothing followed.
    for row in &rows {
        row.turn.shows_one_error(row.reason);
        assert_eq!(row.turn.session.end(), End::Open);
    }
    let killed = rows.iter().find(|r| r.name == KILLED).expect("the row ran");
    assert!(killed.took < Duration::from_secs(1), "a proven death is told within a second: {:?}", killed.took);
}

fn hang(name: &str, mut spec: Value) -> String {
    spec["scope"] = "Agent".into();
    agent(name, spec, &["sh", "-c", HANG, name])
}

/// A short lease, where a verdict of silence is waited for: such verdicts wait for one lease after a start, too.
fn short(mut timing: Value) -> Value {
    timing["leaseSeconds"] = 3.into();
    json!({"timing": timing})
}

fn queue(name: &str, waiting: u32) -> String {
    hang(name, json!({"limits": {"maxWorkers": 1, "maxQueuedTurns": waiting}}))
}

fn hungry() -> String {
    let program = "x = []\nfor _ in range(32): x.append(b'x' * (8 << 20))\nprint('nobody limits me')";
    let container =
        json!({"name": "agent", "command": ["python3", "-c", program], "resources": {"limits": {"memory": "64Mi"}}});
    let document = agent("hungry", json!({"scope": "Agent"}), &[]);
    let mut document: Value = serde_json::from_str(document.trim_start_matches("---")).unwrap();
    document["spec"]["template"]["spec"]["containers"][0] = container;
    format!("---\n{document}\n")
}

fn agents() -> Vec<(&'static str, String)> {
    let shared = || json!({"scope": "Agent"});
    let sh = |name, program: &str| agent(name, shared(), &["sh", "-c", program]);
    vec![
        ("missing", agent("missing", shared(), &["/no/such/program"])),
        ("exits", sh("exits", "exit 1")),
        // As in Kubernetes, a command's `$$` is a `$`.
        ("crashes", sh("crashes", "kill -SEGV $$$$")),
        ("empty", sh("empty", "exit 0")),
        ("hungry", hungry()),
        ("silent", hang("silent", short(json!({})))),
        ("late", hang("late", short(json!({"turnSeconds": 2})))),
        ("full", queue("full", 1)),
        ("lowered", queue("lowered", 3)),
        ("guarded", {
            let guardrails = json!({"input": [{"cel": "!message.contains('password')", "message": "No passwords."}]});
            agent("guarded", json!({"scope": "Agent", "guardrails": guardrails}), &["cat"])
        }),
        ("cancelled", hang("cancelled", json!({}))),
        ("killed", hang("killed", json!({}))),
        ("never", {
            let mut spec = short(json!({"startSeconds": 3}));
            spec["adapter"] = "Custom".into();
            agent("never", spec, &[NEVER[0], NEVER[1]])
        }),
        ("removed", hang("removed", json!({"limits": {"maxWorkers": 1}, "timing": {"drainSeconds": 1}}))),
    ]
}

type Running<'a> = Pin<Box<dyn Future<Output = Vec<Row>> + 'a>>;

/// Runs all rows at once.
async fn run(bench: &Bench) -> Vec<Row> {
    let rows: Vec<Running> = vec![
        Box::pin(at_once(bench, "program missing", "missing", "StartFailed")),
        Box::pin(at_once(bench, "program exits 1", "exits", "AgentError")),
        Box::pin(at_once(bench, "program killed by a signal", "crashes", "WorkerExited")),
        Box::pin(at_once(bench, "program exits 0 without output", "empty", "AgentError")),
        Box::pin(never(bench)),
        Box::pin(at_once(bench, "hard deadline (2 s)", "late", "DeadlineExceeded")),
        Box::pin(out_of_memory(bench)),
        Box::pin(silent(bench)),
        Box::pin(killed(bench)),
        Box::pin(guarded(bench)),
        Box::pin(cancelled(bench)),
        Box::pin(full(bench)),
        Box::pin(lowered(bench)),
        Box::pin(removed(bench)),
    ];
    futures::future::join_all(rows).await.into_iter().flatten().collect()
}

async fn over(bench: &Bench, name: &'static str, reason: &'static str, turn: Chat, cause: Instant) -> Row {
    let shown = turn.failed(bench, reason).await;
    Row { name, reason, turn, took: shown.saturating_duration_since(cause) }
}

/// The cause lies in the Agent: the turn fails by being submitted.
async fn at_once(bench: &Bench, name: &'static str, agent: &str, reason: &'static str) -> Vec<Row> {
    let turn = bench.submit(agent, agent, "x").await;
    let cause = turn.submitted;
    vec![over(bench, name, reason, turn, cause).await]
}

async fn never(bench: &Bench) -> Vec<Row> {
    let rows = at_once(bench, "worker never connects (3 s)", "never", "StartFailed").await;
    let gone = async || !bench.dev.processes().iter().any(|p| p.command == NEVER.join(" "));
    eventually("the end of the worker that never connected", gone).await;
    rows
}

async fn out_of_memory(bench: &Bench) -> Vec<Row> {
    let turn = bench.submit("hungry", "hungry", "x").await;
    turn.session.complete(&turn.turn).await;
    if bench.dev.log().contains("memory limits of Agents are not enforced") {
        skipped("no cgroup can be made here, so nothing runs out of memory");
        return Vec::new();
    }
    let cause = turn.submitted;
    vec![over(bench, "out of memory (64 MiB)", "OutOfMemory", turn, cause).await]
}

async fn silent(bench: &Bench) -> Vec<Row> {
    let turn = bench.in_hand("silent", "silent", "x").await;
    let adapter = bench.dev.process(&["worker exec", HANG, "silent"]).await;
    let cause = Instant::now();
    signal(adapter, Signal::STOP);
    let row = over(bench, "adapter silent for its lease (3 s)", "LeaseLapsed", turn, cause).await;
    // What is given up is not left lying around.
    let gone = async || !bench.dev.processes().iter().any(|p| p.pid == adapter);
    eventually("the end of the adapter that was given up", gone).await;
    vec![row]
}

async fn killed(bench: &Bench) -> Vec<Row> {
    let turn = bench.in_hand("killed", "killed", "x").await;
    let adapter = bench.dev.process(&["worker exec", HANG, "killed"]).await;
    let cause = Instant::now();
    signal(adapter, Signal::KILL);
    vec![over(bench, KILLED, "WorkerExited", turn, cause).await]
}

async fn guarded(bench: &Bench) -> Vec<Row> {
    let fine = bench.submit("fine", "guarded", "hello").await;
    fine.session.complete(&fine.turn).await;
    assert_eq!(fine.stream.text(&fine.turn), "hello\n");
    let turn = bench.submit("guarded", "guarded", "my password is 1234").await;
    let cause = turn.submitted;
    let row = over(bench, "guardrail", "GuardrailRejected", turn, cause).await;
    let error = row.turn.session.frame("error", |f| f.event == "error").await;
    assert_eq!(error.data["message"], "No passwords.", "the Agent's own words");
    vec![row]
}

async fn cancelled(bench: &Bench) -> Vec<Row> {
    let turn = bench.in_hand("cancelled", "cancelled", "x").await;
    let cause = Instant::now();
    let record = bench.dev.api().cancel(&turn.turn).await;
    assert_eq!(record["error"]["reason"], "Cancelled", "{record}");
    vec![over(bench, "cancelled", "Cancelled", turn, cause).await]
}

/// One runs, one waits, and the third is refused: no turn, so no terminal either.
async fn full(bench: &Bench) -> Vec<Row> {
    let api = bench.dev.api();
    let running = bench.in_hand("full-1", "full", "x").await;
    let waiting = bench.submit("full-2", "full", "x").await;
    let (status, problem) = api.try_submit("full-3", "full", "x", Some("m-3")).await.unwrap();
    assert_eq!((status, &problem["reason"]), (429, &json!("QuotaExceeded")), "{problem}");
    assert_eq!(problem["messageId"], "m-3", "{problem}");
    let turns = api.records("full").await;
    assert_eq!(turns.len(), 2, "a refused message is no turn: {turns:?}");
    let cause = Instant::now();
    api.cancel(&waiting.turn).await;
    let row = over(bench, "cancelled while it waits", "Cancelled", waiting, cause).await;
    // Room again.
    let again = bench.submit("full-3", "full", "x").await;
    api.cancel(&running.turn).await;
    again.stream.frame("its turn has come", |f| f.event == "text").await;
    vec![row]
}

/// The surplus of a queue that became shorter ends, the newest first.
async fn lowered(bench: &Bench) -> Vec<Row> {
    bench.in_hand("lowered-1", "lowered", "x").await;
    let mut waiting = Vec::new();
    for conversation in ["lowered-2", "lowered-3", "lowered-4"] {
        waiting.push(bench.submit(conversation, "lowered", "x").await);
    }
    let cause = Instant::now();
    bench.change("lowered", Some(queue("lowered", 1)));
    let mut rows = Vec::new();
    for surplus in waiting.split_off(1) {
        rows.push(over(bench, "queue shortened while it waits", "QuotaExceeded", surplus, cause).await);
    }
    assert_eq!(bench.dev.api().record(&waiting[0].turn).await["phase"], "Armed", "the oldest one may wait on");
    rows
}

async fn removed(bench: &Bench) -> Vec<Row> {
    let running = bench.in_hand("removed-1", "removed", "x").await;
    let waiting = bench.submit("removed-2", "removed", "x").await;
    let cause = Instant::now();
    bench.change("removed", None);
    let waited = over(bench, "agent removed while the turn waits", "AgentNotFound", waiting, cause).await;
    let ran = over(bench, "agent removed, not done in drainSeconds", "Deleted", running, cause).await;
    vec![waited, ran]
}
