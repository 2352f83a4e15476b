//! Builds the pod of a worker from its Agent's template. The code is pure. It works on JSON, so that fields which this program
//! does not know are kept.
//!
//! | adapter | the adapter runs in | what is added |
//! |---|---|---|
//! | `Exec` | container `agent`, as its first process | the binary (by an init container), environment, token |
//! | `OpenAI` | container `lastword` of our own image | that container; `agent` is the optional model server |
//! | `Custom` | container `agent` as it is | environment, token |
//!
//! What the template says wins over every default. A `null` in its security context leaves the field unset, for platforms
//! such as OpenShift that choose user ids themselves.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::names::{ADAPTER_CONTAINER, AGENT, GATEWAY_CA, INSTALL_CONTAINER, MANAGED_BY, MANAGER, START, WORKER_GROUP};
use super::secure;
use crate::crd::{AGENT_CONTAINER, Adapter, AgentSpec, DetachedProcesses, OpenAi, PodTemplate};
use crate::fleet::{ModelValue, StartRequest, model_adapter};
use crate::operator::config::{Injector, OperatorConfig};
use crate::operator::review::AUDIENCE;
use crate::turn::cause;
use crate::turn::keys::hex;
use crate::turn::terminal::Failure;
use crate::wire::env;

const BINARY_VOLUME: &str = "lastword-bin";
const BINARY_DIRECTORY: &str = "/lastword-bin";
const TOKEN_VOLUME: &str = "lastword-token";
const TOKEN_DIRECTORY: &str = "/var/run/secrets/lastword.dev";
const TOKEN_FILE: &str = "/var/run/secrets/lastword.dev/token";
const GATEWAY_CA_FILE: &str = "/var/run/secrets/lastword.dev/ca.crt";
/// The lifetime of a worker's token, in seconds: the shortest that Kubernetes allows. The token is shown to a gateway once,
/// and the kubelet renews it.
const TOKEN_SECONDS: u32 = 600;
/// The longest grace of a pod whose template names none, in seconds: a node that is drained does not wait an hour for a turn
/// that may take one.
const LONGEST_DEFAULT_GRACE: u32 = 600;
/// The agent program is stopped this many seconds before the pod's grace ends, so that the adapter has time to report its
/// turn's terminal.
const LAST_WORD_SECONDS: u32 = 5;
/// The longest DNS label.
const MAX_LABEL: usize = 63;

/// The name of a start's pod, which is a DNS label: the Agent's name (cut where it is too long), a hash of the worker group,
/// and the number of the attempt.
pub fn name(start: &StartRequest) -> String {
    let hash = hex(&Sha256::digest(start.worker_group.as_bytes()));
    let end = format!("-{}-{}", &hash[..10], start.attempt);
    let agent: String = start.agent.chars().take(MAX_LABEL.saturating_sub(end.len())).collect();
    format!("{}{end}", agent.trim_end_matches('-'))
}

/// The pod's grace, in seconds between SIGTERM and SIGKILL: the template's, or else as long as a turn may take, but 600 s at
/// the most.
pub fn grace_seconds(spec: &AgentSpec) -> u32 {
    let given = spec.template.as_ref().and_then(|t| t.spec.rest.get("terminationGracePeriodSeconds")?.as_u64());
    match given {
        Some(seconds) => u32::try_from(seconds).unwrap_or(u32::MAX),
        None => spec.timing.turn_seconds().min(LONGEST_DEFAULT_GRACE),
    }
}

/// How long the agent program may work on after SIGTERM, in whole seconds: until 5 s before the grace ends, or for half of
/// the grace if that is later.
fn drain_seconds(grace: u32) -> u32 {
    grace - LAST_WORD_SECONDS.min(grace.div_ceil(2))
}

