//! Whether an Agent's workers could be created. The API server is asked by a server-side dry run of the pod.

use kube::{Client, Error};

use crate::crd::Agent;
use crate::operator::client::{ApiCallError, bounded};
use crate::operator::condition::ConditionStatus;
use crate::operator::config::OperatorConfig;
use crate::operator::pods;

/// What is known of an Agent's readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentReadiness {
    /// The spec is valid, and the API server accepts the pod.
    Ready,
    /// Something is wrong with the spec or the pod: a CamelCase reason, and a sentence.
    NotReady(&'static str, String),
    /// The API server could not be asked: why not.
    Unknown(String),
}

impl AgentReadiness {
    pub fn is_ready(&self) -> bool {
        matches!(self, AgentReadiness::Ready)
    }

    /// Status, reason and message of the condition `Ready`.
    pub fn condition(&self) -> (ConditionStatus, &'static str, &str) {
        match self {
            AgentReadiness::Ready => (ConditionStatus::True, "Accepted", "the API server accepts the worker's pod"),
            AgentReadiness::NotReady(reason, message) => (ConditionStatus::False, reason, message),
            AgentReadiness::Unknown(message) => (ConditionStatus::Unknown, "NotAsked", message),
        }
    }
}

/// Judges a spec: first by `valid`, which is what can be told without a cluster, then by the API server.
pub async fn check(
    config: &OperatorConfig,
    client: &Client,
    agent: &Agent,
    valid: Result<(), String>,
) -> AgentReadiness {
    if let Err(why) = valid {
        return AgentReadiness::NotReady("InvalidSpec", why);
    }
    let pod = match pods::draft::draft(config, agent) {
        Ok(pod) => pod,
        Err(why) => return AgentReadiness::NotReady("InvalidTemplate", why),
    };
    let namespace = agent.metadata.namespace.as_deref().unwrap_or_default();
    from_dry_run(bounded(pods::create(client, namespace, &pod, true)).await.map(drop))
}

/// What the API server's answer to a dry run means.
fn from_dry_run(answer: Result<(), ApiCallError>) -> AgentReadiness {
    match answer {
        Ok(()) => AgentReadiness::Ready,
        // The API server checks for an existing name after admission, so this 409 means that the pod was accepted.
        Err(ApiCallError::Api(Error::Api(status))) if status.is_already_exists() => AgentReadiness::Ready,
        Err(ApiCallError::Api(Error::Api(status))) if (400..500).contains(&status.code) && status.code != 429 => {
            AgentReadiness::NotReady("PodRejected", status.message)
        }
        Err(error) => AgentReadiness::Unknown(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;
    use crate::operator::client::CALL_TIMEOUT;

    fn answered(code: u16, reason: &str) -> AgentReadiness {
        let status = Status { code, reason: reason.into(), message: "no".into(), ..Status::default() };
        from_dry_run(Err(ApiCallError::Api(Error::Api(Box::new(status)))))
    }

    #[test]
    fn only_a_refusal_is_one() {
        assert_eq!(from_dry_run(Ok(())), AgentReadiness::Ready);
        assert_eq!(answered(409, "AlreadyExists"), AgentReadiness::Ready);
        for (code, reason) in [(403, "Forbidden"), (422, "Invalid"), (400, "BadRequest"), (404, "NotFound")] {
            assert_eq!(answered(code, reason), AgentReadiness::NotReady("PodRejected", "no".into()));
        }
        for (code, reason) in [(429, "TooManyRequests"), (500, "InternalError"), (503, "ServiceUnavailable")] {
            assert!(matches!(answered(code, reason), AgentReadiness::Unknown(_)));
        }
        assert!(matches!(from_dry_run(Err(ApiCallError::Timeout(CALL_TIMEOUT))), AgentReadiness::Unknown(_)));
    }
}
