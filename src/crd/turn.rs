//! The resource `AgentTurn`: one turn as an object.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::turn::phase::Phase;
use crate::turn::reason::Reason;

/// One message to an agent. Only cancel and ttlSecondsAfterFinished may be changed later.
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
    doc = "One turn: a message to an agent, and in the status the agent's one reply, or the one error that says why there is none.",
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
    /// The agent that the message is for. It is in the same namespace.
    pub agent_ref: AgentRef,
    /// The message, at most 131072 bytes of UTF-8.
    #[schemars(length(min = 1, max = 131072))]
    pub input: String,
    /// The name of the conversation that the turn belongs to. Turns of one conversation are run in order. Default: a
    /// conversation of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub conversation: Option<String>,
    /// The id of the message in its conversation. A message of the same id is not run a second time. Default: the UID of this
    /// object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub message_id: Option<String>,
    /// The user on whose behalf the message is sent. The agent is told the name with kubernetes: before it, since whoever may
    /// create an AgentTurn may write any name here: it is never a user of the API. Default: kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub user: Option<String>,
    /// Seconds that the turn may take from the time it is armed, its waiting included. Default: the agent's
    /// timing.turnSeconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604800))]
    pub deadline_seconds: Option<u32>,
    /// Set to true, cancels the turn. It cannot be set to false again. Default: false.
    #[serde(default)]
    pub cancel: bool,
    /// Seconds from the end of the turn until this object is deleted. Default: it is never deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31536000))]
    pub ttl_seconds_after_finished: Option<u32>,
}

/// A reference to an agent in the same namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = (
    "self.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
    "name must be of a-z, 0-9 and -, and begin and end with a letter or digit"
))]
pub struct AgentRef {
    /// The name of the agent.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// What has become of the turn, as the controller read it from the database.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentTurnStatus {
    /// A summary of the conditions: Pending, Armed, Running, Succeeded or Failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The metadata.generation that the status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions. Armed: the turn is recorded, and will end with a reply or an error. Dispatched: a worker has claimed it.
    /// Succeeded: it ended with a reply (True) or an error (False). Terminal: it has ended; the reason is Succeeded or says why
    /// it failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The id of the turn, once it is armed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn_id: Option<String>,
    /// The agent's reply, cut at 16384 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// True if the reply was cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_truncated: Option<bool>,
    /// Why there is no reply, if the turn failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<TurnError>,
    /// The name of the pod whose worker claimed the turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_pod: Option<String>,
    /// When the turn was armed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub armed_time: Option<Time>,
    /// When a worker claimed the turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dispatched_time: Option<Time>,
    /// When the turn ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
}

/// Why a turn has no reply.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TurnError {
    /// Why the turn failed, as one CamelCase word.
    pub reason: Reason,
    /// The same as a sentence, which the client is shown.
    pub message: String,
    /// Whether it can help to send the message again.
    pub retryable: bool,
}
