//! The status of an Agent: what it should be (pure), and the patch that writes it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use super::ready::AgentReadiness;
use crate::crd::{Agent, AgentStatus, LastFailure};
use crate::operator::client::{FIELD_MANAGER, bounded};
use crate::operator::condition::{READY, condition};
use crate::store::AgentCounts;

/// The longest message of a condition, in bytes; Kubernetes' own limit is 32 KiB.
const MAX_MESSAGE: usize = 4 * 1024;

/// What was observed of an Agent, which its status is to show.
pub struct AgentObservation<'a> {
    /// The generation of the object that `readiness` is about.
    pub generation: i64,
    pub readiness: &'a AgentReadiness,
    /// `None` while the database was not asked; then the numbers that the status shows stay.
    pub counts: Option<&'a AgentCounts>,
    /// The latest failure since this replica leads; `None` keeps the one that the status shows.
    pub failure: Option<LastFailure>,
}

impl AgentObservation<'_> {
    /// The status that the Agent should have, given the one that it has; `None` if that is the same. A condition that
    /// changes has changed at `now`.
    pub fn status(&self, shown: &AgentStatus, now: Timestamp) -> Option<AgentStatus> {
        let (status, reason, message) = self.readiness.condition();
        let message = crate::turn::terminal::cut(message.to_owned(), MAX_MESSAGE);
        let index = shown.conditions.iter().position(|c| c.type_ == READY);
        let since = match index.map(|index| &shown.conditions[index]) {
            Some(before) if before.status == status.as_str() => before.last_transition_time.0,
            _ => now,
        };
        let ready = condition(READY, status, (reason, &message), since, Some(self.generation));
        // Conditions that others added to the status stay.
        let mut conditions = shown.conditions.clone();
        match index {
            Some(index) => conditions[index] = ready,
            None => conditions.push(ready),
        }
        let counts = self.counts;
        let next = AgentStatus {
            observed_generation: Some(self.generation),
            conditions,
            workers: counts.map_or(shown.workers, |c| c.workers),
            updated_workers: counts.map_or(shown.updated_workers, |c| c.updated),
            queued_turns: counts.map_or(shown.queued_turns, |c| c.queued),
            running_turns: counts.map_or(shown.running_turns, |c| c.running),
            last_failure: self.failure.clone().or_else(|| shown.last_failure.clone()),
        };
        (next != *shown).then_some(next)
    }
}

/// A status that was written.
pub struct PatchedStatus {
    /// The status as the API server has it.
    pub status: AgentStatus,
    /// The object's new `resourceVersion`.
    pub version: Option<String>,
}

/// Writes a status. The patch names the object's `resourceVersion`, so it changes neither an object that somebody else wrote
/// meanwhile nor one that was created again under the same name. `None`: the API server did not accept the patch.
pub async fn patch(client: &Client, object: &ObjectMeta, status: AgentStatus) -> Option<Box<PatchedStatus>> {
    let (namespace, name) = (object.namespace.as_deref()?, object.name.as_deref()?);
    let resource = ApiResource::erase::<Agent>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let patch = json!({
        "metadata": {"resourceVersion": object.resource_version.as_deref()?},
        "status": status,
    });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    match bounded(api.patch_status(name, &params, &Patch::Merge(patch))).await {
        Ok(mut patched) => {
            let status = serde_json::from_value(patched.data["status"].take()).ok()?;
            Some(Box::new(PatchedStatus { status, version: patched.metadata.resource_version }))
        }
        Err(error) => {
            tracing::debug!(%error, "the status of agent {namespace}/{name} is written later");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{Request, Response};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
    use kube::client::Body;
    use serde_json::Value;

    use super::*;

    fn uncounted(readiness: &AgentReadiness) -> AgentObservation<'_> {
        AgentObservation { generation: 1, readiness, counts: None, failure: None }
    }

    #[test]
    fn nothing_is_patched_that_is_shown_already() {
        let counts =
            AgentCounts { namespace: "n".into(), name: "a".into(), workers: 1, updated: 1, queued: 2, running: 3 };
        let next = |shown: &AgentStatus, readiness: &AgentReadiness, generation| {
            AgentObservation { generation, readiness, counts: Some(&counts), failure: None }
                .status(shown, Timestamp::UNIX_EPOCH)
        };
        let first = next(&AgentStatus::default(), &AgentReadiness::Ready, 1).expect("is new");
        assert_eq!((first.workers, first.queued_turns, first.running_turns), (1, 2, 3));
        assert_eq!(next(&first, &AgentReadiness::Ready, 1), None);
        assert_eq!(next(&first, &AgentReadiness::Ready, 2).expect("a new spec").observed_generation, Some(2));
        let broken = next(&first, &AgentReadiness::NotReady("PodRejected", "no".into()), 1).expect("changed");
        assert_eq!((broken.conditions[0].status.as_str(), broken.conditions[0].message.as_str()), ("False", "no"));
        // Without counts the old ones stay.
        assert_eq!(uncounted(&AgentReadiness::Ready).status(&first, Timestamp::UNIX_EPOCH), None);
    }

    #[test]
    fn the_conditions_of_others_stay() {
        let at = Timestamp::UNIX_EPOCH;
        let ready = AgentReadiness::Ready;
        let mut shown = uncounted(&ready).status(&AgentStatus::default(), at).expect("is new");
        let theirs = Condition { type_: "Audited".into(), ..shown.conditions[0].clone() };
        shown.conditions.insert(0, theirs.clone());
        assert_eq!(uncounted(&ready).status(&shown, at), None);
        let broken = AgentReadiness::NotReady("PodRejected", "no".into());
        let next = uncounted(&broken).status(&shown, at).expect("changed");
        assert_eq!((next.conditions.len(), &next.conditions[0]), (2, &theirs));
    }

    /// The API server has the object in version 2, and refuses patches that name another version.
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
        let patched = patch(&client, &object(Some("2")), status.clone()).await.expect("is taken");
        assert_eq!((patched.status.workers, patched.version.as_deref()), (7, Some("3")));
        for another in [Some("1"), None] {
            assert!(patch(&client, &object(another), status.clone()).await.is_none(), "{another:?}");
        }
    }
}
