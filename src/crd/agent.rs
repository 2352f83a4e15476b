//! The `Agent` resource and its defaults.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::guardrails::{Guardrails, Platform, SecretKeyRef};
use super::template::{Container, PodTemplate};
use crate::turn::defaults;
use crate::turn::reason::Reason;

/// How an agent is run, limited and reached.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "lastword.dev",
    version = "v1alpha1",
    kind = "Agent",
    namespaced,
    status = "AgentStatus",
    derive = "PartialEq",
    category = "lastword",
    doc = "An agent that people chat with: how its workers are run, limited and reached.",
    validation = (
        "self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name must be 1 to 63 of a-z, 0-9 and -, and begin and end with a letter or digit"
    ),
    printcolumn(name = "Adapter", type_ = "string", json_path = ".spec.adapter"),
    printcolumn(name = "Scope", type_ = "string", json_path = ".spec.scope"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Workers", type_ = "integer", json_path = ".status.workers"),
    printcolumn(name = "Queued", type_ = "integer", json_path = ".status.queuedTurns"),
    printcolumn(name = "Running", type_ = "integer", json_path = ".status.runningTurns"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.adapter != 'OpenAI' || has(self.openai)", "adapter OpenAI requires spec.openai"),
    validation = (
        "self.adapter == 'OpenAI' || (has(self.template) && self.template.spec.containers.exists(c, c.name == 'agent'))",
        "adapters Exec and Custom require a container named agent in spec.template.spec.containers"
    ),
    validation = (
        "self.adapter != 'Exec' || !has(self.template) || self.template.spec.containers.all(c, c.name != 'agent' || (has(c.command) && c.command.size() > 0))",
        "adapter Exec requires a command on the container agent"
    )
)]
pub struct AgentSpec {
    /// Who shares a worker: one conversation, or all conversations of the agent.
    #[serde(default)]
    pub scope: Scope,
    /// How the agent program is spoken to.
    pub adapter: Adapter,
    /// The pod that runs the agent, as a PodTemplateSpec. The program is the container named agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<PodTemplate>,
    /// The model server; required by the adapter OpenAI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub openai: Option<OpenAi>,
    /// Bounds on workers and queue.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// Deadlines, in seconds.
    #[serde(default, skip_serializing_if = "is_default")]
    pub timing: Timing,
    /// What a message must pass before the agent sees it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub guardrails: Guardrails,
    /// Where replies may be sent besides the API.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub platforms: Vec<Platform>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Who shares a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Scope {
    /// A worker for each conversation.
    #[default]
    Conversation,
    /// Workers serve all conversations of the agent.
    Agent,
}

/// How the agent program is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Adapter {
    /// A command for each turn: message on stdin, reply on stdout.
    Exec,
    /// A server with OpenAI's chat completions API.
    OpenAI,
    /// The container speaks the worker protocol itself.
    Custom,
}

/// A server with OpenAI's chat completions API.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "self.baseURL.startsWith('http://') || self.baseURL.startsWith('https://')",
    "baseURL must be an http or https URL"
))]
pub struct OpenAi {
    /// The API's root, e.g. http://localhost:8000/v1; it may be a container of the same pod.
    #[serde(rename = "baseURL")]
    #[schemars(length(min = 1, max = 2048))]
    pub base_url: String,
    /// The model's name, as the server knows it.
    #[schemars(length(min = 1, max = 256))]
    pub model: String,
    /// Sent before each conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub system_prompt: Option<String>,
    /// The API key; none is sent without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<SecretKeyRef>,
}

/// Bounds on workers and queue.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "!has(self.minWorkers) || self.minWorkers <= (has(self.maxWorkers) ? self.maxWorkers : 10)",
    "minWorkers must not be greater than maxWorkers (default 10)"
))]
pub struct Limits {
    /// Workers that are kept even if idle; default 0. Only scope Agent can use them for any conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub min_workers: Option<u32>,
    /// Workers at most; default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub max_workers: Option<u32>,
    /// Turns that a worker holds at a time; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub turns_per_worker: Option<u32>,
    /// Turns that may wait before new ones are refused; default 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub max_queued_turns: Option<u32>,
}

impl Limits {
    /// Workers that are kept even if idle.
    pub fn min_workers(&self) -> u32 {
        self.min_workers.unwrap_or(defaults::MIN_WORKERS)
    }

