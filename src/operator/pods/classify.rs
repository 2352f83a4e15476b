//! What a pod's status says of the worker in it. Pure: a pod's object and its latest Events give a [`PodVerdict`]. This
//! module reads what happened; [`cause`] picks the reason.
//!
//! What counts is the container that is the adapter: `agent`, or `lastword` beside a model server. The pod's phase alone
//! proves nothing: an extra container may run on after the adapter died, or fail while it works.
//!
//! | the adapter's container | verdict |
//! |---|---|
//! | terminated | dead |
//! | never ran, and the pod's phase is final or an init container failed | dead: refused by its node, evicted, cannot be initialized |
//! | waits for what may heal | waiting, with the reason to give if the start deadline passes |
//! | waits for what cannot heal | dead |
//! | runs, and the pod has no model server | running, whatever else fails |
//! | runs, and the model server has ended | dead |
//! | runs, and the model server is held up | waiting |

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, Pod, PodCondition};

use super::names::ADAPTER_CONTAINER;
use crate::crd::AGENT_CONTAINER;
use crate::turn::cause::pod::PodPlace;
use crate::turn::cause::start::Obstacle;
use crate::turn::cause::stop::Stopper;
use crate::turn::cause::{self, container};
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// What a pod's status says of its worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodVerdict {
    /// The worker is starting, and nothing is wrong so far.
    Starting,
    /// The worker is starting and is held up by what may still heal. This is why it failed if the start deadline passes.
    Waiting(Failure),
    /// The adapter's container runs.
    Running,
    /// The adapter's container has terminated or will never run. This is proof of death.
    Dead(Failure),
}

/// A pod is being stopped, and not by its worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodStop {
    pub reason: Reason,
    /// How many seconds the pod's containers have from SIGTERM on. `None`: as many as the pod's own grace.
    pub within_seconds: Option<u32>,
}

/// A Kubernetes Event about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEvent {
    pub reason: String,
    pub message: String,
}

/// Seconds that a worker gets to say goodbye when its pod's object is already gone.
pub const AFTER_DELETION_SECONDS: u32 = 2;

/// What a pod's status, and its Events (oldest first), say of its worker.
pub fn classify(pod: &Pod, events: &[PodEvent]) -> PodVerdict {
    let main = adapter_status(pod);
    let model = model_server(pod);
    if let Some(ended) = model.and_then(terminated_state).or_else(|| main.and_then(terminated_state)) {
        // If the model server ended, its end is the cause, even if the adapter has ended too: without the server the
        // adapter's turns cannot go on.
        let status = if model.and_then(terminated_state).is_some() { model } else { main };
        return PodVerdict::Dead(end_of_container(pod, status.map_or(AGENT_CONTAINER, |s| &s.name), ended));
    }
    if main.is_some_and(is_running) {
        return match model.and_then(|s| waiting_state(s)).and_then(|w| obstacle_of(pod, AGENT_CONTAINER, w)) {
            Some(Obstacle::MayHeal(cause) | Obstacle::ForGood(cause)) => PodVerdict::Waiting(cause),
            None => PodVerdict::Running,
        };
    }
    if let Some(cause) = failed_init(pod) {
        return PodVerdict::Dead(cause);
    }
    if is_over(pod) {
        return PodVerdict::Dead(never_ran(pod));
    }
    if let Some(cause) = unscheduled(pod) {
        return PodVerdict::Waiting(cause);
    }
    let waiting = init_statuses(pod).iter().chain(main).find_map(|s| obstacle_of(pod, &s.name, waiting_state(s)?));
    match waiting {
        Some(Obstacle::ForGood(cause)) => PodVerdict::Dead(cause),
        Some(Obstacle::MayHeal(cause)) => PodVerdict::Waiting(cause),
        None => latest(events).find_map(|e| failure_of_event(pod, e)).map_or(PodVerdict::Starting, PodVerdict::Waiting),
    }
}

/// The newest Events first, up to the last sign of progress (Pulled, Created, Started): trouble that is older has
/// healed.
fn latest(events: &[PodEvent]) -> impl Iterator<Item = &PodEvent> {
    events.iter().rev().take_while(|e| !matches!(e.reason.as_str(), "Pulled" | "Created" | "Started"))
}

/// Whether somebody other than its worker stops the pod, and why. `gone`: the pod's object was deleted.
pub fn stop_of_pod(pod: &Pod, gone: bool) -> Option<PodStop> {
    let disrupted = disruption(pod);
    let deleted = gone || pod.metadata.deletion_timestamp.is_some();
    if deleted {
        let grace = pod.metadata.deletion_grace_period_seconds.and_then(|s| u32::try_from(s).ok());
        let within = if gone { Some(AFTER_DELETION_SECONDS) } else { grace.map(|g| g.max(AFTER_DELETION_SECONDS)) };
        return Some(PodStop { reason: cause::stop::reason(Stopper::PodDeletion(disrupted)), within_seconds: within });
    }
    // The eviction API, the scheduler and the taint manager set the condition just before they delete the pod, and may
    // not delete it after all. Only the kubelet's own condition counts without a deletion.
    disrupted.filter(|_| by_kubelet(pod)).map(|reason| PodStop { reason, within_seconds: None })
}

