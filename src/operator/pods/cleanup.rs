//! Deletes worker pods that have ended, and reads the Events of pods that do not start. Only the leader does either.
//!
//! A pod that ended well is deleted at once. Of those that failed, the last one of each worker group stays for a while, so
//! that its logs can be read. A pod whose adapter has ended while another container runs on serves nobody, and is deleted,
//! too.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::cache::{POD_CALL_TIMEOUT, Pods};
use super::classify::{PodEvent, PodVerdict, adapter_ended, classify, is_over};
use super::names::{self, is_ours};
use crate::every::{Again, Every};
use crate::leadership::Leadership;
use crate::operator::client::bounded_by;

/// Between two passes.
const PERIOD: Duration = Duration::from_secs(2);
/// How long the last failed pod of a worker group stays for its logs.
const FAILED_STAYS: Duration = Duration::from_secs(600);
/// Failed pods of one Agent that stay at a time.
const MAX_FAILED_OF_AGENT: usize = 10;
/// How long a pod whose adapter has ended may take until all of its containers have ended. The kubelet reports the ends of
/// several containers in several status updates.
const OVER_WITHIN: Duration = Duration::from_secs(10);
/// The grace of containers that outlived their adapter, in seconds.
const LEFTOVER_GRACE_SECONDS: u32 = 30;
/// Pods that one pass deletes at the most, and pods whose Events it reads at the most.
const MAX_OF_A_PASS: usize = 50;
/// The Events of a pod that starts are read once this replica has known the pod for this long.
const EVENTS_AFTER: Duration = Duration::from_secs(2);
/// Events of one pod that are read.
const MAX_EVENTS: u32 = 50;

impl Pods {
    /// Makes a pass each [`PERIOD`] until `shutdown`, while this replica leads.
    pub async fn clean_up(self: Arc<Self>, leadership: Leadership, shutdown: CancellationToken) {
        let pass = async move |_| {
            self.report_ended_again();
            if leadership.is_leader() {
                self.delete_ended().await;
                self.read_events().await;
            }
            Ok::<_, Infallible>(Again::Later)
        };
        Every::new("the clean-up of worker pods", PERIOD).at_once().run(&shutdown, pass).await;
    }

    async fn delete_ended(&self) {
        let pods: Vec<Arc<Pod>> = {
            let contents = self.contents();
            let ended = contents.pods.values().filter(|s| s.reported && !s.gone && is_ours(&s.pod));
            ended.map(|s| s.pod.clone()).filter(|p| p.metadata.deletion_timestamp.is_none()).collect()
        };
        let ended: Vec<EndedPod> = pods.iter().filter_map(|p| EndedPod::read(p)).collect();
        for index in removable(&ended, Timestamp::now()).into_iter().take(MAX_OF_A_PASS) {
            let EndedPod { namespace, name, uid, .. } = &ended[index];
            // The pod stays until its lease row is dead: before, another replica would take our deletion for the cause of the
            // worker's death.
            if !matches!(self.store.start_of_pod(&format!("{namespace}/{name}"), uid).await, Ok(None)) {
                continue;
            }
            tracing::info!("removing the ended pod {namespace}/{name}");
            self.delete(namespace, name, uid, Some(LEFTOVER_GRACE_SECONDS)).await;
        }
    }

    /// Reads the Events of pods that are scheduled and say nothing of what holds them up. Some causes are told by Events
    /// alone: a volume that cannot be mounted, a pod network that cannot be set up, an image that is being pulled.
    async fn read_events(&self) {
        let starting: Vec<Arc<Pod>> = {
            let contents = self.contents();
            let old = contents.pods.values().filter(|s| !s.gone && s.since.elapsed() >= EVENTS_AFTER);
            let scheduled = old.filter(|s| s.pod.spec.as_ref().is_some_and(|p| p.node_name.is_some()));
            let starting = scheduled.filter(|s| classify(&s.pod, &[]) == PodVerdict::Starting && is_ours(&s.pod));
            starting.take(MAX_OF_A_PASS).map(|s| s.pod.clone()).collect()
        };
        for pod in starting {
            let (Some(uid), Some(namespace)) = (pod.uid(), pod.namespace()) else { continue };
            let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
            let params = ListParams::default().fields(&format!("involvedObject.uid={uid}")).limit(MAX_EVENTS);
            let Ok(mut found) = bounded_by(POD_CALL_TIMEOUT, api.list(&params)).await else { return };
            // An Event's times are whole seconds. Within one second the name orders them: the kubelet ends it in the time in
            // nanoseconds.
            let order = |e: &Event| (e.last_timestamp.clone().or(e.first_timestamp.clone()), e.name_any());
            found.items.sort_by_key(order);
            let events = found
                .items
                .into_iter()
                .filter_map(|e| Some(PodEvent { reason: e.reason?, message: e.message.unwrap_or_default() }));
            self.apply_events(&uid, events.collect());
        }
    }

