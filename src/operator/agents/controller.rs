//! The loop of the Agents' controller: it hears the watch and the clock, writes specs into the database, and runs
//! reconciliations, a bounded number at a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use kube::api::DynamicObject;
use kube::runtime::watcher::Event;
use kube::{Client, ResourceExt};
use time::OffsetDateTime;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::ready::{self, AgentReadiness};
use super::status;
use super::tracked::{AgentOperation, AgentReconciled, TrackedAgent};
use crate::crd::{Agent, AgentSpec, AgentStatus};
use crate::leadership::Leadership;
use crate::operator::clock::Now;
use crate::operator::config::OperatorConfig;
use crate::operator::events::LastFailures;
use crate::operator::organizations;
use crate::operator::watch;
use crate::store::{AgentCounts, OrganizationTie, Store, StoreError};

/// What the database did not take is tried again, and what has become due is started, this often.
const TICK: Duration = Duration::from_millis(500);
/// The numbers of workers and turns are read from the database this often, and so are written this often at the most.
const COUNTS_PERIOD: Duration = Duration::from_secs(10);
/// The pause after a namespace could not be read.
const NAMESPACE_RETRY: Duration = Duration::from_secs(5);
/// Reconciliations at a time: Agents' share of the API server.
const CONCURRENCY: usize = 8;

/// An Agent's namespace and name.
type Key = (String, String);

/// What reconciliations of Agents work with.
#[derive(Clone)]
pub struct AgentContext {
    pub store: Store,
    pub client: Client,
    /// How the pod is built that the dry run tries.
    pub config: Arc<OperatorConfig>,
    /// Agents' latest failures, which their statuses show.
    pub failures: LastFailures,
}

/// Serves Agents until `shutdown`, whenever this replica leads.
pub async fn run(
    context: AgentContext,
    namespaces: Arc<[String]>,
    leadership: Leadership,
    shutdown: CancellationToken,
) {
    tokio::select! {
        () = leadership.while_leading(|| lead(context.clone(), namespaces.clone())) => {}
        () = shutdown.cancelled() => {}
    }
}

/// What a reconciliation came to, with the Agent's key and the UID that it had: an Agent that was created again under the
/// same name is another one.
type FinishedOperation = (Key, Option<String>, AgentReconciled);

struct AgentController {
    context: AgentContext,
    namespaces: Arc<[String]>,
    agents: BTreeMap<Key, TrackedAgent>,
    /// The Agent that was reconciled last. The search for the next one begins behind it, so that none starves the others.
    last_started: Option<Key>,
    /// Deleted objects (namespace, name, UID) that the database still has.
    deleted: Vec<(String, String, String)>,
    /// The database's time when a watch's list began, by watch, while the list is under way. Without it (the database
    /// was away) the list proves nothing of what is missing.
    list_began: HashMap<usize, Option<OffsetDateTime>>,
    /// The UIDs that a watch's list has shown so far, by watch, while the list is under way.
    listed: HashMap<usize, Vec<String>>,
    counts: HashMap<Key, AgentCounts>,
    counted_at: Option<Instant>,
    /// No namespace is read before this: one could not be.
    namespaces_fail_until: Option<Instant>,
    jobs: JoinSet<FinishedOperation>,
}

/// Serves Agents until it is dropped, which happens when this replica no longer leads.
async fn lead(context: AgentContext, namespaces: Arc<[String]>) {
    let mut events = pin!(watch::watch(watch::apis::<Agent>(&context.client, &namespaces)));
    let mut controller = AgentController {
        context,
        namespaces,
        agents: BTreeMap::new(),
        last_started: None,
        deleted: Vec::new(),
        list_began: HashMap::new(),
        listed: HashMap::new(),
        counts: HashMap::new(),
        counted_at: None,
        namespaces_fail_until: None,
        jobs: JoinSet::new(),
    };
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some((scope, event)) = events.next() => controller.apply(scope, event).await,
            Some(finished) = controller.jobs.join_next() => controller.finish(finished),
            _ = tick.tick() => controller.tick().await,
        }
        controller.start();
    }
}

impl AgentController {
    async fn apply(&mut self, scope: usize, event: Event<DynamicObject>) {
        match event {
            Event::Init => {
                self.list_began.insert(scope, self.context.store.database_time().await.ok());
                self.listed.insert(scope, Vec::new());
            }
            Event::InitApply(object) => {
                self.listed.entry(scope).or_default().extend(object.uid());
                self.apply_object(object).await;
            }
            Event::Apply(object) => self.apply_object(object).await,
            Event::Delete(object) => {
                let key = (object.namespace().unwrap_or_default(), object.name_any());
                self.deleted.extend(object.uid().map(|uid| (key.0.clone(), key.1.clone(), uid)));
                self.agents.remove(&key);
                self.remove_deleted().await;
            }
            Event::InitDone => self.list_ends(scope).await,
        }
    }

