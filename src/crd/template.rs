//! The pod template of an `Agent`. The few fields that Lastword reads are typed; all others are kept as raw JSON.
//!
//! A schema of the whole PodTemplateSpec would make the CRD larger than `kubectl apply` can handle, and would drop the fields of
//! newer versions of Kubernetes.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A PodTemplateSpec, from which the pods of the agent's workers are made.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplate {
    /// Labels and annotations that the pods get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<PodMetadata>,
    /// A PodSpec. Every field of Kubernetes' PodSpec may be set; those that are not listed here are passed on as they are.
    pub spec: PodSpec,
}

/// Labels and annotations that the pods get.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodMetadata {
    /// Labels. Those that Lastword itself sets take precedence.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations. Those that Lastword itself sets take precedence.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A PodSpec.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    /// Never, which is also the default, is the only value: the end of a worker is reported to the client, and a turn that was
    /// begun is never run twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
    /// The containers, by name. The one named agent runs the agent program.
    #[serde(default)]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub containers: Vec<Container>,
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// The only restart policy that a worker's pod can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RestartPolicy {
    /// A container that ended is not started again.
    Never,
}

/// A container of the pod.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "self.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
    "name must be of a-z, 0-9 and -, and begin and end with a letter or digit"
))]
pub struct Container {
    /// The name of the container. The one named agent runs the agent program.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The container image. Required in Kubernetes; not used by lastword dev, which runs the command on the machine itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub image: Option<String>,
    /// The program and its first arguments. It is not run in a shell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub command: Vec<String>,
    /// Arguments that follow those of the command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub args: Vec<String>,
    /// Environment variables of the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Vec<EnvVar>,
    /// The working directory of the program. Default: in Kubernetes the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub working_dir: Option<String>,
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// An environment variable.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    /// The name of the variable.
    #[schemars(length(min = 1, max = 1024))]
    pub name: String,
    /// The value of the variable. Other sources (valueFrom) work in Kubernetes, and not with lastword dev.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// A text that is no Kubernetes quantity, or a quantity that cannot be a number of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a quantity of bytes (e.g. 512Mi, 2G, 1073741824)")]
pub struct NotAQuantity(pub String);

impl Container {
    /// `resources.limits.memory` in bytes, if it is set.
    ///
    /// # Errors
    /// If it is set and is no quantity of bytes.
    pub fn memory_limit_bytes(&self) -> Result<Option<u64>, NotAQuantity> {
        let limit = self.rest.get("resources").and_then(|r| r.get("limits")?.get("memory"));
        match limit {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => quantity_bytes(text).map(Some),
            Some(other) => quantity_bytes(&other.to_string()).map(Some),
        }
    }
}

/// A Kubernetes quantity as a number of bytes, rounded up. It may have a binary suffix (`Ki` to `Ei`), a decimal one (`m`, `k`
/// to `E`) or an exponent (`1e9`).
///
/// # Errors
/// If `text` is no quantity, is negative, or exceeds 64 bits.
pub fn quantity_bytes(text: &str) -> Result<u64, NotAQuantity> {
    let bad = || NotAQuantity(text.to_owned());
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let factor = match suffix {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 2f64.powi(10),
        "Mi" => 2f64.powi(20),
        "Gi" => 2f64.powi(30),
        "Ti" => 2f64.powi(40),
        "Pi" => 2f64.powi(50),
        "Ei" => 2f64.powi(60),
        exponent => {
            let power = exponent.strip_prefix(['e', 'E']).ok_or_else(bad)?;
            10f64.powi(power.parse().map_err(|_| bad())?)
        }
    };
    let bytes = (number * factor).ceil();
    // The bound is 2^64, which is exact as f64. Beyond 2^53 bytes an f64 rounds, and no memory limit is that large.
    if bytes < 18_446_744_073_709_551_616.0 { Ok(bytes as u64) } else { Err(bad()) }
}