    fn apply_events(&self, uid: &str, events: Vec<PodEvent>) {
        let mut contents = self.contents();
        let Some(cached) = contents.pods.get_mut(uid).filter(|s| s.events != events) else { return };
        cached.events = events;
        contents.to_report.insert(uid.to_owned());
        drop(contents);
        self.changed.notify_one();
    }
}

/// A worker pod whose adapter has ended.
#[derive(Debug, Clone)]
struct EndedPod {
    namespace: String,
    name: String,
    uid: String,
    agent: String,
    worker_group: String,
    /// When its last container ended.
    at: Timestamp,
    /// Whether all of its containers have ended, not the adapter's alone.
    over: bool,
    /// Whether its phase is `Failed`.
    failed: bool,
}

impl EndedPod {
    fn read(pod: &Pod) -> Option<EndedPod> {
        let over = is_over(pod);
        if !over && !adapter_ended(pod) {
            return None;
        }
        let status = pod.status.as_ref()?;
        let states = status.container_statuses.iter().flatten().filter_map(|s| s.state.as_ref()?.terminated.as_ref());
        let ended = states.filter_map(|t| Some(t.finished_at.as_ref()?.0)).max();
        Some(EndedPod {
            namespace: pod.namespace()?,
            name: pod.name_any(),
            uid: pod.uid()?,
            agent: pod.labels().get(names::AGENT).cloned().unwrap_or_default(),
            worker_group: pod.annotations().get(names::WORKER_GROUP).cloned().unwrap_or_default(),
            at: ended.or(pod.metadata.creation_timestamp.as_ref().map(|t| t.0)).unwrap_or(Timestamp::MIN),
            over,
            failed: status.phase.as_deref() == Some("Failed"),
        })
    }
}

/// The pods that are to be deleted, as indices into `ended`.
fn removable(ended: &[EndedPod], now: Timestamp) -> Vec<usize> {
    let mut newest_first: Vec<usize> = (0..ended.len()).collect();
    newest_first.sort_by_key(|&i| std::cmp::Reverse(ended[i].at));
    let mut of_worker_group: HashMap<(&str, &str, &str), usize> = HashMap::new();
    let mut of_agent: HashMap<(&str, &str), usize> = HashMap::new();
    let mut gone = Vec::new();
    for index in newest_first {
        let e = &ended[index];
        let worker_group = of_worker_group.entry((&e.namespace, &e.agent, &e.worker_group)).or_default();
        let agent = of_agent.entry((&e.namespace, &e.agent)).or_default();
        let older = |than| now > e.at && now.duration_since(e.at).unsigned_abs() > than;
        if !e.over && !older(OVER_WITHIN) {
            continue;
        }
        if e.over && e.failed && !older(FAILED_STAYS) && *worker_group == 0 && *agent < MAX_FAILED_OF_AGENT {
            *worker_group += 1;
            *agent += 1;
        } else {
            gone.push(index);
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(name: &str, worker_group: &str, ago: i64, over: bool, failed: bool) -> EndedPod {
        EndedPod {
            namespace: "ns".into(),
            name: name.into(),
            uid: name.into(),
            agent: "a".into(),
            worker_group: worker_group.into(),
            at: Timestamp::from_second(1_000_000 - ago).expect("a time"),
            over,
            failed,
        }
    }

    #[test]
    fn the_last_failed_pod_stays_a_while() {
        let now = Timestamp::from_second(1_000_000).expect("a time");
        let pods = [
            ended("good", "d1", 0, true, false),
            ended("last", "d1", 10, true, true),
            ended("earlier", "d1", 20, true, true),
            ended("old", "d2", 601, true, true),
            ended("half", "d3", 11, false, false),
            ended("on its way", "d3", 5, false, false),
            ended("ahead", "d4", -5, true, true),
        ];
        let mut gone: Vec<&str> = removable(&pods, now).into_iter().map(|i| &*pods[i].name).collect();
        gone.sort_unstable();
        assert_eq!(gone, ["earlier", "good", "half", "old"]);
        let many: Vec<EndedPod> = (0..15).map(|i| ended("x", &format!("d{i}"), i, true, true)).collect();
        let gone = removable(&many, now);
        assert_eq!(gone, [10, 11, 12, 13, 14], "the newest ten of an Agent stay");
    }
}
