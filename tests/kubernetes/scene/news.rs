//! What the API server tells of a namespace, noted as it comes: when each pod's end was known, and every state of every
//! AgentTurn.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt};
use lastword::crd::AgentTurn;
use lastword::operator::watch::WatchBackoff;

/// When the API server first said so of a pod.
#[derive(Debug, Clone, Copy, Default)]
pub struct PodNews {
    /// The container `agent` (or `lastword`) is terminated.
    pub terminated: Option<Instant>,
    /// The object is gone.
    pub gone: Option<Instant>,
}

impl PodNews {
    /// The first word of the pod's end.
    pub fn end(&self) -> Option<Instant> {
        [self.terminated, self.gone].into_iter().flatten().min()
    }
}

#[derive(Default)]
struct Noted {
    pods: BTreeMap<String, PodNews>,
    turns: BTreeMap<String, Vec<String>>,
    /// Objects of AgentTurns that were told, updates included.
    updates: usize,
}

/// The news of one namespace, for as long as this lives.
pub struct News {
    noted: Arc<Mutex<Noted>>,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Drop for News {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|t| t.abort());
    }
}

impl News {
    pub fn watch(kube: &Client, namespace: &str) -> News {
        let noted = Arc::new(Mutex::new(Noted::default()));
        let pods = watcher::watcher(Api::<Pod>::namespaced(kube.clone(), namespace), watcher::Config::default());
        let turns = watcher::watcher(Api::<AgentTurn>::namespaced(kube.clone(), namespace), watcher::Config::default());
        let (of_pods, of_turns) = (noted.clone(), noted.clone());
        let pods = tokio::spawn(pods.backoff(WatchBackoff::default()).for_each(move |event| {
            of_pods.lock().unwrap().pod(event);
            std::future::ready(())
        }));
        let turns = tokio::spawn(turns.backoff(WatchBackoff::default()).for_each(move |event| {
            of_turns.lock().unwrap().turn(event);
            std::future::ready(())
        }));
        News { noted, tasks: [pods, turns] }
    }

    pub fn pod(&self, name: &str) -> PodNews {
        self.noted.lock().unwrap().pods.get(name).copied().unwrap_or_default()
    }

    /// The states that an AgentTurn was seen in, in order: its phase and the reason of its condition Terminal.
    pub fn turn(&self, name: &str) -> Vec<String> {
        self.noted.lock().unwrap().turns.get(name).cloned().unwrap_or_default()
    }

    /// How many AgentTurns were seen with their condition Terminal.
    pub fn terminals(&self) -> usize {
        let noted = self.noted.lock().unwrap();
        noted.turns.values().filter(|states| states.last().is_some_and(|s| s.contains('/'))).count()
    }

    /// How many updates of AgentTurns there were so far.
    pub fn updates(&self) -> usize {
        self.noted.lock().unwrap().updates
    }
}

impl Noted {
    fn pod(&mut self, event: watcher::Result<Event<Pod>>) {
        match event {
            Ok(Event::Apply(pod) | Event::InitApply(pod)) => {
                let news = self.pods.entry(pod.name_any()).or_default();
                if is_terminated(&pod) {
                    news.terminated.get_or_insert_with(Instant::now);
                }
            }
            Ok(Event::Delete(pod)) => {
                self.pods.entry(pod.name_any()).or_default().gone.get_or_insert_with(Instant::now);
            }
            _ => {}
        }
    }

    fn turn(&mut self, event: watcher::Result<Event<AgentTurn>>) {
        if let Ok(Event::Apply(turn) | Event::InitApply(turn)) = event {
            self.updates += 1;
            let state = state(&turn);
            let states = self.turns.entry(turn.name_any()).or_default();
            if states.last() != Some(&state) {
                states.push(state);
            }
        }
    }
}

fn is_terminated(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let ours = |name: &str| name == "agent" || name == "lastword";
    statuses.filter(|s| ours(&s.name)).any(|s| s.state.as_ref().is_some_and(|s| s.terminated.is_some()))
}

fn state(turn: &AgentTurn) -> String {
    let status = turn.status.clone().unwrap_or_default();
    let phase = status.phase.map_or("-".into(), |p| format!("{p:?}"));
    let terminal = status.conditions.iter().find(|c| c.type_ == "Terminal" && c.status == "True");
    terminal.map_or(phase.clone(), |c| format!("{phase}/{}", c.reason))
}
