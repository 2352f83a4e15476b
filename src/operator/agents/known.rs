//! PURE: what is known of one Agent, and what is to be done for it next.

use std::time::{Duration, Instant};

use kube::api::DynamicObject;

use super::ready::Verdict;
use super::status::{self, Shown};
use crate::crd::{Agent, AgentSpec, AgentStatus, LastFailure};
use crate::store::AgentCounts;

/// A dry run that failed is repeated after this.
const DRY_AGAIN: Duration = Duration::from_secs(30);
/// A status that was not taken is written again after this.
const PATCH_AGAIN: Duration = Duration::from_secs(5);

/// An Agent as it is known here.
pub struct Known {
    pub agent: Agent,
    /// Whether the spec can be used, and why not.
    pub valid: Result<(), String>,
    pub projected: bool,
    /// The generation that was dried, what came of it, and when.
    pub dried: Option<(i64, Verdict, Instant)>,
    pub drying: bool,
    pub patching: bool,
    /// Its last patch failed; not before.
    pub patch_not_before: Option<Instant>,
    /// The status as the API server last showed it.
    pub shown: AgentStatus,
}

/// A job for an Agent.
pub enum Job {
    Dry { generation: i64 },
    Patch(Box<AgentStatus>),
}

/// What came of it.
pub enum Done {
    Dried {
        generation: i64,
        verdict: Verdict,
    },
    /// The status as it is now and the object's version, unless it was not taken.
    Patched(Option<Box<Written>>),
}

/// A status that was written.
pub struct Written {
    pub status: AgentStatus,
    pub version: Option<String>,
}

impl Known {
    pub fn new(object: DynamicObject, spec: Result<AgentSpec, String>, shown: AgentStatus) -> Known {
        let (agent, valid) = read(object, spec, None);
        Known {
            agent,
            valid,
            projected: false,
            dried: None,
            drying: false,
            patching: false,
            patch_not_before: None,
            shown,
        }
    }

    /// The same Agent with another spec.
    pub fn changed(self, object: DynamicObject, spec: Result<AgentSpec, String>) -> Known {
        let (agent, valid) = read(object, spec, Some(self.agent.spec.clone()));
        Known { agent, valid, projected: false, ..self }
    }

    /// The object's UID.
    pub fn uid(&self) -> &str {
        self.agent.metadata.uid.as_deref().unwrap_or_default()
    }

    /// The API server shows this status in this version of the object. What was not taken for another version's sake is
    /// tried again.
    pub fn show(&mut self, status: AgentStatus, version: Option<String>) {
        if self.agent.metadata.resource_version != version {
            self.agent.metadata.resource_version = version;
            self.patch_not_before = None;
        }
        self.shown = status;
    }

    /// What is to be done for it now.
    pub fn job(&self, counts: Option<&AgentCounts>, failure: Option<LastFailure>, now: Instant) -> Option<Job> {
        let generation = self.agent.metadata.generation.unwrap_or(0);
        if !self.drying && self.is_to_dry(generation, now) {
            return Some(Job::Dry { generation });
        }
        if self.patching || self.patch_not_before.is_some_and(|at| now < at) {
            return None;
        }
        self.status_to_patch(counts, failure).map(|status| Job::Patch(Box::new(status)))
    }

    /// What came of a job.
    pub fn learn(&mut self, done: Done, now: Instant) {
        match done {
            Done::Dried { generation, verdict } => {
                self.drying = false;
                self.dried = Some((generation, verdict, now));
            }
            Done::Patched(written) => {
                self.patching = false;
                self.patch_not_before = written.is_none().then(|| now + PATCH_AGAIN);
                if let Some(written) = written {
                    self.show(written.status, written.version);
                }
            }
        }
    }

    fn is_to_dry(&self, generation: i64, now: Instant) -> bool {
        match &self.dried {
            Some((dried, verdict, at)) if *dried == generation => !verdict.is_ready() && now - *at >= DRY_AGAIN,
            _ => true,
        }
    }

    /// The status that it is to have, if that is not the one that it has.
    fn status_to_patch(&self, counts: Option<&AgentCounts>, failure: Option<LastFailure>) -> Option<AgentStatus> {
        let (generation, verdict, _) = self.dried.as_ref()?;
        let shown = Shown { status: &self.shown, counts, failure };
        shown.next(*generation, verdict)
    }
}

