//! A gateway that alone loses the database: nobody is failed for it, and those who are connected to it go elsewhere in time.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lastword::store::NewStart;
use lastword::turn::keys::{Incarnation, TurnId};
use lastword::wire::FinishResult;
use reqwest::StatusCode;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use crate::support::Db;
use crate::support::LASTWORD;
use crate::support::client::End;
use crate::support::fake_worker::FakeWorker;
use crate::support::forwarder::Forwarder;
use crate::support::gateway::{Gateway, Sweeper};
use crate::support::wait::{eventually, throughout, within};

crate::newest! {
    a_worker_that_knows_one_gateway_outlives_a_cut_of_that_gateway,
    a_worker_that_knows_several_goes_on_elsewhere_while_its_gateway_is_cut_off,
    a_name_is_resolved_anew_at_each_try,
    calls_go_to_the_gateway_that_holds_the_stream,
    clients_and_workers_are_let_go_after_half_a_lease_and_not_sooner,
    a_gateway_that_stops_leaves_no_row_and_one_that_is_killed_does,
}

/// A gateway whose database can be cut off.
async fn cuttable(db: &Db) -> (Forwarder, Gateway) {
    let forwarder = Forwarder::start(db.options());
    let gateway = Gateway::with(forwarder.options(), |_| {}).await;
    (forwarder, gateway)
}

fn lease(seconds: u32) -> impl FnOnce(&mut NewStart) {
    move |start| (start.lease_seconds, start.heartbeat_seconds) = (seconds, 1)
}

/// What a worker of the previous version does behind a proxy that leads to one gateway: it comes back to that one, whatever
/// the answer. The other gateway ticks all along, and a sweep looks ten times a second.
async fn a_worker_that_knows_one_gateway_outlives_a_cut_of_that_gateway(db: Db) {
    const LEASE: u32 = 4;
    let (forwarder, pinned_to) = cuttable(&db).await;
    let _other = Gateway::start(&db).await;
    let _sweeper = Sweeper::start(db.another_store());
    let mut worker = FakeWorker::new(&db.store, lease(LEASE)).await;
    worker.connect(&pinned_to, &[]).await;
    let turn = pinned_to.client().submit("c", "m", "hello").await.turn_id;
    assert_eq!(worker.turn().await.turn_id, turn);
    db.settled().await;
    worker.heartbeat(&[turn]).await.expect("lives");
    forwarder.cut();
    let mut refused = 0;
    throughout(Duration::from_secs(u64::from(LEASE) + 2), "it is refused, and spared", async || {
        let (status, _) = worker.heartbeat(&[turn]).await.expect_err("no database");
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        refused += 1;
        db.outcome(turn).await.is_none()
    })
    .await;
    assert!(refused > 2);
    let overdue = "SELECT extract(epoch FROM clock_timestamp() - expires_at)::int FROM lease";
    assert!(db.number(overdue).await >= 1, "its lease has run out");
    forwarder.mend();
    eventually("it connects again", async || worker.try_connect(&[turn]).await.is_ok()).await;
    assert_eq!(worker.reply(&[turn], "still here").await, Ok(FinishResult::Accepted));
    assert_eq!(db.lease(worker.incarnation).await.as_deref(), Some("live"));
    // One that stays silent is ended when its gateway has ticked for a lease.
    let silent = pinned_to.client().submit("c", "n", "hello").await.turn_id;
    worker.turn().await;
    assert_eq!(db.ending(silent).await, "LeaseLapsed");
}

/// A real worker, of a start with a lease of so many seconds, that runs a program for each turn: it says `begun`, and its
/// reply when the file is there.
struct RealWorker {
    _process: Child,
    go: tempfile::TempDir,
}

impl RealWorker {
    async fn start(db: &Db, lease_seconds: u32, gateways: &str, wrap: &[&str]) -> RealWorker {
        let start = FakeWorker::new(&db.store, lease(lease_seconds)).await;
        let go = tempfile::tempdir().expect("a directory");
        let program = format!("echo begun; until test -e {}/go; do sleep 0.05; done; echo over", go.path().display());
        let command = [wrap, &[LASTWORD, "worker", "exec", "--", "sh", "-c", &program]].concat();
        let process = Command::new(command[0])
            .args(&command[1..])
            .env("LASTWORD_WORKER_GATEWAY", gateways)
            .env("LASTWORD_CREDENTIAL", start.credential.reveal())
            .env("LASTWORD_LOG", "info")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        RealWorker { _process: process, go }
    }

    fn goes_on(&self) {
        std::fs::write(self.go.path().join("go"), "").expect("written");
    }
}

/// The gateway that holds the only worker's stream.
async fn held_by(db: &Db) -> Option<String> {
    db.text("SELECT url FROM gateway g JOIN lease l ON l.gateway = g.id WHERE l.phase = 'live'").await
}

