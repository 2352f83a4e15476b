//! What the reasons mean that Kubernetes puts into a pod's status and Events: why a pod is stopped, why it ended, what
//! holds it up.

use super::start::Obstacle;
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// The pod of a worker, and its node once it has one.
#[derive(Debug, Clone, Copy)]
pub struct PodPlace<'a> {
    pub pod: &'a str,
    pub node: Option<&'a str>,
}

impl PodPlace<'_> {
    /// A failure whose detail also names the pod and its node.
    pub(super) fn failure(self, reason: Reason, what: String) -> Failure {
        let node = self.node.map(|n| format!(" on node {n}")).unwrap_or_default();
        Failure::detailed(reason, format!("pod {}{node}: {what}", self.pod))
    }
}

/// Why the kubelet itself ended a pod, by the pod's `status.reason`. `None`: it did not.
pub fn ended_by_kubelet(status_reason: &str) -> Option<Reason> {
    Some(match status_reason {
        "Evicted" => Reason::Evicted,
        "Terminated" | "NodeShutdown" | "Shutdown" => Reason::NodeShutdown,
        "Preempting" | "Preempted" => Reason::Preempted,
        "NodeLost" => Reason::NodeLost,
        _ => return None,
    })
}

/// Why a pod is disrupted, by its condition `DisruptionTarget` and, if the kubelet ends the pod, by `status.reason`.
/// `None`: the condition's reason is none that Lastword knows.
pub fn disrupted(reason: &str, message: Option<&str>, status_reason: Option<&str>) -> Option<Reason> {
    let says = |word: &str| message.is_some_and(|m| m.to_lowercase().contains(word));
    Some(match reason {
        "EvictionByEvictionAPI" => Reason::Evicted,
        "PreemptionByScheduler" | "PreemptionByKubeScheduler" => Reason::Preempted,
        "DeletionByTaintManager" | "DeletionByPodGC" => Reason::NodeLost,
        // The node is short of a resource, a critical pod needs the place, or the node shuts down. The pod's status or
        // the message tells which.
        "TerminationByKubelet" => match status_reason.and_then(ended_by_kubelet) {
            Some(reason) => reason,
            None if says("shutdown") => Reason::NodeShutdown,
            None if says("preempt") => Reason::Preempted,
            None => Reason::Evicted,
        },
        _ => return None,
    })
}

/// The failure of a pod whose phase is final though its adapter never ran. `reason` and `message` are those of the
/// pod's status. `stopped`: the reason for which the pod was stopped, if it was.
pub fn never_ran(place: PodPlace, reason: &str, message: Option<&str>, stopped: Option<Reason>) -> Failure {
    let what = if reason.is_empty() { "the pod ended before the worker ran".to_owned() } else { reason.to_owned() };
    place.failure(stopped.unwrap_or(Reason::StartFailed), with(what, message))
}

/// The failure of a pod for which the scheduler has found no node so far.
pub fn not_scheduled(place: PodPlace, message: Option<&str>) -> Failure {
    place.failure(Reason::Unschedulable, with("not scheduled".into(), message))
}

/// What the reason means for which a container waits: whether that may heal, and the failure if it does not. `None`:
/// the container is on its way.
pub fn waiting(place: PodPlace, container: &str, reason: &str, message: Option<&str>) -> Option<Obstacle> {
    let cause = |kind| place.failure(kind, with(format!("container {container}: {reason}"), message));
    Some(match reason {
        "InvalidImageName" | "ErrImageNeverPull" => Obstacle::ForGood(cause(Reason::ImagePull)),
        "RunContainerError" => Obstacle::ForGood(cause(Reason::StartFailed)),
        "ErrImagePull"
        | "ImagePullBackOff"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => Obstacle::MayHeal(cause(Reason::ImagePull)),
        "CreateContainerConfigError"
        | "CreateContainerError"
        | "CrashLoopBackOff"
        | "PreStartHookError"
        | "PostStartHookError"
        | "PreCreateHookError" => Obstacle::MayHeal(cause(Reason::StartFailed)),
        _ => return None,
    })
}

/// What an Event tells of a pod whose containers' statuses name no obstacle. Whatever an Event tells may heal.
pub fn told(place: PodPlace, event: &str, message: &str) -> Option<Failure> {
    let reason = match event {
        "FailedMount"
        | "FailedAttachVolume"
        | "FailedMapVolume"
        | "FailedCreatePodSandBox"
        | "FailedPodSandBoxStatus"
        | "NetworkNotReady"
        | "FailedKillPod" => Reason::StartFailed,
        "FailedScheduling" => Reason::Unschedulable,
        // The image may only be large, or its registry slow. So this counts only at the start deadline, like all that
        // may heal.
        "Pulling" | "ErrImageNeverPull" | "InspectFailed" => Reason::ImagePull,
        // The kubelet's Events come seconds before the status that says the same.
        "Failed" | "BackOff" if message.to_lowercase().contains("image") => Reason::ImagePull,
        _ => return None,
    };
    Some(place.failure(reason, with(event.to_owned(), Some(message))))
}

/// Joins what happened and the message that came with it, if there is one.
pub(super) fn with(what: String, message: Option<&str>) -> String {
    match message.map(str::trim) {
        None | Some("") => what,
        Some(message) => format!("{what}: {message}"),
    }
}
