//! An Agent's status: what it is to be, and its patch.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use super::known::Written;
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
        let shown = self.status;
        let at = shown.conditions.iter().position(|c| c.type_ == "Ready");
        let since = match at.map(|at| &shown.conditions[at]) {
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
        // Others may have conditions of their own.
        let mut conditions = shown.conditions.clone();
        match at {
            Some(at) => conditions[at] = ready,
            None => conditions.push(ready),
        }
        let counts = self.counts;
        let next = AgentStatus {
            observed_generation: Some(generation),
            conditions,
            workers: counts.map_or(shown.workers, |c| c.workers),
            queued_turns: counts.map_or(shown.queued_turns, |c| c.queued),
            running_turns: counts.map_or(shown.running_turns, |c| c.running),
            last_failure: self.failure.clone().or_else(|| shown.last_failure.clone()),
        };
        (next != *shown).then_some(next)
    }
}

/// Writes a status, fenced by the object's version, as AgentTurns' are: one that was made again under the same name has
/// another. Answers with what the API server shows then, or `None` if it did not take it.
pub async fn patch(client: &Client, object: &ObjectMeta, status: AgentStatus) -> Option<Box<Written>> {
    let (namespace, name) = (object.namespace.as_deref()?, object.name.as_deref()?);
    let resource = ApiResource::erase::<Agent>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let patch = json!({
        "metadata": {"resourceVersion": object.resource_version.as_deref()?},
        "status": status,
    });
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    match bounded(api.patch_status(name, &params, &Patch::Merge(patch))).await {
        Ok(mut written) => {
            let status = serde_json::from_value(written.data["status"].take()).ok()?;
            Some(Box::new(Written { status, version: written.metadata.resource_version }))
        }
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
    use axum::http::{Request, Response};
    use kube::client::Body;
    use serde_json::Value;

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

    #[test]
    fn the_conditions_of_others_stay() {
        let mut shown = Shown { status: &AgentStatus::default(), counts: None, failure: None }
            .next(1, &Verdict::Ready)
            .expect("is new");
        let theirs = Condition { type_: "Audited".into(), ..shown.conditions[0].clone() };
        shown.conditions.insert(0, theirs.clone());
        assert_eq!(Shown { status: &shown, counts: None, failure: None }.next(1, &Verdict::Ready), None);
        let broken = Verdict::NotReady("PodRejected", "no".into());
        let next = Shown { status: &shown, counts: None, failure: None }.next(1, &broken).expect("changed");
        assert_eq!((next.conditions.len(), &next.conditions[0]), (2, &theirs));
    }

    /// An API server that has the object in version 2, as they patch: by the version that a patch names.
    #[tokio::test]
    async fn a_status_goes_to_the_object_that_it_is_for() {
        let service = tower::service_fn(|request: Request<Body>| async move {
            assert_eq!(request.uri().path(), "/apis/lastword.dev/v1alpha1/namespaces/team/agents/bot/status");
            let patch: Value = serde_json::from_slice(&request.into_body().collect_bytes().await?)?;
            let fits = patch["metadata"]["resourceVersion"] == "2";
            let answer = if fits {
                json!({"apiVersion": "lastword.dev/v1alpha1", "kind": "Agent",
                       "metadata": {"name": "bot", "resourceVersion": "3"}, "status": patch["status"]})
            } else {
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 409, "reason": "Conflict"})
            };
            let code = if fits { 200 } else { 409 };
            Response::builder()
                .status(code)
                .body(Body::from(answer.to_string().into_bytes()))
                .map_err(tower::BoxError::from)
        });
        let client = Client::new(service, "team");
        let object = |version: Option<&str>| ObjectMeta {
            namespace: Some("team".into()),
            name: Some("bot".into()),
            resource_version: version.map(str::to_owned),
            ..ObjectMeta::default()
        };
        let status = AgentStatus { workers: 7, ..AgentStatus::default() };
        let written = patch(&client, &object(Some("2")), status.clone()).await.expect("is taken");
        assert_eq!((written.status.workers, written.version.as_deref()), (7, Some("3")));
        for another in [Some("1"), None] {
            assert!(patch(&client, &object(another), status.clone()).await.is_none(), "{another:?}");
        }
    }
}
