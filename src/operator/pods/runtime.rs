//! The fleet's runtime `kubernetes`: a worker is a pod.
//!
//! A start's pod has a name of its own (the attempt's number is in it), so it can be made again: whoever finds it made
//! already adopts it if it is that start's, and its Agent's.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::core::Status;
use tokio::sync::mpsc;

use super::classify::{Verdict, classify, is_over};
use super::{CALL, Pods, build, create, is_ours, start_of};
use crate::fleet::{Death, StartRequest, WorkerRuntime};
use crate::operator::call::{Trouble, bounded_by};
use crate::store::StoreError;
use crate::turn::decide::Look;
use crate::turn::keys::StartId;
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// How often a stop is tried; the worker hears of its drain from its gateway too.
const STOP_ATTEMPTS: u32 = 10;
const STOP_AGAIN: Duration = Duration::from_secs(1);
/// The grace of a pod whose lease is dead, in seconds.
const KILL_GRACE: u32 = 1;

/// Workers as pods.
pub struct PodRuntime(pub Arc<Pods>);

/// What a refused creation means for the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Trying again may help, until the start deadline.
    MayHeal(Failure),
    /// The same pod is refused again.
    ForGood(Failure),
}

/// Reads the API server's refusal of a pod. Kubernetes tells its reasons apart by words alone.
pub fn refusal(status: &Status) -> Refusal {
    let detail = format!("the pod was refused (status {}): {}", status.code, status.message);
    let says = |words: &str| status.message.contains(words);
    let failure = |reason| Failure::detailed(reason, detail.clone());
    match status.code {
        403 if says("exceeded quota") || says("status unknown for quota") => {
            Refusal::MayHeal(failure(Reason::QuotaExceeded))
        }
        // Our own rights, or a namespace whose ServiceAccount is not made yet.
        403 if says("cannot create resource") || says("error looking up service account") => {
            Refusal::MayHeal(failure(Reason::StartFailed))
        }
        // Our own token, or a proxy on the way: nothing that is wrong with the pod.
        401 | 407 | 408 => Refusal::MayHeal(failure(Reason::StartFailed)),
        400..=428 if status.code != 409 => Refusal::ForGood(failure(Reason::StartFailed)),
        _ => Refusal::MayHeal(failure(Reason::StartFailed)),
    }
}

impl Pods {
    async fn make(&self, start: &StartRequest) -> Result<(), Failure> {
        let pod = build::pod(&self.config, start)?;
        let made = bounded_by(CALL, create(&self.client, &start.organization, &pod, false)).await;
        let refused = match made {
            Ok(pod) => {
                self.made(start, pod).await;
                return Ok(());
            }
            Err(Trouble::Api(kube::Error::Api(status))) if status.is_already_exists() => {
                return self.adopt(start).await;
            }
            Err(Trouble::Api(kube::Error::Api(status))) => refusal(&status),
            Err(error) => away(error.to_string()),
        };
        match refused {
            Refusal::ForGood(failure) => Err(failure),
            Refusal::MayHeal(failure) => {
                let (start_id, detail) = (start.start_id, failure.detail.as_deref());
                tracing::info!(start = %start_id, detail, "no pod for start {start_id} yet");
                self.logged(start_id, self.store.note_cause_of_start(start_id, Some(&failure)).await);
                Ok(())
            }
        }
    }

    /// A pod of the start's name exists: it is the start's own, made by whoever was interrupted, or a stranger.
    async fn adopt(&self, start: &StartRequest) -> Result<(), Failure> {
        let name = name_in(&start.runtime_ref);
        let found = bounded_by(CALL, self.api(&start.organization).get_opt(name)).await;
        // Gone, or nobody answers: the fleet asks for the start again.
        let Ok(Some(pod)) = found else { return Ok(()) };
        let uid = start.agent_uid.as_deref();
        let controlled = pod.owner_references().iter().any(|o| o.controller == Some(true) && Some(&*o.uid) == uid);
        if controlled && start_of(&pod) == Some(start.start_id) {
            self.made(start, pod).await;
            return Ok(());
        }
        let detail = format!("a pod {name} that is not of this start exists already");
        Err(Failure::detailed(Reason::StartFailed, detail))
    }

    /// Records the pod of a start, and looks at it: it may have ended before anybody knew whose it is.
    async fn made(&self, start: &StartRequest, pod: Pod) {
        let Some(uid) = pod.uid() else { return };
        let grace = build::grace_seconds(&start.spec);
        match self.store.record_pod_of_start(start.start_id, &uid, grace).await {
            Ok(true) => self.recorded(pod),
            Ok(false) => {
                tracing::info!(start = %start.start_id, "start {} ended while its pod was made", start.start_id);
                self.delete(&start.organization, &pod.name_any(), &uid, Some(KILL_GRACE)).await;
            }
            Err(error) => self.logged(start.start_id, Err(error)),
        }
    }

