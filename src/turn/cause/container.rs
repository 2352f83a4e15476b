//! Why a container ended, by what the kubelet reports of it and what the adapter in it wrote.

use serde::Deserialize;
use serde_json::Value;

use super::pod::{PodPlace, with};
use crate::turn::objects::objects_only;
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// What a kubelet reports of a container that ended.
#[derive(Debug, Clone, Copy)]
pub struct ContainerEnd<'a> {
    /// The container's name.
    pub container: &'a str,
    pub exit_code: i32,
    pub signal: Option<i32>,
    /// The status' `reason`, such as `OOMKilled` or `Error`.
    pub reason: Option<&'a str>,
    /// What the container wrote to its termination log, or else a sentence of the kubelet's.
    pub message: Option<&'a str>,
}

/// What a kubelet's `reason` means. `OutOfMemory` and `NeverStarted` decide why the container ended, even if somebody
/// stops the pod.
enum KubeletReason {
    OutOfMemory,
    NeverStarted,
    Other,
}

impl ContainerEnd<'_> {
    fn kubelet_reason(&self) -> KubeletReason {
        match self.reason {
            Some("OOMKilled") => KubeletReason::OutOfMemory,
            Some("StartError" | "ContainerCannotRun") => KubeletReason::NeverStarted,
            _ => KubeletReason::Other,
        }
    }

    /// How the container ended, as in `exit code 137 (signal 9), OOMKilled`. An exit code from 129 to 159 names a
    /// signal, by a shell's custom.
    fn how(&self) -> String {
        let told = self.signal.filter(|s| *s != 0);
        let signal = told.or((129..=159).contains(&self.exit_code).then_some(self.exit_code - 128));
        let mut text = format!("exit code {}", self.exit_code);
        if let Some(signal) = signal {
            text = format!("{text} (signal {signal})");
        }
        match self.reason {
            None | Some("" | "Error" | "Completed") => text,
            Some(reason) => format!("{text}, {reason}"),
        }
    }
}

/// Why the container that is the adapter, or its model server, ended. `stopped`: the reason for which the pod is being
/// stopped, if it is.
pub fn end(place: PodPlace, ended: ContainerEnd, stopped: Option<Reason>) -> Failure {
    let words = ended.message.and_then(LastWords::read);
    let reason = match ended.kubelet_reason() {
        KubeletReason::OutOfMemory => Reason::OutOfMemory,
        KubeletReason::NeverStarted => Reason::StartFailed,
        KubeletReason::Other => stopped.or(words.as_ref().map(|w| w.reason)).unwrap_or(Reason::WorkerExited),
    };
    let what = format!("container {}: {}", ended.container, ended.how());
    place.failure(
        reason,
        match &words {
            Some(words) => with(what, Some(&words.text())),
            None => with(what, ended.message),
        },
    )
}

/// Why an init container failed, so that the pod's containers never run.
pub fn init_end(place: PodPlace, ended: ContainerEnd, stopped: Option<Reason>) -> Failure {
    let reason = match ended.kubelet_reason() {
        KubeletReason::OutOfMemory => Reason::OutOfMemory,
        KubeletReason::NeverStarted | KubeletReason::Other => stopped.unwrap_or(Reason::StartFailed),
    };
    let what = format!("init container {}: {}", ended.container, ended.how());
    place.failure(reason, with(what, ended.message))
}

/// What an adapter writes to its termination log: the failure that it is about to report.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(remote = "Self")]
struct LastWords {
    reason: Reason,
    #[serde(default)]
    detail: String,
    /// How the agent program ended, by an exit code or by a signal. A value that is not a number is ignored.
    #[serde(default)]
    exit_code: Value,
    #[serde(default)]
    signal: Value,
}

impl LastWords {
    fn read(message: &str) -> Option<Self> {
        serde_json::from_str(message.trim()).ok()
    }

    /// The detail, and before it how the program ended if the detail does not say so. (The beginning of a long detail
    /// was cut off.)
    fn text(&self) -> String {
        let code = self.exit_code.as_i64().map(|code| format!("exit code {code}"));
        let signal = self.signal.as_i64().map(|signal| format!("signal {signal}"));
        match code.or(signal).filter(|exit| !says(&self.detail, exit)) {
            Some(exit) => with(format!("the program ended with {exit}"), Some(&self.detail)),
            None => self.detail.clone(),
        }
    }
}

/// Whether a text says how a program ended in just these words: `exit code 13` does not say `exit code 1`.
fn says(text: &str, words: &str) -> bool {
    text.match_indices(words).any(|(at, _)| !text[at + words.len()..].starts_with(|c: char| c.is_ascii_digit()))
}

objects_only!(read LastWords);
