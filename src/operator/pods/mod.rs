//! Worker pods: made from an Agent's template, watched, and taken away.
//!
//! ```text
//!  fleet ─▶ runtime ─▶ API server: create, get, delete         (leader alone)
//!                           │ watch (every replica)
//!                           ▼
//!  cache of pods ─▶ observe ─▶ classify (pure) ─▶ Death ─▶ fleet's reports
//!        │                                     └▶ lease: why it stops, why it does not start
//!        └▶ tidy: finished pods go, some after a while  (leader alone)
//! ```
//!
//! - [`build`], [`classify`] and what [`tidy`] removes are pure.
//! - Nothing is ever concluded from a pod that a list lacks: a list may be stale, a watch may have slept. A pod is held
//!   against its lease by name and UID; labels and annotations only find it.

pub mod build;
pub mod classify;
pub mod draft;
mod observe;
mod runtime;
mod secure;
mod tidy;
mod watch;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::Value;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use self::classify::PodEvent;
use super::OperatorConfig;
use super::call::{Trouble, bounded_by};
use crate::fleet::Death;
use crate::store::Store;
use crate::turn::keys::StartId;

/// What the fleet waits for: an API server that does not answer within this is away.
const CALL: Duration = Duration::from_secs(3);

/// Worker pods, as this replica knows them; shared by its loops, and the fleet's runtime.
pub struct Pods {
    client: Client,
    store: Store,
    config: Arc<OperatorConfig>,
    state: Mutex<State>,
    /// Something is to be observed.
    news: Notify,
}

#[derive(Default)]
struct State {
    /// By UID.
    pods: HashMap<String, Seen>,
    /// UIDs whose news was not told yet. No more than there are pods.
    todo: HashSet<String>,
    deaths: Option<mpsc::UnboundedSender<Death>>,
}

/// A pod, and what was done about it.
#[derive(Clone)]
struct Seen {
    pod: Arc<Pod>,
    /// The watch that tells of it: a namespace, or all.
    scope: String,
    /// Its object was deleted.
    gone: bool,
    since: Instant,
    /// Events about it while it starts, in order.
    events: Vec<PodEvent>,
    /// A cause that it does not start was written.
    noted: bool,
    /// Its latest news was told.
    told: bool,
}

impl Pods {
    /// Asks nothing yet.
    pub fn new(client: Client, store: Store, config: impl Into<Arc<OperatorConfig>>) -> Arc<Self> {
        Arc::new(Pods { client, store, config: config.into(), state: Mutex::default(), news: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn api(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// A pod whose lease knows it now: what the watch told before is told again, rather than the older pod that its making
    /// answered with.
    fn recorded(&self, pod: Pod) {
        let mut state = self.state();
        let Some(uid) = pod.uid().filter(|uid| state.pods.contains_key(uid)) else {
            drop(state);
            return self.saw(pod, None, false);
        };
        state.todo.insert(uid);
        drop(state);
        self.news.notify_one();
    }

    /// A pod as somebody has just read it.
    fn saw(&self, mut pod: Pod, scope: Option<&str>, gone: bool) {
        pod.metadata.managed_fields = None;
        let Some(uid) = pod.uid() else { return };
        let mut state = self.state();
        let before = state.pods.get(&uid);
        let seen = Seen {
            pod: Arc::new(pod),
            scope: scope.map_or_else(|| before.map(|s| s.scope.clone()).unwrap_or_default(), Into::into),
            gone: gone || before.is_some_and(|s| s.gone),
            since: before.map_or_else(Instant::now, |s| s.since),
            events: before.map(|s| s.events.clone()).unwrap_or_default(),
            noted: before.is_some_and(|s| s.noted),
            told: false,
        };
        state.pods.insert(uid.clone(), seen);
        state.todo.insert(uid);
        drop(state);
        self.news.notify_one();
    }

    fn dead(&self, death: Death) {
        if let Some(deaths) = &self.state().deaths {
            // Nobody listens when the fleet has ended.
            let _ = deaths.send(death);
        }
    }

    /// Deletes this very pod; true when it is gone or going.
    async fn delete(&self, namespace: &str, name: &str, uid: &str, grace_seconds: Option<u32>) -> bool {
        let preconditions = Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
        let params = DeleteParams { grace_period_seconds: grace_seconds, preconditions, ..DeleteParams::default() };
        let api = self.api(namespace);
        match bounded_by(CALL, api.delete(name, &params)).await {
            Ok(_) => true,
            // 409: the name is another pod's by now.
            Err(Trouble::Api(kube::Error::Api(status))) if status.is_not_found() || status.is_conflict() => {
                self.state().pods.remove(uid);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "pod {namespace}/{name} was not deleted");
                false
            }
        }
    }
}

/// Creates a pod from JSON, so that fields which this program does not know arrive as they are. With `dry_run`, only asks
/// whether it would be admitted.
///
/// # Errors
/// The API server's refusal; [`crate::turn::cause::start::refused`] tells what it means.
pub async fn create(client: &Client, namespace: &str, pod: &Value, dry_run: bool) -> Result<Pod, kube::Error> {
    let params = PostParams { dry_run, field_manager: Some(super::MANAGER.to_owned()) };
    let body = serde_json::to_vec(pod).map_err(kube::Error::SerdeError)?;
    let request = kube::core::Request::new(format!("/api/v1/namespaces/{namespace}/pods"));
    let request = request.create(&params, body).map_err(kube::Error::BuildRequest)?;
    client.request(request).await
}

pub use runtime::PodRuntime;

/// The start that a pod says it is for; only a hint.
fn start_of(pod: &Pod) -> Option<StartId> {
    pod.annotations().get(build::START)?.parse().ok()
}

/// Whether an Agent controls the pod: others we never touch.
fn is_ours(pod: &Pod) -> bool {
    let ours = |version: &str| version.split('/').next() == Some(crate::crd::GROUP);
    pod.owner_references().iter().any(|o| o.controller == Some(true) && o.kind == "Agent" && ours(&o.api_version))
}

/// `namespace/name`, as a lease names a pod.
fn reference(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}
