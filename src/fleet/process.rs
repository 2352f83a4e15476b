//! The runtime `process`: workers are child processes of this one.
//!
//! A child is proven dead when it was reaped, never before: a signal that cannot be delivered says nothing. Children end
//! with this process, however it ends (see [`crate::local::spawn`]).

use std::collections::HashMap;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::sync::{Notify, mpsc, oneshot};
use uuid::Uuid;

use super::runtime::{Death, Pending, StartRequest, WorkerRuntime};
use crate::crd::{Adapter, AgentSpec, Container};
use crate::local::cgroup::Cgroup;
use crate::local::spawn::Spawner;
use crate::store::{Store, StoreError};
use crate::turn::decide::Look;
use crate::turn::keys::StartId;
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;
use crate::wire::env;

/// Standard error that is kept for the detail of a failure, in bytes.
const STDERR_TAIL: usize = 8 * 1024;
/// A longer line of a worker's log is cut.
const MAX_LINE: usize = 4 * 1024;
/// How long a dead worker's pipes are read to their end; a grandchild may hold them open.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Where and how workers are started.
#[derive(Debug, Clone)]
pub struct ProcessConfig {
    /// Names this machine's data directory over restarts.
    pub node: Uuid,
    /// Names this process.
    pub boot: Uuid,
    /// Base URL of the worker port.
    pub gateway: String,
    /// Relative paths in Agents start here.
    pub base_dir: PathBuf,
    /// How long workers may take when this process stops.
    pub stop_grace: Duration,
}

struct Running {
    pid: Pid,
    /// Set once it is reaped.
    gone: Arc<Notify>,
}

/// Workers as child processes.
pub struct ProcessRuntime {
    config: ProcessConfig,
    children: Arc<Mutex<HashMap<StartId, Running>>>,
    deaths: (mpsc::UnboundedSender<Death>, tokio::sync::Mutex<mpsc::UnboundedReceiver<Death>>),
}

/// Fails the workers of former runs on this node: they ended with their `dev`.
pub async fn fail_former_boots(store: &Store, node: Uuid, boot: Uuid) -> Result<usize, StoreError> {
    let failure = Failure::detailed(Reason::WorkerExited, "lastword was restarted on this machine");
    let mut failed = 0;
    for worker in store.workers().await? {
        let mut parts = worker.runtime_ref.split('/');
        let (of_node, of_boot) = (parts.next(), parts.next());
        if of_node == Some(node.to_string().as_str()) && of_boot != Some(boot.to_string().as_str()) {
            // Told to stop, so that turns which only waited for it get another start.
            store.drain_worker(worker.incarnation, Reason::WorkerExited).await?;
            store.fail_worker(worker.incarnation, &failure).await?;
            failed += 1;
        }
    }
    Ok(failed)
}

impl ProcessRuntime {
    pub fn new(config: ProcessConfig) -> Self {
        let (send, receive) = mpsc::unbounded_channel();
        ProcessRuntime { config, children: Arc::default(), deaths: (send, tokio::sync::Mutex::new(receive)) }
    }

