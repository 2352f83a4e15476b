//! The resource `Agent`: how an agent is run, limited and reached; and the defaults of its fields.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::guardrails::{Guardrails, Platform};
use super::openai::OpenAi;
use super::template::{Container, PodTemplate};
use crate::turn::defaults;
use crate::turn::reason::Reason;

/// What the owner of an agent specifies: how the agent's workers are run and limited, and what may be sent to it and where.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "lastword.dev",
    version = "v1alpha1",
    kind = "Agent",
    namespaced,
    shortname = "lwagent",
    status = "AgentStatus",
    derive = "PartialEq",
    category = "lastword",
    doc = "An agent that people chat with. It says how the agent's workers are run and limited, which messages reach them, and where replies may be sent.",
    validation = (
        "self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name must be 1 to 63 of a-z, 0-9 and -, and begin and end with a letter or digit"
    ),
    printcolumn(name = "Adapter", type_ = "string", json_path = ".spec.adapter"),
    printcolumn(name = "Scope", type_ = "string", json_path = ".spec.scope"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Workers", type_ = "integer", json_path = ".status.workers"),
    printcolumn(name = "Updated", type_ = "integer", json_path = ".status.updatedWorkers", priority = 1),
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
    ),
    validation = (
        "!has(self.detachedProcesses) || self.detachedProcesses != 'EndWithWorker' || (self.adapter == 'Exec' && (!has(self.scope) || self.scope == 'Conversation'))",
        "detachedProcesses EndWithWorker requires adapter Exec and scope Conversation"
    )
)]
pub struct AgentSpec {
    /// Which conversations share a worker: Conversation (default) gives each conversation a worker of its own, Agent lets
    /// workers serve all conversations of the agent.
    #[serde(default)]
    pub scope: Scope,
    /// How Lastword talks to the agent program. Exec runs a command for each turn, OpenAI calls a model server, Custom leaves
    /// it to a container that implements Lastword's worker protocol.
    pub adapter: Adapter,
    /// The pod that a worker runs in, as a PodTemplateSpec. The container named agent runs the agent program. Required by the
    /// adapters Exec and Custom. For OpenAI it is optional, and its container agent is the model server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<PodTemplate>,
    /// The model server and the model. Required by the adapter OpenAI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub openai: Option<OpenAi>,
    /// Limits on the agent's workers and on its queue of waiting turns.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// How workers are replaced when what they are made of changes: scope, adapter, template, openai or detachedProcesses. All
    /// other fields hold for the workers that run.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rollout: Rollout,
    /// What becomes of processes that the program of a turn has detached (setsid) and left behind. EndWithTurn (default)
    /// kills them with everything else that the turn started. EndWithWorker lets them serve the conversation's later turns,
    /// until its worker ends; it needs adapter Exec and scope Conversation.
    #[serde(default, skip_serializing_if = "is_default")]
    pub detached_processes: DetachedProcesses,
    /// Timeouts of turns and workers, in seconds.
    #[serde(default, skip_serializing_if = "is_default")]
    pub timing: Timing,
    /// Checks that a message must pass before the agent sees it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub guardrails: Guardrails,
    /// Places besides the API where replies may be sent. A client chooses one of them by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub platforms: Vec<Platform>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Which conversations share a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Scope {
    /// Each conversation has a worker of its own.
    #[default]
    Conversation,
    /// A worker serves all conversations of the agent.
    Agent,
}

/// What becomes of processes that the program of a turn has detached and left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum DetachedProcesses {
    /// They are killed when the turn ends.
    #[default]
    EndWithTurn,
    /// They live on, and are killed when the worker ends.
    EndWithWorker,
}

/// How Lastword talks to the agent program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Adapter {
    /// The container's command is run for each turn. It reads the message from stdin and writes the reply to stdout.
    Exec,
    /// A server with OpenAI's chat completions API is called.
    OpenAI,
    /// The container itself implements Lastword's worker protocol.
    Custom,
}

/// Limits on the agent's workers and on its queue of waiting turns.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "!has(self.minWorkers) || self.minWorkers <= (has(self.maxWorkers) ? self.maxWorkers : 10)",
    "minWorkers must not be greater than maxWorkers (default 10)"
))]
pub struct Limits {
    /// How many workers are kept running though no turn needs them; default 0. They are of use with scope Agent, where they can
    /// serve any conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub min_workers: Option<u32>,
    /// How many workers may run or start at a time; default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub max_workers: Option<u32>,
    /// How many turns a worker may hold at a time; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub turns_per_worker: Option<u32>,
    /// How many turns may wait for a worker. Beyond it new turns are refused; default 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub max_queued_turns: Option<u32>,
}

/// How workers are replaced when the Agent changes. One that is replaced takes no more turns, and leaves when those that it has
/// are done.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "!(has(self.maxSurge) && self.maxSurge == 0) || (has(self.maxUnavailable) && self.maxUnavailable > 0)",
    "maxSurge and maxUnavailable must not both be 0 (default 1 and 0)"
))]
pub struct Rollout {
    /// How many workers may be retired before the ones that replace them are live; default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub max_unavailable: Option<u32>,
    /// How many workers may run beyond maxWorkers while workers are replaced; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub max_surge: Option<u32>,
}

impl Rollout {
    /// How many workers may be retired before the ones that replace them are live.
    pub fn max_unavailable(&self) -> u32 {
        self.max_unavailable.unwrap_or(defaults::MAX_UNAVAILABLE)
    }

