//! Terminals are posted to webhooks and Slack, at least once, until they are taken; and only where they may go.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use base64::Engine;
use lastword::egress::{Egress, Outbound, Reach};
use lastword::local::secrets::LocalSecrets;
use lastword::post;
use lastword::store::{PoolSizes, Retention, Store};
use lastword::turn::keys::TurnId;
use lastword::turn::reason::Reason;
use lastword::turn::routing::Routing;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tracing::Dispatch;

use crate::support::actors::{AGENT, ORGANIZATION, Worker, arm, armed, failure, finish};
use crate::support::wait::eventually;
use crate::support::{Db, crypto, python_clients, repository};

/// Part of the URL; whoever knows it can post.
const PATH: &str = "/hooks/a-secret-path";

/// What one test's renderers log, at its loudest.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn dispatch(&self) -> Dispatch {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt().with_env_filter("lastword=trace,reqwest=debug,info");
        subscriber.with_writer(move || log.clone()).into()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A request as it came in.
#[derive(Debug, Clone)]
struct Request {
    line: String,
    headers: HashMap<String, String>,
    body: String,
}

impl Request {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// How the receiver answers.
#[derive(Debug, Clone, Copy)]
enum Answer {
    Status(u16),
    /// The connection ends once the request was read.
    Cut,
}

/// A receiver on loopback, which answers as it was told, and then with 200.
struct Receiver {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Receiver {
    fn start(answers: &[Answer]) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (noted, answers) = (seen.clone(), answers.to_vec());
        std::thread::spawn(move || {
            let mut answers = answers.into_iter();
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let Some(request) = read(&mut connection) else { continue };
                noted.lock().unwrap().push(request);
                if let Answer::Status(status) = answers.next().unwrap_or(Answer::Status(200)) {
                    let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
                    let _ = connection.write_all(answer.as_bytes());
                }
            }
        });
        Receiver { address, seen }
    }

    fn url(&self) -> String {
        format!("http://{}{PATH}", self.address)
    }

    fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

fn read(connection: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let mut lines = head.lines();
            let line = lines.next()?.to_string();
            let split = |l: &str| l.split_once(": ").map(|(n, v)| (n.to_lowercase(), v.to_string()));
            let headers: HashMap<String, String> = lines.filter_map(split).collect();
            if body.len() >= headers["content-length"].parse::<usize>().unwrap() {
                return Some(Request { line, headers, body: body.to_string() });
            }
        }
        match connection.read(&mut piece) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&piece[..n]),
            _ => return None,
        }
    }
}

/// A controller's renderers, and where their Secrets are. They run in a runtime of their own: its threads' log is theirs alone,
/// whatever other tests of this process do.
struct Renderers {
    secrets: TempDir,
    log: Log,
    runtime: Option<Runtime>,
}

impl Renderers {
    fn start(db: &Db, egress: Egress) -> Renderers {
        crypto();
        let (secrets, log) = (tempfile::tempdir().unwrap(), Log::default());
        let outbound = Outbound::new(egress, Reach::Public).unwrap();
        let local = LocalSecrets { directory: Some(secrets.path().to_path_buf()) };
        let dispatch = log.dispatch();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.on_thread_start(move || std::mem::forget(tracing::dispatcher::set_default(&dispatch)));
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let options = db.options();
        runtime.spawn(async move {
            let store = Store::open(options, PoolSizes::default());
            post::run(store, Arc::new(local), outbound, CancellationToken::new()).await;
        });
        Renderers { secrets, log, runtime: Some(runtime) }
    }

    fn put(&self, name: &str, key: &str, value: &str) {
        let directory = self.secrets.path().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(format!("{key}.new")), value).unwrap();
        std::fs::rename(directory.join(format!("{key}.new")), directory.join(key)).unwrap();
    }
}

impl Drop for Renderers {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        if std::thread::panicking() {
            eprintln!("--- the log of the renderers ---\n{}---", self.log.text());
        }
    }
}

async fn put_platforms(db: &Db, platforms: Value) {
    let spec = json!({"scope": "Agent", "adapter": "Custom", "platforms": platforms});
    db.store.put_agent(ORGANIZATION, AGENT, &spec).await.unwrap();
}

/// A webhook and a Slack channel, both of one receiver; URL and signing secret lie in Secrets.
fn hook_and_slack() -> Value {
    let secret = |name: &str, key: &str| json!({"name": name, "key": key});
    let hook = json!({"urlSecretRef": secret("hook", "url"), "signingSecretRef": secret("hook", "signing")});
    json!([{"name": "hook", "webhook": hook}, {"name": "team", "slack": {"urlSecretRef": secret("hook", "url")}}])
}