    /// A list is complete: removes the Agents that it did not show.
    async fn list_ends(&mut self, scope: usize) {
        let listed = self.listed.remove(&scope).unwrap_or_default();
        let of_scope = self.namespaces.get(scope).cloned();
        self.agents.retain(|key, known| {
            let ours = of_scope.as_ref().is_none_or(|namespace| *namespace == key.0);
            !ours || known.agent.metadata.uid.as_ref().is_some_and(|uid| listed.contains(uid))
        });
        let Some(began) = self.list_began.remove(&scope).flatten() else { return };
        let namespaces = of_scope.map(|namespace| vec![namespace]);
        match self.context.store.remove_unlisted_agents(namespaces.as_deref(), &listed, began).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "Agents that are gone were removed"),
            Err(error) => tracing::warn!(%error, "Agents that are gone stay until the next list"),
        }
    }

    /// Takes in an object as the watch shows it.
    async fn apply_object(&mut self, mut object: DynamicObject) {
        let key = (object.namespace().unwrap_or_default(), object.name_any());
        let shown: AgentStatus = serde_json::from_value(object.data["status"].take()).unwrap_or_default();
        let spec = serde_json::from_value::<AgentSpec>(object.data["spec"].take()).map_err(|e| e.to_string());
        let spec = if self.context.config.leaves_out(&key.0) {
            // One that was served before, by an older version, is so no longer.
            self.deleted.extend(object.uid().map(|uid| (key.0.clone(), key.1.clone(), uid)));
            Err(format!(
                "no Agents are served in the namespace {}; name it in --watch-namespaces if they should be",
                key.0
            ))
        } else {
            spec
        };
        let before = self.agents.remove(&key).filter(|known| known.agent.metadata.uid == object.metadata.uid);
        let generation = object.metadata.generation;
        if let Some(mut same) = before {
            same.show(shown, object.metadata.resource_version.clone());
            if same.agent.metadata.generation == generation {
                self.agents.insert(key, same);
                return;
            }
            self.agents.insert(key.clone(), same.with_spec(object, spec));
        } else {
            self.agents.insert(key.clone(), TrackedAgent::new(object, spec, shown));
        }
        self.project(&key).await;
    }

    /// Writes a valid spec into the database, unless it is there. If the database is away, the next tick tries again.
    async fn project(&mut self, key: &Key) {
        let Some(known) = self.agents.get_mut(key) else { return };
        if known.projected || known.valid.is_err() {
            return;
        }
        if !known.tied {
            if self.namespaces_fail_until.is_some_and(|until| Instant::now() < until) {
                return;
            }
            match organizations::tie(&self.context.client, &self.context.store, &key.0).await {
                Ok(Some(OrganizationTie::Ready)) => known.tied = true,
                // It is looked again with each tick: what a former namespace left is being erased, or the Agent goes with its
                // namespace.
                Ok(_) => return,
                Err(error) => {
                    tracing::warn!(%error, "agents of namespace {} wait: {error}", key.0);
                    self.namespaces_fail_until = Some(Instant::now() + NAMESPACE_RETRY);
                    return;
                }
            }
        }
        let Ok(spec) = serde_json::to_value(&known.agent.spec) else { return };
        let uid = known.agent.metadata.uid.clone().unwrap_or_default();
        let generation = known.agent.metadata.generation.unwrap_or(0);
        match self.context.store.put_agent_object(&key.0, &key.1, &spec, &uid, generation).await {
            Ok(changed) => {
                known.projected = true;
                if changed {
                    tracing::info!(agent = %key.1, "agent {}/{} is configured", key.0, key.1);
                }
            }
            Err(StoreError::Refused(why)) => known.valid = Err(format!("the database refuses the spec: {why}")),
            Err(error) => tracing::debug!(%error, "agent {}/{} waits for the database", key.0, key.1),
        }
    }

    /// Removes deleted Agents from the database. What it does not take now is tried again.
    async fn remove_deleted(&mut self) {
        while let Some((namespace, name, uid)) = self.deleted.last() {
            match self.context.store.remove_agent_object(namespace, name, uid).await {
                Ok(_) => tracing::info!(agent = %name, "agent {namespace}/{name} was deleted"),
                Err(error) => return tracing::debug!(%error, "agent {namespace}/{name} is removed later"),
            }
            self.deleted.pop();
        }
    }

    /// Does again what the database did not take, and reads the numbers of workers and turns if it is time.
    async fn tick(&mut self) {
        self.remove_deleted().await;
        let waiting: Vec<Key> =
            self.agents.iter().filter(|(_, a)| !a.projected && a.valid.is_ok()).map(|(key, _)| key.clone()).collect();
        for key in waiting {
            self.project(&key).await;
        }
        if self.counted_at.is_none_or(|at| at.elapsed() >= COUNTS_PERIOD) {
            if let Ok(counts) = self.context.store.agent_counts().await {
                self.counts = counts.into_iter().map(|c| ((c.namespace.clone(), c.name.clone()), c)).collect();
            }
            self.counted_at = Some(Instant::now());
            let uids: HashSet<&str> = self.agents.values().map(TrackedAgent::uid).collect();
            self.context.failures.keep(|uid| uids.contains(uid));
        }
    }

    /// Starts reconciliations that are due.
    fn start(&mut self) {
        let free = CONCURRENCY.saturating_sub(self.jobs.len());
        if free == 0 {
            return;
        }
        let now = Now::read();
        let operation = |key: &Key| {
            let agent = self.agents.get(key)?;
            let operation = agent.next(self.counts.get(key), self.context.failures.get(agent.uid()), now)?;
            Some((key.clone(), operation))
        };
        let due: Vec<(Key, AgentOperation)> =
            behind(&self.agents, self.last_started.as_ref()).filter_map(operation).take(free).collect();
        for (key, operation) in due {
            self.spawn(key.clone(), operation);
            self.last_started = Some(key);
        }
    }

    fn spawn(&mut self, key: Key, operation: AgentOperation) {
        let Some(tracked) = self.agents.get_mut(&key) else { return };
        match operation {
            AgentOperation::DryRun { .. } => tracked.dry_run_under_way = true,
            AgentOperation::PatchStatus(_) => tracked.patch_under_way = true,
        }
        let (context, agent, valid) = (self.context.clone(), tracked.agent.clone(), tracked.valid.clone());
        let uid = agent.metadata.uid.clone();
        self.jobs.spawn(async move { (key, uid, reconcile(&context, &agent, valid, operation).await) });
    }

    fn finish(&mut self, finished: Result<FinishedOperation, JoinError>) {
        match finished {
            Ok((key, uid, result)) => {
                if let Some(agent) = self.agents.get_mut(&key).filter(|known| known.agent.metadata.uid == uid) {
                    agent.reconciled(result, Instant::now());
                }
            }
            Err(error) => tracing::error!(%error, "a reconciliation of an Agent panicked; this is a bug in Lastword"),
        }
    }
}