    fn with<T>(&self, f: impl FnOnce(&mut HashMap<StartId, Running>) -> T) -> T {
        f(&mut self.children.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn spawn(&self, request: &StartRequest) -> Result<(), Failure> {
        let failed = |why: String| Failure::detailed(Reason::StartFailed, why);
        let program = program(&request.spec);
        let mut command = self.command(request, program)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let limit = program
            .map(Container::memory_limit_bytes)
            .transpose()
            .map_err(|e| failed(format!("resources.limits.memory: {e}")))?
            .flatten();
        let cgroup = limit.and_then(|bytes| Cgroup::limited(&format!("lastword-{}", request.start_id), bytes));
        let shown = command.get_program().to_string_lossy().to_string();
        let mut child =
            Spawner::global().spawn(command, Signal::KILL).map_err(|e| failed(format!("cannot start {shown}: {e}")))?;
        let pid = Pid::from_child(&child);
        if let Some(cgroup) = &cgroup {
            cgroup.add(child.id());
        }
        let tail = self.follow(&mut child, request);
        let gone = Arc::new(Notify::new());
        self.with(|c| c.insert(request.start_id, Running { pid, gone: gone.clone() }));
        self.reap(child, request.start_id, tail, cgroup, gone);
        Ok(())
    }

    fn command(&self, request: &StartRequest, program: Option<&Container>) -> Result<Command, Failure> {
        let failed = |why: String| Failure::detailed(Reason::StartFailed, why);
        let itself = || std::env::current_exe().map_err(|e| failed(format!("cannot find our own program: {e}")));
        let words = || program.iter().flat_map(|c| c.command.iter().chain(&c.args));
        let mut command = match request.spec.adapter {
            Adapter::Exec => {
                let mut command = Command::new(itself()?);
                command.args(["worker", "exec", "--"]).args(words());
                command
            }
            Adapter::OpenAI => openai(Command::new(itself()?), &request.spec, words().collect())?,
            Adapter::Custom => {
                let mut words = words();
                let first = words.next().ok_or_else(|| failed("container agent has no command".into()))?;
                let mut command = Command::new(first);
                command.args(words);
                command
            }
        };
        let directory = program.and_then(|c| c.working_dir.as_deref()).unwrap_or(".");
        command.current_dir(self.config.base_dir.join(directory));
        for variable in program.iter().flat_map(|c| &c.env) {
            let value = variable
                .value
                .as_deref()
                .ok_or_else(|| failed(format!("env {}: on one machine only plain values are known", variable.name)))?;
            command.env(&variable.name, value);
        }
        // Nothing of ours: the database's URL is no agent's business.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LASTWORD_")) {
            if !program.is_some_and(|c| c.env.iter().any(|v| name == *v.name)) {
                command.env_remove(name);
            }
        }
        command
            .env(env::GATEWAY, &self.config.gateway)
            .env(env::CREDENTIAL, request.credential.reveal())
            .env(env::CAPACITY, request.spec.limits.turns_per_worker().to_string())
            .env(env::DRAIN_SECONDS, request.spec.timing.drain_seconds().to_string());
        Ok(command)
    }

    /// Logs what the worker prints, and keeps the end of its standard error.
    fn follow(&self, child: &mut Child, request: &StartRequest) -> oneshot::Receiver<String> {
        let (done, tail) = oneshot::channel();
        let (deployment, stdout) = (request.deployment.clone(), child.stdout.take());
        if let Some(Ok(stdout)) = stdout.map(tokio::process::ChildStdout::from_std) {
            let deployment = deployment.clone();
            tokio::spawn(
                async move { lines(stdout, |line| tracing::info!(target: "worker", deployment, "{line}")).await },
            );
        }
        if let Some(Ok(stderr)) = child.stderr.take().map(tokio::process::ChildStderr::from_std) {
            tokio::spawn(async move {
                let mut kept = String::new();
                lines(stderr, |line| {
                    tracing::info!(target: "worker", deployment, "{line}");
                    kept.push_str(line);
                    kept.push('\n');
                    if kept.len() > 2 * STDERR_TAIL {
                        kept = tail_of(&kept).to_string();
                    }
                })
                .await;
                // The one who waits may have given up on a pipe that a grandchild holds.
                let _ = done.send(tail_of(&kept).to_string());
            });
        }
        tail
    }

    /// Waits for the child on a thread of its own: the wait is what reaps it.
    fn reap(
        &self,
        mut child: Child,
        start_id: StartId,
        tail: oneshot::Receiver<String>,
        cgroup: Option<Cgroup>,
        gone: Arc<Notify>,
    ) {
        let (reaped, status) = oneshot::channel();
        std::thread::spawn(move || {
            let _ = reaped.send(child.wait());
        });
        let (children, deaths) = (self.children.clone(), self.deaths.0.clone());
        tokio::spawn(async move {
            let Ok(Ok(status)) = status.await else { return };
            let stderr = tokio::time::timeout(LAST_WORDS, tail).await.ok().and_then(Result::ok).unwrap_or_default();
            let failure = cause(status, cgroup.as_ref().is_some_and(Cgroup::killed), &stderr);
            drop(cgroup);
            children.lock().unwrap_or_else(PoisonError::into_inner).remove(&start_id);
            // The fleet may be gone already, at the end of the process.
            let _ = deaths.send(Death { start_id, failure });
            gone.notify_waiters();
        });
    }

    async fn end(&self, start: StartId, grace: Duration) {
        let Some((pid, gone)) = self.with(|c| c.get(&start).map(|r| (r.pid, r.gone.clone()))) else { return };
        let reaped = gone.notified();
        tokio::pin!(reaped);
        reaped.as_mut().enable();
        if !self.with(|c| c.contains_key(&start)) {
            return;
        }
        // Errors of signals mean nothing: only the reaping does.
        let _ = kill_process(pid, Signal::TERM);
        if tokio::time::timeout(grace, reaped.as_mut()).await.is_err() {
            let _ = kill_process_group(pid, Signal::KILL);
            let _ = kill_process(pid, Signal::KILL);
            reaped.await;
        }
    }
}

impl WorkerRuntime for ProcessRuntime {
    fn name(&self) -> &'static str {
        "process"
    }