async fn turn_on(db: &Db, conversation: &str, platform: &str) -> TurnId {
    let mut arm = arm(conversation);
    arm.routing = serde_json::to_value(Routing::on(platform, json!({"thread": "1.2"}))).unwrap();
    armed(&db.store, arm).await.turn_id
}

async fn posted(db: &Db) {
    eventually("all is posted", async || db.count("delivery WHERE platform <> 'api'").await == 0).await;
}

/// A receiver that fails twice gets the same event again, under one id; a public library trusts it.
async fn a_webhook_is_posted_until_it_is_taken(db: Db) {
    let signing = format!("whsec_{}", base64::engine::general_purpose::STANDARD.encode([9; 32]));
    let receiver = Receiver::start(&[Answer::Status(500), Answer::Cut]);
    let renderers = Renderers::start(&db, Egress::default().with_loopback());
    renderers.put("hook", "url", &receiver.url());
    renderers.put("hook", "signing", &signing);
    put_platforms(&db, hook_and_slack()).await;
    let worker = Worker::live(&db.store).await;
    let turn = turn_on(&db, "c", "hook").await;
    assert_eq!(worker.claim_ids(&db.store, 1).await, [turn]);
    assert_eq!(finish(&db.store, worker.reply(&[turn], "hello <you>")).await, Ok(true));
    posted(&db).await;

    let seen = receiver.seen();
    assert_eq!(seen.len(), 3, "two that failed, and one that was taken");
    for request in &seen {
        assert_eq!(request.line, format!("POST {PATH} HTTP/1.1"));
        assert_eq!(request.headers["webhook-id"], turn.to_string());
        assert_eq!(request.headers["content-type"], "application/json");
        assert_eq!(request.body, seen[0].body, "an attempt changes nothing but its time");
    }
    let event = seen[2].json();
    assert_eq!(event["type"], "turn.completed");
    let data = &event["data"];
    for (field, expected) in [
        ("turnId", json!(turn)),
        ("organization", json!(ORGANIZATION)),
        ("agent", json!(AGENT)),
        ("conversation", json!("c")),
        ("platform", json!("hook")),
        ("platformMetadata", json!({"thread": "1.2"})),
    ] {
        assert_eq!(data[field], expected, "{data}");
    }
    assert_eq!((&data["reply"]["text"], &data["reply"]["turnIds"]), (&json!("hello <you>"), &json!([turn])));

    // A failure says what a client may know, and no more.
    let turn = turn_on(&db, "c", "hook").await;
    assert_eq!(worker.claim_ids(&db.store, 1).await, [turn]);
    db.store.fail_worker(worker.incarnation, &failure(Reason::OutOfMemory)).await.unwrap();
    posted(&db).await;
    let failed = receiver.seen().pop().unwrap();
    assert_eq!(failed.json()["type"], "turn.failed");
    assert_eq!(failed.json()["data"]["error"]["reason"], "OutOfMemory");
    assert!(!failed.body.contains("by the test"), "the detail is for operators: {}", failed.body);

    let log = renderers.log.text();
    assert!(log.contains("answered 500") && log.contains(&turn.to_string()), "operators hear of it");
    assert!(!log.contains("a-secret-path") && !log.contains(&signing[6..]), "secrets are not logged");

    let Some(python) = python_clients("none of them verifies the signature") else { return };
    for request in seen.iter().chain([&failed]) {
        assert!(trusted(&python, &signing, request), "{request:?}");
    }
    let forged = Request { body: failed.body.replace("OutOfMemory", "Cancelled"), ..failed };
    assert!(!trusted(&python, &signing, &forged));
}

