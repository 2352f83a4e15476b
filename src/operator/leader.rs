//! The leader election among the replicas of the controller: one Lease (`coordination.k8s.io`) in the controller's
//! namespace.
//!
//! ## What the leader does
//!
//! The leader alone copies Agents into the database, arms AgentTurns, writes statuses and Events, starts and stops workers,
//! and deletes ended pods. Everything that decides what becomes of a turn is done by every replica, leader or not: watching
//! worker pods, reporting deaths, the sweep, posts to webhooks and Slack. Gateways never ask who leads.
//!
//! ## Leadership is an optimisation
//!
//! Two elections must not be confused. *This* one, by the Lease, picks the replica that does the work above, so that it is
//! done once and not by every replica. The *other* one is the fence: a terminal belongs to whoever deletes the turn's marker
//! in the database (`store/elect.rs`), and nobody who does so asks who leads. A Lease cannot be a fence: a leader that is
//! suspended between the check and the write, or whose clock is wrong, writes after it has lost. So each write that follows
//! from leadership is safe when two replicas make it:
//!
//! | written by two leaders at once | what keeps it right | what it costs |
//! |---|---|---|
//! | the start of a worker | the lease row of the start is inserted under a lock, so a second insert is refused; the attempt's number is in the pod's name, and a pod that exists already is adopted | a refused insert or create |
//! | the stop of a worker | the phase of the lease row; a pod is deleted with its UID as precondition | a repeated delete |
//! | the arm of an AgentTurn | the message id is the object's UID, so the second arm finds the first one's turn | a transaction |
//! | a status | the patch names the object's `resourceVersion`; the loser gets 409 and reads the object again | a call or two |
//! | an Agent's copy | an older generation, or another object's UID, changes nothing | a transaction |
//! | an Event | nothing | a failure may be shown twice |
//!
//! ## What happens when something is lost
//!
//! - **The leader dies.** Its Lease runs out after [`DURATION_SECONDS`]; then another replica takes it and starts from a
//!   fresh list. Until then nobody starts a worker: new turns wait. At a shutdown the Lease is released, so that the next
//!   replica takes it at once.
//! - **The leader cannot reach the API server.** It renews the Lease [`GRACE_SECONDS`] before the Lease runs out, and a call
//!   takes [`CALL_TIMEOUT`] at the most, so it stops leading before another replica may begin. It tries again each
//!   [`RETRY`]. Where the API server is away for everybody, nobody leads, and running workers go on with their turns.
//! - **The leader cannot reach the database.** It could not do its work, yet it could keep the Lease from those who can. So
//!   after [`WITHOUT_DATABASE`] without an answer it releases the Lease, and takes part again once the database answers. A
//!   restart of Postgres is shorter than that and changes no leader. Where the database is away for everybody, nobody
//!   leads.
//! - **Somebody deletes the Lease.** The leader's next renewal fails, and it stops leading; whoever comes first makes a new
//!   Lease.
//!
//! ## Clock skew
//!
//! The holder writes the time of its renewal by its own clock, and the others compare that time with theirs. A replica whose
//! clock is ahead by more than [`GRACE_SECONDS`] may see a Lease as run out that is not, and take it. The former leader
//! finds that out at its next renewal, [`DURATION_SECONDS`] − [`GRACE_SECONDS`] later at the most; until then two replicas
//! lead, at the cost above. There is no flapping: the new holder's renewals look fresh to everybody. A replica whose clock is
//! behind waits longer before it takes over, by the skew. Whatever decides about turns goes by the database's clock.

use std::time::Duration;

use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::config::OperatorConfig;
use crate::every::{Again, Every, supervised};
use crate::leadership::Leadership;
use crate::metrics::METRICS;
use crate::store::Store;

