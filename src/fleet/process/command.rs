//! The command line and environment of a worker on one machine, made from an Agent's spec. Nothing is started here; only
//! this process's own environment, the working directory and Secrets are looked at.
//!
//! A program gets a small environment: of the developer's own only what says where things are and how people write
//! ([`INHERITED`]), and what the Agent's `env` adds. A developer's shell is full of keys, and what a program says goes to
//! whoever sends it messages.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::config::ProcessConfig;
use crate::child::keeper;
use crate::crd::{Adapter, AgentSpec, Container, DetachedProcesses, SecretKeyRef};
use crate::fleet::model::{ModelValue, model_adapter};
use crate::fleet::runtime::StartRequest;
use crate::turn::cause;
use crate::turn::terminal::Failure;
use crate::wire::env;

/// The name of the container in the Agent's template whose command is the agent program.
const AGENT: &str = "agent";
/// A command of this name is not looked up in PATH: it is this very binary.
const OUR_NAME: &str = "lastword";
/// What a program inherits of this process's environment, besides the variables LC_…: none of it is a secret.
const INHERITED: [&str; 9] = ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR"];
/// What the adapter `openai` inherits besides, also in lower case, to reach a server as this process would. A proxy's URL may
/// have a password in it, so programs do not get these.
const NETWORK: [&str; 6] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"];

/// Traces go on in the worker, to the same collector. Its headers are left out: they may hold a key.
const TRACES: [&str; 5] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
];

/// The container of the agent program, if the Agent has one.
pub(super) fn container(spec: &AgentSpec) -> Option<&Container> {
    spec.template.as_ref()?.spec.containers.iter().find(|c| c.name == AGENT)
}

/// The command that starts a worker under its keeper, and the program that it starts.
pub(super) struct KeptCommand {
    pub command: Command,
    /// For people: what cannot be started, if it cannot.
    pub program: String,
}

/// Makes the command that starts a worker.
///
/// # Errors
/// `StartFailed`, with what in the spec cannot work on this machine as the detail for operators.
pub(super) fn command(config: &ProcessConfig, request: &StartRequest) -> Result<KeptCommand, Failure> {
    let spec = &*request.spec;
    let container = container(spec);
    let directory = working_directory(config, container)?;
    let environment = container.map(|c| environment(config, c)).transpose()?.unwrap_or_default();
    let program = container.map(|c| words(c, &environment)).unwrap_or_default();
    let mut own: Vec<(String, OsString)> = vec![
        (env::GATEWAY.into(), config.gateway.clone().into()),
        (env::CREDENTIAL.into(), request.credential.reveal().into()),
        (env::CAPACITY.into(), spec.limits.turns_per_worker().to_string().into()),
        (env::DRAIN_SECONDS.into(), spec.timing.drain_seconds().to_string().into()),
    ];
    own.extend(config.traces.iter().map(|url| (TRACES[0].to_owned(), url.clone().into())));
    let mut line: Vec<OsString> = Vec::new();
    let ours = |adapter: &str| [config.program.clone().into_os_string(), "worker".into(), adapter.into()];
    match spec.adapter {
        Adapter::Exec => {
            line.extend(ours("exec"));
            line.push("--".into());
            line.extend(required(program, "Exec")?.into_iter().map(OsString::from));
            if spec.detached_processes == DetachedProcesses::EndWithWorker {
                own.push((env::KEEP_DETACHED.into(), "true".into()));
            }
        }
        Adapter::OpenAI => {
            line.extend(ours("openai"));
            line.extend(openai(config, spec, &program, &mut own)?);
        }
        Adapter::Custom => {
            let program = required(program, "Custom")?;
            line.push(resolve(config, &directory, &program[0]).into());
            line.extend(program[1..].iter().map(OsString::from));
        }
    }
    let mut command = keeper::command(&config.program, &line[0]);
    command.args(&line[1..]).current_dir(directory).env_clear();
    command.envs(std::env::vars_os().filter(|(name, _)| is_inherited(spec.adapter, &name.to_string_lossy())));
    command.envs(environment).envs(own);
    Ok(KeptCommand { command, program: line[0].to_string_lossy().into_owned() })
}

/// Whether a variable of this process's environment is passed on.
fn is_inherited(adapter: Adapter, name: &str) -> bool {
    let of_network = adapter == Adapter::OpenAI && NETWORK.iter().any(|known| known.eq_ignore_ascii_case(name));
    INHERITED.contains(&name) || TRACES.contains(&name) || name.starts_with("LC_") || of_network
}

/// What follows `worker openai` on the command line; `server` is the command of a model server that it is to start, if any. The
/// variables that it needs are added to `own`.
fn openai(
    config: &ProcessConfig,
    spec: &AgentSpec,
    server: &[String],
    own: &mut Vec<(String, OsString)>,
) -> Result<Vec<OsString>, Failure> {
    let openai = spec.openai.as_ref().ok_or_else(|| cannot("the adapter OpenAI needs spec.openai"))?;
    let adapter = model_adapter(spec, openai, !server.is_empty());
    let mut line: Vec<OsString> = adapter.flags.into_iter().map(OsString::from).collect();
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
        line.extend(["--model-server", "--"].map(OsString::from));
        line.extend(server.iter().map(OsString::from));
    }
    Ok(line)
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

/// The variables that the container sets. As in Kubernetes, `$(NAME)` in a value stands for a variable that is set before,
/// and `secretKeyRef` for a Secret's key.
fn environment(config: &ProcessConfig, container: &Container) -> Result<HashMap<String, String>, Failure> {
    if container.rest.get("envFrom").and_then(Value::as_array).is_some_and(|from| !from.is_empty()) {
        return Err(cannot(
            "envFrom works in Kubernetes alone, since nobody knows here which keys a Secret or ConfigMap has; \
             name each variable in env, with a value or a valueFrom.secretKeyRef",
        ));
    }
    let mut environment = HashMap::new();
    for variable in &container.env {
        let value = match variable.rest.get("valueFrom").filter(|from| !from.is_null()) {
            None => Some(expand(variable.value.as_deref().unwrap_or_default(), &environment)),
            Some(from) => secret(config, &variable.name, from)?,
        };
        if let Some(value) = value {
            environment.insert(variable.name.clone(), value);
        }
    }
    Ok(environment)
}

/// The value of a variable that comes from a Secret; `None` if there is none and it is optional.
fn secret(config: &ProcessConfig, variable: &str, from: &Value) -> Result<Option<String>, Failure> {
    let Some(reference) = from.get("secretKeyRef") else {
        return Err(cannot(format!(
            "env {variable}: of valueFrom, only secretKeyRef works outside of Kubernetes; give a value"
        )));
    };
    let text = |field: &str| reference.get(field).and_then(Value::as_str).map(str::to_owned);
    let (Some(name), Some(key)) = (text("name"), text("key")) else {
        return Err(cannot(format!("env {variable}: a secretKeyRef has a name and a key")));
    };
    let key = SecretKeyRef { name, key };
    match (config.secrets)(&key) {
        Some(value) => Ok(Some(value)),
        None if reference.get("optional").and_then(Value::as_bool) == Some(true) => Ok(None),
        None => {
            let SecretKeyRef { name, key } = key;
            Err(cannot(format!("env {variable}: no secret {name:?} with a key {key:?} is known here")))
        }
    }
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
