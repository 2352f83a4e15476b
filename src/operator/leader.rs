//! Leadership among the controller's replicas: one Lease in its namespace.
//!
//! Losing it stops writes of Kubernetes objects only; nothing that is correct rests on it.
//!
//! Whoever leads needs both, the API server and the database. A replica that has had no answer of the database for
//! [`WITHOUT_DATABASE`] gives the Lease back for others to take, and takes part again once it has one. If the database is
//! away for everybody, nobody leads: nobody could start a worker anyhow.

use std::time::Duration;

use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::OperatorConfig;
use crate::leadership::Leadership;
use crate::store::Store;

/// The Lease's name.
const LEASE: &str = "lastword-controller";
/// A leader that does not renew for this long has lost: the longest that nobody starts workers after a leader's death.
const DURATION_SECONDS: u64 = 10;
/// The leader renews this long before that.
const GRACE_SECONDS: u64 = 4;
/// A call to the API server may take no longer for a leader: less than [`GRACE_SECONDS`].
pub const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// A replica without its database for this long leads no more. Longer than a restart of Postgres takes, so that one changes
/// no leader.
const WITHOUT_DATABASE: Duration = Duration::from_secs(15);
/// Between two questions to the database.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// An answer that takes longer is none.
const ANSWER: Duration = Duration::from_secs(3);
/// The pause before another try when the API server is away.
const RETRY: Duration = Duration::from_secs(1);

/// Takes part in the election until `shutdown`, while the database answers; the answer follows it. `connect` makes clients
/// whose calls take [`CALL_TIMEOUT`] at the most.
pub fn elect<F>(
    config: &OperatorConfig,
    store: Store,
    connect: impl Fn() -> F + Send + Sync + 'static,
    shutdown: CancellationToken,
) -> Leadership
where
    F: Future<Output = Result<Client, kube::Error>> + Send + 'static,
{
    let (leading, seen) = watch::channel(false);
    let candidate = Candidate {
        namespace: config.own_namespace.clone(),
        identity: config.identity.clone(),
        leading,
        database: answers(store, shutdown.clone()),
        shutdown,
    };
    tokio::spawn(candidate.run(connect));
    Leadership::follow(seen)
}

/// Whether the database has answered within [`WITHOUT_DATABASE`]; false until it does. Followed until `shutdown`.
fn answers(store: Store, shutdown: CancellationToken) -> watch::Receiver<bool> {
    let (answers, seen) = watch::channel(false);
    tokio::spawn(shutdown.run_until_cancelled_owned(async move {
        let mut last = None;
        loop {
            let asked = Instant::now();
            if let Ok(Ok(())) = tokio::time::timeout(ANSWER, store.ping()).await {
                last = Some(asked);
            }
            let recent = last.is_some_and(|last| last.elapsed() < WITHOUT_DATABASE);
            answers.send_if_modified(|answers| std::mem::replace(answers, recent) != recent);
            tokio::time::sleep(ASK_EVERY).await;
        }
    }));
    seen
}

/// A replica that may lead.
struct Candidate {
    namespace: String,
    identity: String,
    leading: watch::Sender<bool>,
    /// Whether it has its database.
    database: watch::Receiver<bool>,
    shutdown: CancellationToken,
}

impl Candidate {
    async fn run<F>(mut self, connect: impl Fn() -> F)
    where
        F: Future<Output = Result<Client, kube::Error>>,
    {
        let shutdown = self.shutdown.clone();
        while !shutdown.is_cancelled() {
            tokio::select! {
                _ = self.database.wait_for(|answers| *answers) => {}
                () = shutdown.cancelled() => return,
            }
            self.campaign(&connect).await;
            self.leading.send_replace(false);
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// Leads and follows until the Lease cannot be reached; or until `shutdown` or the loss of the database, when it is
    /// given up for others to take at once.
    async fn campaign<F>(&mut self, connect: &impl Fn() -> F)
    where
        F: Future<Output = Result<Client, kube::Error>>,
    {
        let made = tokio::select! {
            made = manager(connect, &self.namespace, &self.identity) => made,
            () = self.shutdown.cancelled() => return,
        };
        let manager = match made {
            Ok(manager) => manager,
            Err(error) => return tracing::warn!("no leader election now: {error}"),
        };
        loop {
            let changed = tokio::select! {
                changed = manager.changed() => changed,
                () = self.shutdown.cancelled() => break,
                _ = self.database.wait_for(|answers| !answers) => {
                    if *self.leading.borrow() {
                        tracing::warn!("this replica leads no more: no answer of the database for {WITHOUT_DATABASE:?}");
                    }
                    break;
                }
            };
            match changed {
                Ok(leads) => {
                    if self.leading.send_replace(leads) != leads {
                        let identity = &self.identity;
                        tracing::info!(leads, identity, "this replica {}", if leads { "leads" } else { "follows" });
                    }
                }
                Err(error) => return tracing::warn!("leadership is in doubt: {error}"),
            }
        }
        // What it would write meanwhile is the next leader's.
        self.leading.send_replace(false);
        // Best effort: else the others wait until it runs out.
        let _ = tokio::time::timeout(RETRY, manager.release()).await;
    }
}

async fn manager<F>(
    connect: &impl Fn() -> F,
    namespace: &str,
    identity: &str,
) -> Result<LeaseManager, Box<dyn std::error::Error + Send + Sync>>
where
    F: Future<Output = Result<Client, kube::Error>>,
{
    // A client of its own: a call that hangs in a dead connection must not outlast the Lease.
    let manager = LeaseManagerBuilder::new(connect().await?, LEASE)
        .with_namespace(namespace)
        .with_identity(identity)
        .with_duration(DURATION_SECONDS)
        .with_grace(GRACE_SECONDS)
        .build()
        .await?;
    Ok(manager)
}
