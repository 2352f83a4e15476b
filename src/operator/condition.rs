//! Conditions of a status, by Kubernetes' API conventions.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// Condition of an Agent: the API server accepts the pod that a worker would run in.
pub const READY: &str = "Ready";
/// Condition of an AgentTurn: its turn was armed.
pub const ARMED: &str = "Armed";
/// Condition of an AgentTurn: a worker claimed its turn.
pub const DISPATCHED: &str = "Dispatched";
/// Condition of an AgentTurn: its turn ended with a reply.
pub const SUCCEEDED: &str = "Succeeded";
/// Condition of an AgentTurn: its turn has ended, by a reply or by an error.
pub const TERMINAL: &str = "Terminal";

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConditionStatus {
    True,
    False,
    Unknown,
}

impl ConditionStatus {
    /// The word that Kubernetes uses.
    pub fn as_str(self) -> &'static str {
        match self {
            ConditionStatus::True => "True",
            ConditionStatus::False => "False",
            ConditionStatus::Unknown => "Unknown",
        }
    }
}

/// A condition that has had this status since `since`. `reason` is one CamelCase word.
pub fn condition(
    type_: &str,
    status: ConditionStatus,
    (reason, message): (&str, &str),
    since: Timestamp,
    observed_generation: Option<i64>,
) -> Condition {
    Condition {
        type_: type_.into(),
        status: status.as_str().into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: Time(since),
        observed_generation,
    }
}
