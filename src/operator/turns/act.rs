//! What is done for one AgentTurn, one step at a time: each step is one call to the store or to the API server.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::{Api, Client, Error};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::object::Object;
use super::status::{Word, stamp};
use crate::crd::{Agent, AgentTurn, AgentTurnSpec};
use crate::operator::MANAGER;
use crate::operator::call::{Trouble, bounded};
use crate::store::{AgentTurnRef, Armed, Store, StoreError};
use crate::submit::{Submission, SubmitError, Submitter};
use crate::turn::frame::storable;
use crate::turn::keys::{TurnId, check_conversation, check_name};
use crate::turn::reason::Reason;
use crate::turn::routing::KUBERNETES;
use crate::turn::terminal::Failure;

/// How long an AgentTurn waits for its Agent, from its creation; beyond it as long as the Agent exists.
pub const AGENT_WAIT: Duration = Duration::from_secs(60);
/// On whose behalf, if it says nothing.
const USER: &str = "kubernetes";
/// The largest input, in bytes.
const MAX_INPUT_BYTES: usize = 128 * 1024;

/// What is to be done for an object next.
#[derive(Debug, Clone)]
pub enum Step {
    Arm(Result<Arc<AgentTurnSpec>, String>),
    /// End its turn, if it has one.
    Cancel,
    Write(Box<Word>),
    /// Say that its newest spec was seen; its status is final otherwise.
    Observe,
    /// Its time after its end is over.
    Delete,
}

/// What came of a step.
#[derive(Debug)]
pub enum Done {
    Armed(Armed),
    /// This turn was armed for it before.
    Known(TurnId),
    /// Its Agent does not exist; the database's time.
    NoAgent(OffsetDateTime),
    /// Its Agent exists, but is not projected into the store: it is new, or its spec cannot be used.
    AgentNotReady,
    Refused(Failure, OffsetDateTime),
    Cancelled,
    /// It was never armed, and is not to be; the database's time.
    NotArmed(OffsetDateTime),
    /// The status was written; the object as it is now.
    Written(Box<Object>),
    /// Somebody else wrote the object; as it is now.
    Stale(Box<Object>),
    /// There is no such object any more.
    Gone,
    /// The API server refuses the status of this object, and may go on with it.
    Unwritable(String),
    /// The database or the API server did not do it; again later.
    Again(String),
}

/// What steps need.
#[derive(Clone)]
pub struct Hands {
    pub store: Store,
    pub submitter: Submitter,
    pub client: Client,
}

impl Hands {
    /// Does one step.
    pub async fn act(&self, object: Object, step: Step) -> Done {
        match step {
            Step::Arm(Ok(spec)) => self.arm(&object, &spec).await,
            Step::Arm(Err(error)) => {
                let failure = Failure::new(Reason::Internal).with_message(format!("the spec cannot be read: {error}"));
                self.refuse(&object, failure).await
            }
            Step::Cancel => self.cancel(&object).await,
            Step::Write(word) => {
                let status = json!(word.status(&object));
                self.write(object, status).await
            }
            Step::Observe => {
                let status = json!({"observedGeneration": object.generation});
                self.write(object, status).await
            }
            Step::Delete => self.delete(&object).await,
        }
    }

    async fn arm(&self, object: &Object, spec: &AgentTurnSpec) -> Done {
        let submission = submission(object, spec);
        if let Err(why) = check(&submission) {
            return self.refuse(object, Failure::new(Reason::Internal).with_message(why)).await;
        }
        let error = match self.submitter.submit(submission).await {
            Ok((armed, _)) => return Done::Armed(armed),
            Err(error) => error,
        };
        match refusal(&error) {
            None => Done::Again(error.to_string()),
            Some(reason) => {
                let refused = self.refuse(object, Failure::new(reason).with_message(error.to_string())).await;
                match refused {
                    Done::Refused(..) if reason == Reason::AgentNotFound => {
                        self.unless_there(object, &spec.agent_ref.name, refused).await
                    }
                    refused => refused,
                }
            }
        }
    }

