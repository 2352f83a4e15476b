//! What a pod's status says of the worker in it. Pure: from a pod, and what its latest Events tell, to a [`PodVerdict`].
//!
//! What counts is the container that is the adapter: `agent`, or `lastword` beside a model server. The pod's phase alone
//! proves nothing: an extra container may run on after the adapter died, or fail while it works.
//!
//! | the adapter's container | verdict |
//! |---|---|
//! | terminated | dead: OOM kill, else the pod's disruption, else what the adapter wrote, else its exit code |
//! | never ran, and the pod is over | dead: refused by its node, evicted, an init container failed |
//! | waits for what may heal | waiting, with the reason for the day when the start deadline passes |
//! | waits for what cannot heal | dead |
//! | runs | running, whatever else fails; but beside a model server that ended dead, and while that one waits, waiting |

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, Pod, PodCondition};
use serde::Deserialize;
use serde_json::Value;

use super::names::ADAPTER_CONTAINER;
use crate::crd::AGENT_CONTAINER;
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

/// The pod is being stopped by somebody other than its worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodStop {
    pub reason: Reason,
    /// How many seconds its containers have from SIGTERM on. `None`: the pod's own grace.
    pub within_seconds: Option<u32>,
}

/// A Kubernetes Event about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEvent {
    pub reason: String,
    pub message: String,
}

/// A pod whose object is gone has no grace left, but its worker may have a moment to say so.
pub const AFTER_DELETION_SECONDS: u32 = 2;

/// Reads a pod.
pub fn classify(pod: &Pod, events: &[PodEvent]) -> PodVerdict {
    let main = adapter_status(pod);
    let model = model_server(pod);
    if let Some(ended) = model.and_then(terminated).or_else(|| main.and_then(terminated)) {
        // A model server that ended takes its adapter's turns along, and is the cause of its adapter's end.
        let status = if model.and_then(terminated).is_some() { model } else { main };
        return PodVerdict::Dead(death(pod, status.map_or(AGENT_CONTAINER, |s| &s.name), ended));
    }
    if main.is_some_and(runs) {
        return match model.and_then(|s| waits(s)).and_then(|w| held_up(pod, AGENT_CONTAINER, w)) {
            Some(HeldUp::MayHeal(cause) | HeldUp::ForGood(cause)) => PodVerdict::Waiting(cause),
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
    let waiting = init_statuses(pod).iter().chain(main).find_map(|s| held_up(pod, &s.name, waits(s)?));
    match waiting {
        Some(HeldUp::ForGood(cause)) => PodVerdict::Dead(cause),
        Some(HeldUp::MayHeal(cause)) => PodVerdict::Waiting(cause),
        None => latest(events).find_map(|e| told(pod, e)).map_or(PodVerdict::Starting, PodVerdict::Waiting),
    }
}

/// The latest Events first, back to where the pod last came forward: what was wrong before that has healed.
fn latest(events: &[PodEvent]) -> impl Iterator<Item = &PodEvent> {
    events.iter().rev().take_while(|e| !matches!(e.reason.as_str(), "Pulled" | "Created" | "Started"))
}

/// Whether the pod is being stopped by another hand than its worker's, and why. `gone`: its object was deleted.
pub fn stop(pod: &Pod, gone: bool) -> Option<PodStop> {
    let disrupted = disruption(pod);
    let deleted = gone || pod.metadata.deletion_timestamp.is_some();
    if deleted {
        let grace = pod.metadata.deletion_grace_period_seconds.and_then(|s| u32::try_from(s).ok());
        let within = if gone { Some(AFTER_DELETION_SECONDS) } else { grace.map(|g| g.max(AFTER_DELETION_SECONDS)) };
        return Some(PodStop { reason: disrupted.unwrap_or(Reason::Deleted), within_seconds: within });
    }
    // The others say so right before they delete, and may take it back.
    disrupted.filter(|_| by_kubelet(pod)).map(|reason| PodStop { reason, within_seconds: None })
}

/// Whether no container of the pod runs, nor will.
pub fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    // A pod whose node is gone is called Failed by others than its kubelet: that proves nothing of its containers.
    matches!(phase, Some("Failed" | "Succeeded")) && !adapter_status(pod).is_some_and(runs)
}

/// Whether the adapter's container has ended.
pub fn adapter_ended(pod: &Pod) -> bool {
    adapter_status(pod).and_then(terminated).is_some()
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

fn terminated(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref()?.terminated.as_ref()
}

fn waits(status: &ContainerStatus) -> Option<&ContainerStateWaiting> {
    status.state.as_ref()?.waiting.as_ref()
}

fn runs(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.running.is_some())
}

/// What the adapter writes to its termination log.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LastWords {
    reason: Reason,
    #[serde(default)]
    detail: String,
    /// How the agent program ended; what is no number says nothing.
    #[serde(default)]
    exit_code: Value,
    #[serde(default)]
    signal: Value,
}

