//! The container's termination log: the file that Kubernetes puts into the pod's status when the container ends. The
//! controller takes a turn's failure from there if the worker's own report did not arrive, because the kernel killed the
//! worker first, say.
//!
//! The file holds the failure that is being reported at the moment, and is emptied once a gateway has heard the report: an old
//! failure must not explain a later death.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use serde_json::json;

use crate::turn::terminal::{Exit, Failure, cut};
use crate::wire::env;

/// How much of the file Kubernetes reads, in bytes.
const MAX_BYTES: usize = 4096;
/// How much of a failure's detail is kept, in bytes. JSON may write six bytes for one, and the whole must stay within
/// [`MAX_BYTES`].
const MAX_DETAIL_BYTES: usize = 600;
/// Where Kubernetes mounts the file, unless the container's `terminationMessagePath` says otherwise.
const DEFAULT: &str = "/dev/termination-log";

/// Writes a failure into the file, as the reason if this container should end now.
pub(super) fn note(failure: &Failure) {
    write(&words(failure));
}

/// The file's content for a failure. It is never longer than what Kubernetes reads: cut off, it would not be JSON.
fn words(failure: &Failure) -> String {
    // The end is kept, not the beginning: it is the end of what the program wrote to stderr.
    let detail = failure.detail.as_deref().unwrap_or_default();
    let from = detail.len().saturating_sub(MAX_DETAIL_BYTES);
    let tail: String = detail.char_indices().filter(|(at, _)| *at >= from).map(|(_, c)| c).collect();
    let mut words = json!({"reason": failure.reason, "detail": tail});
    match failure.exit {
        Some(Exit::Code(code)) => words["exitCode"] = code.into(),
        Some(Exit::Signal(signal)) => words["signal"] = signal.into(),
        None => {}
    }
    cut(words.to_string(), MAX_BYTES)
}

/// Empties the file: a gateway has heard of the failure.
pub(super) fn clear() {
    write("");
}

/// Writes the file, where it exists. Errors are only logged, since the worker reports the same failure to a gateway.
fn write(text: &str) {
    let path = std::env::var_os(env::TERMINATION_LOG).map_or_else(|| PathBuf::from(DEFAULT), PathBuf::from);
    // The file is not created: outside of a container there is none, and nobody would read it.
    let Ok(mut file) = OpenOptions::new().write(true).truncate(true).open(path) else { return };
    if let Err(error) = file.write_all(text.as_bytes()) {
        tracing::debug!(%error, "the termination log was not written");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::turn::cause::process::ProcessEnd;
    use crate::turn::cause::program;

    #[test]
    fn how_the_program_ended_is_told_beside_the_end_of_its_stderr() {
        for (ended, exit) in [(Exit::Code(3), json!({"exitCode": 3})), (Exit::Signal(11), json!({"signal": 11}))] {
            let cause = program::end(&ProcessEnd::Exit(ended), false);
            let stderr = "\u{1}".repeat(8 * 1024);
            let detail = cause.detail.as_ref().map(|detail| format!("{detail}\n{stderr}"));
            let failure = Failure { detail, ..cause };
            let text = words(&failure);
            assert!(text.len() < MAX_BYTES, "{}", text.len());
            let said: Value = serde_json::from_str(&text).expect("JSON");
            for field in ["exitCode", "signal"] {
                assert_eq!(said.get(field), exit.get(field), "{text}");
            }
            assert_eq!(said["reason"], failure.reason.as_str());
        }
    }
}