    /// The API server has the word on whether an Agent exists: the store may not have it yet, since nobody led for a while.
    async fn unless_there(&self, object: &Object, agent: &str, refused: Done) -> Done {
        let resource = ApiResource::erase::<Agent>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &object.namespace, &resource);
        match bounded(api.get_opt(agent)).await {
            Ok(None) => refused,
            Ok(Some(_)) => Done::AgentNotReady,
            Err(error) => Done::Again(error.to_string()),
        }
    }

    /// Not armed now; but a turn may have been armed for it before, while that was possible.
    async fn refuse(&self, object: &Object, failure: Failure) -> Done {
        let looked = async {
            let turn = self.store.turn_of_agent_turn(&object.namespace, &object.uid).await?;
            Ok::<_, StoreError>((turn, self.store.database_time().await?))
        };
        match looked.await {
            Err(error) => Done::Again(error.to_string()),
            Ok((Some(turn), _)) => Done::Known(turn),
            Ok((None, now)) if failure.reason == Reason::AgentNotFound && may_wait(object.created, now) => {
                Done::NoAgent(now)
            }
            Ok((None, now)) => Done::Refused(failure, now),
        }
    }

    async fn cancel(&self, object: &Object) -> Done {
        let cancelled = async {
            let turn = match self.store.turn_of_agent_turn(&object.namespace, &object.uid).await? {
                Some(turn) => turn,
                None => return Ok(Done::NotArmed(self.store.database_time().await?)),
            };
            self.store.fail_turn(turn, &Failure::new(Reason::Cancelled)).await?;
            Ok::<_, StoreError>(Done::Cancelled)
        };
        cancelled.await.unwrap_or_else(|error| Done::Again(error.to_string()))
    }

    /// Patches the status, fenced by the object's version: whoever wrote it meanwhile, or made it again, is seen first. (A
    /// UID in the patch is no fence: the status of a custom resource is patched whatever it says, tried on 1.36.)
    async fn write(&self, object: Object, status: Value) -> Done {
        let api = self.api(&object);
        if object.version.is_none() {
            return reread(&api, &object).await;
        }
        let patch = json!({
            "metadata": {"resourceVersion": object.version},
            "status": status,
        });
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        match bounded(api.patch_status(&object.name, &params, &Patch::Merge(patch))).await {
            Ok(written) => match Object::read(written) {
                Some(written) => Done::Written(Box::new(written)),
                None => Done::Gone,
            },
            Err(Trouble::Api(Error::Api(status))) if status.is_not_found() => Done::Gone,
            // Another version, or another object under the same name; with the same version it was about something else.
            Err(Trouble::Api(Error::Api(status))) if status.is_conflict() => match reread(&api, &object).await {
                Done::Stale(found) if found.version == object.version => Done::Unwritable(status.message),
                done => done,
            },
            Err(Trouble::Api(Error::Api(status))) if is_refusal(status.code) => Done::Unwritable(status.to_string()),
            Err(error) => Done::Again(error.to_string()),
        }
    }

    async fn delete(&self, object: &Object) -> Done {
        let uid = Preconditions { uid: Some(object.uid.to_string()), resource_version: None };
        let params = DeleteParams::background().preconditions(uid);
        match bounded(self.api(object).delete(&object.name, &params)).await {
            Ok(_) => Done::Gone,
            Err(Trouble::Api(Error::Api(status))) if status.is_not_found() || status.is_conflict() => Done::Gone,
            Err(error) => Done::Again(error.to_string()),
        }
    }

    fn api(&self, object: &Object) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &object.namespace, &ApiResource::erase::<AgentTurn>(&()))
    }
}

async fn reread(api: &Api<DynamicObject>, object: &Object) -> Done {
    match bounded(api.get_opt(&object.name)).await {
        Err(Trouble::Api(Error::Api(status))) if is_refusal(status.code) => Done::Unwritable(status.to_string()),
        Err(error) => Done::Again(error.to_string()),
        Ok(found) => match found.and_then(Object::read) {
            Some(found) if found.uid == object.uid => Done::Stale(Box::new(found)),
            _ => Done::Gone,
        },
    }
}

/// Whether an answer is about what was asked, not about the moment.
fn is_refusal(code: u16) -> bool {
    (400..500).contains(&code) && code != 408 && code != 429
}

/// Whether an object that was created then may still wait for its Agent.
pub fn may_wait(created: Timestamp, now: OffsetDateTime) -> bool {
    stamp(now).as_second() - created.as_second() < AGENT_WAIT.as_secs() as i64
}

/// The reason that a refused arm ends with; `None`: nothing is known, it is tried again.
fn refusal(error: &SubmitError) -> Option<Reason> {
    match error {
        SubmitError::NoAgent => Some(Reason::AgentNotFound),
        SubmitError::QueueFull(_) | SubmitError::TooManyOpen => Some(Reason::QuotaExceeded),
        SubmitError::Refused(_) => Some(Reason::Conflict),
        SubmitError::NoPlatform | SubmitError::Store(StoreError::Refused(_)) => Some(Reason::Internal),
        SubmitError::Store(_) => None,
    }
}

fn submission(object: &Object, spec: &AgentTurnSpec) -> Submission {
    Submission {
        organization: object.namespace.to_string(),
        user: spec.user.clone().unwrap_or_else(|| USER.into()),
        agent: spec.agent_ref.name.clone(),
        conversation: spec.conversation.clone().unwrap_or_else(|| format!("turn-{}", object.uid)),
        message_id: spec.message_id.clone().unwrap_or_else(|| object.uid.to_string()),
        message: storable(spec.input.clone()),
        platform: KUBERNETES.into(),
        platform_metadata: json!({"name": &*object.name, "uid": &*object.uid}),
        traceparent: None,
        deadline_seconds: spec.deadline_seconds,
        object: Some(AgentTurnRef { name: object.name.to_string(), uid: object.uid.to_string() }),
    }
}

/// What the schema refuses; here again, for objects that are older than it.
fn check(submission: &Submission) -> Result<(), String> {
    check_conversation(&submission.conversation).map_err(|e| e.to_string())?;
    check_name("messageId", &submission.message_id).map_err(|e| e.to_string())?;
    check_name("user", &submission.user).map_err(|e| e.to_string())?;
    if submission.message.is_empty() || submission.message.len() > MAX_INPUT_BYTES {
        return Err(format!("input must be 1 to {MAX_INPUT_BYTES} bytes"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "act_tests.rs"]
mod tests;
