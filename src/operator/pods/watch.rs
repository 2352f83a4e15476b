//! The watch on worker pods; every replica has one.
//!
//! It only adds news. That a pod is missing from a list says nothing: the list may be old, and so may be what we knew.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::{Pods, build};
use crate::operator::watch::Pause;

/// Everywhere: the scope of a watch on all namespaces.
const EVERYWHERE: &str = "";
/// Pods of one answer to a list.
const PAGE: u32 = 500;

impl Pods {
    /// Watches until `shutdown`, through whatever the API server does meanwhile.
    pub async fn watch(self: Arc<Self>, shutdown: CancellationToken) {
        let namespaces = &self.config.namespaces;
        let scopes = if namespaces.is_empty() { vec![EVERYWHERE.to_owned()] } else { namespaces.clone() };
        let watches = scopes.iter().map(|scope| self.watch_scope(scope));
        tokio::select! {
            _ = futures::future::join_all(watches) => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn watch_scope(&self, scope: &str) {
        let api: Api<Pod> = if scope == EVERYWHERE { Api::all(self.client.clone()) } else { self.api(scope) };
        let config =
            watcher::Config::default().labels(&format!("{}={}", build::MANAGED_BY, build::OURSELVES)).page_size(PAGE);
        let mut events = pin!(watcher(api, config).backoff(Pause::default()));
        let mut listed = HashSet::new();
        let mut away = false;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    if std::mem::take(&mut away) {
                        tracing::info!("the watch on pods goes on");
                    }
                    self.take(event, scope, &mut listed);
                }
                Err(error) => {
                    if !std::mem::replace(&mut away, true) {
                        tracing::warn!(%error, "the watch on pods broke; it is begun again");
                    }
                }
            }
        }
    }

    fn take(&self, event: Event<Pod>, scope: &str, listed: &mut HashSet<String>) {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(pod) => {
                listed.extend(pod.uid());
                self.saw(pod, Some(scope), false);
            }
            Event::InitDone => self.forget_unlisted(scope, listed),
            Event::Apply(pod) => self.saw(pod, Some(scope), false),
            Event::Delete(pod) => self.saw(pod, Some(scope), true),
        }
    }

    /// Pods that a list does not hold are no longer known here; nothing is concluded from it.
    fn forget_unlisted(&self, scope: &str, listed: &HashSet<String>) {
        let mut state = self.state();
        let todo = std::mem::take(&mut state.todo);
        state.pods.retain(|uid, s| s.scope != scope || listed.contains(uid) || todo.contains(uid));
        state.todo = todo;
    }
}
