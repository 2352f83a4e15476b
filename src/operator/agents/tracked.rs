//! What the controller knows of one Agent, and what it is to do for it next. Pure: no IO, and the time is an argument.

use std::time::{Duration, Instant};

use kube::api::DynamicObject;

use super::ready::AgentReadiness;
use super::status::{AgentObservation, PatchedStatus};
use crate::crd::{Adapter, Agent, AgentSpec, AgentStatus, LastFailure};
use crate::operator::clock::Now;
use crate::store::AgentCounts;

/// A dry run that did not end with `Ready` is repeated after this time.
const DRY_RUN_PERIOD: Duration = Duration::from_secs(30);
/// A status patch that failed is tried again after this time.
const PATCH_RETRY: Duration = Duration::from_secs(5);

/// One Agent, as the controller knows it.
pub struct TrackedAgent {
    /// The object: its metadata, and the last spec of it that could be read.
    pub agent: Agent,
    /// `Ok` if the Agent's newest spec can be used; else what is wrong with it.
    pub valid: Result<(), String>,
    /// Whether the database has this spec.
    pub projected: bool,
    /// Whether the Agent's organization is its namespace, as it was read after the Agent was seen.
    pub tied: bool,
    /// The result of the last dry run.
    dry_run: Option<DryRun>,
    /// Whether a dry run is under way.
    pub dry_run_under_way: bool,
    /// Whether a status patch is under way.
    pub patch_under_way: bool,
    /// When a patch that failed may be tried again; `None` if none failed.
    patch_not_before: Option<Instant>,
    /// The status that the API server showed last.
    shown: AgentStatus,
}

/// What a dry run came to.
struct DryRun {
    /// The generation of the object whose pod was tried.
    generation: i64,
    readiness: AgentReadiness,
    at: Instant,
}

/// A reconciliation of one Agent: one call, or a few, to the API server.
pub enum AgentOperation {
    /// Find out whether the API server accepts the pod of this generation's spec.
    DryRun { generation: i64 },
    /// Write this status.
    PatchStatus(Box<AgentStatus>),
}

/// What a reconciliation came to.
pub enum AgentReconciled {
    DryRun {
        generation: i64,
        readiness: AgentReadiness,
    },
    /// The status as the API server has it now; `None` if the patch was not accepted.
    StatusPatched(Option<Box<PatchedStatus>>),
}

impl TrackedAgent {
    /// An Agent that was not known before. `shown` is its status.
    pub fn new(object: DynamicObject, spec: Result<AgentSpec, String>, shown: AgentStatus) -> Self {
        let (agent, valid) = read(object, spec, None);
        TrackedAgent {
            agent,
            valid,
            projected: false,
            tied: false,
            dry_run: None,
            dry_run_under_way: false,
            patch_under_way: false,
            patch_not_before: None,
            shown,
        }
    }

    /// The same Agent with a new spec.
    pub fn with_spec(self, object: DynamicObject, spec: Result<AgentSpec, String>) -> Self {
        let (agent, valid) = read(object, spec, Some(self.agent.spec.clone()));
        TrackedAgent { agent, valid, projected: false, ..self }
    }