    /// The fleet asks for the start again.
    fn logged(&self, start: StartId, done: Result<(), StoreError>) {
        if let Err(error) = done {
            tracing::warn!(%error, %start, "the database does not know yet how start {start} goes");
        }
    }

    async fn look_at(&self, start: StartId, runtime_ref: &str) -> Look {
        let Some((namespace, name)) = runtime_ref.split_once('/') else { return Look::Absent };
        let recorded = match self.store.pod_of_start(start).await {
            Ok(Some(recorded)) => recorded.uid,
            Ok(None) => return Look::Absent,
            Err(_) => return Look::Unknown,
        };
        let Some(uid) = recorded else { return Look::Unknown };
        let pod = match bounded_by(CALL, self.api(namespace).get_opt(name)).await {
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
        self.saw(pod, None, false);
        match verdict {
            Verdict::Dead(cause) => Look::Terminated { cause: Some(cause) },
            Verdict::Starting | Verdict::Waiting(_) | Verdict::Running => Look::Running,
        }
    }

    /// Deletes a start's pod within its own grace.
    async fn stop_pod(&self, start: StartId, runtime_ref: &str) {
        let Some((namespace, name)) = runtime_ref.split_once('/') else { return };
        for attempt in 0..STOP_ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(STOP_AGAIN).await;
            }
            let uid = match self.store.pod_of_start(start).await {
                Ok(Some(recorded)) => recorded.uid,
                // It has left meanwhile.
                Ok(None) => return,
                Err(_) => continue,
            };
            let uid = match uid {
                Some(uid) => uid,
                None => match bounded_by(CALL, self.api(namespace).get_opt(name)).await {
                    Ok(Some(pod)) if start_of(&pod) == Some(start) => pod.uid().unwrap_or_default(),
                    Ok(_) => {
                        let cause = Failure::detailed(Reason::StartFailed, "it was stopped before its pod was made");
                        return self.dead(Death { start_id: start, cause: Some(cause) });
                    }
                    Err(_) => continue,
                },
            };
            if self.delete(namespace, name, &uid, None).await {
                return;
            }
        }
    }

    async fn kill_pod(&self, start: StartId) {
        let pods: Vec<Arc<Pod>> = self.state().pods.values().map(|s| s.pod.clone()).collect();
        for pod in pods.iter().filter(|p| start_of(p) == Some(start) && is_ours(p)) {
            let (namespace, uid) = (pod.namespace().unwrap_or_default(), pod.uid().unwrap_or_default());
            self.delete(&namespace, &pod.name_any(), &uid, Some(KILL_GRACE)).await;
        }
    }

    fn running_starts(&self) -> Vec<StartId> {
        let state = self.state();
        let live = state.pods.values().filter(|s| !s.gone && s.pod.metadata.deletion_timestamp.is_none());
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
        Box::pin(self.0.make(start))
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
        self.0.state().deaths = Some(deaths);
        // What was told to nobody is told again.
        self.0.look_again();
        heard
    }
}

fn away(why: String) -> Refusal {
    Refusal::MayHeal(Failure::detailed(Reason::StartFailed, format!("the API server cannot be asked for a pod: {why}")))
}

fn name_in(runtime_ref: &str) -> &str {
    runtime_ref.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals() {
        use Reason::*;
        for (code, message, heals, reason) in [
            (
                403,
                "pods \"a\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1",
                true,
                QuotaExceeded,
            ),
            (
                403,
                "pods \"a\" is forbidden: violates PodSecurity \"restricted:latest\": privileged",
                false,
                StartFailed,
            ),
            (403, "pods \"a\" is forbidden: error looking up service account ns/default: not found", true, StartFailed),
            (403, "pods is forbidden: User \"x\" cannot create resource \"pods\" in API group \"\"", true, StartFailed),
            (403, "pods \"a\" is forbidden: failed quota: q: must specify limits.cpu for: agent", false, StartFailed),
            (400, "admission webhook \"w.example\" denied the request: no", false, StartFailed),
            (422, "Pod \"a\" is invalid: spec.containers[0].image: Required value", false, StartFailed),
            (404, "namespaces \"gone\" not found", false, StartFailed),
            (
                409,
                "Operation cannot be fulfilled on resourcequotas \"q\": the object has been modified",
                true,
                StartFailed,
            ),
            (429, "too many requests", true, StartFailed),
            (500, "Internal error occurred: failed calling webhook \"w.example\"", true, StartFailed),
        ] {
            let status = Status { code, message: message.into(), ..Status::default() };
            let (healing, failure) = match refusal(&status) {
                Refusal::MayHeal(failure) => (true, failure),
                Refusal::ForGood(failure) => (false, failure),
            };
            assert_eq!((healing, failure.reason), (heals, reason), "{message}");
            assert!(failure.detail.is_some_and(|d| d.contains(message)));
            assert!(!failure.message.contains(message), "clients are told no internals");
        }
    }
}
