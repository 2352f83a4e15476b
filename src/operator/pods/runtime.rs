//! The fleet's runtime `kubernetes`, in which a worker is a pod.
//!
//! Each start's pod has a name of its own, since the number of the attempt is part of it. So a start can be repeated: a pod
//! of that name which exists already is adopted if its annotation names the same start and the same Agent controls it.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio::sync::mpsc;

use super::build;
use super::cache::{POD_CALL_TIMEOUT, Pods};
use super::classify::{PodVerdict, classify, is_over};
use super::create::create;
use super::names::{is_ours, start_of};
use crate::fleet::{Death, StartRequest, WorkerRuntime};
use crate::operator::client::{ApiCallError, bounded_by};
use crate::store::StoreError;
use crate::turn::cause::start::{self, Obstacle};
use crate::turn::decide::Look;
use crate::turn::keys::StartId;
use crate::turn::terminal::Failure;

/// How often the deletion of a pod is tried. If all tries fail, the worker still ends: its gateway tells it of the drain.
const STOP_ATTEMPTS: u32 = 10;
/// The pause between two of these tries.
const STOP_RETRY: Duration = Duration::from_secs(1);
/// The grace of a pod whose lease row is dead, in seconds.
const KILL_GRACE_SECONDS: u32 = 1;

/// The runtime that runs workers as pods.
pub struct PodRuntime(pub Arc<Pods>);

impl Pods {
    /// Creates a start's pod, or adopts it if it exists.
    ///
    /// # Errors
    /// The failure of a start that would be refused again. A refusal that may heal is noted on the lease row instead.
    async fn create_pod(&self, start: &StartRequest) -> Result<(), Failure> {
        let pod = build::pod(&self.config, start)?;
        let created = bounded_by(POD_CALL_TIMEOUT, create(&self.client, &start.organization, &pod, false)).await;
        let refused = match created {
            Ok(pod) => {
                self.record(start, pod).await;
                return Ok(());
            }
            Err(ApiCallError::Api(kube::Error::Api(status))) if status.is_already_exists() => {
                return self.adopt(start).await;
            }
            Err(ApiCallError::Api(kube::Error::Api(status))) => start::refused(status.code, &status.message),
            Err(error) => start::unanswered(error),
        };
        match refused {
            Obstacle::ForGood(failure) => Err(failure),
            Obstacle::MayHeal(failure) => {
                let (start_id, detail) = (start.start_id, failure.detail.as_deref());
                tracing::info!(start = %start_id, detail, "no pod for start {start_id} yet");
                self.logged(start_id, self.store.note_cause_of_start(start_id, Some(&failure)).await);
                Ok(())
            }
        }
    }

    /// Handles a pod that exists under the start's name: the start's own, created by a replica that was interrupted, or
    /// another one.
    async fn adopt(&self, start: &StartRequest) -> Result<(), Failure> {
        let name = name_in(&start.runtime_ref);
        let found = bounded_by(POD_CALL_TIMEOUT, self.api(&start.organization).get_opt(name)).await;
        // If the pod is gone meanwhile, or the API server does not answer, the fleet asks for the start again.
        let Ok(Some(pod)) = found else { return Ok(()) };
        let uid = start.agent_uid.as_deref();
        let controlled = pod.owner_references().iter().any(|o| o.controller == Some(true) && Some(&*o.uid) == uid);
        if controlled && start_of(&pod) == Some(start.start_id) {
            self.record(start, pod).await;
            return Ok(());
        }
        Err(start::name_taken(name))
    }

    /// Records the pod's UID on the start's lease row, then has the pod reported: it may have ended before its lease row
    /// named it.
    async fn record(&self, start: &StartRequest, pod: Pod) {
        let Some(uid) = pod.uid() else { return };
        let grace = build::grace_seconds(&start.spec);
        match self.store.record_pod_of_start(start.start_id, &uid, grace).await {
            Ok(true) => self.recorded(pod),
            Ok(false) => {
                tracing::info!(start = %start.start_id, "start {} ended while its pod was made", start.start_id);
                self.delete(&start.organization, &pod.name_any(), &uid, Some(KILL_GRACE_SECONDS)).await;
            }
            Err(error) => self.logged(start.start_id, Err(error)),
        }
    }

    /// Logs a write that failed. The fleet asks for the start again, so nothing is lost.
    fn logged(&self, start: StartId, done: Result<(), StoreError>) {
        if let Err(error) = done {
            tracing::warn!(%error, %start, "the database does not know yet how start {start} goes");
        }
    }