/// The Lease's name.
const LEASE: &str = "lastword-controller";
/// A Lease that was not renewed for this long may be taken by another replica: the longest time without a leader after the
/// leader's death.
const DURATION_SECONDS: u64 = 10;
/// The leader renews the Lease this long before it runs out.
const GRACE_SECONDS: u64 = 4;
/// The longest that a call of the election to the API server may take. It is less than [`GRACE_SECONDS`], so that a leader
/// whose renewal hangs gives up before the Lease runs out.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// A replica whose database has not answered for this long leads no more. It is longer than a restart of Postgres takes.
const WITHOUT_DATABASE: Duration = Duration::from_secs(15);
/// Between two pings of the database.
const PING_PERIOD: Duration = Duration::from_secs(1);
/// A ping that takes longer than this is unanswered.
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause before the next try after the API server could not be reached, and the longest that releasing the Lease may take.
const RETRY: Duration = Duration::from_secs(1);

/// Takes part in the election until `shutdown`, whenever the database answers. The returned leadership follows the outcome;
/// it begins with not leading. `connect` makes clients whose calls take [`CALL_TIMEOUT`] at the most.
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
        database: database_answers(store, shutdown.clone()),
        shutdown,
    };
    supervised("the leader election", candidate.run(connect));
    Leadership::follow(seen)
}

/// Pings the database until `shutdown`. The returned channel holds whether the database has answered within
/// [`WITHOUT_DATABASE`]; it is false until the first answer.
fn database_answers(store: Store, shutdown: CancellationToken) -> watch::Receiver<bool> {
    let (answers, seen) = watch::channel(false);
    let mut last = None;
    let ping = async move |_| {
        let asked = Instant::now();
        let answer = tokio::time::timeout(PING_TIMEOUT, store.ping()).await;
        if let Ok(Ok(())) = answer {
            last = Some(asked);
        }
        let recent = last.is_some_and(|last: Instant| last.elapsed() < WITHOUT_DATABASE);
        answers.send_if_modified(|answers| std::mem::replace(answers, recent) != recent);
        match answer {
            Ok(Ok(())) => Ok(Again::Later),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {PING_TIMEOUT:?}")),
        }
    };
    let pings = Every::new("the leader election's ping of the database", PING_PERIOD).at_once();
    supervised("the leader election's ping of the database", async move { pings.run(&shutdown, ping).await });
    seen
}

/// A replica that may lead.
struct Candidate {
    namespace: String,
    identity: String,
    leading: watch::Sender<bool>,
    /// Whether this replica's database answers.
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
            METRICS.leader.set(0);
            self.leading.send_replace(false);
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// Takes and renews the Lease whenever it can be had. Returns when the API server cannot be reached. Returns, too, at
    /// `shutdown` and when the database answers no more; then the Lease is released first, for another replica to take.
    async fn campaign<F>(&mut self, connect: &impl Fn() -> F)
    where
        F: Future<Output = Result<Client, kube::Error>>,
    {
        let made = tokio::select! {
            made = lease_manager(connect, &self.namespace, &self.identity) => made,
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
                    METRICS.leader.set(leads.into());
                    if self.leading.send_replace(leads) != leads {
                        let identity = &self.identity;
                        tracing::info!(leads, identity, "this replica {}", if leads { "leads" } else { "follows" });
                    }
                }
                Err(error) => return tracing::warn!("leadership is in doubt: {error}"),
            }
        }
        // The leader's work stops here, before another replica can take the Lease.
        METRICS.leader.set(0);
        self.leading.send_replace(false);
        // A release that fails costs the time until the Lease runs out.
        let _ = tokio::time::timeout(RETRY, manager.release()).await;
    }
}

async fn lease_manager<F>(
    connect: &impl Fn() -> F,
    namespace: &str,
    identity: &str,
) -> Result<LeaseManager, Box<dyn std::error::Error + Send + Sync>>
where
    F: Future<Output = Result<Client, kube::Error>>,
{
    // The election has a client of its own: a call that hangs in a dead connection must not outlast the Lease.
    let manager = LeaseManagerBuilder::new(connect().await?, LEASE)
        .with_namespace(namespace)
        .with_identity(identity)
        .with_duration(DURATION_SECONDS)
        .with_grace(GRACE_SECONDS)
        .build()
        .await?;
    Ok(manager)
}
