//! The pod that an Agent's next worker would have, for a dry run: what makes the Agent `Ready`.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use super::build;
use crate::crd::Agent;
use crate::fleet::StartRequest;
use crate::operator::OperatorConfig;
use crate::turn::keys::{Grouping, StartId, worker_group};
use crate::wire::Credential;

/// Builds it under a name that no start has.
///
/// # Errors
/// What is wrong with the template, for its author.
pub fn draft(config: &OperatorConfig, agent: &Agent) -> Result<Value, String> {
    let start_id = StartId::new();
    let name = agent.metadata.name.clone().unwrap_or_default();
    let namespace = agent.metadata.namespace.clone().unwrap_or_default();
    let mut start = StartRequest {
        start_id,
        organization: namespace.clone(),
        worker_group: worker_group(&name, Grouping::PerAgent, ""),
        agent: name,
        generation: 0,
        spec: Arc::new(agent.spec.clone()),
        agent_uid: agent.metadata.uid.clone(),
        attempt: 0,
        runtime_ref: String::new(),
        credential: Credential::new(start_id),
    };
    start.runtime_ref = format!("{namespace}/{}", build::name(&start));
    let pod = build::pod(config, &start).map_err(|failure| failure.detail.unwrap_or(failure.message))?;
    // Asked as it would be made; what cannot be a pod at all is told by ourselves.
    serde_json::from_value::<Pod>(pod.clone()).map_err(|error| format!("the template is no pod: {error}"))?;
    Ok(pod)
}
