//! Reports what worker pods say. Deaths are reported to the fleet. Stops, and why a worker does not start, are written
//! on the worker's lease row.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio_util::sync::CancellationToken;

use super::cache::{CachedPod, POD_CALL_TIMEOUT, Pods};
use super::classify::{self, PodVerdict, classify};
use super::names::reference;
use crate::every::Outage;
use crate::fleet::Death;
use crate::operator::client::{ApiCallError, bounded_by};
use crate::store::StoreError;
use crate::turn::keys::StartId;

/// The pause before a report is repeated that failed because the database or the API server was away.
const RETRY: Duration = Duration::from_millis(500);
/// Pods that are reported at a time.
const CONCURRENCY: usize = 8;

/// Why a pod could not be reported now.
#[derive(Debug, thiserror::Error)]
enum ReportError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Api(#[from] ApiCallError),
}

impl Pods {
    /// Reports each change of a pod, until `shutdown`. A report that fails is repeated.
    pub async fn observe(self: Arc<Self>, shutdown: CancellationToken) {
        let mut outage = Outage::new("the report of worker pods' changes");
        loop {
            tokio::select! {
                () = self.changed.notified() => {}
                () = shutdown.cancelled() => return,
            }
            while let Err(error) = self.report_all().await {
                outage.goes_on(&error);
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => {}
                    () = shutdown.cancelled() => return,
                }
            }
            outage.is_over();
        }
    }

    async fn report_all(&self) -> Result<(), ReportError> {
        let changed: Vec<(String, CachedPod)> = {
            let mut contents = self.contents();
            let uids: Vec<String> = contents.to_report.drain().collect();
            uids.into_iter().filter_map(|uid| Some((uid.clone(), contents.pods.get(&uid)?.clone()))).collect()
        };
        let report = |(uid, cached): (String, CachedPod)| async move {
            let reported = self.report(&cached).await;
            (uid, cached, reported)
        };
        let reports: Vec<_> = futures::stream::iter(changed).map(report).buffer_unordered(CONCURRENCY).collect().await;
        let mut failed = None;
        let mut contents = self.contents();
        for (uid, cached, reported) in reports {
            match reported {
                Err(error) => {
                    contents.to_report.insert(uid);
                    failed = Some(error);
                }
                Ok(_) if cached.gone => drop(contents.pods.remove(&uid)),
                Ok(cause_noted) => {
                    if let Some(now) = contents.pods.get_mut(&uid) {
                        now.cause_noted = cause_noted;
                        now.reported = Arc::ptr_eq(&now.pod, &cached.pod);
                    }
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Reports what one pod says. Answers whether its lease row holds a cause that it does not start.
    async fn report(&self, cached: &CachedPod) -> Result<bool, ReportError> {
        let CachedPod { pod, gone, cause_noted, .. } = cached;
        let (gone, cause_noted) = (*gone, *cause_noted);
        if gone && !self.is_gone(pod).await? {
            return Ok(cause_noted);
        }
        let verdict = classify(pod, &cached.events);
        let says_nothing_new = match verdict {
            PodVerdict::Starting => true,
            PodVerdict::Running => !cause_noted,
            PodVerdict::Waiting(_) | PodVerdict::Dead(_) => false,
        };
        if says_nothing_new && classify::stop_of_pod(pod, gone).is_none() {
            return Ok(cause_noted);
        }
        let uid = pod.uid().unwrap_or_default();
        let Some(start) = self.store.start_of_pod(&reference(pod), &uid).await? else { return Ok(false) };
        // The stop is recorded before the death is reported, since the death's reason may be taken from it.
        self.record_stop(start, pod, gone).await?;
        match verdict {
            PodVerdict::Starting => Ok(cause_noted),
            PodVerdict::Running if cause_noted => {
                self.store.note_cause_of_start(start, None).await?;
                Ok(false)
            }
            PodVerdict::Running => Ok(false),
            PodVerdict::Waiting(cause) => {
                self.store.note_cause_of_start(start, Some(&cause)).await?;
                Ok(true)
            }
            PodVerdict::Dead(cause) => {
                self.report_death(Death { start_id: start, cause: Some(cause) });
                Ok(false)
            }
        }
    }

    /// Whether the pod's object does not exist. A watch by label says "deleted" also of a pod whose label was taken away, so
    /// the pod is read.
    async fn is_gone(&self, pod: &Pod) -> Result<bool, ApiCallError> {
        let api = self.api(&pod.namespace().unwrap_or_default());
        let found = bounded_by(POD_CALL_TIMEOUT, api.get_opt(&pod.name_any())).await?;
        Ok(found.is_none_or(|found| found.uid() != pod.uid()))
    }

    /// Records on the lease row that the pod is being stopped, if it is.
    pub(super) async fn record_stop(&self, start: StartId, pod: &Pod, gone: bool) -> Result<(), StoreError> {
        let Some(stop) = classify::stop_of_pod(pod, gone) else { return Ok(()) };
        if self.store.record_stop_of_start(start, stop.reason, stop.within_seconds).await? {
            let (pod, reason) = (reference(pod), stop.reason);
            tracing::info!(pod, %start, %reason, "pod {pod} is being stopped: {reason}");
        }
        Ok(())
    }
}