/// An Agent with its new spec, or with `before`, if the new one cannot be read; and whether it can be used.
fn read(
    object: DynamicObject,
    spec: Result<AgentSpec, String>,
    before: Option<AgentSpec>,
) -> (Agent, Result<(), String>) {
    let (spec, mut valid) = match spec {
        Ok(spec) => (spec, Ok(())),
        Err(error) => (before.unwrap_or_else(status::nothing), Err(format!("the spec cannot be read: {error}"))),
    };
    let mut agent = Agent::new("", spec);
    agent.metadata = object.metadata;
    if valid.is_ok() {
        valid = agent.validate().map_err(|error| error.to_string());
    }
    (agent, valid)
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::operator::events::LastFailures;

    fn known() -> Known {
        let object: DynamicObject = serde_json::from_value(serde_json::json!({
            "apiVersion": "lastword.dev/v1alpha1", "kind": "Agent",
            "metadata": {"namespace": "team", "name": "bot", "uid": "u", "generation": 1, "resourceVersion": "1"},
        }))
        .expect("an object");
        Known::new(object, Ok(status::nothing()), AgentStatus::default())
    }

    fn written(status: AgentStatus, version: &str) -> Done {
        Done::Patched(Some(Box::new(Written { status, version: Some(version.into()) })))
    }

    #[test]
    fn a_status_that_was_not_taken_waits() {
        let (mut known, now) = (known(), Instant::now());
        assert!(matches!(known.job(None, None, now), Some(Job::Dry { generation: 1 })));
        known.learn(Done::Dried { generation: 1, verdict: Verdict::Ready }, now);
        let Some(Job::Patch(status)) = known.job(None, None, now) else { panic!("nothing is shown yet") };
        known.learn(Done::Patched(None), now);
        assert!(known.job(None, None, now).is_none(), "not at once again");
        known.show(AgentStatus::default(), Some("1".into()));
        assert!(known.job(None, None, now).is_none(), "it is the same");
        assert!(matches!(known.job(None, None, now + PATCH_AGAIN), Some(Job::Patch(_))));
        known.show(AgentStatus::default(), Some("2".into()));
        assert!(matches!(known.job(None, None, now), Some(Job::Patch(_))), "another version");
        known.learn(written(*status, "3"), now);
        assert!(known.job(None, None, now + PATCH_AGAIN).is_none(), "it is shown");
        assert_eq!(known.agent.metadata.resource_version.as_deref(), Some("3"), "the next patch names it");
    }

    /// A failure under the Agent of this UID.
    fn failed(uid: Option<&str>) -> crate::store::RecentFailure {
        crate::store::RecentFailure {
            id: crate::turn::keys::TurnId::new().0,
            organization: "team".into(),
            agent: "bot".into(),
            agent_uid: uid.map(str::to_owned),
            reason: crate::turn::reason::Reason::AgentError,
            detail: "no".into(),
            at: OffsetDateTime::UNIX_EPOCH + Duration::from_micros(1_234_567),
            pod: None,
        }
    }

    /// A status comes back with times in whole seconds.
    #[test]
    fn a_failure_is_shown_once() {
        let failures = LastFailures::default();
        failures.note(&failed(Some("u")));
        let (mut known, now) = (known(), Instant::now());
        known.learn(Done::Dried { generation: 1, verdict: Verdict::Ready }, now);
        let failure = failures.get(known.uid());
        let Some(Job::Patch(status)) = known.job(None, failure.clone(), now) else { panic!("it is news") };
        let status = serde_json::to_value(status).and_then(serde_json::from_value).expect("a status");
        known.learn(written(status, "2"), now);
        assert!(known.job(None, failure, now).is_none(), "patched without end");
    }

    #[test]
    fn a_failure_of_a_namesake_is_another_agents() {
        let failures = LastFailures::default();
        failures.note(&failed(Some("before")));
        failures.note(&failed(None));
        assert_eq!(failures.get(known().uid()), None);
        failures.note(&failed(Some("u")));
        failures.keep(|uid| uid == "u");
        assert!(failures.get("u").is_some() && failures.get("before").is_none());
    }
}
