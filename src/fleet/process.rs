//! The runtime `process`: workers are child processes of this one, and never outlive it.
//!
//! Proof of death is that the child was reaped, by a thread that waits for it. A signal that cannot be delivered is no
//! proof. Between exit and reaping the child is a zombie, so its process id, and the id of its group, are still its own:
//! signals go out under a lock that the reaper takes, and never reach a stranger.

use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use rustix::process::{Pid, Signal};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::child::{self, Worker};
use super::command::{command, container};
use super::runtime::{Death, StartRequest, WorkerRuntime};
use crate::child::cgroup::{Cgroups, Group};
use crate::child::output::{self as log, Tail};
use crate::child::spawn::Spawner;
use crate::crd::SecretKeyRef;
use crate::store::{Store, StoreError};
use crate::turn::decide::Look;
use crate::turn::keys::StartId;
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// The runtime's name in the lease.
pub const NAME: &str = "process";
/// At the end of its drain the worker itself ends what is left and says so: what SIGKILL waits for beyond
/// `drainSeconds`.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long a killed process may take to be reaped at the runtime's end.
const REAPING: Duration = Duration::from_secs(5);
/// Dead workers whose cause a look still finds.
const MAX_REMEMBERED: usize = 1024;

/// Resolves a Secret on one machine.
pub type Secrets = Arc<dyn Fn(&SecretKeyRef) -> Option<String> + Send + Sync>;

/// How processes are started.
#[derive(Clone)]
pub struct ProcessConfig {
    /// Names this machine's data directory, for good; no slash. Only one process at a time may use it.
    pub node: String,
    /// Names this life of the process.
    pub boot: Uuid,
    /// Base URLs of the worker port, comma-separated, as [`crate::wire::env::GATEWAY`] has them.
    pub gateway: String,
    /// What relative working directories are relative to: the directory of the file of Agents.
    pub base_dir: PathBuf,
    /// The binary `lastword`, for the adapters.
    pub program: PathBuf,
    /// Where API keys come from.
    pub secrets: Secrets,
    /// How long workers may take when this process stops; their own `drainSeconds` if that is shorter or this absent.
    pub stop_within: Option<Duration>,
}

impl ProcessConfig {
    /// With this very binary, a new boot, and no secrets.
    ///
    /// # Errors
    /// If the path of this binary cannot be found out.
    pub fn new(node: &str, gateway: &str, base_dir: impl Into<PathBuf>) -> std::io::Result<Self> {
        Ok(ProcessConfig {
            node: node.to_owned(),
            boot: Uuid::now_v7(),
            gateway: gateway.to_owned(),
            base_dir: base_dir.into(),
            program: std::env::current_exe()?,
            secrets: Arc::new(|_| None),
            stop_within: None,
        })
    }
}

/// Workers as child processes. Needs a Tokio runtime.
pub struct ProcessRuntime {
    config: ProcessConfig,
    /// Found out at the first worker with a limit.
    cgroups: OnceLock<Option<Cgroups>>,
    shared: Arc<Shared>,
}

/// What the reapers write to.
pub(super) struct Shared {
    workers: Mutex<HashMap<StartId, Arc<Worker>>>,
    causes: Mutex<Causes>,
    deaths: Mutex<Deaths>,
    /// How many workers there are, for the end.
    count: watch::Sender<usize>,
}

#[derive(Default)]
struct Causes {
    by_start: HashMap<StartId, Failure>,
    order: std::collections::VecDeque<StartId>,
}

struct Deaths {
    sender: mpsc::UnboundedSender<Death>,
    first: Option<mpsc::UnboundedReceiver<Death>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// A worker was reaped.
    pub fn dead(&self, start_id: StartId, cause: Failure) {
        let mut causes = lock(&self.causes);
        if causes.order.len() >= MAX_REMEMBERED
            && let Some(oldest) = causes.order.pop_front()
        {
            causes.by_start.remove(&oldest);
        }
        causes.order.push_back(start_id);
        causes.by_start.insert(start_id, cause.clone());
        drop(causes);
        // Nobody listens at the very end of the process.
        let _ = lock(&self.deaths).sender.send(Death { start_id, cause: Some(cause) });
        let mut workers = lock(&self.workers);
        workers.remove(&start_id);
        self.count.send_replace(workers.len());
    }

    fn add(&self, start_id: StartId, worker: Arc<Worker>) {
        let mut workers = lock(&self.workers);
        workers.insert(start_id, worker);
        self.count.send_replace(workers.len());
    }

    fn get(&self, start_id: StartId) -> Option<Arc<Worker>> {
        lock(&self.workers).get(&start_id).cloned()
    }
}

