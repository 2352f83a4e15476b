//! What the fleet asks of a runtime: processes on one machine, pods in Kubernetes.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::crd::AgentSpec;
use crate::turn::decide::Look;
use crate::turn::keys::StartId;
use crate::turn::terminal::Failure;
use crate::wire::Credential;

/// A future that a runtime returns; boxed, so that the fleet need not know which runtime it has.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A worker to start. Its lease row is committed.
#[derive(Debug, Clone)]
pub struct StartRequest {
    pub start_id: StartId,
    pub organization: String,
    pub agent: String,
    pub deployment: String,
    pub spec: Arc<AgentSpec>,
    pub credential: Credential,
}

/// Proof that a worker is dead: its process was reaped, its container terminated.
#[derive(Debug, Clone)]
pub struct Death {
    pub start_id: StartId,
    pub failure: Failure,
}

/// Where workers run.
pub trait WorkerRuntime: Send + Sync {
    /// The runtime's name in the lease.
    fn name(&self) -> &'static str;

    /// The runtime's own reference of a start, known before it is carried out.
    fn reference(&self, start: StartId) -> String;

    /// Whether a reference is this runtime's to look at and stop.
    fn owns(&self, reference: &str) -> bool;

    /// Starts a worker. An error is a failed start.
    fn start(&self, request: StartRequest) -> Pending<'_, Result<(), Failure>>;

    /// What is known of a worker now.
    fn look<'a>(&'a self, start: StartId, reference: &'a str) -> Pending<'a, Look>;

    /// The workers that this process runs now. One whose lease has ended is ended, too: a worker that was given up for its
    /// silence hears nothing. A runtime that finds such workers by itself names none.
    fn running(&self) -> Vec<StartId> {
        Vec::new()
    }

    /// Tells a worker to stop, and ends it after `grace`. Answers at once.
    fn stop(&self, start: StartId, grace: Duration) -> Pending<'_, ()>;

    /// The next proof of death; each is given once.
    fn next_death(&self) -> Pending<'_, Death>;

    /// Stops all workers of this process and waits until they are gone, where they would go with it.
    fn shutdown(&self) -> Pending<'_, ()>;
}
