//! The fleet with a real Postgres and real processes; the workers are stand-ins that never connect, unless a test plays
//! the gateway for them.

use std::path::Path;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use lastword::fleet::process::{ProcessConfig, ProcessRuntime};
use lastword::fleet::{FleetConfig, WorkerRuntime, fail_former_boots, run, wake_on_notices};
use lastword::leadership::Leadership;
use lastword::local::postgres::{Embedded, Options, Shutdown};
use lastword::store::{Arm, ClaimFor, Lease, LeasePhase, NewStart, PoolSizes, Store};
use lastword::turn::keys::{GatewayId, Grouping, Incarnation, StartId, TurnId, worker_group};
use lastword::turn::reason::Reason;
use lastword::turn::terminal::Failure;
use lastword::wire::Credential;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const ORG: &str = "default";
/// The longest that anything here is waited for, on a busy machine.
const BOUND: Duration = Duration::from_secs(20);

/// One server for the process, kept by a thread of its own; it ends with us. A database for each test.
async fn database() -> Store {
    static SERVER: OnceLock<PgConnectOptions> = OnceLock::new();
    let options = SERVER.get_or_init(|| {
        let (give, take) = mpsc::channel();
        std::thread::spawn(move || {
            tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
                let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
                let directory = temporary.join("fleet");
                let _ = std::fs::remove_dir_all(&directory);
                let mut options = Options::new(directory, temporary.join("postgres"));
                options.ephemeral = true;
                let server = Embedded::start(options).await.expect("Postgres starts");
                give.send(server.connect_options("lastword")).expect("somebody waits");
                std::future::pending::<()>().await;
            });
        });
        take.recv().expect("a server")
    });
    let name = format!("t{}", Uuid::now_v7().simple());
    let mut connection = PgConnection::connect_with(options).await.expect("connects");
    sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut connection).await.expect("created");
    open(options.clone().database(&name)).await
}