/// Whether the pod's phase is final and its adapter does not run. Sidecars are not looked at.
pub fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    // Somebody other than the kubelet may set the phase `Failed`, as when the node is gone. That proves nothing of the
    // containers, so the adapter's own status is asked too.
    matches!(phase, Some("Failed" | "Succeeded")) && !adapter_status(pod).is_some_and(is_running)
}

/// Whether the adapter's container has ended.
pub fn adapter_ended(pod: &Pod) -> bool {
    adapter_status(pod).and_then(terminated_state).is_some()
}

fn adapter_status(pod: &Pod) -> Option<&ContainerStatus> {
    status_of(pod, adapter_container(pod))
}

/// The name of the container that is the adapter.
fn adapter_container(pod: &Pod) -> &'static str {
    if has_container(pod, ADAPTER_CONTAINER) { ADAPTER_CONTAINER } else { AGENT_CONTAINER }
}

fn model_server(pod: &Pod) -> Option<&ContainerStatus> {
    (adapter_container(pod) == ADAPTER_CONTAINER).then(|| status_of(pod, AGENT_CONTAINER)).flatten()
}

fn has_container(pod: &Pod, name: &str) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.containers.iter().any(|c| c.name == name))
}

fn status_of<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.iter().find(|s| s.name == name)
}

fn init_statuses(pod: &Pod) -> &[ContainerStatus] {
    pod.status.as_ref().and_then(|s| s.init_container_statuses.as_deref()).unwrap_or_default()
}

fn terminated_state(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref()?.terminated.as_ref()
}

fn waiting_state(status: &ContainerStatus) -> Option<&ContainerStateWaiting> {
    status.state.as_ref()?.waiting.as_ref()
}

fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.running.is_some())
}

/// Why a container that ran has ended.
fn end_of_container(pod: &Pod, container: &str, ended: &ContainerStateTerminated) -> Failure {
    container::end(place_of(pod), container_end(container, ended), stop_reason(pod))
}

/// A container's end in the form that [`cause`] takes.
fn container_end<'a>(container: &'a str, ended: &'a ContainerStateTerminated) -> container::ContainerEnd<'a> {
    container::ContainerEnd {
        container,
        exit_code: ended.exit_code,
        signal: ended.signal,
        reason: ended.reason.as_deref(),
        message: ended.message.as_deref(),
    }
}

/// Why a pod's phase is final though its adapter never ran.
fn never_ran(pod: &Pod) -> Failure {
    let message = pod.status.as_ref().and_then(|s| s.message.as_deref());
    cause::pod::never_ran(place_of(pod), status_reason(pod).unwrap_or_default(), message, stop_reason(pod))
}

/// The reason for which the pod is or was stopped, if it was.
fn stop_reason(pod: &Pod) -> Option<Reason> {
    stop_of_pod(pod, false)
        .map(|stop| stop.reason)
        .or_else(|| status_reason(pod).and_then(cause::pod::ended_by_kubelet))
}

fn status_reason(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.reason.as_deref()
}

fn condition<'a>(pod: &'a Pod, kind: &str, status: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind && c.status == status)
}

/// Why the pod is disrupted, as its condition `DisruptionTarget` says.
fn disruption(pod: &Pod) -> Option<Reason> {
    let condition = condition(pod, "DisruptionTarget", "True")?;
    cause::pod::disrupted(condition.reason.as_deref()?, condition.message.as_deref(), status_reason(pod))
}

fn by_kubelet(pod: &Pod) -> bool {
    condition(pod, "DisruptionTarget", "True").is_some_and(|c| c.reason.as_deref() == Some("TerminationByKubelet"))
}

/// Why an init container failed, if one did. Then the pod's containers never run.
fn failed_init(pod: &Pod) -> Option<Failure> {
    let failed =
        |s: &&ContainerStatus| terminated_state(s).is_some_and(|t| t.exit_code != 0) && !is_sidecar(pod, &s.name);
    let status = init_statuses(pod).iter().find(failed)?;
    let ended = terminated_state(status)?;
    Some(container::init_end(place_of(pod), container_end(&status.name, ended), stop_reason(pod)))
}

/// Whether an init container is a sidecar: one that is restarted for as long as the pod lives.
fn is_sidecar(pod: &Pod, name: &str) -> bool {
    let containers = pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
    containers.iter().any(|c| c.name == name && c.restart_policy.as_deref() == Some("Always"))
}

fn unscheduled(pod: &Pod) -> Option<Failure> {
    let condition = condition(pod, "PodScheduled", "False")?;
    Some(cause::pod::not_scheduled(place_of(pod), condition.message.as_deref()))
}

/// What holds a waiting container up; `None` if it is on its way.
fn obstacle_of(pod: &Pod, container: &str, waiting: &ContainerStateWaiting) -> Option<Obstacle> {
    cause::pod::waiting(place_of(pod), container, waiting.reason.as_deref()?, waiting.message.as_deref())
}

/// What an Event tells of a pod whose containers' statuses name no obstacle.
fn failure_of_event(pod: &Pod, event: &PodEvent) -> Option<Failure> {
    cause::pod::told(place_of(pod), &event.reason, &event.message)
}

fn place_of(pod: &Pod) -> PodPlace<'_> {
    PodPlace {
        pod: pod.metadata.name.as_deref().unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|s| s.node_name.as_deref()),
    }
}

#[cfg(test)]
#[path = "classify_tests.rs"]
mod tests;
