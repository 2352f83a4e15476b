//! The `AgentTurn` resource: one turn as an object.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::turn::phase::Phase;
use crate::turn::reason::Reason;

/// One message to an agent. Immutable but for cancel and ttlSecondsAfterFinished.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "lastword.dev",
    version = "v1alpha1",
    kind = "AgentTurn",
    namespaced,
    status = "AgentTurnStatus",
    derive = "PartialEq",
    category = "lastword",
    shortname = "turn",
    shortname = "turns",
    selectable = ".status.phase",
    doc = "One message to an agent, and its one reply or error.",
    printcolumn(name = "Agent", type_ = "string", json_path = ".spec.agentRef.name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Terminal\")].reason"),
    printcolumn(name = "Worker", type_ = "string", json_path = ".status.workerPod"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.agentRef == oldSelf.agentRef", "agentRef is immutable"),
    validation = ("self.input == oldSelf.input", "input is immutable"),
    validation = (
        "has(self.conversation) == has(oldSelf.conversation) && (!has(self.conversation) || self.conversation == oldSelf.conversation)",
        "conversation is immutable"
    ),
    validation = (
        "has(self.messageId) == has(oldSelf.messageId) && (!has(self.messageId) || self.messageId == oldSelf.messageId)",
        "messageId is immutable"
    ),
    validation = (
        "has(self.user) == has(oldSelf.user) && (!has(self.user) || self.user == oldSelf.user)",
        "user is immutable"
    ),
    validation = (
        "has(self.deadlineSeconds) == has(oldSelf.deadlineSeconds) && (!has(self.deadlineSeconds) || self.deadlineSeconds == oldSelf.deadlineSeconds)",
        "deadlineSeconds is immutable"
    ),
    validation = ("!oldSelf.cancel || self.cancel", "a cancelled turn stays cancelled"),
    validation = ("size(bytes(self.input)) <= 131072", "input must be at most 131072 bytes"),
    validation = (
        "!has(self.conversation) || (size(bytes(self.conversation)) <= 256 && self.conversation.matches('^\\\\P{Cc}+$') && !(self.conversation in ['.', '..']))",
        "conversation must be at most 256 bytes without control characters, and not . or .."
    ),
    validation = (
        "!has(self.messageId) || (size(bytes(self.messageId)) <= 256 && self.messageId.matches('^\\\\P{Cc}+$'))",
        "messageId must be at most 256 bytes without control characters"
    ),
    validation = (
        "!has(self.user) || (size(bytes(self.user)) <= 256 && self.user.matches('^\\\\P{Cc}+$'))",
        "user must be at most 256 bytes without control characters"
    )
)]
pub struct AgentTurnSpec {
    /// The agent, in the same namespace.
    pub agent_ref: AgentRef,
    /// The message; at most 131072 bytes of UTF-8.
    #[schemars(length(min = 1, max = 131072))]
    pub input: String,
    /// The conversation; default: one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub conversation: Option<String>,
    /// The message's id within the conversation; default: the object's UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub message_id: Option<String>,
    /// On whose behalf; told to the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub user: Option<String>,
    /// Seconds from arming to the hard deadline; default: the agent's timing.turnSeconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604800))]
    pub deadline_seconds: Option<u32>,
    /// Cancels the turn; false to true only.
    #[serde(default)]
    pub cancel: bool,
    /// Seconds from the terminal until the object is deleted; default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31536000))]
    pub ttl_seconds_after_finished: Option<u32>,
}

/// An agent in the same namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = (
    "self.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
    "name must be of a-z, 0-9 and -, and begin and end with a letter or digit"
))]
pub struct AgentRef {
    /// The agent's name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// What became of the turn; read from the store.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentTurnStatus {
    /// A summary of the conditions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The generation that the status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Armed, Dispatched, Succeeded and Terminal.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The turn's id in the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn_id: Option<String>,
    /// The reply, cut at 16384 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// Whether the reply was cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_truncated: Option<bool>,
    /// Why there is no reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<TurnError>,
    /// The pod of the worker that claimed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_pod: Option<String>,
    /// When it was armed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub armed_time: Option<Time>,
    /// When a worker claimed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dispatched_time: Option<Time>,
    /// When its terminal was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
}

/// Why a turn has no reply.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TurnError {
    /// Why it failed.
    pub reason: Reason,
    /// The sentence that the client sees.
    pub message: String,
    /// Whether sending it again can help.
    pub retryable: bool,
}
