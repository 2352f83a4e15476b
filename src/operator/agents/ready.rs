//! Whether an Agent's workers could be created: the API server is asked by a dry run of the pod.

use kube::Error;

use super::Hands;
use crate::crd::Agent;
use crate::operator::call::{Trouble, bounded};
use crate::operator::pods;

/// What is known of an Agent's readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Ready,
    /// With a CamelCase reason, and what is wrong.
    NotReady(&'static str, String),
    /// Nobody could say.
    Unknown(String),
}

impl Verdict {
    pub fn is_ready(&self) -> bool {
        matches!(self, Verdict::Ready)
    }

    /// Status, reason and message of the condition.
    pub fn condition(&self) -> (&'static str, &'static str, &str) {
        match self {
            Verdict::Ready => ("True", "Accepted", "the API server accepts the worker's pod"),
            Verdict::NotReady(reason, message) => ("False", reason, message),
            Verdict::Unknown(message) => ("Unknown", "NotAsked", message),
        }
    }
}

/// Judges a spec: by itself first, then by the API server.
pub async fn check(hands: &Hands, agent: &Agent, valid: Result<(), String>) -> Verdict {
    if let Err(why) = valid {
        return Verdict::NotReady("InvalidSpec", why);
    }
    let pod = match pods::draft::draft(&hands.config, agent) {
        Ok(pod) => pod,
        Err(why) => return Verdict::NotReady("InvalidTemplate", why),
    };
    let namespace = agent.metadata.namespace.as_deref().unwrap_or_default();
    judge(bounded(pods::create(&hands.client, namespace, &pod, true)).await.map(drop))
}

/// What the answer to a dry run means.
fn judge(answer: Result<(), Trouble>) -> Verdict {
    match answer {
        Ok(()) => Verdict::Ready,
        // A namesake is there, and was accepted.
        Err(Trouble::Api(Error::Api(status))) if status.is_already_exists() => Verdict::Ready,
        Err(Trouble::Api(Error::Api(status))) if (400..500).contains(&status.code) && status.code != 429 => {
            Verdict::NotReady("PodRejected", status.message)
        }
        Err(error) => Verdict::Unknown(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;
    use crate::operator::call::CALL;

    fn answered(code: u16, reason: &str) -> Verdict {
        let status = Status { code, reason: reason.into(), message: "no".into(), ..Status::default() };
        judge(Err(Trouble::Api(Error::Api(Box::new(status)))))
    }

    #[test]
    fn only_a_refusal_is_one() {
        assert_eq!(judge(Ok(())), Verdict::Ready);
        assert_eq!(answered(409, "AlreadyExists"), Verdict::Ready);
        for (code, reason) in [(403, "Forbidden"), (422, "Invalid"), (400, "BadRequest"), (404, "NotFound")] {
            assert_eq!(answered(code, reason), Verdict::NotReady("PodRejected", "no".into()));
        }
        for (code, reason) in [(429, "TooManyRequests"), (500, "InternalError"), (503, "ServiceUnavailable")] {
            assert!(matches!(answered(code, reason), Verdict::Unknown(_)));
        }
        assert!(matches!(judge(Err(Trouble::Late(CALL))), Verdict::Unknown(_)));
    }
}
