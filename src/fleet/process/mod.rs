//! The runtime `process`: workers are child processes of this one, and never outlive it.
//!
//! The proof that a worker is dead is that its process was reaped, by its keeper (see [`crate::child::keeper`]), which then
//! ends all that the worker left behind. A thread waits for the keeper; a signal that could not be delivered proves nothing.
//!
//! The parts: `command` makes a worker's command line, `launch` starts it and reaps it, `worker` signals it, `table` knows
//! which run, and `boot` recognizes the workers of an earlier run of this program.

mod boot;
mod command;
mod config;
mod launch;
mod table;
mod worker;

use std::process::Stdio;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::runtime::{Death, StartRequest, WorkerRuntime};
use crate::child::cgroup::{Cgroup, Cgroups};
use crate::turn::cause;
use crate::turn::decide::Look;
use crate::turn::keys::StartId;
use crate::turn::terminal::Failure;
pub use boot::fail_former_boots;
use boot::{is_former, reference};
use command::{KeptCommand, command, container};
pub use config::{ProcessConfig, SecretLookup};
use launch::WorkerLaunch;
use table::ProcessTable;

/// The runtime's name in the lease.
pub const NAME: &str = "process";
/// The time between `drainSeconds` and SIGKILL: at the end of its drain a worker itself ends what it still holds, and tells
/// its gateway so.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long a killed process may take to be reaped when the runtime is shut down.
const REAPING: Duration = Duration::from_secs(5);

/// Starts workers as child processes. Needs a Tokio runtime.
pub struct ProcessRuntime {
    config: ProcessConfig,
    /// Where cgroups can be made; found out when the first worker with a memory limit is started.
    cgroups: OnceLock<Option<Cgroups>>,
    table: Arc<ProcessTable>,
}

impl ProcessRuntime {
    /// A runtime without workers.
    pub fn new(config: ProcessConfig) -> Self {
        ProcessRuntime { config, cgroups: OnceLock::new(), table: Arc::new(ProcessTable::new()) }
    }

    /// Makes a cgroup for a worker with a memory limit; none where the system does not permit it.
    fn cgroup(&self, request: &StartRequest) -> Result<Option<Cgroup>, Failure> {
        let Some(container) = container(&request.spec) else { return Ok(None) };
        let cannot = |why: String| cause::start::impossible(format!("resources.limits.memory: {why}"));
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
        let KeptCommand { mut command, program } = command(&self.config, request)?;
        let cgroup = self.cgroup(request)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let launch = WorkerLaunch {
            start_id: request.start_id,
            agent: request.agent.clone(),
            grace: Duration::from_secs(request.spec.timing.drain_seconds().into()) + FAREWELL,
            table: self.table.clone(),
            runtime: Handle::current(),
        };
        // The launch runs in a task of its own, since it blocks and must not be cancelled with this future.
        let spawned = tokio::task::spawn_blocking(move || launch.run(command, cgroup)).await;
        match spawned {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(cause::program::not_started(&program, error)),
            Err(error) => Err(cause::program::not_started(&program, error)),
        }
    }

    fn reference_of(&self, start_id: StartId) -> String {
        reference(&self.config.node, self.config.boot, start_id)
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
                return Look::Terminated { cause: Some(cause::process::of_a_former_run()) };
            }
            if runtime_ref != self.reference_of(start_id) {
                return Look::Unknown;
            }
            // The worker is looked for before its cause: of a worker that dies, the table gets the cause before the
            // worker is taken out.
            if self.table.get(start_id).is_some() {
                return Look::Running;
            }
            match self.table.cause_of(start_id) {
                Some(cause) => Look::Terminated { cause: Some(cause) },
                None => Look::Absent,
            }
        })
    }

    fn stop<'a>(&'a self, start_id: StartId, _: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Some(worker) = self.table.get(start_id) {
                worker.stop(start_id);
            }
        })
    }

    fn kill(&self, start_id: StartId) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Some(worker) = self.table.get(start_id) {
                worker.kill();
            }
        })
    }

    fn running(&self) -> BoxFuture<'_, Vec<StartId>> {
        Box::pin(async { self.table.all().into_iter().map(|(start_id, _)| start_id).collect() })
    }

    fn deaths(&self) -> mpsc::UnboundedReceiver<Death> {
        self.table.deaths()
    }

    fn ends_with_us(&self) -> bool {
        true
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let workers = self.table.all();
            let grace = workers.iter().map(|(_, w)| w.grace).max().unwrap_or_default();
            for (start_id, worker) in &workers {
                worker.stop(*start_id);
            }
            let mut count = self.table.count();
            let grace = grace.min(self.config.stop_within.unwrap_or(grace));
            if tokio::time::timeout(grace, count.wait_for(|n| *n == 0)).await.is_err() {
                workers.iter().for_each(|(_, worker)| worker.kill());
            }
            if tokio::time::timeout(REAPING, count.wait_for(|n| *n == 0)).await.is_err() {
                let left = *count.borrow();
                tracing::warn!(left, "workers were killed and have not ended; they end with this process");
            }
        })
    }
}
