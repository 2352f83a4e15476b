//! The two custom resources, group `lastword.dev`, version `v1alpha1`: types, schemas, defaults, validation.
//!
//! - [`Agent`]: how an agent is run and limited. In Kubernetes an object; on one machine a YAML document, read by
//!   [`agents_from_yaml`] and held against the same schema and the same CEL rules as the API server would use.
//! - [`AgentTurn`]: one turn as an object, for those who drive agents with `kubectl` or a controller.
//!
//! The schema that [`crds`] generates is the only place for limits of single fields; `check` interprets it locally.
//! The Rust types themselves ignore unknown fields, so that a controller which is older than the installed CRD (or rolled
//! back) still reads every object.

mod agent;
mod check;
mod guardrails;
mod template;
#[expect(clippy::duplicated_attributes, reason = "printer columns share type_")]
mod turn;

pub use crate::turn::phase::Phase;
pub use agent::{Adapter, Agent, AgentSpec, AgentStatus, LastFailure, Limits, OpenAi, Scope, Timing};
pub use check::{FieldError, InvalidAgent, check_spec};
pub use guardrails::{
    Destination, FailurePolicy, Guardrail, Guardrails, Platform, SecretKeyRef, SignedDestination, Webhook,
};
pub use template::{Container, EnvVar, NotAQuantity, PodMetadata, PodSpec, PodTemplate, RestartPolicy, quantity_bytes};
pub use turn::{AgentRef, AgentTurn, AgentTurnSpec, AgentTurnStatus, TurnError};

use std::sync::LazyLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

/// The API group of both resources.
pub const GROUP: &str = "lastword.dev";
/// The version of both resources.
pub const VERSION: &str = "v1alpha1";
/// The container of a template that is the agent program.
pub const AGENT_CONTAINER: &str = "agent";

static DEFINITIONS: LazyLock<Vec<CustomResourceDefinition>> =
    LazyLock::new(|| vec![tidy(Agent::crd()), tidy(AgentTurn::crd())]);

/// Both definitions, as they are installed: `agents.lastword.dev`, `agentturns.lastword.dev`.
///
/// Use this instead of `Agent::crd()`: the raw output of the derive makes every optional field nullable and names integer
/// formats that Kubernetes does not know.
pub fn crds() -> Vec<CustomResourceDefinition> {
    DEFINITIONS.clone()
}

/// Both definitions as `(file name under crds/, YAML)`; `make generate` writes them.
pub fn crd_files() -> Result<Vec<(String, String)>, serde_saphyr::SerializeError> {
    // Long descriptions stay on one line: folded scalars only make diffs harder to read.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    crds()
        .into_iter()
        .map(|crd| {
            let yaml = serde_saphyr::to_string_with_options(&crd, options.clone())?;
            Ok((format!("{}.yaml", crd.spec.names.plural), yaml))
        })
        .collect()
}

/// What `lastword crds` prints: both definitions as one YAML stream, ready for `kubectl apply -f -`.
pub fn print_crds() -> Result<String, serde_saphyr::SerializeError> {
    Ok(crd_files()?.into_iter().map(|(_, yaml)| format!("---\n{yaml}")).collect())
}

/// The OpenAPI schema of an Agent's root.
fn agent_schema() -> &'static Value {
    static SCHEMA: LazyLock<Value> = LazyLock::new(|| schema_of(&DEFINITIONS[0]));
    &SCHEMA
}

fn schema_of(crd: &CustomResourceDefinition) -> Value {
    let schema = crd.spec.versions.first().and_then(|version| version.schema.as_ref());
    serde_json::to_value(schema.and_then(|schema| schema.open_api_v3_schema.as_ref())).unwrap_or_default()
}

/// Takes out of the schema what is true of Rust's types but not wanted in the API.
fn tidy(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        let Some(props) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) else {
            continue;
        };
        let mut schema = serde_json::to_value(&*props).unwrap_or_default();
        tidy_schema(&mut schema);
        if let Ok(tidied) = serde_json::from_value(schema) {
            *props = tidied;
        }
    }
    crd
}

/// Drops titles, `nullable` (an explicit null would count as present in `has()`, and get past the CEL rules) and the integer
/// formats of Rust (the API server warns of them).
fn tidy_schema(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.get("nullable").is_some_and(Value::is_boolean) {
                object.remove("nullable");
            }
            // Only the root has a title: the name of the Rust type.
            if object.get("title").is_some_and(Value::is_string) {
                object.remove("title");
            }
            if object.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
                object.insert("format".into(), "int64".into());
            }
            object.values_mut().for_each(tidy_schema);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy_schema),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
