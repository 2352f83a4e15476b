//! When the database, a gateway or a guardrail's webhook is away: a failed arm dispatches nothing, nobody punishes an outage,
//! and a rejection never falls open.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Json;
use axum::routing::post;
use lastword::admin::{self, Readiness};
use lastword::gateway::AuthMode;
use lastword::local::postgres::{Embedded, Shutdown, Version};
use lastword::store::keys::KeyRole;
use lastword::turn::keys::TurnId;
use lastword::wire::FinishResult;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use crate::support::db::run_with_own_server;
use crate::support::fake_worker::FakeWorker;
use crate::support::forwarder::Forwarder;
use crate::support::gateway::{AGENT, Gateway, ORGANIZATION, Sweeper, api_key, prepare, put_agent};
use crate::support::http::{free_address, serve};
use crate::support::wait::{eventually, throughout, within};
use crate::support::{Db, repository, skipped};

crate::newest! {
    cutting_only_the_gateway_off_fails_nobody,
    a_gateway_that_started_without_a_database_knows_no_agent_but_says_503,
    a_rejection_that_the_database_refuses_is_written_later_and_nothing_is_dispatched,
    another_gateway_guards_when_the_first_is_killed,
    a_turn_that_another_gateway_let_pass_is_not_ended,
    a_webhook_that_is_down_obeys_the_failure_policy,
}

/// A test with a server of its own, which it may stop.
fn with_own_server(body: impl AsyncFnOnce(Embedded, &Db)) {
    run_with_own_server(Version::V18, &[], async |server, db| {
        prepare(&db).await;
        body(server, &db).await;
    });
}

/// Neither kind of health depends on the database once a role has started. The metrics are told without it too, with the age of
/// what it said last; and they are as Prometheus wants them, then as before.
#[test]
fn health_does_not_depend_on_the_database() {
    with_own_server(async |mut server, db| {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (readiness, end) = (Readiness::default(), CancellationToken::new());
        let served = tokio::spawn(admin::run(listener, db.store.clone(), readiness.clone(), end.clone()));
        let get = async |path: &str| {
            let answer = reqwest::get(format!("{url}{path}")).await.expect("an answer");
            (answer.status().as_u16(), answer.text().await.expect("text"))
        };
        assert_eq!((get("/livez").await.0, get("/readyz").await.0), (200, 503), "it has not started yet");
        readiness.set();
        // Something was counted.
        let gateway = Gateway::start(db).await;
        let mut worker = FakeWorker::on(&db.store, &gateway).await;
        let turn = gateway.client().submit("c", "m", "hello").await.turn_id;
        worker.turn().await;
        assert_eq!(worker.reply(&[turn], "done").await, Ok(FinishResult::Accepted));
        let whole =
            |text: &str| text.contains("lastword_open_turns") && text.contains("lastword_turn_terminal_seconds_bucket");
        let metrics =
            eventually("all metrics are there", async || Some(get("/metrics").await.1).filter(|m| whole(m))).await;
        lint(&metrics).await;
        server.halt(Shutdown::Fast).await;
        assert_eq!((get("/livez").await.0, get("/readyz").await.0), (200, 200));
        let aged = async || {
            let begun = std::time::Instant::now();
            let (status, text) = get("/metrics").await;
            assert!(begun.elapsed() < Duration::from_secs(1), "nothing waits for the database");
            assert!(status == 200 && whole(&text), "{text}");
            let age = text.lines().find_map(|l| l.strip_prefix("lastword_store_figures_age_seconds ")).expect("an age");
            (age.parse::<f64>().expect("a number") > 6.0).then_some(text)
        };
        lint(&eventually("what the database said grows old", aged).await).await;
        readiness.clear();
        assert_eq!((get("/livez").await.0, get("/readyz").await.0), (200, 503), "it is about to end");
        end.cancel();
        served.await.expect("it ends");
    });
}