/// Builds a start's pod, as the JSON that is sent to the API server.
///
/// # Errors
/// A failure with reason `StartFailed` whose detail says what is wrong with the template, for operators.
pub fn pod(config: &OperatorConfig, start: &StartRequest) -> Result<Value, Failure> {
    let template = start.spec.template.clone().unwrap_or_default();
    let mut spec = object(serde_json::to_value(&template.spec).map_err(|e| cannot(e.to_string()))?);
    let grace = grace_seconds(&start.spec);
    let mut pod =
        Building { config, start, volumes: list(&mut spec, "volumes")?, init: list(&mut spec, "initContainers")? };
    let mut containers = list(&mut spec, "containers")?;
    pod.reserve(&containers)?;
    match start.spec.adapter {
        Adapter::Exec => pod.exec(agent(&mut containers)?, grace)?,
        Adapter::Custom => pod.custom(agent(&mut containers)?, grace)?,
        Adapter::OpenAI => {
            let openai = start.spec.openai.as_ref().ok_or_else(|| cannot("the adapter OpenAI needs spec.openai"))?;
            let server = agent(&mut containers).ok();
            if let Some(server) = &server {
                required_image(server, "a container named agent")?;
            }
            let has_server = server.is_some();
            containers.push(pod.openai(openai, has_server, grace)?);
        }
    }
    pod.token_volume();
    let Building { mut volumes, mut init, .. } = pod;
    secure::containers(&mut init, &mut volumes, "init");
    secure::containers(&mut containers, &mut volumes, "main");
    pull_secrets(&mut spec, &config.injector, init.iter().chain(&containers))?;
    secure::pod(&mut spec);
    spec.insert("restartPolicy".into(), json!("Never"));
    spec.insert("terminationGracePeriodSeconds".into(), json!(grace));
    spec.insert("containers".into(), containers.into());
    spec.insert("volumes".into(), volumes.into());
    if !init.is_empty() {
        spec.insert("initContainers".into(), init.into());
    }
    Ok(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata(config, &template, start)?, "spec": spec}))
}

fn metadata(config: &OperatorConfig, template: &PodTemplate, start: &StartRequest) -> Result<Value, Failure> {
    let uid = start.agent_uid.as_deref().ok_or_else(|| cannot("the Agent's UID is not known"))?;
    let given = template.metadata.clone().unwrap_or_default();
    let (mut labels, mut annotations) = (given.labels, given.annotations);
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels.insert(AGENT.into(), start.agent.clone());
    annotations.insert(WORKER_GROUP.into(), start.worker_group.clone());
    annotations.insert(START.into(), start.start_id.to_string());
    if let Some(ca) = &config.worker_ca {
        annotations.insert(GATEWAY_CA.into(), ca.borrow().pem());
    }
    let name = start.runtime_ref.rsplit('/').next().unwrap_or_default();
    Ok(json!({
        "name": name,
        "namespace": start.organization,
        "labels": labels,
        "annotations": annotations,
        "ownerReferences": [{
            "apiVersion": format!("{}/{}", crate::crd::GROUP, crate::crd::VERSION),
            "kind": "Agent",
            "name": start.agent,
            "uid": uid,
            "controller": true,
            "blockOwnerDeletion": false,
        }],
    }))
}

/// A pod while it is built.
struct Building<'a> {
    config: &'a OperatorConfig,
    start: &'a StartRequest,
    volumes: Vec<Value>,
    init: Vec<Value>,
}