    /// How many workers may run beyond `maxWorkers` while workers are replaced.
    pub fn max_surge(&self) -> u32 {
        self.max_surge.unwrap_or(defaults::MAX_SURGE)
    }
}

impl Limits {
    /// How many workers are kept though no turn needs them.
    pub fn min_workers(&self) -> u32 {
        self.min_workers.unwrap_or(defaults::MIN_WORKERS)
    }

    /// How many workers may be live or starting at a time.
    pub fn max_workers(&self) -> u32 {
        self.max_workers.unwrap_or(defaults::MAX_WORKERS)
    }

    /// How many turns a worker may hold at a time.
    pub fn turns_per_worker(&self) -> u32 {
        self.turns_per_worker.unwrap_or(defaults::TURNS_PER_WORKER)
    }

    /// How many turns may wait for a worker.
    pub fn max_queued_turns(&self) -> u32 {
        self.max_queued_turns.unwrap_or(defaults::MAX_QUEUED_TURNS)
    }
}

/// Timeouts of turns and workers, in seconds.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "!has(self.heartbeatSeconds) || self.heartbeatSeconds * 2 < (has(self.leaseSeconds) ? self.leaseSeconds : 60)",
    "heartbeatSeconds must be less than half of leaseSeconds (default 60); leave it out to get a third of the lease"
))]
pub struct Timing {
    /// Seconds from the decision to start a worker until it must be live; default 120. After that the start has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub start_seconds: Option<u32>,
    /// Seconds between two heartbeats of a worker; default 20, or a third of leaseSeconds if that is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub heartbeat_seconds: Option<u32>,
    /// Seconds of silence after which a worker counts as lost and its turns fail; default 60. With less than 5, a gateway
    /// that is cut off from the database for some seconds can cost turns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub lease_seconds: Option<u32>,
    /// Seconds that a turn may take, its waiting included; default 3600. After that it fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604800))]
    pub turn_seconds: Option<u32>,
    /// Seconds that a worker which is being stopped has to finish the turns that it holds; default 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86400))]
    pub drain_seconds: Option<u32>,
    /// Seconds that a worker may be without a turn before it is stopped; default 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 604800))]
    pub idle_seconds: Option<u32>,
    /// How many starts of a worker are attempted before the turns that wait for it fail; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10))]
    pub start_attempts: Option<u32>,
}

impl Timing {
    /// Seconds from the lease row of a start until its worker must be live.
    pub fn start_seconds(&self) -> u32 {
        self.start_seconds.unwrap_or(defaults::START_SECONDS)
    }

    /// The time between two heartbeats: as given; else the default, but at most a third of the lease. So it is enough to set a
    /// short lease: one of 1 s makes it 333 ms, which the field, an integer, could not say.
    /// The same in whole seconds, as the worker protocol has it: a worker with a lease of 1 or 2 s beats each second.
    pub fn whole_heartbeat_seconds(&self) -> u32 {
        (self.heartbeat().as_secs() as u32).max(1)
    }

    pub fn heartbeat(&self) -> Duration {
        let third = Duration::from_secs(self.lease_seconds().into()) / 3;
        match self.heartbeat_seconds {
            Some(seconds) => Duration::from_secs(seconds.into()),
            None => third.min(Duration::from_secs(defaults::HEARTBEAT_SECONDS.into())),
        }
    }

    /// Seconds of silence after which a worker counts as lost.
    pub fn lease_seconds(&self) -> u32 {
        self.lease_seconds.unwrap_or(defaults::LEASE_SECONDS)
    }

    /// Seconds from the arming of a turn to its deadline.
    pub fn turn_seconds(&self) -> u32 {
        self.turn_seconds.unwrap_or(defaults::TURN_SECONDS)
    }

    /// Seconds that a worker which is being stopped has to finish its turns.
    pub fn drain_seconds(&self) -> u32 {
        self.drain_seconds.unwrap_or(defaults::DRAIN_SECONDS)
    }

    /// Seconds that a worker may be without a turn before it is stopped.
    pub fn idle_seconds(&self) -> u32 {
        self.idle_seconds.unwrap_or(defaults::IDLE_SECONDS)
    }

    /// How many starts are attempted before the waiting turns fail.
    pub fn start_attempts(&self) -> u32 {
        self.start_attempts.unwrap_or(defaults::START_ATTEMPTS)
    }
}

/// What the controller observed of the agent.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentStatus {
    /// The metadata.generation that the status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions. Ready is True when the spec is valid and the API server accepts a worker's pod in a dry run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// How many workers run or start.
    pub workers: u32,
    /// How many of them are made as the spec is now; the others are being replaced, see spec.rollout.
    pub updated_workers: u32,
    /// How many turns wait for a worker.
    pub queued_turns: u32,
    /// How many turns a worker holds.
    pub running_turns: u32,
    /// The latest turn of the agent that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<LastFailure>,
}

/// The latest turn of an agent that failed.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastFailure {
    /// Why the turn failed, as one CamelCase word.
    pub reason: Reason,
    /// The exit code of the program or container that ended, if the turn failed by that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The id of the turn, by which operators find the rest: lastword turns show.
    pub turn_id: String,
    /// When the turn failed.
    pub time: Time,
}

impl Agent {
    /// The container that runs the agent program, if the template has one.
    pub fn program(&self) -> Option<&Container> {
        self.spec.template.as_ref()?.spec.containers.iter().find(|c| c.name == super::AGENT_CONTAINER)
    }
}