    /// Workers at most, live or starting.
    pub fn max_workers(&self) -> u32 {
        self.max_workers.unwrap_or(defaults::MAX_WORKERS)
    }

    /// Turns that one worker holds at a time.
    pub fn turns_per_worker(&self) -> u32 {
        self.turns_per_worker.unwrap_or(defaults::TURNS_PER_WORKER)
    }

    /// Turns that may wait for the agent.
    pub fn max_queued_turns(&self) -> u32 {
        self.max_queued_turns.unwrap_or(defaults::MAX_QUEUED_TURNS)
    }
}

/// Deadlines, in seconds.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "!has(self.heartbeatSeconds) || self.heartbeatSeconds * 2 < (has(self.leaseSeconds) ? self.leaseSeconds : 60)",
    "heartbeatSeconds must be less than half of leaseSeconds (default 60); leave it out to get a third of the lease"
))]
pub struct Timing {
    /// From the decision to start a worker until it must be live; default 120.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub start_seconds: Option<u32>,
    /// Between two heartbeats of a worker; default 20, or a third of leaseSeconds if that is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub heartbeat_seconds: Option<u32>,
    /// Silence after which a worker is given up; default 60. Below 5, a gateway that is cut off from the database for
    /// some seconds can cost turns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub lease_seconds: Option<u32>,
    /// From arming a turn to its hard deadline; default 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604800))]
    pub turn_seconds: Option<u32>,
    /// For a stopping worker to finish what it holds; default 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86400))]
    pub drain_seconds: Option<u32>,
    /// Without a turn before a worker is stopped; default 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 604800))]
    pub idle_seconds: Option<u32>,
    /// Starts to attempt before the waiting turns fail; a count, default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10))]
    pub start_attempts: Option<u32>,
}

impl Timing {
    /// Seconds from the `starting` row until the worker must be live.
    pub fn start_seconds(&self) -> u32 {
        self.start_seconds.unwrap_or(defaults::START_SECONDS)
    }

    /// Between two heartbeats: as given, else the default, but at most a third of the lease, so that a short lease alone
    /// makes a valid pair (a lease of 1 s gives 333 ms, which no integer could say).
    pub fn heartbeat(&self) -> Duration {
        let third = Duration::from_secs(self.lease_seconds().into()) / 3;
        match self.heartbeat_seconds {
            Some(seconds) => Duration::from_secs(seconds.into()),
            None => third.min(Duration::from_secs(defaults::HEARTBEAT_SECONDS.into())),
        }
    }

    /// Seconds of silence after which a worker is given up.
    pub fn lease_seconds(&self) -> u32 {
        self.lease_seconds.unwrap_or(defaults::LEASE_SECONDS)
    }

    /// Seconds from arming a turn to its hard deadline.
    pub fn turn_seconds(&self) -> u32 {
        self.turn_seconds.unwrap_or(defaults::TURN_SECONDS)
    }

    /// Seconds for a stopping worker to finish what it holds.
    pub fn drain_seconds(&self) -> u32 {
        self.drain_seconds.unwrap_or(defaults::DRAIN_SECONDS)
    }

    /// Seconds without a turn before a worker is stopped.
    pub fn idle_seconds(&self) -> u32 {
        self.idle_seconds.unwrap_or(defaults::IDLE_SECONDS)
    }

    /// Starts to attempt before the waiting turns fail.
    pub fn start_attempts(&self) -> u32 {
        self.start_attempts.unwrap_or(defaults::START_ATTEMPTS)
    }
}

/// What the controller observed.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentStatus {
    /// The generation that the status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready: the template was accepted by a dry run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Workers that are live or starting.
    pub workers: u32,
    /// Turns that wait for a worker.
    pub queued_turns: u32,
    /// Turns that a worker holds.
    pub running_turns: u32,
    /// The latest turn that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<LastFailure>,
}

/// The latest turn of an agent that failed.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastFailure {
    /// Why it failed.
    pub reason: Reason,
    /// The operator's detail: container state, exit code, end of stderr.
    pub message: String,
    /// The turn's id.
    pub turn_id: String,
    /// When it failed.
    pub time: Time,
}

impl Agent {
    /// The container that is the agent program, if the template has one.
    pub fn program(&self) -> Option<&Container> {
        self.spec.template.as_ref()?.spec.containers.iter().find(|c| c.name == super::AGENT_CONTAINER)
    }
}
