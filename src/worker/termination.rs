//! The termination log: what Kubernetes shows of a container's end, and what the controller reads when the worker's own word
//! did not arrive (the kernel killed it, its node went away).
//!
//! It holds the failure that is being reported right now, and is empty again once that was heard: an old failure must not
//! explain a later death.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use serde_json::json;

use crate::turn::terminal::{Exit, Failure, cut};
use crate::wire::env;

/// Kubernetes reads no more, in bytes.
const MAX_BYTES: usize = 4096;
/// What is kept of a detail; escaped, it may grow sixfold at the worst.
const MAX_DETAIL_BYTES: usize = 600;
/// Where Kubernetes mounts it, if nobody says otherwise.
const DEFAULT: &str = "/dev/termination-log";

/// Writes why this container may end now.
pub(super) fn note(failure: &Failure) {
    write(&words(failure));
}

/// What is written; never more than Kubernetes reads, or it would be no JSON.
fn words(failure: &Failure) -> String {
    // The end of a detail tells more than its beginning: it is stderr's.
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

/// What was noted was heard.
pub(super) fn clear() {
    write("");
}

/// Best effort: it is a hint. Where there is no such file, nobody reads it.
fn write(text: &str) {
    let path = std::env::var_os(env::TERMINATION_LOG).map_or_else(|| PathBuf::from(DEFAULT), PathBuf::from);
    // Never created: outside of a container, it does not exist.
    let Ok(mut file) = OpenOptions::new().write(true).truncate(true).open(path) else { return };
    if let Err(error) = file.write_all(text.as_bytes()) {
        tracing::debug!(%error, "the termination log was not written");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::turn::cause::process::Ended;
    use crate::turn::cause::program;

    #[test]
    fn how_the_program_ended_is_told_beside_the_end_of_its_stderr() {
        for (ended, exit) in [(Exit::Code(3), json!({"exitCode": 3})), (Exit::Signal(11), json!({"signal": 11}))] {
            let cause = program::end(&Ended::Exit(ended), false);
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