impl ProcessRuntime {
    /// Starts nothing yet.
    pub fn new(config: ProcessConfig) -> Self {
        let (sender, first) = mpsc::unbounded_channel();
        let shared = Shared {
            workers: Mutex::default(),
            causes: Mutex::default(),
            deaths: Mutex::new(Deaths { sender, first: Some(first) }),
            count: watch::Sender::new(0),
        };
        ProcessRuntime { config, cgroups: OnceLock::new(), shared: Arc::new(shared) }
    }

    /// A cgroup for a worker with a memory limit; none where that is not permitted.
    fn group(&self, request: &StartRequest) -> Result<Option<Group>, Failure> {
        let Some(container) = container(&request.spec) else { return Ok(None) };
        let cannot = |why: String| Failure::detailed(Reason::StartFailed, format!("resources.limits.memory: {why}"));
        let Some(bytes) = container.memory_limit_bytes().map_err(|e| cannot(e.to_string()))? else { return Ok(None) };
        let cgroups = self.cgroups.get_or_init(|| {
            let cgroups = Cgroups::detect(&self.config.node);
            if cgroups.is_none() {
                tracing::warn!(
                    "memory limits of Agents are not enforced: no cgroup with the memory controller is writable here"
                );
            }
            cgroups
        });
        let Some(cgroups) = cgroups else { return Ok(None) };
        cgroups.create(request.start_id, bytes).map(Some).map_err(|e| cannot(format!("cannot make a cgroup: {e}")))
    }

    async fn spawn(&self, request: &StartRequest) -> Result<(), Failure> {
        let mut command = command(&self.config, request)?;
        let group = self.group(request)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let program = command.get_program().to_string_lossy().into_owned();
        let place = Place {
            start_id: request.start_id,
            agent: request.agent.clone(),
            grace: Duration::from_secs(request.spec.timing.drain_seconds().into()) + FAREWELL,
            shared: self.shared.clone(),
            handle: Handle::current(),
        };
        // Not in this task: a start that has begun must not be cancelled between the fork and its reaper.
        let spawned = tokio::task::spawn_blocking(move || place.spawn(command, group)).await;
        match spawned {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Failure::detailed(Reason::StartFailed, format!("cannot start {program}: {error}"))),
            Err(error) => Err(Failure::detailed(Reason::StartFailed, format!("cannot start {program}: {error}"))),
        }
    }

    fn reference_of(&self, start_id: StartId) -> String {
        format!("{}/{}/{start_id}", self.config.node, self.config.boot)
    }
}

/// Where a child belongs.
struct Place {
    start_id: StartId,
    agent: String,
    grace: Duration,
    shared: Arc<Shared>,
    handle: Handle,
}

impl Place {
    fn spawn(self, command: std::process::Command, group: Option<Group>) -> std::io::Result<()> {
        let mut child = match Spawner::global().spawn(command, Signal::KILL) {
            Ok(child) => child,
            Err(error) => {
                group.into_iter().for_each(Group::remove);
                return Err(error);
            }
        };
        // At once: what the child allocates before is not counted, which harms nobody.
        let pid = Pid::from_child(&child);
        if let Some(group) = &group
            && let Err(error) = group.add(pid)
        {
            tracing::warn!(start = %self.start_id, %error, "a worker runs without its memory limit");
        }
        let worker = Arc::new(Worker::new(pid, self.grace));
        self.shared.add(self.start_id, worker.clone());
        let tail = Tail::default();
        let errors_read = self.read_output(&mut child, tail.clone());
        let reaper = child::Reaper { start_id: self.start_id, child, worker, group, tail, errors_read };
        reaper.start(self.shared);
        Ok(())
    }

    /// Copies what the child prints to the log. The receiver learns when its stderr is at its end.
    fn read_output(&self, child: &mut std::process::Child, tail: Tail) -> std::sync::mpsc::Receiver<()> {
        let (read, errors_read) = std::sync::mpsc::channel();
        let _entered = self.handle.enter();
        let (agent, start) = (self.agent.clone(), self.start_id);
        if let Some(Ok(stdout)) = child.stdout.take().map(tokio::process::ChildStdout::from_std) {
            let say = move |line: &str| tracing::info!(target: "worker", agent, %start, "{line}");
            tokio::spawn(log::copy(stdout, None, say));
        }
        let agent = self.agent.clone();
        if let Some(Ok(stderr)) = child.stderr.take().map(tokio::process::ChildStderr::from_std) {
            let say = move |line: &str| tracing::info!(target: "worker", agent, %start, stderr = true, "{line}");
            tokio::spawn(async move {
                log::copy(stderr, Some(tail), say).await;
                // Nobody waits for it any more when the child was long dead.
                let _ = read.send(());
            });
        }
        errors_read
    }
}