/// The worker is asked for its reply while its gateway is still cut off.
async fn a_worker_that_knows_several_goes_on_elsewhere_while_its_gateway_is_cut_off(db: Db) {
    let (forwarder, first) = cuttable(&db).await;
    let second = Gateway::start(&db).await;
    let _sweeper = Sweeper::start(db.another_store());
    let gateways = format!("{},{}", first.workers, second.workers);
    let worker = RealWorker::start(&db, 6, &gateways, &[]).await;
    let turn = second.client().submit("c", "m", "hello").await;
    let mut session = second.client().session("c", Some(&turn.cursor)).await;
    session.until("text").await;
    assert_eq!(held_by(&db).await.as_ref(), Some(&first.workers));
    db.settled().await;
    forwarder.cut();
    eventually("it goes elsewhere", async || held_by(&db).await.as_ref() == Some(&second.workers)).await;
    worker.goes_on();
    assert_eq!(db.ending(turn.turn_id).await, "reply");
    session.until("complete").await;
}

/// Leads each connection to one of several servers.
struct Proxy {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Proxy {
    /// On this address, one server after the other.
    async fn on(address: SocketAddr, servers: &[&str]) -> std::io::Result<Proxy> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let servers: Vec<String> = servers.iter().map(|url| url.replace("http://", "")).collect();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let server = servers[count.fetch_add(1, Ordering::SeqCst) % servers.len()].clone();
                tokio::spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(server).await {
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        Ok(Proxy { address, connections })
    }
}

/// A name that stands for the gateway that is cut off alone, and later for another one, too, as DNS tells of it.
async fn a_name_is_resolved_anew_at_each_try(db: Db) {
    if !rustix::process::geteuid().is_root() {
        return println!("not tried: only root can give a worker names of its own");
    }
    let (forwarder, first) = cuttable(&db).await;
    let second = Gateway::start(&db).await;
    let _sweeper = Sweeper::start(db.another_store());
    let names = tempfile::NamedTempFile::new().expect("a file");
    let named = |addresses: &[&str]| {
        let lines: String = addresses.iter().map(|address| format!("{address} gateways.test\n")).collect();
        std::fs::write(names.path(), lines).expect("written");
    };
    named(&["127.0.0.1"]);
    let mut both = None;
    while both.is_none() {
        let one = Proxy::on("127.0.0.1:0".parse().expect("an address"), &[&first.workers]).await.expect("listens");
        let other = SocketAddr::new("127.0.0.2".parse().expect("an address"), one.address.port());
        both = Proxy::on(other, &[&second.workers]).await.ok().map(|other| (one, other));
    }
    let (one, other) = both.expect("two addresses with one port");
    let url = format!("http://gateways.test:{}", one.address.port());
    let mount = format!("mount --bind {} /etc/hosts && exec \"$@\"", names.path().display());
    let worker = RealWorker::start(&db, 6, &url, &["unshare", "--mount", "sh", "-c", &mount, "sh"]).await;
    let turn = second.client().submit("c", "m", "hello").await;
    let mut session = second.client().session("c", Some(&turn.cursor)).await;
    session.until("text").await;
    assert_eq!(held_by(&db).await.as_ref(), Some(&first.workers));
    db.settled().await;
    named(&["127.0.0.1", "127.0.0.2"]);
    forwarder.cut();
    eventually("it goes elsewhere", async || held_by(&db).await.as_ref() == Some(&second.workers)).await;
    assert!(other.connections.load(Ordering::SeqCst) >= 1);
    worker.goes_on();
    assert_eq!(db.ending(turn.turn_id).await, "reply");
}

/// Behind one address that leads each connection to another gateway, only the stream goes that way.
async fn calls_go_to_the_gateway_that_holds_the_stream(db: Db) {
    let (first, second) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let any = "127.0.0.1:0".parse().expect("an address");
    let proxy = Proxy::on(any, &[&first.workers, &second.workers]).await.expect("listens");
    let worker = RealWorker::start(&db, 10, &format!("http://{}", proxy.address), &[]).await;
    let turn = first.client().submit("c", "m", "hello").await.turn_id;
    eventually("it runs", async || db.count("output").await > 0).await;
    worker.goes_on();
    assert_eq!(db.ending(turn).await, "reply");
    let heard = "SELECT url FROM gateway g JOIN lease l ON l.heard_by = g.id AND l.gateway = g.id";
    assert_eq!(db.text(heard).await.as_ref(), Some(&first.workers));
    assert_eq!(proxy.connections.load(Ordering::SeqCst), 1, "the stream");
}

/// What is connected to a gateway that is cut off is let go when half of its lease is over, and has the other half. A shorter cut
/// is nothing.
async fn clients_and_workers_are_let_go_after_half_a_lease_and_not_sooner(db: Db) {
    const LEASE: u32 = 16;
    let (forwarder, gateway) = cuttable(&db).await;
    let other = Gateway::start(&db).await;
    let mut worker = FakeWorker::new(&db.store, lease(LEASE)).await;
    worker.connect(&gateway, &[]).await;
    let turn = gateway.client().submit("c", "m", "hello").await;
    assert_eq!(worker.turn().await.turn_id, turn.turn_id);
    let mut here = gateway.client().session("c", Some(&turn.cursor)).await;
    let mut there = other.client().session("c", Some(&turn.cursor)).await;
    worker.say(turn.turn_id, 0, "one ").await;
    here.until("text").await;
    there.until("text").await;
    let ticking = async || db.count("gateway WHERE seen > clock_timestamp() - interval '1 second'").await == 2;
    let written = async |end: i64| db.number("SELECT coalesce(max(end_at), 0) FROM output").await == end;
    eventually("both tick", ticking).await;
    eventually("the text is written", async || written(4).await).await;

    // A cut that is shorter than half of the lease.
    let short = Instant::now();
    forwarder.cut();
    worker.heartbeat(&[turn.turn_id]).await.expect_err("no database");
    forwarder.mend();
    eventually("both tick again", ticking).await;
    println!("the short cut was one of {:?}", short.elapsed());
    worker.say(turn.turn_id, 4, "two ").await;
    assert_eq!(here.until("text").await.len(), 1);
    // Connections that the cut has broken are found out by whoever uses them next.
    let next =
        eventually("turns are taken again", async || match gateway.client().try_submit("d", "m", "hello").await {
            (StatusCode::ACCEPTED | StatusCode::OK, armed) => {
                Ok(serde_json::from_value(armed["turnId"].clone()).expect("an id"))
            }
            (status, refused) => Err(format!("{status}: {refused}")),
        })
        .await;
    assert_eq!(worker.turn().await.turn_id, next, "its stream is open");
    eventually("the text is written", async || written(8).await).await;

    let cut = Instant::now();
    forwarder.cut();
    let (rest, end) = within("its client is let go", here.rest()).await;
    let client = cut.elapsed();
    assert!(end == End::Aborted && !rest.iter().any(|event| event.name == "complete"), "{rest:?}");
    assert!(worker.line().await.is_none(), "its worker is let go");
    let half = Duration::from_secs(LEASE.into()) / 2;
    for after in [client, cut.elapsed()] {
        // The last tick was up to a period before the cut.
        assert!(after > half - Duration::from_secs(1) && after < half + Duration::from_secs(3), "{after:?}");
    }
    assert_eq!(db.count("lease WHERE suspected_at IS NOT NULL").await, 0);
    // Both go on elsewhere, and the client of the other gateway never noticed.
    worker.connect(&other, &[turn.turn_id, next]).await;
    let at = worker.say(turn.turn_id, 8, "three").await;
    assert_eq!(worker.end(turn.turn_id, at).await, Ok(FinishResult::Accepted));
    there.until("complete").await;
    other.client().session("c", here.last_id.as_deref()).await.until("complete").await;
}

/// The row of a gateway says whether the silence of its workers may be its own.
async fn a_gateway_that_stops_leaves_no_row_and_one_that_is_killed_does(db: Db) {
    let (stopped, killed) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let heard = async |gateway: &Gateway, conversation: &str| -> (Incarnation, TurnId) {
        let mut worker = FakeWorker::new(&db.store, |start| start.lease_seconds = 2).await;
        worker.capacity = 1;
        worker.connect(gateway, &[]).await;
        let turn = gateway.client().submit(conversation, "m", "hello").await.turn_id;
        worker.this_turn(turn).await;
        (worker.incarnation, turn)
    };
    let (_, of_stopped) = heard(&stopped, "stopped").await;
    let (url_of_stopped, url_of_killed) = (stopped.workers.clone(), killed.workers.clone());
    stopped.stop().await;
    let row = async |url: &str| db.count(&format!("gateway WHERE url = '{url}'")).await;
    assert_eq!(row(&url_of_stopped).await, 0);
    let (dead, of_killed) = heard(&killed, "killed").await;
    killed.kill();
    let _other = Gateway::start(&db).await;
    let _sweeper = Sweeper::start(db.another_store());
    assert_eq!(db.ending(of_stopped).await, "LeaseLapsed");
    assert_eq!(db.outcome(of_killed).await, None, "its gateway's row has not run out");
    assert_eq!(db.ending(of_killed).await, "LeaseLapsed");
    let waited = format!(
        "SELECT floor(extract(epoch FROM l.died_at - g.expires_at)) FROM lease l JOIN gateway g ON g.id = l.heard_by
         WHERE l.incarnation = '{dead}'"
    );
    assert!(db.number(waited).await >= 2, "a lease behind the row's end");
    assert_eq!(row(&url_of_killed).await, 1);
}
