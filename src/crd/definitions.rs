//! The CustomResourceDefinitions of both resources, generated from the Rust types.

use std::sync::LazyLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use super::agent::Agent;
use super::turn::AgentTurn;

static DEFINITIONS: LazyLock<Vec<CustomResourceDefinition>> =
    LazyLock::new(|| vec![tidy(Agent::crd()), tidy(AgentTurn::crd())]);

/// Both definitions as they are installed: `agents.lastword.dev`, `agentturns.lastword.dev`.
///
/// Use this instead of `Agent::crd()`. The derive's own output makes every optional field nullable, and names integer formats
/// that Kubernetes does not know.
pub fn crds() -> Vec<CustomResourceDefinition> {
    DEFINITIONS.clone()
}

/// Both definitions as `(file name under crds/, YAML)`. `make generate` writes them there.
///
/// # Errors
/// If a definition cannot be written as YAML, which would be a bug.
pub fn crd_files() -> Result<Vec<(String, String)>, serde_saphyr::SerializeError> {
    // Long descriptions stay on one line. As folded scalars, a changed word would change the breaks of all lines behind it.
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
///
/// # Errors
/// As [`crd_files`].
pub fn print_crds() -> Result<String, serde_saphyr::SerializeError> {
    Ok(crd_files()?.into_iter().map(|(_, yaml)| format!("---\n{yaml}")).collect())
}

/// The OpenAPI schema of an Agent, from the root of the object.
pub(super) fn agent_schema() -> &'static Value {
    static SCHEMA: LazyLock<Value> = LazyLock::new(|| schema_of(&DEFINITIONS[0]));
    &SCHEMA
}

pub(super) fn schema_of(crd: &CustomResourceDefinition) -> Value {
    let schema = crd.spec.versions.first().and_then(|version| version.schema.as_ref());
    serde_json::to_value(schema.and_then(|schema| schema.open_api_v3_schema.as_ref())).unwrap_or_default()
}

/// Takes out of the schema what follows from Rust's types and is not wanted in the API.
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

/// Removes titles, `nullable` (an explicit null counts as present in `has()`, and so would get past the CEL rules) and Rust's
/// integer formats (the API server warns of formats that it does not know).
fn tidy_schema(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.get("nullable").is_some_and(Value::is_boolean) {
                object.remove("nullable");
            }
            // The derive gives the root a title: the name of the Rust type.
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