/// Slack gets the text or `Error: …`, and a reply to several turns once.
async fn slack_shows_the_text_or_the_error(db: Db) {
    let receiver = Receiver::start(&[]);
    let renderers = Renderers::start(&db, Egress::default().with_loopback());
    renderers.put("hook", "url", &format!("{}\n", receiver.url()));
    put_platforms(&db, hook_and_slack()).await;
    let worker = Worker::together(&db.store).await;
    let turns = [turn_on(&db, "c", "team").await, turn_on(&db, "c", "team").await];
    assert_eq!(worker.claim_ids(&db.store, 2).await, turns);
    assert_eq!(finish(&db.store, worker.reply(&turns, "1 < 2 & <!channel>")).await, Ok(true));
    posted(&db).await;
    let turn = turn_on(&db, "d", "team").await;
    assert_eq!(worker.claim_ids(&db.store, 1).await, [turn]);
    db.store.fail_worker(worker.incarnation, &failure(Reason::OutOfMemory)).await.unwrap();
    posted(&db).await;
    let bodies: Vec<Value> = receiver.seen().iter().map(Request::json).collect();
    let error = format!("Error: {}", Reason::OutOfMemory.client_message());
    // Slack is not to fetch what an agent names: it would tell the agent's words to that host.
    let message = |text: &str| json!({"text": text, "unfurl_links": false, "unfurl_media": false});
    assert_eq!(bodies, [message("1 &lt; 2 &amp; &lt;!channel&gt;"), message(&error)]);
    assert!(!renderers.log.text().contains("a-secret-path"), "secrets are not logged");
}

/// What leads into a refused range, by address or by name, is never connected to.
async fn a_url_into_the_cluster_is_refused(db: Db) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let _renderers = Renderers::start(&db, Egress::default());
    let worker = Worker::live(&db.store).await;
    let urls = ["http://127.0.0.1", "https://127.0.0.1", "https://[::ffff:127.0.0.1]", "https://localhost"];
    let platform =
        |(i, url): (usize, &&str)| json!({"name": format!("p{i}"), "slack": {"url": format!("{url}:{port}/")}});
    put_platforms(&db, urls.iter().enumerate().map(platform).collect()).await;
    for i in 0..urls.len() {
        let turn = turn_on(&db, &format!("c{i}"), &format!("p{i}")).await;
        assert_eq!(worker.claim_ids(&db.store, 1).await, [turn]);
        assert_eq!(finish(&db.store, worker.reply(&[turn], "hello")).await, Ok(true));
    }
    let refused = "delivery WHERE problem LIKE '%allow it with --egress-allow%'";
    eventually("all are refused", async || db.count(refused).await == urls.len() as i64).await;
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "nobody connected");
}

/// 410 at once, and a platform that does not come back: tried no more, kept for operators with its problem until its turn's retention.
async fn what_never_goes_is_given_up_and_found(db: Db) {
    let receiver = Receiver::start(&[Answer::Status(410)]);
    let renderers = Renderers::start(&db, Egress::default().with_loopback());
    renderers.put("hook", "url", &receiver.url());
    put_platforms(&db, hook_and_slack()).await;
    let worker = Worker::live(&db.store).await;
    for platform in ["team", "gone"] {
        let turn = turn_on(&db, platform, platform).await;
        assert_eq!(worker.claim_ids(&db.store, 1).await, [turn]);
        assert_eq!(finish(&db.store, worker.reply(&[turn], "hello")).await, Ok(true));
    }
    let again = "delivery WHERE platform = 'gone' AND state = 'ready' AND problem IS NOT NULL";
    eventually("the platform may come back", async || db.count(again).await == 1).await;
    db.sql("UPDATE delivery SET attempts = 11, due_at = clock_timestamp() WHERE platform = 'gone'").await;
    eventually("both are given up", async || db.count("delivery WHERE state = 'parked'").await == 2).await;
    for (platform, expected) in
        [("team", "127.0.0.1 answered 410"), ("gone", "the Agent bot has no platform gone any more")]
    {
        let problem = db.text(format!("SELECT problem FROM delivery WHERE platform = '{platform}'")).await;
        assert_eq!(problem.as_deref(), Some(expected));
    }
    assert_eq!(receiver.seen().len(), 1);
    let figures = db.store.metrics().await.unwrap();
    assert_eq!(figures.posts, [("due".into(), 0), ("given-up".into(), 2)]);
    db.sql("UPDATE terminal SET ended_at = ended_at - interval '60 days'").await;
    assert_eq!(db.store.prune_past_retention(&Retention::default()).await.unwrap(), 2);
    assert_eq!(db.count("delivery").await, 0);
}

/// Whether the public library trusts a request.
fn trusted(python: &Path, secret: &str, request: &Request) -> bool {
    let script = repository("tests/clients/webhook.py");
    let mut child = Command::new(python).arg(script).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let question = json!({"secret": secret, "headers": request.headers, "body": request.body});
    child.stdin.take().unwrap().write_all(question.to_string().as_bytes()).unwrap();
    child.wait().unwrap().success()
}

crate::both!(
    a_webhook_is_posted_until_it_is_taken,
    slack_shows_the_text_or_the_error,
    a_url_into_the_cluster_is_refused,
    what_never_goes_is_given_up_and_found,
);
