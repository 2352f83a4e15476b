//! What a row does to a worker, and what must come of it.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, EvictParams};
use rustix::process::Signal;
use serde_json::Value;

use super::cluster::Cluster;
use super::place::Place;
use super::times::Times;
use super::{processes, until};
use crate::support::wait::try_eventually;

/// A way for a turn to fail.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// The cause lies in the Agent or in what surrounds it: no worker comes to be.
    Start,
    /// A signal to the programs of the turns in hand.
    Program(Signal),
    /// A signal to the container's first process.
    Adapter(Signal),
    /// A signal to every process of the pod.
    Pod(Signal),
    /// The program wants too much memory, and the adapter dies with it.
    MemoryOfBoth,
    Delete,
    ForceDelete,
    Evict,
}

impl Fault {
    fn is_local(self) -> bool {
        !matches!(self, Fault::Start | Fault::Delete | Fault::ForceDelete | Fault::Evict)
    }
}

/// A row of the table.
pub struct Row {
    pub name: &'static str,
    pub agent: Value,
    /// Applied before.
    pub objects: Vec<Value>,
    pub fault: Fault,
    /// The reasons that are right; more than one only where Kubernetes itself may tell it one way or the other.
    pub reasons: &'static [&'static str],
    /// What the operators' detail must hold: many causes share a reason.
    pub detail: &'static str,
    pub repetitions: usize,
}

impl Row {
    pub fn new(name: &'static str, agent: Value, fault: Fault, reason: &'static [&'static str]) -> Row {
        Row { name, agent, objects: Vec::new(), fault, reasons: reason, detail: "", repetitions: 1 }
    }

    pub fn telling(mut self, detail: &'static str) -> Row {
        self.detail = detail;
        self
    }

    pub fn with(mut self, objects: Vec<Value>) -> Row {
        self.objects = objects;
        self
    }

    pub fn times(mut self, repetitions: usize) -> Row {
        self.repetitions = repetitions;
        self
    }

    /// A chat and an AgentTurn are in the same worker's hands; the fault ends both, each once, with the row's reason.
    pub async fn run(self) -> Times {
        let mut times = Times::default();
        let cluster =
            if self.fault.is_local() { Cluster::connect_local(self.name).await } else { Cluster::connect().await };
        let Some(cluster) = cluster else { return times };
        let place = Place::new(cluster, self.name).await;
        for object in &self.objects {
            place.apply(object).await;
        }
        place.agent("agent", self.agent.clone()).await;
        for _ in 0..self.repetitions {
            self.once(&place, &mut times).await;
        }
        times.tell(self.name, self.reasons[0]);
        place.done().await;
        times
    }

    async fn once(&self, place: &Place, times: &mut Times) {
        let chat = place.chat("agent", "wait").await;
        let object = place.object("agent", "wait").await;
        let mut pod = None;
        let fault = match self.fault {
            Fault::Start => chat.submitted,
            fault => {
                chat.begun().await;
                let turn = object.turn(place).await;
                place.api.turn(&turn).frame("the object's program has begun", |f| f.event == "text").await;
                let pod = pod.insert(place.worker().await);
                make(place, fault, pod, [&chat.turn, &turn]).await
            }
        };
        let told = chat.failed(place, self.reasons).await;
        object.failed(place, self.reasons).await;
        let record = place.api.record(&chat.turn).await;
        let detail = record["error"]["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(self.detail), "operators are not told of {:?}: {record}", self.detail);
        let news = match &pod {
            Some(pod) if !matches!(self.fault, Fault::Program(_) | Fault::Pod(Signal::STOP)) => news(place, pod).await,
            _ => None,
        };
        times.note(fault, told, news);
    }
}

/// When the API server told of the pod's end; it may be late, and is only compared.
async fn news(place: &Place, pod: &Pod) -> Option<Instant> {
    try_eventually(Duration::from_secs(10), async || place.news.pod(&pod.name_any()).end()).await.ok()
}

/// Makes the fault; when it was made.
async fn make(place: &Place, fault: Fault, pod: &Pod, turns: [&String; 2]) -> Instant {
    let (pods, name) = (place.pods(), pod.name_any());
    let now = Instant::now();
    match fault {
        Fault::Start => {}
        Fault::Program(signal) => {
            let mut programs = Vec::new();
            for turn in turns {
                programs.push(processes::program_of(turn).await.0);
            }
            let now = Instant::now();
            programs.iter().for_each(|p| p.signal(signal));
            return now;
        }
        Fault::Adapter(signal) => {
            let adapter = processes::first_of(pod, "agent");
            let now = Instant::now();
            adapter.signal(signal);
            return now;
        }
        Fault::Pod(signal) => {
            let processes = processes::of_pod(pod);
            assert!(!processes.is_empty(), "a running pod has processes");
            processes.iter().for_each(|p| p.signal(signal));
        }
        Fault::MemoryOfBoth => {
            let (program, adapter) = processes::program_of(turns[0]).await;
            adapter.signal(Signal::STOP);
            program.signal(Signal::HUP);
            until("the kernel to kill the program", async || {
                if program.is_gone() { Ok(()) } else { Err(format!("{program:?}")) }
            })
            .await;
            let now = Instant::now();
            adapter.signal(Signal::KILL);
            return now;
        }
        Fault::Delete => drop(pods.delete(&name, &DeleteParams::default()).await.expect("the pod can be deleted")),
        Fault::ForceDelete => {
            let force = DeleteParams::default().grace_period(0);
            drop(pods.delete(&name, &force).await.expect("the pod can be deleted"));
        }
        Fault::Evict => drop(pods.evict(&name, &EvictParams::default()).await.expect("the pod can be evicted")),
    }
    now
}
