//! TLS on the worker port: who is served, who is not, and certificates that are renewed. The certificates are made by
//! `tests/tls/make`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use lastword::gateway::GatewayConfig;
use lastword::gateway::args::WorkerTlsArgs;
use lastword::tls::{Authorities, http_trusting};
use lastword::wire::{Credential, FinishResult};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::raw;
use crate::support::client::{names, text};
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::Gateway;
use crate::support::wait::{eventually, within};
use crate::support::{Db, LASTWORD, repository};

crate::newest! {
    a_worker_is_served_over_tls,
    a_worker_that_knows_no_authority_says_what_to_do,
    plain_http_is_not_answered,
    half_a_handshake_is_cut_off,
    a_renewed_certificate_is_shown_to_the_next,
    a_turn_is_followed_over_tls,
}

fn file(name: &str) -> PathBuf {
    repository("tests/tls").join(name)
}

/// A gateway whose worker port shows the certificate in this directory, which is one for `localhost`.
async fn showing(db: &Db, directory: &Path, change: impl FnOnce(&mut GatewayConfig)) -> Gateway {
    let args = WorkerTlsArgs {
        worker_tls_cert: Some(directory.join("first.crt")),
        worker_tls_key: Some(directory.join("first.key")),
        worker_tls_ca: Some(file("first-ca.crt")),
        worker_tls_name: Some("localhost".try_into().expect("a name")),
    };
    let mut gateway = Gateway::with(db.options(), |config| {
        // An address, which the certificate does not name, as of a pod.
        config.advertise = config.advertise.replace("http:", "https:");
        config.worker_tls = args.worker_tls().expect("the files are good");
        change(config);
    })
    .await;
    gateway.workers = gateway.workers.replace("http://127.0.0.1", "https://localhost");
    gateway
}

async fn with_tls(db: &Db) -> Gateway {
    showing(db, &file(""), |_| {}).await
}

/// A client that trusts this authority alone; every call is a connection of its own.
fn trusting(authority: &str) -> reqwest::Client {
    let authorities = Authorities::read(&file(authority)).expect("an authority");
    http_trusting(&authorities).no_proxy().pool_max_idle_per_host(0).build().expect("a client")
}

/// Whether the worker port answers.
async fn answers(client: &reqwest::Client, gateway: &Gateway) -> bool {
    within("an answer", client.get(format!("{}/worker/v1/turns", gateway.workers)).send()).await.is_ok()
}

fn address(gateway: &Gateway) -> String {
    gateway.workers.replace("https://localhost", "127.0.0.1")
}

/// A real worker, whose environment names this authority.
fn echo(gateway: &Gateway, credential: &Credential, authority: Option<&str>) -> Child {
    let mut command = Command::new(LASTWORD);
    command
        .args(["worker", "echo"])
        .env_remove("LASTWORD_LOG")
        .env("LASTWORD_WORKER_GATEWAY", &gateway.workers)
        .env("LASTWORD_CREDENTIAL", credential.reveal())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if let Some(authority) = authority {
        command.env("LASTWORD_WORKER_GATEWAY_CA", file(authority));
    }
    command.spawn().expect("it starts")
}

async fn a_worker_is_served_over_tls(db: Db) {
    let gateway = with_tls(&db).await;
    let start = FakeWorker::new(&db.store, |_| {}).await;
    let _worker = echo(&gateway, &start.credential, Some("first-ca.crt"));
    let turn = gateway.client().submit("c", "m", "hello").await.turn_id;
    assert_eq!(db.ending(turn).await, "reply");
    assert_eq!(gateway.client().record(turn).await["reply"]["text"], "hello");
}

async fn a_worker_that_knows_no_authority_says_what_to_do(db: Db) {
    let gateway = with_tls(&db).await;
    let start = FakeWorker::new(&db.store, |_| {}).await;
    for authority in [None, Some("second-ca.crt")] {
        let mut worker = echo(&gateway, &start.credential, authority);
        let mut lines = BufReader::new(worker.stderr.take().expect("piped")).lines();
        let line = within("a word on stderr", lines.next_line()).await.expect("text").expect("a line");
        let advice = "invalid peer certificate: UnknownIssuer; \
                      name the authority of its certificate with --gateway-ca FILE (LASTWORD_WORKER_GATEWAY_CA)";
        assert!(line.contains(&gateway.workers) && line.contains(advice), "{line}");
    }
    assert_eq!(db.count("lease WHERE phase = 'starting'").await, 1, "nobody came");
    let absent = echo(&gateway, &start.credential, Some("absent"));
    let ended = within("its end", absent.wait_with_output()).await.expect("it ended");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(said.ends_with("tests/tls/absent: cannot be read: No such file or directory (os error 2)\n"), "{said}");
    assert_eq!(ended.status.code(), Some(1));
}

