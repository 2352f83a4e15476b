//! What a token of Kubernetes opens at a gateway: it is reviewed, and what it proves is held against the lease.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::future::BoxFuture;
use lastword::turn::reason::Reason;
use lastword::turn::terminal::Failure;
use lastword::wire::{Credential, IssuedCredential};
use lastword::worker_port::identity::{PodIdentity, ReviewError, Reviewer};
use reqwest::StatusCode;
use serde_json::json;
use tokio::process::{Child, Command};

use super::{UID, kubernetes};
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::{AGENT, Gateway, put_agent};
use crate::support::wait::{eventually, within};
use crate::support::{Db, LASTWORD, repository};

crate::newest! {
    a_token_is_good_for_its_own_pod,
    refused_tokens_are_not_reviewed_again,
    garbage_is_not_reviewed,
    a_worker_of_ours_shows_its_token,
    the_python_example_shows_its_token,
}

/// Knows the tokens `pod.NAME.UID`, and why others prove nothing. `forged.NAME.UID` says the same of itself.
#[derive(Debug, Default)]
struct FakeReviewer {
    shown: AtomicU32,
    reviews: AtomicU32,
}

impl Reviewer for FakeReviewer {
    fn claimed(&self, token: &str) -> Result<PodIdentity, ReviewError> {
        self.shown.fetch_add(1, Ordering::Relaxed);
        let parts: Vec<&str> = token.split('.').collect();
        match parts[..] {
            ["pod" | "forged" | "later", name, uid] => {
                Ok(PodIdentity { namespace: "default".into(), name: name.into(), uid: uid.into() })
            }
            ["user", ..] => Err(ReviewError::NotAPod),
            _ => Err(ReviewError::Refused),
        }
    }

    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<PodIdentity, ReviewError>> {
        self.reviews.fetch_add(1, Ordering::Relaxed);
        let parts: Vec<&str> = token.split('.').collect();
        let answer = match parts[..] {
            ["pod", name, uid] => Ok(PodIdentity { namespace: "default".into(), name: name.into(), uid: uid.into() }),
            ["later", ..] => Err(ReviewError::Unavailable("the API server is away".into())),
            _ => Err(ReviewError::Refused),
        };
        Box::pin(async { answer })
    }
}

async fn reviewing(db: &Db) -> (Gateway, Arc<FakeReviewer>) {
    let reviewer = Arc::new(FakeReviewer::default());
    let theirs = reviewer.clone();
    (Gateway::with(db.options(), |config| config.reviewer = Some(theirs)).await, reviewer)
}

async fn ask(gateway: &Gateway, token: &str) -> (StatusCode, Option<Credential>) {
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let request = http.post(format!("{}/worker/v1/credential", gateway.workers)).bearer_auth(token);
    let response = within("a session", request.send()).await.expect("an answer");
    let status = response.status();
    let credential = match status.is_success() {
        true => {
            assert_eq!(response.headers()["cache-control"], "no-store");
            let session: IssuedCredential = response.json().await.expect("as documented");
            Some(Credential::parse(&session.credential).expect("a credential"))
        }
        false => {
            assert_eq!(response.headers()["content-type"], "application/problem+json");
            None
        }
    };
    (status, credential)
}

async fn a_token_is_good_for_its_own_pod(db: Db) {
    put_agent(&db.store, AGENT, json!({"adapter": "Exec"})).await;
    let (gateway, _) = reviewing(&db).await;
    let mut worker = FakeWorker::new(&db.store, kubernetes).await;
    let good = format!("pod.bot-1.{UID}");
    assert_eq!(ask(&gateway, &good).await.0, StatusCode::TOO_EARLY, "not recorded yet");
    assert!(db.store.record_pod_of_start(worker.credential.start, UID, 30).await.expect("answers"));
    for (token, status) in [
        ("garbage", 401),
        ("other.audience.token", 401),
        ("user.alice.x", 403),
        (&format!("later.bot-1.{UID}"), 503),
        (&format!("forged.bot-1.{UID}"), 401),
        ("pod.bot-1.another-uid", 403),
        ("pod.bot-2.uid-1", 403),
    ] {
        assert_eq!(ask(&gateway, token).await.0.as_u16(), status, "{token}");
    }
    let (status, credential) = ask(&gateway, &good).await;
    assert_eq!(status, StatusCode::OK);
    // What the runtime made is good no more; what the pod was given is, on any replica.
    worker.gateway = gateway.workers.clone();
    assert_eq!(worker.try_connect(&[]).await.err().expect("refused").0, StatusCode::FORBIDDEN);
    worker.credential = credential.expect("granted");
    let other = Gateway::start(&db).await;
    worker.connect(&other, &[]).await;
    assert_eq!(ask(&other, &good).await.0, StatusCode::SERVICE_UNAVAILABLE, "it reviews no tokens");
    assert_eq!(ask(&gateway, &good).await.0, StatusCode::GONE, "its session has begun");
    let failure = Failure::new(Reason::WorkerExited);
    db.store.fail_worker(worker.incarnation, &failure).await.expect("answers");
    assert_eq!(ask(&gateway, &good).await.0, StatusCode::GONE);
}