    fn reference(&self, start: StartId) -> String {
        format!("{}/{}/{start}", self.config.node, self.config.boot)
    }

    fn owns(&self, reference: &str) -> bool {
        reference.starts_with(&format!("{}/{}/", self.config.node, self.config.boot))
    }

    fn start(&self, request: StartRequest) -> Pending<'_, Result<(), Failure>> {
        Box::pin(async move { self.spawn(&request) })
    }

    fn look<'a>(&'a self, start: StartId, reference: &'a str) -> Pending<'a, Look> {
        Box::pin(async move {
            match (self.owns(reference), self.with(|c| c.contains_key(&start))) {
                (false, _) => Look::Unknown,
                (true, true) => Look::Running,
                // Its death is on its way to the database with its cause.
                (true, false) => Look::Absent,
            }
        })
    }

    fn running(&self) -> Vec<StartId> {
        self.with(|c| c.keys().copied().collect())
    }

    fn stop(&self, start: StartId, grace: Duration) -> Pending<'_, ()> {
        let me = ProcessRuntime {
            config: self.config.clone(),
            children: self.children.clone(),
            deaths: (self.deaths.0.clone(), tokio::sync::Mutex::new(mpsc::unbounded_channel().1)),
        };
        Box::pin(async move {
            tokio::spawn(async move { me.end(start, grace).await });
        })
    }

    fn next_death(&self) -> Pending<'_, Death> {
        Box::pin(async move {
            match self.deaths.1.lock().await.recv().await {
                Some(death) => death,
                None => std::future::pending().await,
            }
        })
    }

    fn shutdown(&self) -> Pending<'_, ()> {
        Box::pin(async move {
            let all = self.running();
            futures::future::join_all(all.into_iter().map(|s| self.end(s, self.config.stop_grace))).await;
        })
    }
}

fn program(spec: &AgentSpec) -> Option<&Container> {
    let containers = &spec.template.as_ref()?.spec.containers;
    containers.iter().find(|c| c.name == crate::crd::AGENT_CONTAINER)
}

/// The OpenAI adapter's command line; the container `agent`, where there is one, is the model server that it supervises.
fn openai(mut command: Command, spec: &AgentSpec, server: Vec<&String>) -> Result<Command, Failure> {
    let failed = |why: String| Failure::detailed(Reason::StartFailed, why);
    let model = spec.openai.as_ref().ok_or_else(|| failed("spec.openai is missing".into()))?;
    command.args(["worker", "openai", "--base-url", &model.base_url, "--model", &model.model]);
    if let Some(prompt) = &model.system_prompt {
        command.args(["--system-prompt", prompt]);
    }
    if let Some(secret) = &model.api_key_secret_ref {
        // On one machine a Secret's key is a variable of ours: name `openai`, key `api-key` is OPENAI_API_KEY.
        let variable = format!("{}_{}", secret.name, secret.key).to_uppercase().replace(['-', '.'], "_");
        if std::env::var_os(&variable).is_none() {
            return Err(failed(format!("apiKeySecretRef: set {variable} in the environment of lastword dev")));
        }
        command.args(["--api-key-env", &variable]);
    }
    if !server.is_empty() {
        command.args(["--model-server", "--"]).args(server);
    }
    Ok(command)
}

/// What a worker's end means for the turns that it held.
fn cause(status: ExitStatus, out_of_memory: bool, stderr: &str) -> Failure {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("the worker exited with code {code}"),
        (None, Some(signal)) => format!("the worker was killed by signal {signal}"),
        (None, None) => "the worker ended".into(),
    };
    let detail = if stderr.is_empty() { how } else { format!("{how}; its last words:\n{stderr}") };
    let reason = if out_of_memory && !status.success() { Reason::OutOfMemory } else { Reason::WorkerExited };
    Failure::detailed(reason, detail)
}

fn tail_of(text: &str) -> &str {
    let mut at = text.len().saturating_sub(STDERR_TAIL);
    while !text.is_char_boundary(at) {
        at += 1;
    }
    &text[at..]
}

/// Reads lines of any bytes to the end of a pipe.
async fn lines(pipe: impl AsyncRead + Unpin, mut each: impl FnMut(&str)) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut pipe).take(MAX_LINE as u64).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => each(String::from_utf8_lossy(&line).trim_end()),
        }
    }
}
