//! What becomes of ended pods, and the questions that the watch does not answer. The leader's.
//!
//! A pod that ended well goes at once; of those that failed, each worker group's last one stays a while for its logs. A pod
//! whose adapter has ended while another container runs on serves nobody: it goes too.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::classify::{PodEvent, Verdict, adapter_ended, classify, is_over};
use super::{CALL, Pods, build, is_ours};
use crate::leadership::Leadership;
use crate::operator::call::bounded_by;

/// Between two rounds.
const EVERY: Duration = Duration::from_secs(2);
/// How long the last failed pod of a worker group stays for its logs.
const KEPT: Duration = Duration::from_secs(600);
/// Failed pods that stay, of one Agent.
const KEPT_OF_AN_AGENT: usize = 10;
/// How long a pod whose adapter has ended may take to be over: one of several statuses of the kubelet tells the first.
const OVER_WITHIN: Duration = Duration::from_secs(10);
/// For containers that outlived their adapter, in seconds.
const LEFT_GRACE: u32 = 30;
/// Pods of one round that are deleted, or asked about, at the most.
const OF_A_ROUND: usize = 50;
/// A pod that starts is asked about when it is this old.
const ASKED_AFTER: Duration = Duration::from_secs(2);
/// Events of one pod that are read.
const EVENTS: u32 = 50;

impl Pods {
    /// Tidies up until `shutdown`, while this replica leads.
    pub async fn tidy(self: Arc<Self>, leadership: Leadership, shutdown: CancellationToken) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = every.tick() => {}
                () = shutdown.cancelled() => return,
            }
            self.look_again();
            if leadership.is_leader() {
                self.remove_ended().await;
                self.ask_why().await;
            }
        }
    }

    async fn remove_ended(&self) {
        let pods: Vec<Arc<Pod>> = {
            let state = self.state();
            let ended = state.pods.values().filter(|s| s.told && !s.gone && is_ours(&s.pod));
            ended.map(|s| s.pod.clone()).filter(|p| p.metadata.deletion_timestamp.is_none()).collect()
        };
        let ended: Vec<Ended> = pods.iter().filter_map(|p| Ended::read(p)).collect();
        for index in removable(&ended, Timestamp::now()).into_iter().take(OF_A_ROUND) {
            let Ended { namespace, name, uid, .. } = &ended[index];
            // Until its lease knows of its end: else another replica would take our deletion for the cause.
            if !matches!(self.store.start_of_pod(&format!("{namespace}/{name}"), uid).await, Ok(None)) {
                continue;
            }
            tracing::info!("removing the ended pod {namespace}/{name}");
            self.delete(namespace, name, uid, Some(LEFT_GRACE)).await;
        }
    }

    /// Some causes stand in Events alone: a volume, or the pod's network, that cannot be had; an image that is on its way.
    async fn ask_why(&self) {
        let starting: Vec<Arc<Pod>> = {
            let state = self.state();
            let old = state.pods.values().filter(|s| !s.gone && s.since.elapsed() >= ASKED_AFTER);
            let scheduled = old.filter(|s| s.pod.spec.as_ref().is_some_and(|p| p.node_name.is_some()));
            let starting = scheduled.filter(|s| classify(&s.pod, &[]) == Verdict::Starting && is_ours(&s.pod));
            starting.take(OF_A_ROUND).map(|s| s.pod.clone()).collect()
        };
        for pod in starting {
            let (Some(uid), Some(namespace)) = (pod.uid(), pod.namespace()) else { continue };
            let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
            let params = ListParams::default().fields(&format!("involvedObject.uid={uid}")).limit(EVENTS);
            let Ok(mut found) = bounded_by(CALL, api.list(&params)).await else { return };
            // Times are whole seconds; the kubelet's names end in the nanosecond.
            let told = |e: &Event| (e.last_timestamp.clone().or(e.first_timestamp.clone()), e.name_any());
            found.items.sort_by_key(told);
            let events = found
                .items
                .into_iter()
                .filter_map(|e| Some(PodEvent { reason: e.reason?, message: e.message.unwrap_or_default() }));
            self.heard(&uid, events.collect());
        }
    }

    fn heard(&self, uid: &str, events: Vec<PodEvent>) {
        let mut state = self.state();
        let Some(seen) = state.pods.get_mut(uid).filter(|s| s.events != events) else { return };
        seen.events = events;
        state.todo.insert(uid.to_owned());
        drop(state);
        self.news.notify_one();
    }
}

/// A pod whose adapter has ended.
#[derive(Debug, Clone)]
struct Ended {
    namespace: String,
    name: String,
    uid: String,
    agent: String,
    worker_group: String,
    at: Timestamp,
    /// All of it, not the adapter alone.
    over: bool,
    failed: bool,
}

impl Ended {
    fn read(pod: &Pod) -> Option<Ended> {
        let over = is_over(pod);
        if !over && !adapter_ended(pod) {
            return None;
        }
        let status = pod.status.as_ref()?;
        let states = status.container_statuses.iter().flatten().filter_map(|s| s.state.as_ref()?.terminated.as_ref());
        let ended = states.filter_map(|t| Some(t.finished_at.as_ref()?.0)).max();
        Some(Ended {
            namespace: pod.namespace()?,
            name: pod.name_any(),
            uid: pod.uid()?,
            agent: pod.labels().get(build::AGENT).cloned().unwrap_or_default(),
            worker_group: pod.annotations().get(build::WORKER_GROUP).cloned().unwrap_or_default(),
            at: ended.or(pod.metadata.creation_timestamp.as_ref().map(|t| t.0)).unwrap_or(Timestamp::MIN),
            over,
            failed: status.phase.as_deref() == Some("Failed"),
        })
    }
}

/// The pods that are to go, as indices.
fn removable(ended: &[Ended], now: Timestamp) -> Vec<usize> {
    let mut newest_first: Vec<usize> = (0..ended.len()).collect();
    newest_first.sort_by_key(|&i| std::cmp::Reverse(ended[i].at));
    let mut of_worker_group: HashMap<(&str, &str), usize> = HashMap::new();
    let mut of_agent: HashMap<(&str, &str), usize> = HashMap::new();
    let mut gone = Vec::new();
    for index in newest_first {
        let e = &ended[index];
        let worker_group = of_worker_group.entry((&e.namespace, &e.worker_group)).or_default();
        let agent = of_agent.entry((&e.namespace, &e.agent)).or_default();
        let older = |than| now > e.at && now.duration_since(e.at).unsigned_abs() > than;
        if !e.over && !older(OVER_WITHIN) {
            continue;
        }
        if e.over && e.failed && !older(KEPT) && *worker_group == 0 && *agent < KEPT_OF_AN_AGENT {
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

    fn ended(name: &str, worker_group: &str, ago: i64, over: bool, failed: bool) -> Ended {
        Ended {
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
        let many: Vec<Ended> = (0..15).map(|i| ended("x", &format!("d{i}"), i, true, true)).collect();
        let gone = removable(&many, now);
        assert_eq!(gone, [10, 11, 12, 13, 14], "the newest ten of an Agent stay");
    }
}