    pub fn uid(&self) -> &str {
        self.agent.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Takes in the status that the API server shows in this version of the object. A patch that failed may be tried at
    /// once with a new version, since it may have failed because it named the old one.
    pub fn show(&mut self, status: AgentStatus, version: Option<String>) {
        if self.agent.metadata.resource_version != version {
            self.agent.metadata.resource_version = version;
            self.patch_not_before = None;
        }
        self.shown = status;
    }

    /// What is to be done for the Agent now, if anything.
    pub fn next(&self, counts: Option<&AgentCounts>, failure: Option<LastFailure>, now: Now) -> Option<AgentOperation> {
        let generation = self.agent.metadata.generation.unwrap_or(0);
        if !self.dry_run_under_way && self.needs_dry_run(generation, now.instant) {
            return Some(AgentOperation::DryRun { generation });
        }
        if self.patch_under_way || self.patch_not_before.is_some_and(|at| now.instant < at) {
            return None;
        }
        let dry_run = self.dry_run.as_ref()?;
        let observed =
            AgentObservation { generation: dry_run.generation, readiness: &dry_run.readiness, counts, failure };
        let status = observed.status(&self.shown, now.wall)?;
        Some(AgentOperation::PatchStatus(Box::new(status)))
    }

    /// Takes in what a reconciliation came to.
    pub fn reconciled(&mut self, result: AgentReconciled, now: Instant) {
        match result {
            AgentReconciled::DryRun { generation, readiness } => {
                self.dry_run_under_way = false;
                self.dry_run = Some(DryRun { generation, readiness, at: now });
            }
            AgentReconciled::StatusPatched(patched) => {
                self.patch_under_way = false;
                self.patch_not_before = patched.is_none().then(|| now + PATCH_RETRY);
                if let Some(patched) = patched {
                    self.show(patched.status, patched.version);
                }
            }
        }
    }

    fn needs_dry_run(&self, generation: i64, now: Instant) -> bool {
        match &self.dry_run {
            Some(last) if last.generation == generation => {
                !last.readiness.is_ready() && now - last.at >= DRY_RUN_PERIOD
            }
            _ => true,
        }
    }
}

/// An Agent with its new spec, or with `before` if the new one cannot be read; and whether the new one can be used.
fn read(
    object: DynamicObject,
    spec: Result<AgentSpec, String>,
    before: Option<AgentSpec>,
) -> (Agent, Result<(), String>) {
    let (spec, mut valid) = match spec {
        Ok(spec) => (spec, Ok(())),
        Err(error) => (before.unwrap_or_else(unreadable), Err(format!("the spec cannot be read: {error}"))),
    };
    let mut agent = Agent::new("", spec);
    agent.metadata = object.metadata;
    if valid.is_ok() {
        valid = agent.validate().map_err(|error| error.to_string());
    }
    (agent, valid)
}

/// Stands in for the spec of an Agent none of whose specs could be read. It is never used for workers.
fn unreadable() -> AgentSpec {
    AgentSpec {
        scope: Default::default(),
        adapter: Adapter::Custom,
        template: None,
        openai: None,
        detached_processes: Default::default(),
        limits: Default::default(),
        rollout: Default::default(),
        timing: Default::default(),
        guardrails: Default::default(),
        platforms: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::operator::events::LastFailures;

    fn tracked() -> TrackedAgent {
        let object: DynamicObject = serde_json::from_value(serde_json::json!({
            "apiVersion": "lastword.dev/v1alpha1", "kind": "Agent",
            "metadata": {"namespace": "team", "name": "bot", "uid": "u", "generation": 1, "resourceVersion": "1"},
        }))
        .expect("an object");
        TrackedAgent::new(object, Ok(unreadable()), AgentStatus::default())
    }

    fn patched(status: AgentStatus, version: &str) -> AgentReconciled {
        AgentReconciled::StatusPatched(Some(Box::new(PatchedStatus { status, version: Some(version.into()) })))
    }

    fn ready(generation: i64) -> AgentReconciled {
        AgentReconciled::DryRun { generation, readiness: AgentReadiness::Ready }
    }

    #[test]
    fn a_status_that_was_not_taken_waits() {
        let (mut tracked, now) = (tracked(), Now::read());
        let later = Now { instant: now.instant + PATCH_RETRY, ..now };
        assert!(matches!(tracked.next(None, None, now), Some(AgentOperation::DryRun { generation: 1 })));
        tracked.reconciled(ready(1), now.instant);
        let Some(AgentOperation::PatchStatus(status)) = tracked.next(None, None, now) else {
            panic!("nothing is shown yet")
        };
        tracked.reconciled(AgentReconciled::StatusPatched(None), now.instant);
        assert!(tracked.next(None, None, now).is_none(), "not at once again");
        tracked.show(AgentStatus::default(), Some("1".into()));
        assert!(tracked.next(None, None, now).is_none(), "it is the same");
        assert!(matches!(tracked.next(None, None, later), Some(AgentOperation::PatchStatus(_))));
        tracked.show(AgentStatus::default(), Some("2".into()));
        assert!(matches!(tracked.next(None, None, now), Some(AgentOperation::PatchStatus(_))), "another version");
        tracked.reconciled(patched(*status, "3"), now.instant);
        assert!(tracked.next(None, None, later).is_none(), "it is shown");
        assert_eq!(tracked.agent.metadata.resource_version.as_deref(), Some("3"), "the next patch names it");
    }

    /// A failure under the Agent of this UID.
    fn failed(uid: Option<&str>) -> crate::store::RecentFailure {
        crate::store::RecentFailure {
            id: crate::turn::keys::TurnId::new().0,
            organization: "team".into(),
            agent: "bot".into(),
            agent_uid: uid.map(str::to_owned),
            reason: crate::turn::reason::Reason::AgentError,
            code: Some(1),
            at: OffsetDateTime::UNIX_EPOCH + Duration::from_micros(1_234_567),
            pod: None,
        }
    }

    /// The API server answers with times in whole seconds.
    #[test]
    fn a_failure_is_shown_once() {
        let failures = LastFailures::default();
        failures.note(&failed(Some("u")));
        let (mut tracked, now) = (tracked(), Now::read());
        tracked.reconciled(ready(1), now.instant);
        let failure = failures.get(tracked.uid());
        let Some(AgentOperation::PatchStatus(status)) = tracked.next(None, failure.clone(), now) else {
            panic!("it is news")
        };
        let status = serde_json::to_value(status).and_then(serde_json::from_value).expect("a status");
        tracked.reconciled(patched(status, "2"), now.instant);
        assert!(tracked.next(None, failure, now).is_none(), "patched without end");
    }

    #[test]
    fn a_failure_of_a_namesake_is_another_agents() {
        let failures = LastFailures::default();
        failures.note(&failed(Some("before")));
        failures.note(&failed(None));
        assert_eq!(failures.get(tracked().uid()), None);
        failures.note(&failed(Some("u")));
        failures.keep(|uid| uid == "u");
        assert!(failures.get("u").is_some() && failures.get("before").is_none());
    }
}