impl WorkerRuntime for ProcessRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reference(&self, start: &StartRequest) -> String {
        self.reference_of(start.start_id)
    }

    fn start<'a>(&'a self, start: &'a StartRequest) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.spawn(start))
    }

    fn look<'a>(&'a self, start_id: StartId, runtime_ref: &'a str) -> BoxFuture<'a, Look> {
        Box::pin(async move {
            if is_former(runtime_ref, &self.config.node, self.config.boot) {
                return Look::Terminated { cause: Some(restarted()) };
            }
            if runtime_ref != self.reference_of(start_id) {
                return Look::Unknown;
            }
            // In this order: a worker that dies is among the causes before it leaves the workers.
            if self.shared.get(start_id).is_some() {
                return Look::Running;
            }
            match lock(&self.shared.causes).by_start.get(&start_id).cloned() {
                Some(cause) => Look::Terminated { cause: Some(cause) },
                None => Look::Absent,
            }
        })
    }

    fn stop<'a>(&'a self, start_id: StartId, _: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Some(worker) = self.shared.get(start_id) {
                worker.stop(start_id);
            }
        })
    }

    fn kill(&self, start_id: StartId) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Some(worker) = self.shared.get(start_id) {
                worker.kill(start_id);
            }
        })
    }

    fn running(&self) -> BoxFuture<'_, Vec<StartId>> {
        Box::pin(async { lock(&self.shared.workers).keys().copied().collect() })
    }

    fn deaths(&self) -> mpsc::UnboundedReceiver<Death> {
        let mut deaths = lock(&self.shared.deaths);
        deaths.first.take().unwrap_or_else(|| {
            let (sender, receiver) = mpsc::unbounded_channel();
            deaths.sender = sender;
            receiver
        })
    }

    fn ends_with_us(&self) -> bool {
        true
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let workers: Vec<(StartId, Arc<Worker>)> =
                lock(&self.shared.workers).iter().map(|(id, w)| (*id, w.clone())).collect();
            let grace = workers.iter().map(|(_, w)| w.grace).max().unwrap_or_default();
            for (start_id, worker) in &workers {
                worker.stop(*start_id);
            }
            let mut count = self.shared.count.subscribe();
            let grace = grace.min(self.config.stop_within.unwrap_or(grace));
            if tokio::time::timeout(grace, count.wait_for(|n| *n == 0)).await.is_err() {
                workers.iter().for_each(|(start_id, worker)| worker.kill(*start_id));
            }
            if tokio::time::timeout(REAPING, count.wait_for(|n| *n == 0)).await.is_err() {
                let left = lock(&self.shared.workers).len();
                tracing::warn!(left, "workers were killed and have not ended; they end with this process");
            }
        })
    }
}

/// Whether a reference names a worker of an earlier boot of this node: with that process, it died.
fn is_former(runtime_ref: &str, node: &str, boot: Uuid) -> bool {
    let mut parts = runtime_ref.split('/');
    let (theirs, former) = (parts.next(), parts.next().and_then(|b| b.parse::<Uuid>().ok()));
    theirs == Some(node) && former.is_some_and(|b| b != boot)
}

fn restarted() -> Failure {
    Failure::detailed(Reason::WorkerExited, "lastword was restarted")
}

/// Fails all workers that an earlier boot of this node left: they died with it. Answers with how many. To be called
/// before [`super::run`], by the one process that holds the node's data directory; again if the database was away.
pub async fn fail_former_boots(store: &Store, node: &str, boot: Uuid) -> Result<u32, StoreError> {
    let mut failed = 0;
    for worker in store.living_workers().await?.iter().filter(|w| is_former(&w.runtime_ref, node, boot)) {
        // Told to stop first: turns that only waited for it get another start.
        store.drain_worker(worker.incarnation, Reason::WorkerExited).await?;
        failed += u32::from(store.fail_worker(worker.incarnation, &restarted()).await?.died_now);
    }
    Ok(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_tells_node_and_boot() {
        let (now, before) = (Uuid::now_v7(), Uuid::now_v7());
        let start = StartId::new();
        assert!(is_former(&format!("n/{before}/{start}"), "n", now));
        assert!(!is_former(&format!("n/{now}/{start}"), "n", now));
        assert!(!is_former(&format!("m/{before}/{start}"), "n", now), "another machine's");
        for other in ["", "n", "n/x/y", "namespace/pod-1", &start.to_string()] {
            assert!(!is_former(other, "n", now), "{other}");
        }
    }
}
