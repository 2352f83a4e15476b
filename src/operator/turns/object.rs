//! What is kept of an AgentTurn in memory: little, once it is armed.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::DynamicObject;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::crd::{AgentTurnSpec, Phase};
use crate::turn::keys::TurnId;

/// An AgentTurn as the API server last showed it.
#[derive(Debug, Clone)]
pub struct Object {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub uid: Arc<str>,
    /// Absent in one that is known from the store alone: it is read before it is written.
    pub version: Option<String>,
    pub generation: i64,
    pub created: Timestamp,
    /// What to arm, or why it cannot be read; dropped when it is armed.
    pub spec: Option<Result<Arc<AgentTurnSpec>, String>>,
    pub cancel: bool,
    pub ttl_seconds: Option<u32>,
    /// As its status says.
    pub phase: Option<Phase>,
    pub observed_generation: i64,
    pub turn_id: Option<TurnId>,
    pub completed: Option<Timestamp>,
}

impl Object {
    /// Reads one from the API; `None` if it lacks what every object has.
    pub fn read(object: DynamicObject) -> Option<Object> {
        let DynamicObject { metadata, mut data, .. } = object;
        let spec = serde_json::from_value::<AgentTurnSpec>(data["spec"].take());
        let mut status = data["status"].take();
        let phase = phase(&mut status);
        let turn_id = field::<String>(&mut status, "turnId").and_then(|id| id.parse().ok());
        let rank = rank(phase);
        let unarmed = rank < 2 || (turn_id.is_none() && rank < ENDED);
        let (cancel, ttl_seconds) =
            spec.as_ref().map_or((false, None), |spec| (spec.cancel, spec.ttl_seconds_after_finished));
        Some(Object {
            namespace: metadata.namespace?.into(),
            name: metadata.name?.into(),
            uid: metadata.uid?.into(),
            version: metadata.resource_version,
            generation: metadata.generation.unwrap_or(0),
            created: metadata.creation_timestamp.map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            spec: unarmed.then(|| spec.map(Arc::new).map_err(|error| error.to_string())),
            cancel,
            ttl_seconds,
            phase,
            observed_generation: field(&mut status, "observedGeneration").unwrap_or(0),
            turn_id,
            completed: field::<Time>(&mut status, "completionTime").map(|time| time.0),
        })
    }

    /// One that only the store knows.
    pub fn unseen(namespace: &str, name: &str, uid: &str, turn_id: TurnId) -> Object {
        Object {
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.into(),
            version: None,
            generation: 0,
            created: Timestamp::UNIX_EPOCH,
            spec: None,
            cancel: false,
            ttl_seconds: None,
            phase: None,
            observed_generation: 0,
            turn_id: Some(turn_id),
            completed: None,
        }
    }

    /// How far its status is.
    pub fn rank(&self) -> u8 {
        rank(self.phase)
    }

    /// Whether its status is its last one.
    pub fn ended(&self) -> bool {
        self.rank() == ENDED
    }

    /// Whether `other` was read before this one. Versions that are no numbers cannot be compared.
    pub fn is_newer_than(&self, other: &Object) -> bool {
        let number = |object: &Object| object.version.as_ref().and_then(|v| v.parse::<u64>().ok());
        matches!((number(self), number(other)), (Some(mine), Some(others)) if mine > others)
    }
}

/// A field of a status. Each is read by itself: a newer version's reason must not hide that a turn has ended.
fn field<T: DeserializeOwned>(status: &mut Value, name: &str) -> Option<T> {
    serde_json::from_value(status.get_mut(name)?.take()).ok()
}

/// The phase of a status; the condition `Terminal` says that it is final even if the phase is one that we do not know.
fn phase(status: &mut Value) -> Option<Phase> {
    let known = field(status, "phase");
    if rank(known) == ENDED {
        return known;
    }
    let conditions: Vec<Value> = field(status, "conditions").unwrap_or_default();
    let is_true = |kind: &str| conditions.iter().any(|c| c["type"] == kind && c["status"] == "True");
    match (is_true("Terminal"), is_true("Succeeded")) {
        (true, true) => Some(Phase::Succeeded),
        (true, false) => Some(Phase::Failed),
        (false, _) => known,
    }
}

/// The rank of a status that is final.
pub const ENDED: u8 = 4;

/// Statuses only go forward.
pub fn rank(phase: Option<Phase>) -> u8 {
    match phase {
        None => 0,
        Some(Phase::Pending) => 1,
        Some(Phase::Armed) => 2,
        Some(Phase::Running) => 3,
        Some(Phase::Succeeded | Phase::Failed) => ENDED,
    }
}
