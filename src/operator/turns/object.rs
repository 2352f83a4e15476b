//! What the controller keeps of an AgentTurn in memory. Once the turn is armed that is little: the input, its largest part, is
//! dropped.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::DynamicObject;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::crd::AgentTurnSpec;
use crate::operator::condition::{SUCCEEDED, TERMINAL};
use crate::turn::keys::TurnId;
use crate::turn::phase::Phase;

/// An AgentTurn as the API server last showed it.
#[derive(Debug, Clone)]
pub struct TurnObject {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub uid: Arc<str>,
    /// The `resourceVersion`. `None` in an object that is known from the store alone; it is read before it is patched.
    pub version: Option<String>,
    pub generation: i64,
    pub created: Timestamp,
    /// The spec to arm a turn from, or why it cannot be read. `None` once the turn is armed.
    pub spec: Option<Result<Arc<AgentTurnSpec>, String>>,
    pub cancel: bool,
    pub ttl_seconds: Option<u32>,
    /// The phase that the object's status shows.
    pub phase: Option<Phase>,
    /// The generation that the object's status speaks of.
    pub observed_generation: i64,
    /// The turn's id that the object's status shows, once the turn is armed.
    pub turn_id: Option<TurnId>,
    /// When the turn ended, as the object's status shows.
    pub completed: Option<Timestamp>,
}

impl TurnObject {
    /// Reads an object of the API server's. `None` if it lacks a namespace, a name or a UID, which every object has.
    pub fn read(object: DynamicObject) -> Option<TurnObject> {
        let DynamicObject { metadata, mut data, .. } = object;
        let spec = serde_json::from_value::<AgentTurnSpec>(data["spec"].take());
        let mut status = data["status"].take();
        let phase = phase(&mut status);
        let turn_id = field::<String>(&mut status, "turnId").and_then(|id| id.parse().ok());
        let progress = Progress::of(phase);
        let unarmed = progress < Progress::Armed || (turn_id.is_none() && progress < Progress::Ended);
        let (cancel, ttl_seconds) =
            spec.as_ref().map_or((false, None), |spec| (spec.cancel, spec.ttl_seconds_after_finished));
        Some(TurnObject {
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

    /// An object that the store names and no watch has shown.
    pub fn known_to_store(namespace: &str, name: &str, uid: &str, turn_id: TurnId) -> TurnObject {
        TurnObject {
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

    /// How far the turn has come by the object's status.
    pub fn progress(&self) -> Progress {
        Progress::of(self.phase)
    }

    /// Whether the object's status shows that the turn has ended. Such a status changes no more.
    pub fn has_ended(&self) -> bool {
        self.progress() == Progress::Ended
    }

    /// Whether this object was read after `other`. False where the versions are no numbers, since then they cannot be
    /// compared.
    pub fn is_newer_than(&self, other: &TurnObject) -> bool {
        let number = |object: &TurnObject| object.version.as_ref().and_then(|v| v.parse::<u64>().ok());
        matches!((number(self), number(other)), (Some(mine), Some(others)) if mine > others)
    }
}

/// A field of a status. Each field is read by itself, so that a value which a newer version wrote, such as a reason that is
/// unknown here, does not hide the other fields.
fn field<T: DeserializeOwned>(status: &mut Value, name: &str) -> Option<T> {
    serde_json::from_value(status.get_mut(name)?.take()).ok()
}

/// The phase of a status. A phase that is unknown here still counts as an end if the condition `Terminal` says so.
fn phase(status: &mut Value) -> Option<Phase> {
    let known = field(status, "phase");
    if Progress::of(known) == Progress::Ended {
        return known;
    }
    let conditions: Vec<Value> = field(status, "conditions").unwrap_or_default();
    let is_true = |kind: &str| conditions.iter().any(|c| c["type"] == kind && c["status"] == "True");
    match (is_true(TERMINAL), is_true(SUCCEEDED)) {
        (true, true) => Some(Phase::Succeeded),
        (true, false) => Some(Phase::Failed),
        (false, _) => known,
    }
}

/// How far a turn has come. A status goes forward only: one that is behind what an object shows is never written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// There is no status yet.
    New,
    Pending,
    Armed,
    Running,
    /// The turn has ended, by a reply or by an error.
    Ended,
}

impl Progress {
    /// The progress that a status of this phase shows.
    pub fn of(phase: Option<Phase>) -> Self {
        match phase {
            None => Progress::New,
            Some(Phase::Pending) => Progress::Pending,
            Some(Phase::Armed) => Progress::Armed,
            Some(Phase::Running) => Progress::Running,
            Some(Phase::Succeeded | Phase::Failed) => Progress::Ended,
        }
    }
}