/// Carries out one operation. A panic in it counts as a failure, so that it is tried again.
async fn reconcile(
    context: &AgentContext,
    agent: &Agent,
    valid: Result<(), String>,
    operation: AgentOperation,
) -> AgentReconciled {
    match operation {
        AgentOperation::DryRun { generation } => {
            let check = ready::check(&context.config, &context.client, agent, valid);
            let bug = |_| AgentReadiness::Unknown("the dry run panicked; this is a bug in Lastword".into());
            let readiness = AssertUnwindSafe(check).catch_unwind().await.unwrap_or_else(bug);
            AgentReconciled::DryRun { generation, readiness }
        }
        AgentOperation::PatchStatus(status) => {
            let patch = status::patch(&context.client, &agent.metadata, *status);
            AgentReconciled::StatusPatched(AssertUnwindSafe(patch).catch_unwind().await.unwrap_or_default())
        }
    }
}

/// All keys, beginning behind `last` and going round.
fn behind<'a, V>(all: &'a BTreeMap<Key, V>, last: Option<&Key>) -> impl Iterator<Item = &'a Key> {
    let from = last.map_or(Bound::Unbounded, |key| Bound::Excluded(key.clone()));
    let rest = last.map(|key| (Bound::Unbounded, Bound::Included(key.clone())));
    let rest = rest.into_iter().flat_map(|rest| all.range(rest));
    all.range((from, Bound::Unbounded)).chain(rest).map(|(key, _)| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_turn() {
        let key = |name: &str| ("team".to_owned(), name.to_owned());
        let all: BTreeMap<Key, ()> = ["a", "b", "c"].map(|name| (key(name), ())).into();
        let names = |last: Option<&str>| -> Vec<String> {
            behind(&all, last.map(key).as_ref()).map(|key| key.1.clone()).collect()
        };
        assert_eq!(names(None), ["a", "b", "c"]);
        assert_eq!(names(Some("b")), ["c", "a", "b"]);
        assert_eq!(names(Some("bb")), ["c", "a", "b"], "it is gone meanwhile");
        assert_eq!(names(Some("c")), ["a", "b", "c"]);
    }
}
