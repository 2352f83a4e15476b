//! The Kubernetes operator: the controllers of the resources `Agent` and `AgentTurn`, and the worker pods.
//!
//! | module | what it does | on which replicas |
//! |---|---|---|
//! | [`agents`] | copies Agents into the database; writes their status | the leader |
//! | [`turns`] | arms the turns of AgentTurns; writes their status | the leader |
//! | [`events`] | shows failures as Kubernetes Events | the leader |
//! | [`pods`] | creates and deletes worker pods for the fleet | the leader |
//! | [`pods`] | watches worker pods, and reports what they say to the database | all |
//! | [`leader`] | elects the leader by a Lease; its head explains what leadership is for, and what it is not | all |
//! | [`review`] | tells a gateway which pod a ServiceAccount token belongs to | gateways |
//! | [`secrets`] | reads the Secrets that Agents name, when they are used | gateways and controllers |
//!
//! A reader who knows kube-rs finds a `controller.rs` (the loop over watch events, timers and finished work), a context
//! (`AgentContext`, `TurnContext`: the clients and stores that the work needs) and a reconciliation in [`agents`] and
//! [`turns`]. Both are level-based: what is to be done is computed from the object and from the database as they are
//! now, never from the event that told of a change. What to do is decided by pure functions; only then is it carried
//! out, one call per object at a time, and a call that fails is queued again with a back-off.
//!
//! The API server may be away at any time. What needs it waits and is tried again. The sweep, suspicion of silent workers
//! and deliveries to other platforms do not need it.

pub mod agents;
pub mod args;
mod client;
mod clock;
mod condition;
mod config;
pub mod events;
pub mod leader;
pub mod organizations;
pub mod pods;
pub mod review;
pub mod secrets;
pub mod turns;
pub mod watch;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::pods::{PodRuntime, Pods};
use crate::fleet::{self, FleetConfig};
use crate::guard::Services;
use crate::store::Store;

pub use client::client;
pub use config::{Injector, OperatorConfig};

/// Runs the operator until `shutdown`. `services` are what the guardrails of AgentTurns may ask; `cause_window` is how long
/// a proven death of a worker waits for its cause.
pub async fn run(
    config: OperatorConfig,
    store: Store,
    client: Client,
    services: Services,
    cause_window: Duration,
    shutdown: CancellationToken,
) {
    let connect = || client::client_within(leader::CALL_TIMEOUT);
    let leadership = leader::elect(&config, store.clone(), connect, shutdown.clone());
    let namespaces: Arc<[String]> = config.namespaces.clone().into();
    let failures = events::LastFailures::default();
    let config = Arc::new(config);
    let pods = Pods::new(client.clone(), store.clone(), config.clone());
    let agents =
        agents::AgentContext { store: store.clone(), client: client.clone(), config, failures: failures.clone() };
    let wake = Arc::new(Notify::new());
    let fleet_config = FleetConfig { cause_window, ..FleetConfig::default() };
    let runtime = Arc::new(PodRuntime(pods.clone()));
    tokio::join!(
        agents::run(agents, namespaces.clone(), leadership.clone(), shutdown.clone()),
        turns::run(store.clone(), client.clone(), services, namespaces, leadership.clone(), shutdown.clone()),
        organizations::run(store.clone(), client.clone(), leadership.clone(), shutdown.clone()),
        events::run(store.clone(), client, failures, leadership.clone(), shutdown.clone()),
        pods.clone().watch(shutdown.clone()),
        pods.clone().observe(shutdown.clone()),
        pods.clean_up(leadership.clone(), shutdown.clone()),
        fleet::run(store.clone(), runtime, fleet_config, leadership, wake.clone(), shutdown.clone()),
        fleet::wake_on_notices(store.hear(), wake, shutdown),
    );
}