/// Prometheus' own linter finds nothing in this text.
async fn lint(metrics: &str) {
    let install =
        std::process::Command::new(repository("tests/debian-packages")).arg("/usr/bin/promtool=prometheus").status();
    if !install.is_ok_and(|status| status.success()) {
        return skipped("promtool is not installed and cannot be, so metrics are not linted");
    }
    let mut linter = tokio::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs");
    linter.stdin.take().expect("piped").write_all(metrics.as_bytes()).await.expect("written");
    let said = within("the linter's end", linter.wait_with_output()).await.expect("its end");
    assert!(
        said.status.success(),
        "{}{}\n{metrics}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
}

/// Without the database a submit is 503 and names its messageId, and nothing is dispatched. Afterwards the same
/// messageId is one turn, with other content a conflict, and to another user nothing.
#[test]
fn a_failed_arm_is_503_and_a_retry_finds_the_truth() {
    with_own_server(async |mut server, db| {
        let ada = api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await.1;
        let bob = api_key(&db.store, ORGANIZATION, "bob", KeyRole::User).await.1;
        let gateway = Gateway::with(db.options(), |c| c.auth = AuthMode::Keys).await;
        let mut worker = FakeWorker::on(&db.store, &gateway).await;
        let client = gateway.client_with(&ada);
        let before = client.submit("c", "before", "hello").await.turn_id;
        assert_eq!(worker.turn().await.turn_id, before);

        server.halt(Shutdown::Fast).await;
        // Until the key is no longer remembered, and then: the answer is the same.
        throughout(Duration::from_secs(1), "submits are refused", async || {
            let (status, problem) = client.try_submit("c", "m", "hello").await;
            assert_eq!((status, &problem["messageId"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("m")), "{problem}");
            true
        })
        .await;
        let unnamed = json!({"agent": AGENT, "message": "hello"});
        let (status, problem) = client.call(reqwest::Method::POST, "/v1/conversations/c/turns", Some(unnamed)).await;
        assert!(status == StatusCode::SERVICE_UNAVAILABLE && problem["messageId"].is_string(), "{problem}");
        assert_eq!(worker.pushed(), [], "nothing is dispatched");

        server.resume().await.expect("Postgres is back");
        let status = eventually("submits are taken again", async || {
            let (status, problem) = client.try_submit("c", "m", "hello").await;
            if status == StatusCode::SERVICE_UNAVAILABLE { Err(problem) } else { Ok(status) }
        })
        .await;
        assert_eq!(status, StatusCode::ACCEPTED);
        let (status, again) = client.try_submit("c", "m", "hello").await;
        assert_eq!(status, StatusCode::OK);
        let turn: TurnId = serde_json::from_value(again["turnId"].clone()).expect("an id");
        let (status, problem) = client.try_submit("c", "m", "something else").await;
        assert_eq!((status, &problem["reason"]), (StatusCode::CONFLICT, &json!("Conflict")));
        let (status, other) = gateway.client_with(&bob).try_submit("c", "m", "hello").await;
        assert_eq!(status, StatusCode::ACCEPTED, "the same names are another user's own: {other}");
        assert!(!other.to_string().contains(&turn.to_string()));
        assert_eq!(db.count("turn").await, 3);

        // The turn of before the outage is finished after it.
        assert_eq!(worker.reply(&[before], "late").await, Ok(FinishResult::Accepted));
        eventually("the next is dispatched", async || db.phase(turn).await.as_deref() == Some("claimed")).await;
    });
}

/// In an outage longer than the lease heartbeats are refused, and retried. Afterwards the live worker's turn goes
/// on, and the dead worker's ends.
#[test]
fn after_an_outage_the_living_go_on_and_the_dead_are_ended() {
    with_own_server(async |mut server, db| {
        let gateway = Gateway::start(db).await;
        let _sweeper = Sweeper::start(db.another_store());
        let mut workers = Vec::new();
        for i in 0..2 {
            let mut worker = FakeWorker::new(&db.store, |s| (s.lease_seconds, s.heartbeat_seconds) = (3, 1)).await;
            worker.capacity = 1;
            worker.connect(&gateway, &[]).await;
            let turn = gateway.client().submit(&format!("c{i}"), "m", "hello").await.turn_id;
            assert_eq!(worker.turn().await.turn_id, turn);
            workers.push((worker, turn));
        }
        let (dead, dead_turn) = workers.pop().expect("two");
        let (live, live_turn) = workers.pop().expect("two");
        drop(dead);

        server.halt(Shutdown::Immediate).await;
        let mut refused = 0;
        throughout(Duration::from_secs(5), "heartbeats are refused", async || {
            let (status, _) = live.heartbeat(&[live_turn]).await.expect_err("there is no database");
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            refused += 1;
            true
        })
        .await;
        assert!(refused >= 2, "{refused}");
        server.resume().await.expect("Postgres is back");
        eventually("a heartbeat is taken", async || live.heartbeat(&[live_turn]).await.is_ok()).await;
        let ended = eventually("the dead worker's turn ends", async || {
            live.heartbeat(&[live_turn]).await.expect("it is not refused, nor dead");
            db.outcome(dead_turn).await
        })
        .await;
        assert_eq!(ended, "LeaseLapsed");
        assert_eq!(db.outcome(live_turn).await, None);
        assert_eq!(live.reply(&[live_turn], "still here").await, Ok(FinishResult::Accepted));
    });
}

/// Only the gateway is cut off; the sweeper has its database all along, and fails nobody for it. Afterwards the
/// worker goes on; had it stayed silent, its lease would end it. Also a lease that is shorter than what the gate calls a
/// gap.
async fn cutting_only_the_gateway_off_fails_nobody(db: Db) {
    let forwarder = Forwarder::start(db.options());
    let gateway = Gateway::with(forwarder.options(), |_| {}).await;
    let _sweeper = Sweeper::start(db.store.clone());
    let mut worker = FakeWorker::new(&db.store, |s| (s.lease_seconds, s.heartbeat_seconds) = (3, 1)).await;
    worker.connect(&gateway, &[]).await;
    let turn = gateway.client().submit("c", "m", "hello").await.turn_id;
    worker.turn().await;
    // Gateways have ticked for long: were the gate not there, the first look after the lease would end the turn.
    db.settled().await;
    worker.heartbeat(&[turn]).await.expect("lives");
    forwarder.cut();
    let overdue = "SELECT extract(epoch FROM clock_timestamp() - expires_at)::int FROM lease";
    eventually("the lease is over for seconds", async || {
        assert_eq!(worker.heartbeat(&[turn]).await.expect_err("no database").0, StatusCode::SERVICE_UNAVAILABLE);
        db.number(overdue).await >= 2
    })
    .await;
    assert_eq!(db.outcome(turn).await, None);
    forwarder.mend();
    // The gateway has let it go.
    eventually("it connects again", async || worker.try_connect(&[turn]).await.is_ok()).await;
    assert_eq!(worker.reply(&[turn], "still here").await, Ok(FinishResult::Accepted));
    assert_eq!(db.ending(turn).await, "reply");
    let silent = gateway.client().submit("c", "n", "hello").await.turn_id;
    worker.turn().await;
    assert_eq!(db.ending(silent).await, "LeaseLapsed");
}

/// A gateway that came up without its database knows no Agent; that is no reason to say that there is none, nor to
/// end a turn whose guard is gone.
async fn a_gateway_that_started_without_a_database_knows_no_agent_but_says_503(db: Db) {
    let forwarder = Forwarder::start(db.options());
    forwarder.cut();
    let gateway = Gateway::with(forwarder.options(), |_| {}).await;
    let client = gateway.client();
    let (status, problem) = client.try_submit("c", "m", "hello").await;
    assert_eq!((status, &problem["messageId"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("m")), "{problem}");
    assert_eq!(client.stream("/v1/conversations/c/events", None).await.err(), Some(StatusCode::SERVICE_UNAVAILABLE));
    let mut worker = FakeWorker::new(&db.store, |_| {}).await;
    worker.gateway = gateway.workers.clone();
    assert_eq!(worker.try_connect(&[]).await.map(drop).expect_err("elsewhere").0, StatusCode::SERVICE_UNAVAILABLE);
    forwarder.mend();
    eventually("it has its database", async || client.try_submit("c", "m", "hello").await.0.is_success()).await;
    // An Agent that was made a moment ago is found at once, by whichever replica is asked.
    let other = Gateway::start(&db).await;
    for i in 0..5 {
        let name = format!("new{i}");
        put_agent(&db.store, &name, json!({})).await;
        let answer = other.client().submit_to(&name, &name, "m", "hello").await;
        assert_eq!(answer.0, StatusCode::ACCEPTED, "{answer:?}");
    }
}

/// An Agent whose messages must not contain `bad`.
async fn put_censor(db: &Db) {
    let rail = json!({"input": [{"cel": "!message.contains('bad')", "message": "Mind your words."}]});
    put_agent(&db.store, "censor", json!({"guardrails": rail})).await;
}

fn turn_of(answer: (StatusCode, Value)) -> TurnId {
    assert_eq!(answer.0, StatusCode::ACCEPTED, "{}", answer.1);
    serde_json::from_value(answer.1["turnId"].clone()).expect("an id")
}

/// A worker of this Agent.
async fn worker_of(db: &Db, gateway: &Gateway, agent: &str) -> FakeWorker {
    let mut worker = FakeWorker::new(&db.store, |s| {
        s.agent = agent.into();
    })
    .await;
    worker.connect(gateway, &[]).await;
    worker
}

/// The database refuses the rejection's terminal for longer than a guard's lease: it is tried until it is written,
/// and the worker that waits for a turn never gets this one.
async fn a_rejection_that_the_database_refuses_is_written_later_and_nothing_is_dispatched(db: Db) {
    put_censor(&db).await;
    db.sql("CREATE SEQUENCE refusals").await;
    db.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           PERFORM nextval('lastword.refusals'); RAISE EXCEPTION 'not now'; END $$",
    )
    .await;
    db.sql(
        "CREATE TRIGGER refuse BEFORE INSERT ON terminal FOR EACH ROW
         WHEN (NEW.reason = 'GuardrailRejected') EXECUTE FUNCTION refuse()",
    )
    .await;
    let gateways = [Gateway::start(&db).await, Gateway::start(&db).await];
    let mut worker = worker_of(&db, &gateways[1], "censor").await;
    let client = gateways[0].client();
    let bad = turn_of(client.submit_to("censor", "bad", "m", "a bad word").await);
    let good = turn_of(client.submit_to("censor", "good", "m", "a kind word").await);
    assert_eq!(worker.turn().await.turn_id, good);
    for wanted in [3, 6] {
        eventually("it is tried again", async || db.number("SELECT last_value FROM refusals").await >= wanted).await;
        // As if the guard's lease were over: the other replica guards it too.
        db.sql("UPDATE marker SET guard_until = clock_timestamp() - interval '1 second' WHERE phase = 'guarding'")
            .await;
    }
    assert_eq!(db.phase(bad).await.as_deref(), Some("guarding"));
    assert_eq!(worker.pushed(), []);
    db.sql("DROP TRIGGER refuse ON terminal").await;
    assert_eq!(db.ending(bad).await, "GuardrailRejected");
    let shown = client.session("bad", None).await.until("complete").await;
    assert_eq!(shown[0].data["message"], "Mind your words.");
    assert_eq!(worker.reply(&[good], "thanks").await, Ok(FinishResult::Accepted));
    assert_eq!(worker.pushed(), []);
}

/// A webhook that answers only when it is told to.
struct Webhook {
    url: String,
    asked: Arc<AtomicUsize>,
    answers: Arc<AtomicBool>,
}

impl Webhook {
    async fn start() -> Webhook {
        let (asked, answers) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, may) = (asked.clone(), answers.clone());
        let ask = move |Json(question): Json<Value>| async move {
            count.fetch_add(1, Ordering::SeqCst);
            if !may.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let allow = !question.to_string().contains("bad");
            Json(json!({"allow": allow, "message": "Mind your words."}))
        };
        let url = serve(axum::Router::new().route("/", post(ask))).await;
        Webhook { url: format!("{url}/"), asked, answers }
    }
}

/// The replica that guards is killed while the webhook thinks: another one guards the turns, both ways.
async fn another_gateway_guards_when_the_first_is_killed(db: Db) {
    let webhook = Webhook::start().await;
    let rail = json!({"input": [{"webhook": {"url": webhook.url, "timeoutSeconds": 30}}]});
    put_agent(&db.store, "asks", json!({"guardrails": rail})).await;
    let (first, second) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let mut worker = worker_of(&db, &second, "asks").await;
    let good = turn_of(first.client().submit_to("asks", "good", "m", "a kind word").await);
    let bad = turn_of(first.client().submit_to("asks", "bad", "m", "a bad word").await);
    eventually("both are asked about", async || webhook.asked.load(Ordering::SeqCst) == 2).await;
    first.kill();
    assert_eq!(worker.pushed(), []);
    webhook.answers.store(true, Ordering::SeqCst);
    db.sql("UPDATE marker SET guard_until = clock_timestamp() - interval '1 second'").await;
    assert_eq!(worker.turn().await.turn_id, good);
    assert_eq!(db.ending(bad).await, "GuardrailRejected");
    assert_eq!(worker.reply(&[good], "thanks").await, Ok(FinishResult::Accepted));
    assert_eq!(worker.pushed(), []);
}

/// A gateway that took a turn over and finds no Agent ends it only while the turn is still its own to guard: another one may
/// have found the Agent, and let the turn pass.
async fn a_turn_that_another_gateway_let_pass_is_not_ended(db: Db) {
    let gateway = Gateway::start(&db).await;
    // As if another gateway let the first turn pass between the taking over and the end.
    db.sql("CREATE TABLE passed (turn_id uuid)").await;
    db.sql(
        "CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN
              INSERT INTO passed VALUES (NEW.turn_id);
              NEW.phase := 'waiting'; NEW.guard := NULL; NEW.guard_until := NULL;
              RETURN NEW;
            END $$",
    )
    .await;
    db.sql(
        "CREATE TRIGGER pass BEFORE UPDATE ON marker FOR EACH ROW
         WHEN (NEW.phase = 'guarding' AND NEW.guard <> OLD.guard) EXECUTE FUNCTION pass()",
    )
    .await;
    let abandoned = async |conversation: &str| {
        let arm = lastword::store::Arm {
            agent: "nobody".into(),
            guard: Some((lastword::turn::keys::GatewayId::new(), 30)),
            ..crate::support::actors::arm(conversation)
        };
        let turn = crate::support::actors::armed(&db.store, arm).await.turn_id;
        db.sql(format!(
            "UPDATE marker SET guard_until = clock_timestamp() - interval '1 second' WHERE turn_id = '{turn}'"
        ))
        .await;
        turn
    };
    let passed = abandoned("passed").await;
    eventually("it was taken over", async || db.count("passed").await == 1).await;
    db.sql("DROP TRIGGER pass ON marker").await;
    // The gateway ends one after the other.
    let ended = abandoned("ended").await;
    assert_eq!(db.ending(ended).await, "AgentNotFound");
    assert_eq!(db.phase(passed).await.as_deref(), Some("waiting"));
    gateway.stop().await;
}

/// A webhook that cannot be reached rejects (Fail) or lets pass (Ignore).
async fn a_webhook_that_is_down_obeys_the_failure_policy(db: Db) {
    let nobody = free_address();
    for policy in ["Fail", "Ignore"] {
        let webhook = json!({"url": format!("http://{nobody}/"), "timeoutSeconds": 1});
        let rail = json!({"input": [{"webhook": webhook, "failurePolicy": policy}]});
        put_agent(&db.store, &policy.to_lowercase(), json!({"guardrails": rail})).await;
    }
    let gateway = Gateway::start(&db).await;
    let mut strict = worker_of(&db, &gateway, "fail").await;
    let mut lax = worker_of(&db, &gateway, "ignore").await;
    let rejected = turn_of(gateway.client().submit_to("fail", "fail", "m", "hello").await);
    let passed = turn_of(gateway.client().submit_to("ignore", "ignore", "m", "hello").await);
    assert_eq!(lax.turn().await.turn_id, passed);
    assert_eq!(db.ending(rejected).await, "GuardrailRejected");
    assert_eq!(strict.pushed(), []);
    let record = gateway.client().record(rejected).await;
    assert!(record["error"]["detail"].as_str().is_some_and(|d| d.contains("could not decide")), "{record}");
}
