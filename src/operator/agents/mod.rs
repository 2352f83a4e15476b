//! Agents: projected into the store, so that gateways need no API server; their statuses say whether they are ready, and
//! what they have.
//!
//! - The projection keeps the last good spec: one that cannot be used is not `Ready`, and changes nothing.
//! - `Ready` is a server-side dry run of the pod that would be created ([`ready`]), made again when the spec changed, or
//!   after it failed.
//! - An Agent that a complete list does not show is removed, unless it was written after that list began.
//! - Only the leader does it; another one begins with a fresh list.

mod known;
mod ready;
mod status;

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
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use known::{Done, Job, Known};
use ready::Verdict;

use super::events::LastFailures;
use super::{OperatorConfig, watch};
use crate::crd::{Agent, AgentSpec, AgentStatus};
use crate::leadership::Leadership;
use crate::store::{AgentCounts, Store, StoreError};

/// Looks at what is to be projected, dried or patched this often.
const TICK: Duration = Duration::from_millis(500);
/// Counts are read and patched at most this often.
const COUNTS: Duration = Duration::from_secs(10);
/// Calls to the API server at a time.
const CONCURRENCY: usize = 8;

/// Namespace and name.
type Key = (String, String);

/// What the controller of Agents works with.
#[derive(Clone)]
pub struct Hands {
    pub store: Store,
    pub client: Client,
    /// How the pod is built whose creation is tried.
    pub config: Arc<OperatorConfig>,
    pub failures: LastFailures,
}

/// Serves Agents until `shutdown`, whenever this replica leads.
pub async fn run(hands: Hands, namespaces: Arc<[String]>, leadership: Leadership, shutdown: CancellationToken) {
    tokio::select! {
        () = leadership.while_leading(|| lead(hands.clone(), namespaces.clone())) => {}
        () = shutdown.cancelled() => {}
    }
}

/// What came of a job for the Agent with this key and UID; one that was made again under the same name is another.
type Report = (Key, Option<String>, Done);

struct Controller {
    hands: Hands,
    namespaces: Arc<[String]>,
    known: BTreeMap<Key, Known>,
    /// The Agent that had the last job: those behind it come first, so that none starves the others.
    served: Option<Key>,
    /// Removed objects (namespace, name, UID) that the store does not know to be.
    removed: Vec<(String, String, String)>,
    /// When the list under way of each watch began; without the database's time nothing can be told from it.
    began: HashMap<usize, Option<OffsetDateTime>>,
    /// UIDs that the lists under way showed.
    listed: HashMap<usize, Vec<String>>,
    counts: HashMap<Key, AgentCounts>,
    counted: Option<Instant>,
    jobs: JoinSet<Report>,
}

/// Serves Agents; runs until it is dropped.
async fn lead(hands: Hands, namespaces: Arc<[String]>) {
    let mut events = pin!(watch::watch(watch::apis::<Agent>(&hands.client, &namespaces)));
    let mut controller = Controller {
        hands,
        namespaces,
        known: BTreeMap::new(),
        served: None,
        removed: Vec::new(),
        began: HashMap::new(),
        listed: HashMap::new(),
        counts: HashMap::new(),
        counted: None,
        jobs: JoinSet::new(),
    };
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some((scope, event)) = events.next() => controller.hear(scope, event).await,
            Some(report) = controller.jobs.join_next() => controller.report(report),
            _ = tick.tick() => controller.tick().await,
        }
        controller.start();
    }
}

impl Controller {
    async fn hear(&mut self, scope: usize, event: Event<DynamicObject>) {
        match event {
            Event::Init => {
                self.began.insert(scope, self.hands.store.database_time().await.ok());
                self.listed.insert(scope, Vec::new());
            }
            Event::InitApply(object) => {
                self.listed.entry(scope).or_default().extend(object.uid());
                self.seen(object).await;
            }
            Event::Apply(object) => self.seen(object).await,
            Event::Delete(object) => {
                let key = (object.namespace().unwrap_or_default(), object.name_any());
                self.removed.extend(object.uid().map(|uid| (key.0.clone(), key.1.clone(), uid)));
                self.known.remove(&key);
                self.remove().await;
            }
            Event::InitDone => self.list_ends(scope).await,
        }
    }

