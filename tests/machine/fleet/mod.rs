//! The fleet with a real Postgres and real processes; the workers are stand-ins that never connect, unless a test plays
//! the gateway for them.

use std::sync::Arc;
use std::time::Duration;

use lastword::fleet::process::{ProcessConfig, ProcessRuntime};
use lastword::fleet::{FleetConfig, WorkerRuntime, run, wake_on_notices};
use lastword::leadership::Leadership;
use lastword::store::{Arm, ClaimFor, ClaimOrder, Lease, Store};
use lastword::turn::keys::{GatewayId, Grouping, Incarnation, TurnId};
use lastword::turn::terminal::Failure;
use lastword::wire::Credential;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::gateway::ORGANIZATION;
use crate::support::wait::{eventually, within};
use crate::support::{LASTWORD, actors};

mod ends;
mod rollout;
mod starts;
mod walls;

/// A fleet at work.
struct Scene {
    store: Store,
    runtime: Arc<ProcessRuntime>,
    wake: Arc<Notify>,
    shutdown: CancellationToken,
    fleet: JoinHandle<()>,
    directory: tempfile::TempDir,
}

impl Scene {
    async fn new(store: &Store) -> Scene {
        // Polls are rare, so that what happens at once was woken.
        Scene::with(store, FleetConfig { poll: Duration::from_secs(2), ..FleetConfig::default() }).await
    }

    async fn with(store: &Store, config: FleetConfig) -> Scene {
        let store = store.clone();
        let directory = tempfile::tempdir().expect("a directory");
        let processes = ProcessConfig {
            // It is the workers' keeper; this test is not.
            program: LASTWORD.into(),
            ..ProcessConfig::new("test", "http://127.0.0.1:1", directory.path()).expect("our own path")
        };
        let runtime = Arc::new(ProcessRuntime::new(processes));
        let (wake, shutdown) = (Arc::new(Notify::new()), CancellationToken::new());
        let fleet = tokio::spawn(run(
            store.clone(),
            runtime.clone(),
            config,
            Leadership::always(),
            wake.clone(),
            shutdown.clone(),
        ));
        tokio::spawn(wake_on_notices(store.hear(), wake.clone(), shutdown.clone()));
        Scene { store, runtime, wake, shutdown, fleet, directory }
    }

    /// Puts an Agent whose worker is this command.
    async fn agent(&self, name: &str, command: &[&str], rest: Value) {
        let mut spec = json!({"adapter": "Custom", "scope": "Conversation",
            "template": {"spec": {"containers": [{"name": "agent", "command": command}]}}});
        for (key, value) in rest.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        self.store.put_agent(ORGANIZATION, name, &spec).await.expect("put");
    }

    async fn arm(&self, agent: &str, conversation: &str) -> TurnId {
        self.armed(agent, conversation, Grouping::PerConversation).await
    }

    async fn armed(&self, agent: &str, conversation: &str, grouping: Grouping) -> TurnId {
        let arm = Arm { organization: ORGANIZATION.into(), agent: agent.into(), grouping, ..actors::arm(conversation) };
        actors::armed(&self.store, arm).await.turn_id
    }

    /// Waits for the turn's failure.
    async fn failure(&self, turn: TurnId) -> Failure {
        eventually("the turn ends", async || self.store.turn_record(turn).await.expect("a record")?.failure).await
    }

    async fn worker(&self, is: impl Fn(&Lease) -> bool) -> Lease {
        eventually("there is such a worker", async || {
            self.store.living_workers().await.expect("workers").into_iter().find(|w| is(w))
        })
        .await
    }

    async fn nobody_left(&self) {
        eventually("no worker is left", async || {
            self.store.living_workers().await.expect("workers").is_empty() && self.runtime.running().await.is_empty()
        })
        .await;
    }

    /// Reads a file that a worker writes, once it holds a whole line.
    async fn line(&self, file: &str) -> String {
        let path = self.directory.path().join(file);
        eventually("the worker writes its line", async || {
            std::fs::read_to_string(&path).ok()?.strip_suffix('\n').map(str::to_owned)
        })
        .await
    }

    /// Plays the gateway: the worker connects with what its process was given.
    async fn connect(&self, credential: &str) -> Incarnation {
        let (incarnation, credential) = (Incarnation::new(), Credential::parse(credential).expect("a credential"));
        let connected = self.store.connect_worker(&credential, incarnation, GatewayId::new(), Uuid::now_v7(), 1, false);
        connected.await.expect("connects");
        incarnation
    }

    /// Brings up a worker that has this turn in hand; its process.
    async fn in_hand(&self, agent: &str) -> (TurnId, u32) {
        self.agent(agent, CONFESS, json!({})).await;
        let turn = self.arm(agent, "c").await;
        let incarnation = self.connect(&self.line("credential").await).await;
        let claimed = self
            .store
            .claim(ClaimFor { incarnation, room: 1, together: false, order: ClaimOrder::default() })
            .await
            .expect("claims");
        assert_eq!(claimed.len(), 1);
        (turn, self.line("pid").await.parse().expect("a pid"))
    }

    async fn end(self) {
        self.shutdown.cancel();
        within("the fleet ends", self.fleet).await.expect("without a panic");
        assert_eq!(self.runtime.running().await, []);
    }
}

/// A worker that writes down its credential and its process id. As in Kubernetes, `$$` in a command is one dollar.
const CONFESS: &[&str] = &["sh", "-c", "echo $LASTWORD_CREDENTIAL > credential; echo $$$$ > pid; exec sleep 300"];