async fn open(options: PgConnectOptions) -> Store {
    let store = Store::open(options, PoolSizes { general: 4, vital: 4 });
    store.migrate().await.expect("migrates");
    store
}

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
    async fn new() -> Scene {
        // Polls are rare, so that what happens at once was woken.
        Scene::with(FleetConfig { poll: Duration::from_secs(2), ..FleetConfig::default() }).await
    }

    async fn with(config: FleetConfig) -> Scene {
        Scene::on(database().await, config).await
    }

    async fn on(store: Store, config: FleetConfig) -> Scene {
        let directory = tempfile::tempdir().expect("a directory");
        let processes = ProcessConfig::new("test", "http://127.0.0.1:1", directory.path()).expect("our own path");
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
        self.store.put_agent(ORG, name, &spec).await.expect("put");
    }

    async fn arm(&self, agent: &str, conversation: &str) -> TurnId {
        let turn_id = TurnId::new();
        let arm = Arm {
            turn_id,
            organization: ORG.into(),
            conversation: conversation.into(),
            message_id: turn_id.to_string(),
            agent: agent.into(),
            worker_group: worker_group(agent, Grouping::PerConversation, conversation),
            user: "u".into(),
            routing: json!({}),
            input: "hello".into(),
            content_hash: vec![1],
            traceparent: None,
            turn_seconds: 600,
            lease_seconds: 60,
            guard: None,
            object: None,
        };
        self.store.arm(arm).await.expect("armed").turn_id
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
            (self.store.living_workers().await.expect("workers").is_empty() && self.runtime.running().await.is_empty())
                .then_some(())
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

    async fn end(self) {
        self.shutdown.cancel();
        tokio::time::timeout(BOUND, self.fleet).await.expect("the fleet ends").expect("without a panic");
        assert_eq!(self.runtime.running().await, []);
    }
}

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < BOUND, "not within {BOUND:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A worker that writes down its credential and its process id. As in Kubernetes, `$$` in a command is one dollar.
const CONFESS: &[&str] = &["sh", "-c", "echo $LASTWORD_CREDENTIAL > credential; echo $$$$ > pid; exec sleep 300"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_brings_a_worker_within_moments_and_the_end_of_the_fleet_takes_it_along() {
    let scene = Scene::new().await;
    scene.agent("a", CONFESS, json!({})).await;
    let begun = Instant::now();
    scene.arm("a", "c").await;
    let lease = scene.worker(|w| w.phase == LeasePhase::Starting).await;
    println!("from arm to lease: {:?}", begun.elapsed());
    let pid: i32 = scene.line("pid").await.parse().expect("a pid");
    println!("from arm to a running process: {:?}", begun.elapsed());
    assert!(lease.runtime_ref.starts_with("test/") && lease.runtime_ref.ends_with(&lease.start_id.to_string()));
    scene.arm("a", "c").await;
    scene.wake.notify_one();
    assert_eq!(scene.runtime.running().await, [lease.start_id], "one worker a conversation");
    let store = scene.store.clone();
    scene.end().await;
    assert!(store.living_workers().await.expect("workers").is_empty(), "its death was reported");
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_program_ends_the_turns_that_wait() {
    let scene = Scene::new().await;
    scene.agent("a", &["/no/such/program"], json!({})).await;
    let (one, two) = (scene.arm("a", "c").await, scene.arm("a", "c").await);
    for turn in [one, two] {
        let failure = scene.failure(turn).await;
        assert_eq!(failure.reason, Reason::StartFailed);
        let detail = failure.detail.expect("a detail");
        assert!(detail.contains("cannot start /no/such/program: No such file"), "{detail}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_exits_before_it_connects_is_a_failed_start() {
    for attempts in [1, 2] {
        let scene = Scene::new().await;
        let command = ["sh", "-c", "echo x >> starts; echo no config >&2; exit 7"];
        scene.agent("a", &command, json!({"timing": {"startAttempts": attempts}})).await;
        let failure = scene.failure(scene.arm("a", "c").await).await;
        assert_eq!(failure.reason, Reason::StartFailed);
        assert_eq!(failure.detail.as_deref(), Some("exit code 7; stderr ends:\nno config"));
        let starts = std::fs::read_to_string(scene.directory.path().join("starts")).expect("it ran");
        assert_eq!(starts.lines().count(), attempts);
        scene.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_fails_its_turn_within_moments_and_with_the_cause() {
    let scene = Scene::new().await;
    scene.agent("a", CONFESS, json!({})).await;
    let turn = scene.arm("a", "c").await;
    let incarnation = scene.connect(&scene.line("credential").await).await;
    let claimed = scene.store.claim(ClaimFor { incarnation, room: 1, together: false }).await.expect("claims");
    assert_eq!(claimed.len(), 1);
    let pid = scene.line("pid").await.parse().ok().and_then(Pid::from_raw).expect("a pid");
    let begun = Instant::now();
    kill_process(pid, Signal::KILL).expect("kill");
    let failure = scene.failure(turn).await;
    println!("from kill -9 to the terminal: {:?}", begun.elapsed());
    assert_eq!((failure.reason, failure.detail.as_deref()), (Reason::WorkerExited, Some("signal 9 (SIGKILL)")));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_during_an_outage_is_told_after_it() {
    let data = tempfile::tempdir().expect("a directory");
    let mut options = Options::new(data.path(), Path::new(env!("CARGO_TARGET_TMPDIR")).join("postgres"));
    options.ephemeral = true;
    let mut server = Embedded::start(options).await.expect("Postgres starts");
    let scene = Scene::on(open(server.connect_options("lastword")).await, FleetConfig::default()).await;
    scene.agent("a", CONFESS, json!({})).await;
    let turn = scene.arm("a", "c").await;
    let incarnation = scene.connect(&scene.line("credential").await).await;
    let claimed = scene.store.claim(ClaimFor { incarnation, room: 1, together: false }).await.expect("claims");
    assert_eq!(claimed.len(), 1);
    let pid = scene.line("pid").await.parse().ok().and_then(Pid::from_raw).expect("a pid");
    server.halt(Shutdown::Immediate).await;
    kill_process(pid, Signal::KILL).expect("kill");
    eventually("it was reaped", async || scene.runtime.running().await.is_empty().then_some(())).await;
    // The first attempt to report it is made at once, and has no database.
    assert!(scene.store.ping().await.is_err());
    server.resume().await.expect("Postgres is back");
    let failure = eventually("the turn ends", async || scene.store.turn_record(turn).await.ok()??.failure).await;
    assert_eq!((failure.reason, failure.detail.as_deref()), (Reason::WorkerExited, Some("signal 9 (SIGKILL)")));
    scene.end().await;
    server.stop().await;
}

/// Needs a writable cgroup with the memory controller; without one there is no limit to exceed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_beyond_its_memory_limit_is_named_as_such() {
    let Some(_) = lastword::child::cgroup::Cgroups::detect("probe") else {
        println!("skipped: no cgroup with the memory controller is writable here");
        return;
    };
    let scene = Scene::new().await;
    // The shell waits for the agent's leave, so that it is in its cgroup; tail keeps all of an endless line in memory.
    let command = ["sh", "-c", "sleep 0.2; exec tail /dev/zero"];
    let limited = json!({"spec": {"containers": [{"name": "agent", "command": command,
        "resources": {"limits": {"memory": "32Mi"}}}]}});
    scene.agent("a", &command, json!({"template": limited})).await;
    let failure = scene.failure(scene.arm("a", "c").await).await;
    assert_eq!(failure.reason, Reason::OutOfMemory, "{:?}", failure.detail);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_agent_loses_its_workers_and_its_turns() {
    let scene = Scene::new().await;
    scene.agent("a", CONFESS, json!({})).await;
    scene.arm("a", "c").await;
    scene.connect(&scene.line("credential").await).await;
    let waiting = scene.arm("a", "c").await;
    scene.store.remove_agent(ORG, "a").await.expect("removed");
    assert_eq!(scene.failure(waiting).await.reason, Reason::AgentNotFound);
    scene.nobody_left().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_agent_gets_new_workers() {
    let scene = Scene::new().await;
    scene.agent("a", CONFESS, json!({})).await;
    let turn = scene.arm("a", "c").await;
    let old = scene.worker(|w| w.generation == 1).await;
    scene.agent("a", CONFESS, json!({"timing": {"startSeconds": 99}})).await;
    let new = scene.worker(|w| w.generation == 2).await;
    assert_ne!(new.start_id, old.start_id);
    eventually("the old one is gone", async || (!scene.runtime.running().await.contains(&old.start_id)).then_some(()))
        .await;
    let record = scene.store.turn_record(turn).await.expect("a record").expect("the turn");
    assert!(record.open, "a deliberate stop fails no turn that waits: {:?}", record.failure);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_turns_beyond_the_queue_are_shed() {
    let scene = Scene::new().await;
    scene.agent("a", CONFESS, json!({"limits": {"maxQueuedTurns": 2, "maxWorkers": 1}})).await;
    let mut turns = Vec::new();
    for conversation in ["c", "d", "e"] {
        turns.push(scene.arm("a", conversation).await);
    }
    assert_eq!(scene.failure(turns[2]).await.reason, Reason::QuotaExceeded);
    for kept in &turns[..2] {
        assert!(scene.store.turn_record(*kept).await.expect("a record").expect("the turn").open);
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_worker_is_drained_and_killed_if_it_must_be() {
    let scene = Scene::with(FleetConfig { poll: Duration::from_millis(100), ..FleetConfig::default() }).await;
    // It takes no notice of SIGTERM.
    let stubborn = ["sh", "-c", "trap '' TERM; echo $LASTWORD_CREDENTIAL > credential; while :; do sleep 1; done"];
    scene.agent("a", &stubborn, json!({"timing": {"idleSeconds": 0, "drainSeconds": 1}})).await;
    let turn = scene.arm("a", "c").await;
    let credential = scene.line("credential").await;
    let incarnation = scene.connect(&credential).await;
    scene.store.fail_turn(turn, &Failure::new(Reason::Cancelled)).await.expect("cancelled");
    let lease = scene.worker(|w| w.phase == LeasePhase::Draining).await;
    assert_eq!(lease.incarnation, incarnation);
    scene.nobody_left().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_lease_is_dead_is_killed() {
    let config =
        FleetConfig { poll: Duration::from_millis(100), stray: Duration::from_millis(200), ..FleetConfig::default() };
    let scene = Scene::with(config).await;
    scene.agent("a", CONFESS, json!({})).await;
    scene.arm("a", "c").await;
    let incarnation = scene.connect(&scene.line("credential").await).await;
    let silent = Failure::new(Reason::LeaseLapsed);
    scene.store.fail_worker(incarnation, &silent).await.expect("failed");
    scene.nobody_left().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_workers_of_a_former_boot_are_failed_at_once() {
    let store = database().await;
    let (now, before) = (Uuid::now_v7(), Uuid::now_v7());
    let mut starts = Vec::new();
    for (node, boot) in [("here", before), ("here", now), ("there", before)] {
        let start_id = StartId::new();
        let start = NewStart {
            start_id,
            organization: ORG.into(),
            agent: "a".into(),
            worker_group: "a".into(),
            generation: 1,
            runtime: "process",
            runtime_ref: format!("{node}/{boot}/{start_id}"),
            secret_hash: vec![],
            capacity: 1,
            heartbeat_seconds: 20,
            lease_seconds: 60,
            drain_seconds: 30,
            start_attempts: 1,
            start_seconds: 60,
        };
        assert!(store.start_worker(&start, false).await.expect("started"));
        starts.push(start_id);
    }
    assert_eq!(fail_former_boots(&store, "here", now).await.expect("failed"), 1);
    let left: Vec<StartId> = store.living_workers().await.expect("workers").iter().map(|w| w.start_id).collect();
    assert_eq!(left, starts[1..]);
    assert_eq!(fail_former_boots(&store, "here", now).await.expect("failed"), 0);
}
