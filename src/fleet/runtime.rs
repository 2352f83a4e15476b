//! What the fleet asks of the place where workers run: a machine's processes, or Kubernetes.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::mpsc;

use crate::crd::AgentSpec;
use crate::turn::decide::Look;
use crate::turn::keys::StartId;
use crate::turn::terminal::Failure;
use crate::wire::Credential;

/// A worker to start.
#[derive(Debug, Clone)]
pub struct StartRequest {
    pub start_id: StartId,
    /// The Agent's namespace.
    pub organization: String,
    pub agent: String,
    pub worker_group: String,
    /// The Agent's generation that `spec` is.
    pub generation: i64,
    pub spec: Arc<AgentSpec>,
    /// The Agent's UID in Kubernetes.
    pub agent_uid: Option<String>,
    /// Numbers the starts of the worker group, from 1, where the runtime asks for it; else 0.
    pub attempt: i64,
    /// The runtime's own [`reference`](WorkerRuntime::reference), as it is in the lease.
    pub runtime_ref: String,
    /// What the worker shows to a gateway; its hash is in the lease. A pod gets its own instead, for its token.
    pub credential: Credential,
}

/// Proof that a worker is dead: its process was reaped, its container terminated.
#[derive(Debug, Clone)]
pub struct Death {
    pub start_id: StartId,
    /// `None`: dead, but the cause is not known yet. The runtime sends the death again when it learns it.
    pub cause: Option<Failure>,
}

/// Where workers run. Object-safe; shared by the fleet's loops.
///
/// The fleet writes the lease row before [`start`](Self::start), so everything here is keyed by the start. Every call may
/// be repeated, and may name a worker that the runtime does not know (another runtime's in the same database, or one
/// whose start never happened): such a call does nothing.
pub trait WorkerRuntime: Send + Sync + 'static {
    /// `process` or `kubernetes`; stored in the lease.
    fn name(&self) -> &'static str;

    /// Whether starts are numbered by worker group.
    fn numbered(&self) -> bool {
        false
    }

    /// The runtime's own name of a start, stored in the lease before the start: who can be asked about it later.
    fn reference(&self, start: &StartRequest) -> String;

    /// Starts a worker. Done means: it is on its way, and its death will be reported. A start that may have been lost on
    /// its way (the lease's [`unmade`](crate::store::Lease::unmade)) is asked for again: it makes no second worker.
    ///
    /// # Errors
    /// The cause that the turns which waited for this start are told.
    fn start<'a>(&'a self, start: &'a StartRequest) -> BoxFuture<'a, Result<(), Failure>>;

    /// What is known of a worker now.
    fn look<'a>(&'a self, start_id: StartId, runtime_ref: &'a str) -> BoxFuture<'a, Look>;

    /// Asks a worker to end (SIGTERM) and ends it when its grace is over: `drainSeconds` for a process, the pod's own for a
    /// pod. Returns at once.
    fn stop<'a>(&'a self, start_id: StartId, runtime_ref: &'a str) -> BoxFuture<'a, ()>;

    /// Ends a worker whose lease is dead. Returns at once.
    fn kill(&self, start_id: StartId) -> BoxFuture<'_, ()>;

    /// The starts that run here now, as far as the runtime knows: what has no lease among them is ended.
    fn running(&self) -> BoxFuture<'_, Vec<StartId>>;

    /// Deaths, pushed as they happen. A later call replaces an earlier one's receiver. Unbounded, since each start dies
    /// once (twice with a late cause).
    fn deaths(&self) -> mpsc::UnboundedReceiver<Death>;

    /// Whether the workers cannot outlive this process. If so, the fleet's end drains them and calls
    /// [`shutdown`](Self::shutdown).
    fn ends_with_us(&self) -> bool {
        false
    }

    /// Ends all workers within their grace, and returns when their deaths have been pushed.
    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}
