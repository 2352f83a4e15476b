//! The command line and environment of a worker on one machine, made from an Agent's spec. Nothing is started here; only
//! this process's own environment, the working directory and Secrets are looked at.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::config::ProcessConfig;
use crate::crd::{Adapter, AgentSpec, Container};
use crate::fleet::model::{ModelValue, model_adapter};
use crate::fleet::runtime::StartRequest;
use crate::turn::cause;
use crate::turn::terminal::Failure;
use crate::wire::env;

/// The name of the container in the Agent's template whose command is the agent program.
const AGENT: &str = "agent";
/// A command of this name is not looked up in PATH: it is this very binary.
const OUR_NAME: &str = "lastword";
/// The container of the agent program, if the Agent has one.
pub(super) fn container(spec: &AgentSpec) -> Option<&Container> {
    spec.template.as_ref()?.spec.containers.iter().find(|c| c.name == AGENT)
}

/// Makes the command that starts a worker.
///
/// # Errors
/// `StartFailed`, with what in the spec cannot work on this machine as the detail for operators.
pub(super) fn command(config: &ProcessConfig, request: &StartRequest) -> Result<Command, Failure> {
    let spec = &*request.spec;
    let container = container(spec);
    let directory = working_directory(config, container)?;
    let environment = container.map(environment).transpose()?.unwrap_or_default();
    let program = container.map(|c| words(c, &environment)).unwrap_or_default();
    let mut own: Vec<(String, OsString)> = vec![
        (env::GATEWAY.into(), config.gateway.clone().into()),
        (env::CREDENTIAL.into(), request.credential.reveal().into()),
        (env::CAPACITY.into(), spec.limits.turns_per_worker().to_string().into()),
        (env::DRAIN_SECONDS.into(), spec.timing.drain_seconds().to_string().into()),
    ];
    let mut command = match spec.adapter {
        Adapter::Exec => {
            let mut command = Command::new(&config.program);
            command.args(["worker", "exec", "--"]).args(required(program, "Exec")?);
            command
        }
        Adapter::OpenAI => openai(config, spec, &program, &mut own)?,
        Adapter::Custom => {
            let program = required(program, "Custom")?;
            let mut command = Command::new(resolve(config, &directory, &program[0]));
            command.args(&program[1..]);
            command
        }
    };
    command.current_dir(directory);
    // A worker inherits the developer's environment without what is meant for this process: the database's URL, and the
    // variables that stand for our own flags.
    for (name, _) in std::env::vars_os() {
        if name == "DATABASE_URL" || name.to_string_lossy().starts_with("LASTWORD_") {
            command.env_remove(name);
        }
    }
    command.envs(environment).envs(own);
    Ok(command)
}

/// The command of the adapter `openai`; `server` is the command of a model server that it is to start, if any. The variables
/// that it needs are added to `own`.
fn openai(
    config: &ProcessConfig,
    spec: &AgentSpec,
    server: &[String],
    own: &mut Vec<(String, OsString)>,
) -> Result<Command, Failure> {
    let openai = spec.openai.as_ref().ok_or_else(|| cannot("the adapter OpenAI needs spec.openai"))?;
    let adapter = model_adapter(spec, openai, !server.is_empty());
    let mut command = Command::new(&config.program);
    command.args(["worker", "openai"]).args(&adapter.flags);
    for (name, value) in adapter.variables {
        let value = match value {
            ModelValue::Plain(text) => text.to_owned(),
            ModelValue::Secret { field, secret } => (config.secrets)(secret).ok_or_else(|| {
                let (name, key) = (&secret.name, &secret.key);
                cannot(format!("{field}: no secret {name:?} with a key {key:?} is known here"))
            })?,
        };
        own.push((name, value.into()));
    }
    if !server.is_empty() {
        command.args(["--model-server", "--"]).args(server);
    }
    Ok(command)
}

fn cannot(detail: impl Into<String>) -> Failure {
    cause::start::impossible(detail)
}

fn required(program: Vec<String>, adapter: &str) -> Result<Vec<String>, Failure> {
    match program.is_empty() {
        true => Err(cannot(format!(
            "the adapter {adapter} needs a command on the container agent; images do not run on one machine"
        ))),
        false => Ok(program),
    }
}

fn working_directory(config: &ProcessConfig, container: Option<&Container>) -> Result<PathBuf, Failure> {
    let directory = match container.and_then(|c| c.working_dir.as_deref()) {
        Some(given) => config.base_dir.join(given),
        None => config.base_dir.clone(),
    };
    match directory.is_dir() {
        true => Ok(directory),
        false => Err(cannot(format!("the working directory {} does not exist", directory.display()))),
    }
}

/// The variables that the container sets. As in Kubernetes, `$(NAME)` in a value stands for a variable that is set before.
fn environment(container: &Container) -> Result<HashMap<String, String>, Failure> {
    let mut environment = HashMap::new();
    for variable in &container.env {
        if variable.rest.contains_key("valueFrom") {
            let name = &variable.name;
            return Err(cannot(format!(
                "env {name}: valueFrom works in Kubernetes alone; give a value, or set {name} in lastword's own environment"
            )));
        }
        let value = expand(variable.value.as_deref().unwrap_or_default(), &environment);
        environment.insert(variable.name.clone(), value);
    }
    Ok(environment)
}

/// The words of the container's command line, with variables replaced.
fn words(container: &Container, environment: &HashMap<String, String>) -> Vec<String> {
    container.command.iter().chain(&container.args).map(|word| expand(word, environment)).collect()
}

/// Replaces `$(NAME)` by the variable's value. As in Kubernetes, an unknown name is left as it is written, and `$$` becomes
/// `$`.
fn expand(text: &str, environment: &HashMap<String, String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at..];
        let name = rest.strip_prefix("$(").and_then(|r| r.split_once(')'));
        if let Some(after) = rest.strip_prefix("$$") {
            expanded.push('$');
            rest = after;
        } else if let Some((value, after)) = name.and_then(|(n, after)| Some((environment.get(n)?, after))) {
            expanded.push_str(value);
            rest = after;
        } else {
            expanded.push('$');
            rest = &rest[1..];
        }
    }
    expanded + rest
}

/// The path of a program: one with a slash is relative to the working directory, a plain name is left to PATH.
fn resolve(config: &ProcessConfig, directory: &Path, program: &str) -> PathBuf {
    if program == OUR_NAME {
        config.program.clone()
    } else if program.contains('/') {
        directory.join(program)
    } else {
        program.into()
    }
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
