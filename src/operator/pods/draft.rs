//! A draft of the pod that an Agent's next worker would run in. The API server's dry run of it decides whether the Agent is
//! `Ready`.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use super::build;
use crate::crd::Agent;
use crate::fleet::StartRequest;
use crate::operator::config::OperatorConfig;
use crate::turn::keys::{StartId, WorkerGroup};
use crate::wire::Credential;

/// Builds the draft. Attempts count from 1, so the name, of attempt 0, is that of no worker.
///
/// # Errors
/// A text that says what is wrong with the template, for the Agent's author.
pub fn draft(config: &OperatorConfig, agent: &Agent) -> Result<Value, String> {
    let start_id = StartId::new();
    let name = agent.metadata.name.clone().unwrap_or_default();
    let namespace = agent.metadata.namespace.clone().unwrap_or_default();
    let mut start = StartRequest {
        start_id,
        organization: namespace.clone(),
        worker_group: WorkerGroup::OfAgent,
        agent: name,
        config: 0,
        spec: Arc::new(agent.spec.clone()),
        agent_uid: agent.metadata.uid.clone(),
        attempt: 0,
        runtime_ref: String::new(),
        credential: Credential::new(start_id),
    };
    start.runtime_ref = format!("{namespace}/{}", build::name(&start));
    let pod = build::pod(config, &start).map_err(|failure| failure.detail.unwrap_or(failure.message))?;
    // What the API server could not even parse is said here, in words that name the template.
    serde_json::from_value::<Pod>(pod.clone()).map_err(|error| format!("the template is no pod: {error}"))?;
    Ok(pod)
}
