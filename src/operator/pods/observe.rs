//! What pods tell, told on: deaths to the fleet, stops and causes to the leases.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio_util::sync::CancellationToken;

use super::classify::{self, Verdict, adapter_ended, classify, is_over};
use super::{CALL, Pods, Seen, reference};
use crate::fleet::Death;
use crate::operator::call::bounded_by;
use crate::store::StoreError;
use crate::turn::keys::StartId;

/// Before the database is asked again after it did not answer.
const RETRY: Duration = Duration::from_millis(500);
/// Pods that are told on at a time.
const CONCURRENCY: usize = 8;
/// For this long an ended pod may still be unknown to its lease: whoever made it was interrupted.
const UNRECORDED: Duration = Duration::from_secs(60);

impl Pods {
    /// Tells on what is new, until `shutdown`. What the database does not take is told again.
    pub async fn observe(self: Arc<Self>, shutdown: CancellationToken) {
        let mut away = false;
        loop {
            tokio::select! {
                () = self.news.notified() => {}
                () = shutdown.cancelled() => return,
            }
            while let Err(error) = self.tell_all().await {
                if !std::mem::replace(&mut away, true) {
                    tracing::warn!("news of pods waits: {error}");
                }
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => {}
                    () = shutdown.cancelled() => return,
                }
            }
            if std::mem::take(&mut away) {
                tracing::info!("news of pods is told again");
            }
        }
    }

    /// Ended pods are looked at again for a while: a lease may come to know its pod late.
    pub(super) fn look_again(&self) {
        let mut state = self.state();
        let ended = |s: &Seen| (adapter_ended(&s.pod) || is_over(&s.pod)) && s.since.elapsed() < UNRECORDED;
        let uids: Vec<String> = state.pods.iter().filter(|(_, s)| ended(s)).map(|(uid, _)| uid.clone()).collect();
        state.todo.extend(uids);
        drop(state);
        self.news.notify_one();
    }

    async fn tell_all(&self) -> Result<(), StoreError> {
        let news: Vec<(String, Seen)> = {
            let mut state = self.state();
            let uids: Vec<String> = state.todo.drain().collect();
            uids.into_iter().filter_map(|uid| Some((uid.clone(), state.pods.get(&uid)?.clone()))).collect()
        };
        let tell = |(uid, seen): (String, Seen)| async move {
            let told = self.tell(&seen).await;
            (uid, seen, told)
        };
        let told: Vec<_> = futures::stream::iter(news).map(tell).buffer_unordered(CONCURRENCY).collect().await;
        let mut failed = None;
        let mut state = self.state();
        for (uid, seen, told) in told {
            match told {
                Err(error) => {
                    state.todo.insert(uid);
                    failed = Some(error);
                }
                Ok(_) if seen.gone => drop(state.pods.remove(&uid)),
                Ok(noted) => {
                    if let Some(now) = state.pods.get_mut(&uid) {
                        now.noted = noted;
                        now.told = Arc::ptr_eq(&now.pod, &seen.pod);
                    }
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Tells what one pod says; answers whether the lease now holds a cause that it does not start.
    async fn tell(&self, seen: &Seen) -> Result<bool, StoreError> {
        let Seen { pod, gone, .. } = seen;
        if *gone && !self.is_gone(pod).await? {
            return Ok(seen.noted);
        }
        let verdict = classify(pod, &seen.events);
        let silent = match verdict {
            Verdict::Starting => true,
            Verdict::Running => !seen.noted,
            Verdict::Waiting(_) | Verdict::Dead(_) => false,
        };
        if silent && classify::stop(pod, *gone).is_none() {
            return Ok(seen.noted);
        }
        let uid = pod.uid().unwrap_or_default();
        let Some(start) = self.store.start_of_pod(&reference(pod), &uid).await? else { return Ok(false) };
        // First, so that the death finds the reason.
        self.record_stop(start, pod, *gone).await?;
        match verdict {
            Verdict::Starting => Ok(seen.noted),
            Verdict::Running if seen.noted => self.store.note_cause_of_start(start, None).await.map(|()| false),
            Verdict::Running => Ok(false),
            Verdict::Waiting(cause) => self.store.note_cause_of_start(start, Some(&cause)).await.map(|()| true),
            Verdict::Dead(cause) => {
                self.dead(Death { start_id: start, cause: Some(cause) });
                Ok(false)
            }
        }
    }

    /// Whether the pod's object is really gone: a watch by label says the same of one whose label was taken away.
    async fn is_gone(&self, pod: &Pod) -> Result<bool, StoreError> {
        let api = self.api(&pod.namespace().unwrap_or_default());
        match bounded_by(CALL, api.get_opt(&pod.name_any())).await {
            Ok(found) => Ok(found.is_none_or(|found| found.uid() != pod.uid())),
            Err(error) => Err(StoreError::Unavailable(error.to_string().into())),
        }
    }

    /// Records on the lease that the pod is being stopped, if it is.
    pub(super) async fn record_stop(&self, start: StartId, pod: &Pod, gone: bool) -> Result<(), StoreError> {
        let Some(stop) = classify::stop(pod, gone) else { return Ok(()) };
        if self.store.record_stop_of_start(start, stop.reason, stop.within_seconds).await? {
            let (pod, reason) = (reference(pod), stop.reason);
            tracing::info!(pod, %start, %reason, "pod {pod} is being stopped: {reason}");
        }
        Ok(())
    }
}