impl LastWords {
    /// How the program ended, where the detail does not say so (of a long one only the end is kept), and the detail.
    fn text(&self) -> String {
        let code = self.exit_code.as_i64().map(|code| format!("exit code {code}"));
        let signal = self.signal.as_i64().map(|signal| format!("signal {signal}"));
        match code.or(signal).filter(|exit| !says(&self.detail, exit)) {
            Some(exit) => with(format!("the program ended with {exit}"), Some(&self.detail)),
            None => self.detail.clone(),
        }
    }
}

/// Whether a text holds these words, not as the beginning of longer ones: `exit code 1` is not in `exit code 13`.
fn says(text: &str, words: &str) -> bool {
    text.match_indices(words).any(|(at, _)| !text[at + words.len()..].starts_with(|c: char| c.is_ascii_digit()))
}

/// Why a container that ran has ended.
fn death(pod: &Pod, container: &str, ended: &ContainerStateTerminated) -> Failure {
    let how = ended.reason.as_deref().unwrap_or_default();
    let words = ended.message.as_deref().and_then(|m| serde_json::from_str::<LastWords>(m.trim()).ok());
    let reason = match how {
        "OOMKilled" => Reason::OutOfMemory,
        "StartError" | "ContainerCannotRun" => Reason::StartFailed,
        _ => match (stop(pod, false).or(evicted(pod)), &words) {
            (Some(stop), _) => stop.reason,
            (None, Some(words)) => words.reason,
            (None, None) => Reason::WorkerExited,
        },
    };
    let mut what = format!("container {container}: {}", exit(ended));
    match &words {
        Some(words) => what = with(what, Some(&words.text())),
        None => what = with(what, ended.message.as_deref()),
    }
    detailed(pod, reason, what)
}

fn exit(ended: &ContainerStateTerminated) -> String {
    let signal =
        ended.signal.filter(|s| *s != 0).or((129..=159).contains(&ended.exit_code).then_some(ended.exit_code - 128));
    let mut text = format!("exit code {}", ended.exit_code);
    if let Some(signal) = signal {
        text = format!("{text} (signal {signal})");
    }
    match ended.reason.as_deref() {
        None | Some("" | "Error" | "Completed") => text,
        Some(reason) => format!("{text}, {reason}"),
    }
}

/// A pod that is over though its adapter never ran.
fn never_ran(pod: &Pod) -> Failure {
    let reason = pod.status.as_ref().and_then(|s| s.reason.as_deref()).unwrap_or_default();
    let stopped = stop(pod, false).or(evicted(pod));
    let message = pod.status.as_ref().and_then(|s| s.message.as_deref());
    let what = if reason.is_empty() { "the pod ended before the worker ran".to_owned() } else { reason.to_owned() };
    detailed(pod, stopped.map_or(Reason::StartFailed, |s| s.reason), with(what, message))
}

/// The kubelet's own endings of a pod, by its status.
fn evicted(pod: &Pod) -> Option<PodStop> {
    let status = pod.status.as_ref()?;
    let reason = match status.reason.as_deref()? {
        "Evicted" => Reason::Evicted,
        "Terminated" | "NodeShutdown" | "Shutdown" => Reason::NodeShutdown,
        "Preempting" | "Preempted" => Reason::Preempted,
        "NodeLost" => Reason::NodeLost,
        _ => return None,
    };
    Some(PodStop { reason, within_seconds: None })
}

fn condition<'a>(pod: &'a Pod, kind: &str, status: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind && c.status == status)
}

/// Why the pod is disrupted, by its condition.
fn disruption(pod: &Pod) -> Option<Reason> {
    let condition = condition(pod, "DisruptionTarget", "True")?;
    Some(match condition.reason.as_deref()? {
        "EvictionByEvictionAPI" => Reason::Evicted,
        "PreemptionByScheduler" | "PreemptionByKubeScheduler" => Reason::Preempted,
        "DeletionByTaintManager" | "DeletionByPodGC" => Reason::NodeLost,
        // Out of a resource, a critical pod's need, or the node's shutdown: the status tells which.
        "TerminationByKubelet" => match evicted(pod) {
            Some(stop) => stop.reason,
            None if condition.message.as_deref().is_some_and(|m| m.to_lowercase().contains("shutdown")) => {
                Reason::NodeShutdown
            }
            None if condition.message.as_deref().is_some_and(|m| m.to_lowercase().contains("preempt")) => {
                Reason::Preempted
            }
            None => Reason::Evicted,
        },
        _ => return None,
    })
}

