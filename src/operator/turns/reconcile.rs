//! Carries out one operation for one AgentTurn: one call to the store or to the API server, or a few.

use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::{Api, Client, Error};
use serde_json::{Value, json};

use super::object::TurnObject;
use super::tracked::{TurnOperation, TurnReconciled, may_wait};
use crate::crd::{Agent, AgentTurn, AgentTurnSpec};
use crate::operator::client::{ApiCallError, FIELD_MANAGER, bounded};
use crate::store::{AgentTurnRef, Store, StoreError};
use crate::submit::{Submission, Submitter};
use crate::turn::cause::rule;
use crate::turn::frame::storable;
use crate::turn::keys::{KUBERNETES_REALM, check_conversation, check_name, kubernetes_user};
use crate::turn::reason::Reason;
use crate::turn::routing::KUBERNETES;
use crate::turn::terminal::Failure;

/// The user of AgentTurns that name none, in the realm of AgentTurns' users.
const USER: &str = "kubernetes";
/// The largest input, in bytes.
const MAX_INPUT_BYTES: usize = 128 * 1024;

/// What reconciliations of AgentTurns work with.
#[derive(Clone)]
pub struct TurnContext {
    pub store: Store,
    /// Arms turns, as a gateway does.
    pub submitter: Submitter,
    pub client: Client,
}

/// Does what the work queue decided for an AgentTurn. What it came to goes back to the queue, errors included.
pub async fn reconcile(object: TurnObject, operation: TurnOperation, context: &TurnContext) -> TurnReconciled {
    match operation {
        TurnOperation::Arm(Ok(spec)) => context.arm(&object, &spec).await,
        TurnOperation::Arm(Err(error)) => {
            let failure = rule::unusable(format!("the spec cannot be read: {error}"));
            context.refuse(&object, failure).await
        }
        TurnOperation::Cancel => context.cancel(&object).await,
        TurnOperation::PatchStatus(desired) => {
            let status = json!(desired.status(&object));
            context.patch_status(object, status).await
        }
        TurnOperation::ObserveGeneration => {
            let status = json!({"observedGeneration": object.generation});
            context.patch_status(object, status).await
        }
        TurnOperation::Delete => context.delete(&object).await,
    }
}

impl TurnContext {
    async fn arm(&self, object: &TurnObject, spec: &AgentTurnSpec) -> TurnReconciled {
        let submission = submission(object, spec);
        if let Err(why) = check(&submission) {
            return self.refuse(object, rule::unusable(why)).await;
        }
        let error = match self.submitter.submit(submission).await {
            Ok((armed, _)) => return TurnReconciled::Armed(armed),
            Err(error) => error,
        };
        match error.reason() {
            None => TurnReconciled::Requeue(error.to_string()),
            Some(reason) => {
                let refused = self.refuse(object, Failure::new(reason).with_message(error.to_string())).await;
                match refused {
                    TurnReconciled::Refused(..) if reason == Reason::AgentNotFound => {
                        self.unless_agent_exists(object, &spec.agent_ref.name, refused).await
                    }
                    refused => refused,
                }
            }
        }
    }

