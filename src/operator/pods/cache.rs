//! The worker pods that this replica knows, shared by the watch, the fleet's runtime, the reports and the clean-up.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Preconditions};
use kube::{Client, ResourceExt};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::classify::{PodEvent, adapter_ended, is_over};
use crate::fleet::Death;
use crate::operator::client::{ApiCallError, bounded_by};
use crate::operator::config::OperatorConfig;
use crate::store::Store;

/// The deadline of a call to the API server that the fleet waits for.
pub(super) const POD_CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// For this long a pod that ended is looked at again: its lease row may not name it yet, if whoever created the pod was
/// interrupted between the creation and the row.
const UNRECORDED: Duration = Duration::from_secs(60);

/// The worker pods that this replica knows.
pub struct Pods {
    pub(super) client: Client,
    pub(super) store: Store,
    pub(super) config: Arc<OperatorConfig>,
    contents: Mutex<CacheContents>,
    /// Notified when a pod is to be reported.
    pub(super) changed: Notify,
}

#[derive(Default)]
pub(super) struct CacheContents {
    /// The pods, by UID.
    pub pods: HashMap<String, CachedPod>,
    /// The UIDs of pods that changed and were not reported yet. There are no more of them than there are pods.
    pub to_report: HashSet<String>,
    /// Where proofs of death go; `None` before the fleet runs.
    pub deaths: Option<mpsc::UnboundedSender<Death>>,
}

/// A pod, and what this replica did about it.
#[derive(Clone)]
pub(super) struct CachedPod {
    pub pod: Arc<Pod>,
    /// The watch that shows it: a namespace, or empty for the watch on all namespaces.
    pub scope: String,
    /// Whether its object was deleted.
    pub gone: bool,
    /// When this replica saw it first.
    pub since: Instant,
    /// The Events about it, oldest first. They are read only while it starts.
    pub events: Vec<PodEvent>,
    /// Whether its lease row holds a cause that it does not start.
    pub cause_noted: bool,
    /// Whether its latest change was reported.
    pub reported: bool,
}

impl Pods {
    /// An empty cache; it sends nothing yet.
    pub fn new(client: Client, store: Store, config: impl Into<Arc<OperatorConfig>>) -> Arc<Self> {
        Arc::new(Pods { client, store, config: config.into(), contents: Mutex::default(), changed: Notify::new() })
    }

    pub(super) fn contents(&self) -> MutexGuard<'_, CacheContents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn api(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Has a pod reported whose lease row names it from now on. If the watch has shown the pod already, that state is
    /// reported again, since `pod`, the answer to its creation, is older.
    pub(super) fn recorded(&self, pod: Pod) {
        let mut contents = self.contents();
        let Some(uid) = pod.uid().filter(|uid| contents.pods.contains_key(uid)) else {
            drop(contents);
            return self.apply(pod, None, false);
        };
        contents.to_report.insert(uid);
        drop(contents);
        self.changed.notify_one();
    }

    /// Takes a pod in as it has just been read, and has it reported. `scope` is the watch that showed it, if one did.
    pub(super) fn apply(&self, mut pod: Pod, scope: Option<&str>, gone: bool) {
        pod.metadata.managed_fields = None;
        let Some(uid) = pod.uid() else { return };
        let mut contents = self.contents();
        let before = contents.pods.get(&uid);
        let cached = CachedPod {
            pod: Arc::new(pod),
            scope: scope.map_or_else(|| before.map(|s| s.scope.clone()).unwrap_or_default(), Into::into),
            gone: gone || before.is_some_and(|s| s.gone),
            since: before.map_or_else(Instant::now, |s| s.since),
            events: before.map(|s| s.events.clone()).unwrap_or_default(),
            cause_noted: before.is_some_and(|s| s.cause_noted),
            reported: false,
        };
        contents.pods.insert(uid.clone(), cached);
        contents.to_report.insert(uid);
        drop(contents);
        self.changed.notify_one();
    }

    /// Has pods that ended reported again for a while: their lease rows may come to name them late.
    pub(super) fn report_ended_again(&self) {
        let mut contents = self.contents();
        let ended = |s: &CachedPod| (adapter_ended(&s.pod) || is_over(&s.pod)) && s.since.elapsed() < UNRECORDED;
        let uids: Vec<String> = contents.pods.iter().filter(|(_, s)| ended(s)).map(|(uid, _)| uid.clone()).collect();
        contents.to_report.extend(uids);
        drop(contents);
        self.changed.notify_one();
    }

    pub(super) fn report_death(&self, death: Death) {
        if let Some(deaths) = &self.contents().deaths {
            // The receiver is gone when the fleet has ended.
            let _ = deaths.send(death);
        }
    }

    /// Deletes the pod of this UID and no namesake. True if the pod is gone, or is being deleted. `grace_seconds` of `None`
    /// is the pod's own grace.
    pub(super) async fn delete(&self, namespace: &str, name: &str, uid: &str, grace_seconds: Option<u32>) -> bool {
        let preconditions = Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
        let params = DeleteParams { grace_period_seconds: grace_seconds, preconditions, ..DeleteParams::default() };
        let api = self.api(namespace);
        match bounded_by(POD_CALL_TIMEOUT, api.delete(name, &params)).await {
            Ok(_) => true,
            // 409: a pod of this name exists, with another UID.
            Err(ApiCallError::Api(kube::Error::Api(status))) if status.is_not_found() || status.is_conflict() => {
                self.contents().pods.remove(uid);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "pod {namespace}/{name} was not deleted");
                false
            }
        }
    }
}