    /// Removes what a complete list did not show.
    async fn list_ends(&mut self, scope: usize) {
        let listed = self.listed.remove(&scope).unwrap_or_default();
        let of_scope = self.namespaces.get(scope).cloned();
        self.known.retain(|key, known| {
            let ours = of_scope.as_ref().is_none_or(|namespace| *namespace == key.0);
            !ours || known.agent.metadata.uid.as_ref().is_some_and(|uid| listed.contains(uid))
        });
        let Some(began) = self.began.remove(&scope).flatten() else { return };
        let namespaces = of_scope.map(|namespace| vec![namespace]);
        match self.hands.store.remove_unlisted_agents(namespaces.as_deref(), &listed, began).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "Agents that are gone were removed"),
            Err(error) => tracing::warn!(%error, "Agents that are gone stay until the next list"),
        }
    }

    /// An Agent is there, or changed.
    async fn seen(&mut self, mut object: DynamicObject) {
        let key = (object.namespace().unwrap_or_default(), object.name_any());
        let shown: AgentStatus = serde_json::from_value(object.data["status"].take()).unwrap_or_default();
        let spec = serde_json::from_value::<AgentSpec>(object.data["spec"].take()).map_err(|e| e.to_string());
        let before = self.known.remove(&key).filter(|known| known.agent.metadata.uid == object.metadata.uid);
        let generation = object.metadata.generation;
        if let Some(mut same) = before {
            same.show(shown, object.metadata.resource_version.clone());
            if same.agent.metadata.generation == generation {
                self.known.insert(key, same);
                return;
            }
            self.known.insert(key.clone(), same.changed(object, spec));
        } else {
            self.known.insert(key.clone(), Known::new(object, spec, shown));
        }
        self.project(&key).await;
    }

    /// Writes a valid spec into the store; again at the next tick if the database is away.
    async fn project(&mut self, key: &Key) {
        let Some(known) = self.known.get_mut(key) else { return };
        if known.projected || known.valid.is_err() {
            return;
        }
        let Ok(spec) = serde_json::to_value(&known.agent.spec) else { return };
        let uid = known.agent.metadata.uid.clone().unwrap_or_default();
        let generation = known.agent.metadata.generation.unwrap_or(0);
        match self.hands.store.put_agent_object(&key.0, &key.1, &spec, &uid, generation).await {
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

    async fn remove(&mut self) {
        while let Some((namespace, name, uid)) = self.removed.last() {
            match self.hands.store.remove_agent_object(namespace, name, uid).await {
                Ok(_) => tracing::info!(agent = %name, "agent {namespace}/{name} was deleted"),
                Err(error) => return tracing::debug!(%error, "agent {namespace}/{name} is removed later"),
            }
            self.removed.pop();
        }
    }

    async fn tick(&mut self) {
        self.remove().await;
        let waiting: Vec<Key> =
            self.known.iter().filter(|(_, k)| !k.projected && k.valid.is_ok()).map(|(key, _)| key.clone()).collect();
        for key in waiting {
            self.project(&key).await;
        }
        if self.counted.is_none_or(|at| at.elapsed() >= COUNTS) {
            if let Ok(counts) = self.hands.store.agent_counts().await {
                self.counts = counts.into_iter().map(|c| ((c.namespace.clone(), c.name.clone()), c)).collect();
            }
            self.counted = Some(Instant::now());
            let uids: HashSet<&str> = self.known.values().map(Known::uid).collect();
            self.hands.failures.keep(|uid| uids.contains(uid));
        }
    }

    /// Starts dry runs and patches that are due.
    fn start(&mut self) {
        let free = CONCURRENCY.saturating_sub(self.jobs.len());
        if free == 0 {
            return;
        }
        let now = Instant::now();
        let job = |key: &Key| {
            let known = self.known.get(key)?;
            let job = known.job(self.counts.get(key), self.hands.failures.get(known.uid()), now)?;
            Some((key.clone(), job))
        };
        let due: Vec<(Key, Job)> = behind(&self.known, self.served.as_ref()).filter_map(job).take(free).collect();
        for (key, job) in due {
            self.spawn(key.clone(), job);
            self.served = Some(key);
        }
    }

    fn spawn(&mut self, key: Key, job: Job) {
        let Some(known) = self.known.get_mut(&key) else { return };
        let (hands, agent, valid) = (self.hands.clone(), known.agent.clone(), known.valid.clone());
        let uid = agent.metadata.uid.clone();
        match job {
            Job::Dry { generation } => {
                known.drying = true;
                self.jobs.spawn(async move {
                    let bug = || Verdict::Unknown("the dry run panicked; this is a bug in Lastword".into());
                    let check = AssertUnwindSafe(ready::check(&hands, &agent, valid)).catch_unwind();
                    let verdict = check.await.unwrap_or_else(|_| bug());
                    (key, uid, Done::Dried { generation, verdict })
                });
            }
            Job::Patch(status) => {
                known.patching = true;
                self.jobs.spawn(async move {
                    let patch = AssertUnwindSafe(status::patch(&hands.client, &agent.metadata, *status)).catch_unwind();
                    (key, uid, Done::Patched(patch.await.unwrap_or_default()))
                });
            }
        }
    }

    fn report(&mut self, report: Result<Report, tokio::task::JoinError>) {
        match report {
            Ok((key, uid, done)) => {
                if let Some(known) = self.known.get_mut(&key).filter(|known| known.agent.metadata.uid == uid) {
                    known.learn(done, Instant::now());
                }
            }
            Err(error) => tracing::error!(%error, "a job for Agents panicked; this is a bug in Lastword"),
        }
    }
}

/// All keys: those behind `served`, then the others.
fn behind<'a, V>(all: &'a BTreeMap<Key, V>, served: Option<&Key>) -> impl Iterator<Item = &'a Key> {
    let from = served.map_or(Bound::Unbounded, |key| Bound::Excluded(key.clone()));
    let rest = served.map(|key| (Bound::Unbounded, Bound::Included(key.clone())));
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
        let names = |served: Option<&str>| -> Vec<String> {
            behind(&all, served.map(key).as_ref()).map(|key| key.1.clone()).collect()
        };
        assert_eq!(names(None), ["a", "b", "c"]);
        assert_eq!(names(Some("b")), ["c", "a", "b"]);
        assert_eq!(names(Some("bb")), ["c", "a", "b"], "it is gone meanwhile");
        assert_eq!(names(Some("c")), ["a", "b", "c"]);
    }
}
