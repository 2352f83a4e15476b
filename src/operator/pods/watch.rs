//! The watch on worker pods, which every replica has.
//!
//! The watch only brings changes in. Nothing is concluded from a pod that a list lacks, since the list may be old.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::cache::Pods;
use super::names;
use crate::every::Outage;
use crate::operator::watch::WatchBackoff;

/// The scope of a watch on all namespaces; that of a watch on one namespace is the namespace's name.
const ALL_NAMESPACES: &str = "";
/// Pods of one page of a list.
const PAGE: u32 = 500;

impl Pods {
    /// Watches until `shutdown`, whatever the API server does meanwhile.
    pub async fn watch(self: Arc<Self>, shutdown: CancellationToken) {
        let namespaces = &self.config.namespaces;
        let scopes = if namespaces.is_empty() { vec![ALL_NAMESPACES.to_owned()] } else { namespaces.clone() };
        let watches = scopes.iter().map(|scope| self.watch_scope(scope));
        tokio::select! {
            _ = futures::future::join_all(watches) => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn watch_scope(&self, scope: &str) {
        let api: Api<Pod> = if scope == ALL_NAMESPACES { Api::all(self.client.clone()) } else { self.api(scope) };
        let config =
            watcher::Config::default().labels(&format!("{}={}", names::MANAGED_BY, names::MANAGER)).page_size(PAGE);
        let mut events = pin!(watcher(api, config).backoff(WatchBackoff::default()));
        let mut listed = HashSet::new();
        let mut outage = Outage::new("the watch on worker pods");
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    outage.is_over();
                    self.take(event, scope, &mut listed);
                }
                // kube's watcher begins again by itself.
                Err(error) => outage.goes_on(&error),
            }
        }
    }

    fn take(&self, event: Event<Pod>, scope: &str, listed: &mut HashSet<String>) {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(pod) => {
                listed.extend(pod.uid());
                self.apply(pod, Some(scope), false);
            }
            Event::InitDone => self.forget_unlisted(scope, listed),
            Event::Apply(pod) => self.apply(pod, Some(scope), false),
            Event::Delete(pod) => self.apply(pod, Some(scope), true),
        }
    }

    /// Drops pods of this scope that a complete list does not show, so that the cache does not grow. No death is reported for
    /// them. A pod whose change was not reported yet stays until it was.
    fn forget_unlisted(&self, scope: &str, listed: &HashSet<String>) {
        let mut contents = self.contents();
        let to_report = std::mem::take(&mut contents.to_report);
        contents.pods.retain(|uid, s| s.scope != scope || listed.contains(uid) || to_report.contains(uid));
        contents.to_report = to_report;
    }
}