async fn plain_http_is_not_answered(db: Db) {
    let gateway = with_tls(&db).await;
    let request = b"GET /worker/v1/turns HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    for garbage in [&request[..], b"\0\0\0\0\0\0\0\0", b"\x16\x03\x01\xff\xff\x01\xff\xff\xff"] {
        let answer = raw(&format!("http://{}", address(&gateway)), garbage).await;
        assert!(!answer.contains("HTTP"), "{answer}");
    }
    assert!(answers(&trusting("first-ca.crt"), &gateway).await, "it serves on");
}

async fn half_a_handshake_is_cut_off(db: Db) {
    // One connection at a time: who is served later shows that the one before is over.
    let gateway = showing(&db, &file(""), |config| {
        (config.header_timeout, config.max_connections) = (Duration::from_millis(700), 1);
    })
    .await;
    for begun in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
        let mut connection = TcpStream::connect(address(&gateway)).await.expect("connects");
        connection.write_all(begun).await.expect("sent");
        let _ = within("the end of half a handshake", connection.read_to_end(&mut Vec::new())).await;
        assert!(answers(&trusting("first-ca.crt"), &gateway).await);
    }
}

async fn a_renewed_certificate_is_shown_to_the_next(db: Db) {
    let directory = tempfile::tempdir().expect("a directory");
    let bring = |name: &str| {
        for kind in ["crt", "key"] {
            let to = directory.path().join(format!("first.{kind}"));
            std::fs::copy(file(&format!("{name}.{kind}")), to).expect("copied");
        }
    };
    bring("first");
    let gateway = showing(&db, directory.path(), |_| {}).await;
    let (first, second) = (trusting("first-ca.crt"), trusting("second-ca.crt"));
    assert!(answers(&first, &gateway).await && !answers(&second, &gateway).await);
    let mut worker = FakeWorker::new(&db.store, |_| {}).await;
    worker.http = first.clone();
    worker.connect(&gateway, &[]).await;
    bring("second");
    eventually("the other certificate", async || answers(&second, &gateway).await).await;
    assert!(!answers(&first, &gateway).await);
    // Streams that were open stay so.
    let turn = gateway.client().submit("c", "m", "hello").await.turn_id;
    assert_eq!(worker.turn().await.turn_id, turn);
    worker.http = second;
    assert_eq!(worker.reply(&[turn], "renewed").await, Ok(FinishResult::Accepted));
}

/// Replicas hold each other's certificates against the authority and the name that they share.
async fn a_turn_is_followed_over_tls(db: Db) {
    let (first, second) = (with_tls(&db).await, with_tls(&db).await);
    let mut worker = FakeWorker::new(&db.store, |_| {}).await;
    worker.http = trusting("first-ca.crt");
    worker.connect(&first, &[]).await;
    let turn = first.client().submit("c", "m", "hello").await;
    worker.turn().await;
    let mut there = second.client().session("c", Some(&turn.cursor)).await;
    // Nothing becomes durable: what is seen there comes from the other replica.
    let mut lock = db.pool.begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE output IN SHARE MODE").execute(&mut *lock).await.expect("locked");
    let end = worker.say(turn.turn_id, 0, "one").await;
    assert_eq!(text(&there.until("text").await), "one");
    lock.rollback().await.expect("unlocked");
    assert_eq!(worker.end(turn.turn_id, end).await, Ok(FinishResult::Accepted));
    assert_eq!(names(&there.until("complete").await), ["complete"]);
}

#[tokio::test]
async fn a_certificate_needs_its_key_and_both_must_be_good() {
    let refused = async |args: &[&str], variables: &[(&str, PathBuf)]| {
        let mut command = Command::new(LASTWORD);
        command.args(["gateway", "--database-url", "postgres://localhost/none"]).args(args).kill_on_drop(true);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let output = within("a refusal", command.output()).await.expect("it ran");
        assert!(!output.status.success());
        String::from_utf8(output.stderr).expect("text")
    };
    let (certificate, key) = (file("first.crt"), file("second.key"));
    let said = refused(&["--worker-tls-key", "x"], &[]).await;
    assert!(said.contains("required") && said.contains("--worker-tls-cert <FILE>"), "{said}");
    let said = refused(&[], &[("LASTWORD_WORKER_TLS_CERT", certificate.clone())]).await;
    assert!(said.contains("required") && said.contains("--worker-tls-key <FILE>"), "{said}");
    let both = [("LASTWORD_WORKER_TLS_CERT", certificate.clone()), ("LASTWORD_WORKER_TLS_KEY", key.clone())];
    let said = refused(&[], &both).await;
    let wanted = format!("error: {}: is not the key of the certificate in {}\n", key.display(), certificate.display());
    assert_eq!(said, wanted);
}