impl Building<'_> {
    /// Refuses templates that use names which are reserved for what is added here.
    fn reserve(&self, containers: &[Value]) -> Result<(), Failure> {
        let taken = containers.iter().chain(&self.init).map(named).find(|name| match *name {
            INSTALL_CONTAINER => true,
            ADAPTER_CONTAINER => self.start.spec.adapter == Adapter::OpenAI,
            _ => false,
        });
        if let Some(name) = taken {
            return Err(cannot(format!("the container name {name} is reserved")));
        }
        // A template that mounts our volumes is refused too, since the token is for the adapter alone.
        let mounts =
            containers.iter().chain(&self.init).flat_map(|c| c["volumeMounts"].as_array().into_iter().flatten());
        match self.volumes.iter().chain(mounts).map(named).find(|name| name.starts_with("lastword-")) {
            Some(name) => Err(cannot(format!("the volume name {name} is reserved: it begins with lastword-"))),
            None => Ok(()),
        }
    }

    fn exec(&mut self, agent: &mut Map<String, Value>, grace: u32) -> Result<(), Failure> {
        required_image(agent, "the adapter Exec")?;
        let program = agent.get("command").and_then(Value::as_array).filter(|c| !c.is_empty());
        let program = program.ok_or_else(|| cannot("the adapter Exec needs a command on the container agent"))?;
        let binary = format!("{BINARY_DIRECTORY}/lastword");
        let mut command = vec![json!(binary), json!("worker"), json!("exec"), json!("--")];
        command.extend(program.iter().cloned());
        agent.insert("command".into(), command.into());
        // The adapter kills the program early enough to report its end before the kubelet kills the adapter.
        let kill = (grace - drain_seconds(grace)) / 2;
        let mut more = vec![json!({"name": env::KILL_SECONDS, "value": kill.min(2).to_string()})];
        if self.start.spec.detached_processes == DetachedProcesses::EndWithWorker {
            more.push(json!({"name": env::KEEP_DETACHED, "value": "true"}));
        }
        self.connect(agent, grace, more.into())?;
        mount(agent, BINARY_VOLUME, BINARY_DIRECTORY)?;
        self.volumes.push(json!({"name": BINARY_VOLUME, "emptyDir": {}}));
        let mut install = self.injected(INSTALL_CONTAINER, &["/lastword", "worker", "install", BINARY_DIRECTORY]);
        install["volumeMounts"] = json!([{"name": BINARY_VOLUME, "mountPath": BINARY_DIRECTORY}]);
        install["resources"] = resources("128Mi");
        self.init.push(install);
        Ok(())
    }

    fn custom(&mut self, agent: &mut Map<String, Value>, grace: u32) -> Result<(), Failure> {
        required_image(agent, "the adapter Custom")?;
        self.connect(agent, grace, json!([]))
    }

    fn openai(&mut self, openai: &OpenAi, has_server: bool, grace: u32) -> Result<Value, Failure> {
        let adapter = model_adapter(&self.start.spec, openai, has_server);
        let flags: Vec<String> = adapter.flags.iter().map(|flag| literal(flag)).collect();
        let command: Vec<&str> =
            ["/lastword", "worker", "openai"].into_iter().chain(flags.iter().map(String::as_str)).collect();
        let variable = |(name, value): (String, ModelValue)| match value {
            ModelValue::Plain(text) => json!({"name": name, "value": literal(text)}),
            ModelValue::Secret { secret, .. } => {
                json!({"name": name, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}})
            }
        };
        let more: Vec<Value> = adapter.variables.into_iter().map(variable).collect();
        let mut container = self.injected(ADAPTER_CONTAINER, &command);
        container["resources"] = resources("256Mi");
        let mut container = object(container);
        self.connect(&mut container, grace, more.into())?;
        Ok(container.into())
    }

    /// A container that runs Lastword's own image.
    fn injected(&self, name: &str, command: &[&str]) -> Value {
        let Injector { image, pull_policy, .. } = &self.config.injector;
        let mut container = json!({"name": name, "image": &**image, "command": command});
        if let Some(policy) = pull_policy {
            container["imagePullPolicy"] = json!(policy);
        }
        container
    }

    /// Adds what a container needs to be an adapter: variables that say where the gateways are and on which terms it works,
    /// and the token. The variables come before the template's own, which may refer to them, and replace the template's
    /// variables of the same names.
    fn connect(&self, container: &mut Map<String, Value>, grace: u32, more: Value) -> Result<(), Failure> {
        let mut own = vec![
            json!({"name": env::GATEWAY, "value": literal(&self.config.worker_gateways.join(","))}),
            json!({"name": env::TOKEN_FILE, "value": TOKEN_FILE}),
            json!({"name": env::CAPACITY, "value": self.start.spec.limits.turns_per_worker().to_string()}),
            json!({"name": env::DRAIN_SECONDS, "value": drain_seconds(grace).to_string()}),
        ];
        if self.config.worker_ca.is_some() {
            own.push(json!({"name": env::GATEWAY_CA, "value": GATEWAY_CA_FILE}));
        }
        if let Some(path) = container.get("terminationMessagePath").and_then(Value::as_str) {
            own.push(json!({"name": env::TERMINATION_LOG, "value": literal(path)}));
        }
        own.extend(more.as_array().into_iter().flatten().cloned());
        let given = list(container, "env")?;
        let ours = |v: &Value| named(v) == env::CREDENTIAL || own.iter().any(|o| named(o) == named(v));
        let given: Vec<Value> = given.into_iter().filter(|v| !ours(v)).collect();
        own.extend(given);
        container.insert("env".into(), own.into());
        mount(container, TOKEN_VOLUME, TOKEN_DIRECTORY)
    }

    fn token_volume(&mut self) {
        let token = json!({"audience": AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token"});
        let mut sources = vec![json!({"serviceAccountToken": token})];
        if self.config.worker_ca.is_some() {
            let annotation = json!({"fieldPath": format!("metadata.annotations['{GATEWAY_CA}']")});
            sources.push(json!({"downwardAPI": {"items": [{"path": "ca.crt", "fieldRef": annotation}]}}));
        }
        // Every user may read the files, since the container's user is not known here. No other container mounts them.
        let projected = json!({"defaultMode": 0o444, "sources": sources});
        self.volumes.push(json!({"name": TOKEN_VOLUME, "projected": projected}));
    }
}

/// The resources of containers that run Lastword's own image. They have limits, because a namespace with a quota refuses
/// containers without.
fn resources(memory: &str) -> Value {
    json!({"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "1", "memory": memory}})
}

/// Mounts a volume read-only at `path`, which the template may not use.
fn mount(container: &mut Map<String, Value>, volume: &str, path: &str) -> Result<(), Failure> {
    let mut mounts = list(container, "volumeMounts")?;
    let at = |m: &Value| m["mountPath"].as_str().map(|p| p.trim_end_matches('/').to_owned());
    if mounts.iter().any(|m| at(m).as_deref() == Some(path)) {
        return Err(cannot(format!("the mount path {path} is reserved")));
    }
    mounts.push(json!({"name": volume, "mountPath": path, "readOnly": true}));
    container.insert("volumeMounts".into(), mounts.into());
    Ok(())
}

/// Adds the pull Secrets of Lastword's image, if a container runs it.
fn pull_secrets<'a>(
    spec: &mut Map<String, Value>,
    injector: &Injector,
    mut containers: impl Iterator<Item = &'a Value>,
) -> Result<(), Failure> {
    if injector.pull_secrets.is_empty() || !containers.any(|c| c["image"] == *injector.image) {
        return Ok(());
    }
    let mut secrets = list(spec, "imagePullSecrets")?;
    for name in &injector.pull_secrets {
        if !secrets.iter().any(|s| named(s) == name) {
            secrets.push(json!({"name": name}));
        }
    }
    spec.insert("imagePullSecrets".into(), secrets.into());
    Ok(())
}

/// Quotes text for a command or a variable's value, where Kubernetes replaces `$(NAME)` and makes one `$` of `$$`.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

fn agent(containers: &mut [Value]) -> Result<&mut Map<String, Value>, Failure> {
    let agent = containers.iter_mut().find(|c| named(c) == AGENT_CONTAINER).and_then(Value::as_object_mut);
    agent.ok_or_else(|| cannot("the template has no container named agent"))
}

fn required_image(container: &Map<String, Value>, who: &str) -> Result<(), Failure> {
    match container.get("image").and_then(Value::as_str) {
        Some(image) if !image.is_empty() => Ok(()),
        _ => Err(cannot(format!("{who} needs an image in Kubernetes"))),
    }
}

pub(super) fn named(value: &Value) -> &str {
    value["name"].as_str().unwrap_or_default()
}

/// Takes the list under `key` out of an object. An absent list is an empty one.
pub(super) fn list(object: &mut Map<String, Value>, key: &str) -> Result<Vec<Value>, Failure> {
    match object.remove(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) if items.iter().all(Value::is_object) => Ok(items),
        Some(_) => Err(cannot(format!("{key} in the template must be a list of objects"))),
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

fn cannot(detail: impl Into<String>) -> Failure {
    cause::start::impossible(detail)
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