    /// Reads a start's pod now.
    async fn look_at(&self, start: StartId, runtime_ref: &str) -> Look {
        let Some((namespace, name)) = runtime_ref.split_once('/') else { return Look::Absent };
        let recorded = match self.store.pod_of_start(start).await {
            Ok(Some(recorded)) => recorded.uid,
            Ok(None) => return Look::Absent,
            Err(_) => return Look::Unknown,
        };
        let Some(uid) = recorded else { return Look::Unknown };
        let pod = match bounded_by(POD_CALL_TIMEOUT, self.api(namespace).get_opt(name)).await {
            Ok(Some(pod)) => pod,
            Ok(None) => return Look::Absent,
            Err(_) => return Look::Unknown,
        };
        if pod.uid().as_deref() != Some(&uid) {
            return Look::Absent;
        }
        let verdict = classify(&pod, &[]);
        if self.record_stop(start, &pod, false).await.is_err() {
            return Look::Unknown;
        }
        self.apply(pod, None, false);
        match verdict {
            PodVerdict::Dead(cause) => Look::Terminated { cause: Some(cause) },
            PodVerdict::Starting | PodVerdict::Waiting(_) | PodVerdict::Running => Look::Running,
        }
    }

    /// Deletes a start's pod, with the pod's own grace.
    async fn stop_pod(&self, start: StartId, runtime_ref: &str) {
        let Some((namespace, name)) = runtime_ref.split_once('/') else { return };
        for attempt in 0..STOP_ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(STOP_RETRY).await;
            }
            let uid = match self.store.pod_of_start(start).await {
                Ok(Some(recorded)) => recorded.uid,
                // The lease row is gone or dead: the worker has left meanwhile.
                Ok(None) => return,
                Err(_) => continue,
            };
            let uid = match uid {
                Some(uid) => uid,
                None => match bounded_by(POD_CALL_TIMEOUT, self.api(namespace).get_opt(name)).await {
                    Ok(Some(pod)) if start_of(&pod) == Some(start) => pod.uid().unwrap_or_default(),
                    Ok(_) => {
                        let cause = start::stopped_before_made();
                        return self.report_death(Death { start_id: start, cause: Some(cause) });
                    }
                    Err(_) => continue,
                },
            };
            if self.delete(namespace, name, &uid, None).await {
                return;
            }
        }
    }

    /// Deletes the pods that say they are of this start. Its lease row is dead, so it names no pod any more.
    async fn kill_pod(&self, start: StartId) {
        let pods: Vec<Arc<Pod>> = self.contents().pods.values().map(|s| s.pod.clone()).collect();
        for pod in pods.iter().filter(|p| start_of(p) == Some(start) && is_ours(p)) {
            let (namespace, uid) = (pod.namespace().unwrap_or_default(), pod.uid().unwrap_or_default());
            self.delete(&namespace, &pod.name_any(), &uid, Some(KILL_GRACE_SECONDS)).await;
        }
    }

    /// The starts of pods that run, by their annotations.
    fn running_starts(&self) -> Vec<StartId> {
        let contents = self.contents();
        let live = contents.pods.values().filter(|s| !s.gone && s.pod.metadata.deletion_timestamp.is_none());
        live.filter(|s| !is_over(&s.pod) && is_ours(&s.pod)).filter_map(|s| start_of(&s.pod)).collect()
    }
}

impl WorkerRuntime for PodRuntime {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn numbered(&self) -> bool {
        true
    }

    fn reference(&self, start: &StartRequest) -> String {
        format!("{}/{}", start.organization, build::name(start))
    }

    fn start<'a>(&'a self, start: &'a StartRequest) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.0.create_pod(start))
    }

    fn look<'a>(&'a self, start_id: StartId, runtime_ref: &'a str) -> BoxFuture<'a, Look> {
        Box::pin(self.0.look_at(start_id, runtime_ref))
    }

    fn stop<'a>(&'a self, start_id: StartId, runtime_ref: &'a str) -> BoxFuture<'a, ()> {
        let (pods, runtime_ref) = (self.0.clone(), runtime_ref.to_owned());
        tokio::spawn(async move { pods.stop_pod(start_id, &runtime_ref).await });
        Box::pin(async {})
    }

    fn kill(&self, start_id: StartId) -> BoxFuture<'_, ()> {
        let pods = self.0.clone();
        tokio::spawn(async move { pods.kill_pod(start_id).await });
        Box::pin(async {})
    }

    fn running(&self) -> BoxFuture<'_, Vec<StartId>> {
        Box::pin(async { self.0.running_starts() })
    }

    fn deaths(&self) -> mpsc::UnboundedReceiver<Death> {
        let (deaths, heard) = mpsc::unbounded_channel();
        self.0.contents().deaths = Some(deaths);
        // Deaths that were found while nobody received them are sent again.
        self.0.report_ended_again();
        heard
    }
}

fn name_in(runtime_ref: &str) -> &str {
    runtime_ref.rsplit('/').next().unwrap_or_default()
}
