//! Ways for a worker to die with turns in hand. Each is told once, with its own reason, to a chat client and
//! in the AgentTurn's status.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::scene::agents::{
    ACTOR, custom, exec, openai, server_config, shell, with, with_agent, with_pod, worker_config,
};
use crate::scene::faults::{Fault, Row};
use crate::scene::times::Times;

/// Rows whose times are compared are repeated.
const REPETITIONS: usize = 5;

fn actor() -> Value {
    shell(ACTOR)
}

/// With little memory, though enough for the adapter.
fn hungry() -> Value {
    with_agent(actor(), json!({"resources": {"limits": {"memory": "96Mi"}}}))
}

/// It never ends by itself, and its pod has 2 s to end.
fn outlasting() -> Value {
    with_pod(actor(), json!({"terminationGracePeriodSeconds": 2}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_exits_1_is_told_by_its_adapter() {
    let row = Row::new("program_exits_1", actor(), Fault::Program(Signal::USR2), &["AgentError"]);
    fast(&row.telling("exit code 1\noops").times(REPETITIONS).run().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_program_is_told_by_its_adapter() {
    let row = Row::new("program_killed", actor(), Fault::Program(Signal::KILL), &["WorkerExited"]);
    fast(&row.telling("killed by SIGKILL").times(REPETITIONS).run().await);
}

/// The adapter tells it itself. The aim is 50 ms at the median; many rows share the cores here, so what is asserted is
/// only that nothing but the adapter was waited for: the pod lives on, and only the end of its lease would tell it then.
fn fast(times: &Times) {
    let Some(p50) = times.client_p50() else { return };
    assert!(p50.as_millis() < 5000, "a program's end is told by its adapter: {p50:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_adapter_is_told_with_the_pods_news() {
    let row = Row::new("adapter_killed", actor(), Fault::Adapter(Signal::KILL), &["WorkerExited"]);
    let times = row.telling("container agent: exit code 137").times(REPETITIONS).run().await;
    let Some((client, news)) = times.client_p50().zip(times.news_p50()) else { return };
    assert!(
        client.as_millis() < news.as_millis() + 1000,
        "told {client:?} after the fault, the API server's news {news:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_out_of_memory_is_told_by_its_adapter() {
    let row = Row::new("oom_program", hungry(), Fault::Program(Signal::HUP), &["OutOfMemory"]);
    row.telling("killed by the kernel").run().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_memory_is_told_though_both_are_killed() {
    Row::new("oom_both", hungry(), Fault::MemoryOfBoth, &["OutOfMemory"]).telling("OOMKilled").run().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_fails_its_turns_as_deleted() {
    Row::new("pod_deleted", outlasting(), Fault::Delete, &["Deleted"]).run().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_deleted_by_force_fails_its_turns_as_deleted() {
    Row::new("pod_force_deleted", outlasting(), Fault::ForceDelete, &["Deleted"]).run().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_pod_fails_its_turns_as_evicted() {
    Row::new("pod_evicted", outlasting(), Fault::Evict, &["Evicted"]).run().await;
}

/// Nothing tells the end of what does not run: the lease decides.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_pod_fails_its_turns_by_its_lease() {
    let agent = with(actor(), json!({"timing": {"leaseSeconds": 5}}));
    Row::new("pod_stopped", agent, Fault::Pod(Signal::STOP), &["LeaseLapsed"]).run().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_exits_0_with_a_turn_in_hand_fails_it() {
    let row = Row::new("custom_exits_0", custom(), Fault::Adapter(Signal::USR1), &["WorkerExited"]);
    row.with(vec![worker_config()]).telling("container agent: exit code 0").run().await;
}

/// The adapter goes on, the model server does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_model_server_fails_its_turns() {
    let row = Row::new(
        "model_server_killed",
        openai(),
        Fault::Adapter(Signal::KILL),
        &["WorkerExited", "AgentError", "ModelUnavailable"],
    );
    row.with(vec![server_config()]).run().await;
}

/// A program that ends at once, with nothing to wait for: as an agent's author meets it first.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_exits_1_at_once_is_told() {
    let agent = exec(&["sh", "-c", "echo half an answer; exit 1"]);
    Row::new("program_exits_1_at_once", agent, Fault::Start, &["AgentError"]).telling("exit code 1").run().await;
}