async fn refused_tokens_are_not_reviewed_again(db: Db) {
    let (gateway, reviewer) = reviewing(&db).await;
    let worker = FakeWorker::new(&db.store, kubernetes).await;
    assert!(db.store.record_pod_of_start(worker.credential.start, UID, 30).await.expect("answers"));
    let reviews = || reviewer.reviews.load(Ordering::Relaxed);
    for _ in 0..3 {
        assert_eq!(ask(&gateway, &format!("forged.bot-1.{UID}")).await.0, StatusCode::UNAUTHORIZED);
        assert_eq!(ask(&gateway, "no token at all").await.0, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(reviews(), 1);
    for _ in 0..2 {
        assert_eq!(ask(&gateway, &format!("later.bot-1.{UID}")).await.0, StatusCode::SERVICE_UNAVAILABLE);
    }
    assert_eq!(reviews(), 3, "an outage is no answer to remember");
}

/// Kubernetes is asked about no token but that of a pod which waits for a credential; garbage costs it nothing, whatever it
/// says of itself.
async fn garbage_is_not_reviewed(db: Db) {
    let (gateway, reviewer) = reviewing(&db).await;
    let waiting = FakeWorker::new(&db.store, kubernetes).await;
    let shown = || reviewer.shown.load(Ordering::Relaxed);
    for i in 0..50 {
        assert_eq!(ask(&gateway, &format!("bad.bad.{i}")).await.0, StatusCode::UNAUTHORIZED);
        assert_eq!(ask(&gateway, &format!("forged.no-pod-of-ours.{i}")).await.0, StatusCode::FORBIDDEN);
        assert_eq!(ask(&gateway, &format!("forged.bot-1.{i}")).await.0, StatusCode::TOO_EARLY, "not recorded");
    }
    assert!(db.store.record_pod_of_start(waiting.credential.start, UID, 30).await.expect("answers"));
    for i in 0..50 {
        assert_eq!(ask(&gateway, &format!("forged.bot-1.{i}")).await.0, StatusCode::FORBIDDEN, "of another UID");
    }
    assert_eq!((shown(), reviewer.reviews.load(Ordering::Relaxed)), (200, 0));
    assert_eq!(ask(&gateway, &format!("pod.bot-1.{UID}")).await.0, StatusCode::OK);
    assert_eq!(reviewer.reviews.load(Ordering::Relaxed), 1);
}

/// A worker as it starts in a pod: its token is not there yet, then expired, then good; its pod is recorded late.
async fn in_a_pod(db: Db, command: &[&str]) {
    let (gateway, reviewer) = reviewing(&db).await;
    let row = FakeWorker::new(&db.store, kubernetes).await;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("token");
    let mut worker = launch(command, &gateway, &file);
    std::fs::write(&file, format!("pod.bot-1.{UID}\n")).expect("written");
    eventually("it asks", async || reviewer.shown.load(Ordering::Relaxed) > 0).await;
    assert!(worker.try_wait().expect("a child").is_none(), "425 is no reason to leave");
    assert!(db.store.record_pod_of_start(row.credential.start, UID, 30).await.expect("answers"));
    let client = gateway.client();
    let turn = client.submit("c", "m", "hello there").await;
    assert_eq!(db.ending(turn.turn_id).await, "reply");

    std::fs::write(&file, "bad.bad.bad").expect("written");
    let status = within("its end", launch(command, &gateway, &file).wait()).await.expect("a status");
    assert!(matches!(status.code(), Some(3 | 4)), "{status}");
}

fn launch(command: &[&str], gateway: &Gateway, token: &Path) -> Child {
    Command::new(command[0])
        .args(&command[1..])
        .env("LASTWORD_WORKER_GATEWAY", &gateway.workers)
        .env("LASTWORD_TOKEN_FILE", token)
        .env_remove("LASTWORD_CREDENTIAL")
        .kill_on_drop(true)
        .spawn()
        .expect("starts")
}

async fn a_worker_of_ours_shows_its_token(db: Db) {
    in_a_pod(db, &[LASTWORD, "worker", "echo"]).await;
}

async fn the_python_example_shows_its_token(db: Db) {
    in_a_pod(db, &["python3", repository("examples/worker.py").to_str().unwrap()]).await;
}
