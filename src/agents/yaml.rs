//! Reads Agents from the text of a YAML file, for one machine.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::crd::{Agent, FieldError, GROUP, InvalidAgent, VERSION, check_spec};

/// Why a file of Agents was refused. Documents are counted from 1.
#[derive(Debug, thiserror::Error)]
pub enum YamlError {
    /// The text is not YAML, or has a duplicate key. The message names line and column.
    #[error("{0}")]
    Syntax(#[source] Box<serde_saphyr::Error>),
    /// A document is not an Agent of this API version.
    #[error("document {document}: expected apiVersion lastword.dev/v1alpha1 and kind Agent, found {found}")]
    Kind {
        /// The number of the document.
        document: usize,
        /// The document's apiVersion and kind.
        found: String,
    },
    /// An Agent is not valid.
    #[error("document {document}, agent {name:?}: {source}")]
    Invalid {
        /// The number of the document.
        document: usize,
        /// The Agent's metadata.name, or an empty text.
        name: String,
        /// All that is wrong with the Agent.
        source: InvalidAgent,
    },
    /// Two documents describe the same Agent.
    #[error("document {document}: agent {name} is there twice")]
    Duplicate {
        /// The number of the second document.
        document: usize,
        /// The Agent's namespace and name.
        name: String,
    },
}

/// Reads the Agents of a YAML text and validates each. Empty documents are skipped. `metadata.namespace` defaults to
/// `default`.
///
/// # Errors
/// The first document that is refused, with all that is wrong with it. Unknown fields are refused wherever the CRD does not
/// preserve them; the API server would drop them silently.
pub fn agents_from_yaml(text: &str) -> Result<Vec<Agent>, YamlError> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| YamlError::Syntax(Box::new(error)))?;
    let mut agents = Vec::with_capacity(documents.len());
    let mut seen = BTreeSet::new();
    for (index, document) in documents.into_iter().enumerate() {
        let document_number = index + 1;
        let agent = agent_from(document_number, document)?;
        let name = format!("{}/{}", agent.metadata.namespace.as_deref().unwrap_or_default(), name_of(&agent));
        if !seen.insert(name.clone()) {
            return Err(YamlError::Duplicate { document: document_number, name });
        }
        agents.push(agent);
    }
    Ok(agents)
}

fn name_of(agent: &Agent) -> &str {
    agent.metadata.name.as_deref().unwrap_or_default()
}

fn agent_from(document: usize, value: Value) -> Result<Agent, YamlError> {
    let (api_version, kind) = (value["apiVersion"].as_str(), value["kind"].as_str());
    if api_version != Some(&format!("{GROUP}/{VERSION}")) || kind != Some("Agent") {
        let found = format!("{} {}", api_version.unwrap_or("no apiVersion"), kind.unwrap_or("no kind"));
        return Err(YamlError::Kind { document, found });
    }
    let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let invalid = |errors| YamlError::Invalid { document, name: name.clone(), source: InvalidAgent(errors) };

    let mut errors = Vec::new();
    for field in value.as_object().into_iter().flat_map(|object| object.keys()) {
        if !["apiVersion", "kind", "metadata", "spec", "status"].contains(&field.as_str()) {
            errors.push(FieldError { path: field.clone(), problem: "unknown field".into() });
        }
    }
    match value.get("spec") {
        Some(spec) => errors.extend(check_spec(spec)),
        None => errors.push(FieldError { path: "spec".into(), problem: "is required".into() }),
    }
    if !errors.is_empty() {
        return Err(invalid(errors));
    }
    let mut agent: Agent = serde_json::from_value(value)
        .map_err(|error| invalid(vec![FieldError { path: "document".into(), problem: error.to_string() }]))?;
    agent.metadata.namespace.get_or_insert_with(|| "default".into());
    agent.status = None;
    agent.validate().map_err(|source| YamlError::Invalid { document, name: name.clone(), source })?;
    Ok(agent)
}