fn by_kubelet(pod: &Pod) -> bool {
    condition(pod, "DisruptionTarget", "True").is_some_and(|c| c.reason.as_deref() == Some("TerminationByKubelet"))
}

/// An init container that failed, so that the pod's containers never run.
fn failed_init(pod: &Pod) -> Option<Failure> {
    let failed = |s: &&ContainerStatus| terminated(s).is_some_and(|t| t.exit_code != 0) && !is_sidecar(pod, &s.name);
    let status = init_statuses(pod).iter().find(failed)?;
    let ended = terminated(status)?;
    let reason = match ended.reason.as_deref() {
        Some("OOMKilled") => Reason::OutOfMemory,
        _ => stop(pod, false).or(evicted(pod)).map_or(Reason::StartFailed, |s| s.reason),
    };
    let what = format!("init container {}: {}", status.name, exit(ended));
    Some(detailed(pod, reason, with(what, ended.message.as_deref())))
}

/// An init container that is restarted for as long as the pod lives.
fn is_sidecar(pod: &Pod, name: &str) -> bool {
    let containers = pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
    containers.iter().any(|c| c.name == name && c.restart_policy.as_deref() == Some("Always"))
}

fn unscheduled(pod: &Pod) -> Option<Failure> {
    let condition = condition(pod, "PodScheduled", "False")?;
    Some(detailed(pod, Reason::Unschedulable, with("not scheduled".into(), condition.message.as_deref())))
}

/// What holds a container up.
enum HeldUp {
    MayHeal(Failure),
    ForGood(Failure),
}

fn held_up(pod: &Pod, container: &str, waiting: &ContainerStateWaiting) -> Option<HeldUp> {
    let reason = waiting.reason.as_deref()?;
    let cause =
        |kind| detailed(pod, kind, with(format!("container {container}: {reason}"), waiting.message.as_deref()));
    Some(match reason {
        "InvalidImageName" | "ErrImageNeverPull" => HeldUp::ForGood(cause(Reason::ImagePull)),
        "RunContainerError" => HeldUp::ForGood(cause(Reason::StartFailed)),
        "ErrImagePull"
        | "ImagePullBackOff"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => HeldUp::MayHeal(cause(Reason::ImagePull)),
        "CreateContainerConfigError"
        | "CreateContainerError"
        | "CrashLoopBackOff"
        | "PreStartHookError"
        | "PostStartHookError"
        | "PreCreateHookError" => HeldUp::MayHeal(cause(Reason::StartFailed)),
        _ => return None,
    })
}

/// What an Event tells of a pod that is only said to be on its way.
fn told(pod: &Pod, event: &PodEvent) -> Option<Failure> {
    let reason = match event.reason.as_str() {
        "FailedMount"
        | "FailedAttachVolume"
        | "FailedMapVolume"
        | "FailedCreatePodSandBox"
        | "FailedPodSandBoxStatus"
        | "NetworkNotReady"
        | "FailedKillPod" => Reason::StartFailed,
        "FailedScheduling" => Reason::Unschedulable,
        // It may only be large, or its registry slow: told at the start deadline, like all that may heal.
        "Pulling" | "ErrImageNeverPull" | "InspectFailed" => Reason::ImagePull,
        // The kubelet's Events are seconds ahead of its statuses.
        "Failed" | "BackOff" if event.message.to_lowercase().contains("image") => Reason::ImagePull,
        _ => return None,
    };
    Some(detailed(pod, reason, with(event.reason.clone(), Some(&event.message))))
}

fn with(what: String, message: Option<&str>) -> String {
    match message.map(str::trim) {
        None | Some("") => what,
        Some(message) => format!("{what}: {message}"),
    }
}

/// A failure whose detail also says where.
fn detailed(pod: &Pod, reason: Reason, what: String) -> Failure {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
    let place = node.map(|n| format!(" on node {n}")).unwrap_or_default();
    Failure::detailed(reason, format!("pod {name}{place}: {what}"))
}

#[cfg(test)]
#[path = "classify_tests.rs"]
mod tests;
