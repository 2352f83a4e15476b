//! The interface between the fleet and what runs its workers: child processes on one machine, pods in Kubernetes.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::mpsc;

use crate::crd::AgentSpec;
use crate::turn::decide::Look;
use crate::turn::keys::{StartId, WorkerGroup};
use crate::turn::terminal::Failure;
use crate::wire::Credential;

/// A worker to start.
#[derive(Debug, Clone)]
pub struct StartRequest {
    pub start_id: StartId,
    /// The Agent's namespace.
    pub organization: String,
    /// The Agent's name.
    pub agent: String,
    /// The worker group of the Agent that the worker is to serve.
    pub worker_group: WorkerGroup,
    /// The Agent's config number, which grows with each change of what a worker is made of.
    pub config: i64,
    pub spec: Arc<AgentSpec>,
    /// The UID of the Agent's object in Kubernetes; the pod is owned by it.
    pub agent_uid: Option<String>,
    /// Numbers starts, from 1, where the runtime asks for it ([`numbered`](WorkerRuntime::numbered)); else 0.
    pub attempt: i64,
    /// The runtime's own [`reference`](WorkerRuntime::reference), as it is in the lease.
    pub runtime_ref: String,
    /// The secret by which gateways know the worker; its hash is in the lease. A process is given it in its environment; a
    /// pod exchanges its service account's token for one of its own instead.
    pub credential: Credential,
}

/// A proof that a worker is dead: its process was reaped, or its container terminated.
#[derive(Debug, Clone)]
pub struct Death {
    pub start_id: StartId,
    /// Why it died. `None` while that is not known yet: the runtime sends the death again, with the cause, when it learns it.
    pub cause: Option<Failure>,
}

/// Something that runs workers. Object-safe; shared by the fleet's tasks.
///
/// Every call names a worker by its start: the fleet writes the lease's row before [`start`](Self::start), when there is no
/// process and no pod yet. Every call may be repeated, and may name a worker that the runtime does not know (of another
/// runtime on the same database, or of a start that never happened): such a call does nothing.
pub trait WorkerRuntime: Send + Sync + 'static {
    /// The runtime's name, `process` or `kubernetes`; stored in the lease.
    fn name(&self) -> &'static str;

    /// Whether the fleet is to number the starts ([`StartRequest::attempt`]).
    fn numbered(&self) -> bool {
        false
    }

    /// The name by which this runtime finds the worker of a start again, also after a restart of this process; stored in the
    /// lease before the start.
    fn reference(&self, start: &StartRequest) -> String;

    /// Starts a worker. `Ok` means that it is on its way, and that its death will be among [`deaths`](Self::deaths). A start
    /// that may have been lost (the lease's [`unmade`](crate::store::Lease::unmade)) is asked for again; if it was not lost,
    /// this makes no second worker.
    ///
    /// # Errors
    /// Why there is no worker; the turns that waited for this start end with it.
    fn start<'a>(&'a self, start: &'a StartRequest) -> BoxFuture<'a, Result<(), Failure>>;

    /// What the runtime knows of a worker now.
    fn look<'a>(&'a self, start_id: StartId, runtime_ref: &'a str) -> BoxFuture<'a, Look>;

    /// Tells a worker to end (SIGTERM), and kills it when its grace is over: the Agent's `drainSeconds` for a process, the
    /// pod's own `terminationGracePeriodSeconds` for a pod. Returns without waiting for the end.
    fn stop<'a>(&'a self, start_id: StartId, runtime_ref: &'a str) -> BoxFuture<'a, ()>;

    /// Kills a worker whose lease is dead. Returns without waiting for the end.
    fn kill(&self, start_id: StartId) -> BoxFuture<'_, ()>;

    /// The starts whose workers run now, as far as the runtime knows. The fleet kills those that have no lease.
    fn running(&self) -> BoxFuture<'_, Vec<StartId>>;

    /// Deaths, pushed as they happen. A later call ends the receiver of an earlier one. The channel is unbounded, since each
    /// start dies once, or twice with a late cause.
    fn deaths(&self) -> mpsc::UnboundedReceiver<Death>;

    /// Whether the workers end with this process. If so, the fleet drains them when it ends, and calls
    /// [`shutdown`](Self::shutdown).
    fn ends_with_us(&self) -> bool {
        false
    }

    /// Stops all workers, as [`stop`](Self::stop) does, and returns when their deaths have been pushed.
    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}