    /// Answers `refused` only if the API server says that the Agent does not exist. The store may lack an Agent that exists,
    /// where nobody has led for a while.
    async fn unless_agent_exists(&self, object: &TurnObject, agent: &str, refused: TurnReconciled) -> TurnReconciled {
        let resource = ApiResource::erase::<Agent>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &object.namespace, &resource);
        match bounded(api.get_opt(agent)).await {
            Ok(None) => refused,
            Ok(Some(_)) => TurnReconciled::AgentNotReady,
            Err(error) => TurnReconciled::Requeue(error.to_string()),
        }
    }

    /// Refuses the object. If a turn was armed for it earlier, while that was allowed, that turn counts instead.
    async fn refuse(&self, object: &TurnObject, failure: Failure) -> TurnReconciled {
        let looked = async {
            let turn = self.store.turn_of_agent_turn(&object.namespace, &object.uid).await?;
            Ok::<_, StoreError>((turn, self.store.database_time().await?))
        };
        match looked.await {
            Err(error) => TurnReconciled::Requeue(error.to_string()),
            Ok((Some(turn), _)) => TurnReconciled::AlreadyArmed(turn),
            Ok((None, now)) if failure.reason == Reason::AgentNotFound && may_wait(object.created, now) => {
                TurnReconciled::AgentMissing(now)
            }
            Ok((None, now)) => TurnReconciled::Refused(failure, now),
        }
    }

    async fn cancel(&self, object: &TurnObject) -> TurnReconciled {
        let cancelled = async {
            let turn = match self.store.turn_of_agent_turn(&object.namespace, &object.uid).await? {
                Some(turn) => turn,
                None => return Ok(TurnReconciled::NeverArmed(self.store.database_time().await?)),
            };
            self.store.fail_turn(turn, &rule::cancelled()).await?;
            Ok::<_, StoreError>(TurnReconciled::Cancelled)
        };
        cancelled.await.unwrap_or_else(|error| TurnReconciled::Requeue(error.to_string()))
    }

    /// Patches the status. The patch names the object's `resourceVersion`, so an object that was written meanwhile, or created
    /// again, is read first. (A UID in the patch would be no fence: Kubernetes 1.36 patches the status of a custom resource
    /// whatever UID the patch names.)
    async fn patch_status(&self, object: TurnObject, status: Value) -> TurnReconciled {
        let api = self.api(&object);
        if object.version.is_none() {
            return reread(&api, &object).await;
        }
        let patch = json!({
            "metadata": {"resourceVersion": object.version},
            "status": status,
        });
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        match bounded(api.patch_status(&object.name, &params, &Patch::Merge(patch))).await {
            Ok(patched) => match TurnObject::read(patched) {
                Some(patched) => TurnReconciled::StatusPatched(Box::new(patched)),
                None => TurnReconciled::Deleted,
            },
            Err(ApiCallError::Api(Error::Api(status))) if status.is_not_found() => TurnReconciled::Deleted,
            // A conflict means that the object has another version, or is another one under the same name. If a reading
            // shows the known version all the same, the conflict was about something else, and the same patch would
            // conflict again without end.
            Err(ApiCallError::Api(Error::Api(status))) if status.is_conflict() => match reread(&api, &object).await {
                TurnReconciled::Changed(found) if found.version == object.version => {
                    TurnReconciled::PatchRefused(status.message)
                }
                result => result,
            },
            Err(ApiCallError::Api(Error::Api(status))) if is_refusal(status.code) => {
                TurnReconciled::PatchRefused(status.to_string())
            }
            Err(error) => TurnReconciled::Requeue(error.to_string()),
        }
    }

    async fn delete(&self, object: &TurnObject) -> TurnReconciled {
        let uid = Preconditions { uid: Some(object.uid.to_string()), resource_version: None };
        let params = DeleteParams::background().preconditions(uid);
        match bounded(self.api(object).delete(&object.name, &params)).await {
            Ok(_) => TurnReconciled::Deleted,
            Err(ApiCallError::Api(Error::Api(status))) if status.is_not_found() || status.is_conflict() => {
                TurnReconciled::Deleted
            }
            Err(error) => TurnReconciled::Requeue(error.to_string()),
        }
    }

    fn api(&self, object: &TurnObject) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &object.namespace, &ApiResource::erase::<AgentTurn>(&()))
    }
}

/// Reads the object again after a patch found another version than the one known here.
async fn reread(api: &Api<DynamicObject>, object: &TurnObject) -> TurnReconciled {
    match bounded(api.get_opt(&object.name)).await {
        Err(ApiCallError::Api(Error::Api(status))) if is_refusal(status.code) => {
            TurnReconciled::PatchRefused(status.to_string())
        }
        Err(error) => TurnReconciled::Requeue(error.to_string()),
        Ok(found) => match found.and_then(TurnObject::read) {
            Some(found) if found.uid == object.uid => TurnReconciled::Changed(Box::new(found)),
            _ => TurnReconciled::Deleted,
        },
    }
}

/// Whether an answer refuses the call for what it asks, so that the same call would be refused again.
fn is_refusal(code: u16) -> bool {
    (400..500).contains(&code) && code != 408 && code != 429
}

fn submission(object: &TurnObject, spec: &AgentTurnSpec) -> Submission {
    Submission {
        organization: object.namespace.to_string(),
        user: kubernetes_user(spec.user.as_deref().unwrap_or(USER)),
        agent: spec.agent_ref.name.clone(),
        conversation: spec.conversation.clone().unwrap_or_else(|| format!("turn-{}", object.uid)),
        message_id: spec.message_id.clone().unwrap_or_else(|| object.uid.to_string()),
        message: storable(spec.input.clone()),
        platform: KUBERNETES.into(),
        platform_metadata: json!({"name": &*object.name, "uid": &*object.uid}),
        traceparent: None,
        deadline_seconds: spec.deadline_seconds,
        object: Some(AgentTurnRef { name: object.name.to_string(), uid: object.uid.to_string() }),
        // They are counted by Kubernetes' own quotas, if at all.
        limits: None,
        request: None,
    }
}

/// Checks what the CRD's schema checks, for objects that are older than the schema.
fn check(submission: &Submission) -> Result<(), String> {
    check_conversation(&submission.conversation).map_err(|e| e.to_string())?;
    check_name("messageId", &submission.message_id).map_err(|e| e.to_string())?;
    let user = submission.user.strip_prefix(KUBERNETES_REALM).unwrap_or(&submission.user);
    check_name("user", user).map_err(|e| e.to_string())?;
    if submission.message.is_empty() || submission.message.len() > MAX_INPUT_BYTES {
        return Err(format!("input must be 1 to {MAX_INPUT_BYTES} bytes"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
