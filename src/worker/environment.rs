//! What agent programs get of the worker's environment: all but what is the worker's own.

use std::process::Command;

use super::process::kept_command;
use crate::wire::env;

/// A command for [`AgentProcess::start`](super::process::AgentProcess::start) that inherits the worker's environment without
/// the variables that are meant for the worker: above all, without its credential.
pub(super) fn agent_command(program: &str) -> Command {
    let mut command = kept_command(program);
    for name in [env::CREDENTIAL, env::TOKEN_FILE, env::GATEWAY, env::CAPACITY, env::DRAIN_SECONDS] {
        command.env_remove(name);
    }
    // The key of a model's API and the like: in a pod, the model server beside the adapter has none of them either.
    let is_adapters = |name: &str| ["LASTWORD_OPENAI_", "LASTWORD_AGUI_"].iter().any(|begin| name.starts_with(begin));
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_adapters(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command
}

/// Keeps programs of the same user from reading the worker's environment, with its credential, under /proc.
pub(super) fn hide_environment() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!("agent programs may read the worker's environment: {error}");
    }
}
