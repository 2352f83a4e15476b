//! An Agent's status: what it is to be, and its patch.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use super::ready::Verdict;
use crate::crd::{Adapter, Agent, AgentSpec, AgentStatus, LastFailure};
use crate::operator::MANAGER;
use crate::operator::call::bounded;
use crate::store::AgentCounts;

/// The longest message of a condition, in bytes; Kubernetes' own bound is 32 KiB.
const MAX_MESSAGE: usize = 4 * 1024;

/// What a status shows, and what there is to show.
pub struct Shown<'a> {
    pub status: &'a AgentStatus,
    pub counts: Option<&'a AgentCounts>,
    pub failure: Option<LastFailure>,
}

impl Shown<'_> {
    /// The status that is to be, unless it is shown already.
    pub fn next(&self, generation: i64, verdict: &Verdict) -> Option<AgentStatus> {
        let (status, reason, message) = verdict.condition();
        let message = crate::turn::terminal::cut(message.to_owned(), MAX_MESSAGE);
        let before = self.status.conditions.iter().find(|c| c.type_ == "Ready");
        let since = match before {
            Some(before) if before.status == status => before.last_transition_time.clone(),
            _ => Time(Timestamp::now()),
        };
        let ready = Condition {
            type_: "Ready".into(),
            status: status.into(),
            reason: reason.into(),
            message,
            last_transition_time: since,
            observed_generation: Some(generation),
        };
        let counts = self.counts;
        let shown = self.status;
        let next = AgentStatus {
            observed_generation: Some(generation),
            conditions: vec![ready],
            workers: counts.map_or(shown.workers, |c| c.workers),
            queued_turns: counts.map_or(shown.queued_turns, |c| c.queued),
            running_turns: counts.map_or(shown.running_turns, |c| c.running),
            last_failure: self.failure.clone().or_else(|| shown.last_failure.clone()),
        };
        (next != *shown).then_some(next)
    }
}

/// Applies a status; answers with what the API server shows then, or `None` if it did not take it.
pub async fn patch(client: &Client, object: &ObjectMeta, status: AgentStatus) -> Option<Box<AgentStatus>> {
    let (namespace, name) = (object.namespace.as_deref()?, object.name.as_deref()?);
    let resource = ApiResource::erase::<Agent>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let apply = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": name, "uid": object.uid},
        "status": status,
    });
    match bounded(api.patch_status(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(apply))).await {
        Ok(mut written) => serde_json::from_value(written.data["status"].take()).ok().map(Box::new),
        Err(error) => {
            tracing::debug!(%error, "the status of agent {namespace}/{name} is written later");
            None
        }
    }
}

/// A spec in the place of one that was never readable; it is not projected.
pub fn nothing() -> AgentSpec {
    AgentSpec {
        scope: Default::default(),
        adapter: Adapter::Custom,
        template: None,
        openai: None,
        limits: Default::default(),
        timing: Default::default(),
        guardrails: Default::default(),
        platforms: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_patched_that_is_shown_already() {
        let counts = AgentCounts { namespace: "n".into(), name: "a".into(), workers: 1, queued: 2, running: 3 };
        let next = |status: &AgentStatus, verdict: &Verdict, generation| {
            Shown { status, counts: Some(&counts), failure: None }.next(generation, verdict)
        };
        let first = next(&AgentStatus::default(), &Verdict::Ready, 1).expect("is new");
        assert_eq!((first.workers, first.queued_turns, first.running_turns), (1, 2, 3));
        assert_eq!(next(&first, &Verdict::Ready, 1), None);
        assert_eq!(next(&first, &Verdict::Ready, 2).expect("a new spec").observed_generation, Some(2));
        let broken = next(&first, &Verdict::NotReady("PodRejected", "no".into()), 1).expect("changed");
        assert_eq!((broken.conditions[0].status.as_str(), broken.conditions[0].message.as_str()), ("False", "no"));
        // Without counts the old ones stay.
        assert_eq!(Shown { status: &first, counts: None, failure: None }.next(1, &Verdict::Ready), None);
    }
}
