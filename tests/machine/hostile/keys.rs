//! API keys: what made-up ones cost, what one revocation costs, and what is written down of their use.

use std::time::Duration;

use lastword::gateway::AuthMode;
use lastword::store::keys::{self, ApiKey, KeyRole};
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::support::Db;
use crate::support::client::End;
use crate::support::fake_worker::FakeWorker;
use crate::support::forwarder::Forwarder;
use crate::support::gateway::{Gateway, ORGANIZATION, api_key};
use crate::support::wait::{eventually, throughout, within};

crate::newest! {
    made_up_keys_do_not_reach_the_database,
    one_revocation_asks_once_for_all_streams,
    what_operators_read_and_who_cancels_is_written_down,
    a_trace_context_that_is_none_is_not_kept,
    the_admin_port_waits_for_no_slow_header,
}

/// With the database cut off, whoever is answered 401 rather than 503 was refused without asking it.
async fn made_up_keys_do_not_reach_the_database(db: Db) {
    let forwarder = Forwarder::start(db.options());
    let gateway = Gateway::with(forwarder.options(), |config| config.auth = AuthMode::Keys).await;
    let good = api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await.1;
    let asked = async |key: &str| gateway.client_with(key).get("/v1/conversations/c/turns").await.0;
    assert_eq!(asked(&good).await, StatusCode::NOT_FOUND);
    let unknown = ApiKey::generate().reveal();
    assert_eq!(asked(&unknown).await, StatusCode::UNAUTHORIZED);
    forwarder.cut();
    let mut mistyped = good.clone();
    mistyped.replace_range(60..61, if &good[60..61] == "0" { "1" } else { "0" });
    for (key, why) in [
        ("lwk_x", "no key"),
        (&good[..good.len() - 1], "cut"),
        (mistyped.as_str(), "its checksum is wrong"),
        (unknown.as_str(), "refused a moment ago"),
    ] {
        assert_eq!(asked(key).await, StatusCode::UNAUTHORIZED, "{why}");
    }
    assert_eq!(asked(&ApiKey::generate().reveal()).await, StatusCode::SERVICE_UNAVAILABLE, "nobody knows that one");
    forwarder.mend();
    eventually("the good key is good", async || asked(&good).await == StatusCode::NOT_FOUND).await;
}

/// However many streams are open, a change of keys costs the database one question, not one a stream. It is counted while
/// the table is locked, so that questions pile up.
async fn one_revocation_asks_once_for_all_streams(db: Db) {
    let gateway = Gateway::with(db.options(), |config| config.auth = AuthMode::Keys).await;
    let (_, kept) = api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await;
    let (lost_id, lost) = api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await;
    let client = gateway.client_with(&kept);
    let turn = client.submit("c", "m", "hello").await;
    let mut streams = Vec::new();
    for _ in 0..50 {
        streams.push(client.session("c", Some(&turn.cursor)).await);
    }
    let mut ends = gateway.client_with(&lost).session("c", Some(&turn.cursor)).await;
    assert!(keys::revoke(db.store.pool(), lost_id).await.expect("revokes"));
    let mut locked = db.pool.begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE lastword.api_key IN ACCESS EXCLUSIVE MODE").execute(&mut *locked).await.expect("locked");
    db.store.notify_keys_changed().await;
    let asking = "pg_locks WHERE relation = 'lastword.api_key'::regclass AND NOT granted";
    eventually("keys are asked about", async || db.count(asking).await > 0).await;
    throughout(Duration::from_millis(700), "one question", async || db.count(asking).await <= 1).await;
    locked.rollback().await.expect("unlocked");
    assert_eq!(ends.rest().await.1, End::Aborted);
    client.cancel(turn.turn_id).await;
    for stream in &mut streams {
        stream.until("complete").await;
    }
}

/// An operator's look at what others own, and every cancel, with the key; what people do with their own is theirs.
async fn what_operators_read_and_who_cancels_is_written_down(db: Db) {
    let gateway = Gateway::with(db.options(), |config| config.auth = AuthMode::Keys).await;
    let (ada_key, ada) = api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await;
    let (op_key, op) = api_key(&db.store, ORGANIZATION, "op", KeyRole::Operator).await;
    let (ada, op) = (gateway.client_with(&ada), gateway.client_with(&op));
    let audit = async || {
        let rows = "SELECT string_agg(concat_ws(' ', actor, action, subject), E'\\n' ORDER BY at, id) FROM audit
                    WHERE actor NOT LIKE 'database:%'";
        db.text(rows).await.unwrap_or_default()
    };
    let turn = ada.submit("c", "m", "hello").await.turn_id;
    ada.record(turn).await;
    ada.get("/v1/conversations/c/turns").await;
    ada.session("c", None).await;
    op.submit("own", "m", "hello").await;
    op.get("/v1/conversations/own/turns").await;
    assert_eq!(audit().await, "", "their own");

    for _ in 0..3 {
        op.record(turn).await;
    }
    assert_eq!(audit().await, format!("op read turn {turn}"), "once, not each time");
    let conversation = db.text("SELECT id::text FROM conversation WHERE name = 'c'").await.expect("it is there");
    op.stream("/v1/conversations/c/events?owner=ada", None).await.expect("seen");
    op.get("/v1/conversations/c/turns?owner=ada").await;
    op.turn_stream(turn, None).await;
    op.get("/v1/turns?user=ada").await;
    ada.cancel(turn).await;
    ada.cancel(turn).await;
    let wanted = [
        format!("op read turn {turn}"),
        format!("op read conversation {conversation}"),
        "op list user ada".to_owned(),
        format!("ada cancel {turn}"),
    ];
    assert_eq!(audit().await, wanted.join("\n"));
    for (actor, key) in [("op", op_key), ("ada", ada_key)] {
        assert_eq!(db.count(&format!("audit WHERE actor = '{actor}' AND key IS DISTINCT FROM '{key}'")).await, 0);
    }
    // What cannot be written down is not shown.
    db.sql("ALTER TABLE audit ADD CONSTRAINT audit_full_check CHECK (action <> 'read') NOT VALID").await;
    let second = ada.submit("d", "m", "hello").await.turn_id;
    let (status, shown) = op.get(&format!("/v1/turns/{second}")).await;
    assert!(!status.is_success() && shown["message"].is_null(), "{shown}");
    assert_eq!(ada.record(second).await["message"], "hello");

    db.sql("UPDATE audit SET at = at - interval '366 days' WHERE action = 'list'").await;
    db.store.prune_past_retention(&Default::default()).await.expect("prunes");
    assert_eq!(db.count("audit WHERE action = 'list'").await, 0, "a year");
    assert_eq!(db.count("audit WHERE action = 'cancel'").await, 1);
}

/// A header of any length would otherwise be kept with the turn and handed to the worker's program.
async fn a_trace_context_that_is_none_is_not_kept(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let client = gateway.client();
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let submit = async |name: &str, trace: String| {
        let path = format!("/v1/conversations/{name}/turns");
        let body = json!({"agent": crate::support::gateway::AGENT, "message": "hello"});
        let request = client.request(Method::POST, &path).header("traceparent", trace).json(&body);
        within("an answer", request.send()).await.map(|answer| answer.status())
    };
    for (name, trace, kept) in [
        ("a", good.to_owned(), Some(good)),
        ("b", format!("{good}{}", "0".repeat(20_000)), None),
        ("c", "hello".to_owned(), None),
    ] {
        assert_eq!(submit(name, trace).await.expect("an answer"), StatusCode::ACCEPTED, "{name}");
        let turn = worker.turn().await;
        assert_eq!(turn.traceparent.as_deref(), kept, "{name}");
        assert_eq!(
            worker.reply(&[turn.turn_id], "done").await.map_err(|e| e.0),
            Ok(lastword::wire::FinishResult::Accepted)
        );
    }
    // No request needs a header of that size. It may be cut off before it is sent whole.
    if let Ok(status) = submit("d", "0".repeat(140_000)).await {
        assert_eq!(status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
}

/// A probe must get through whatever strangers do to the admin port.
async fn the_admin_port_waits_for_no_slow_header(db: Db) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let end = CancellationToken::new();
    let served = tokio::spawn(lastword::admin::run(listener, db.store.clone(), Default::default(), end.clone()));
    let mut slow = tokio::net::TcpStream::connect(address).await.expect("connects");
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost:").await.expect("sent");
    let mut answer = Vec::new();
    let _ = within("it is cut off", slow.read_to_end(&mut answer)).await;
    super::refused(&String::from_utf8_lossy(&answer), "a slow header");
    end.cancel();
    within("the port closes", served).await.expect("no panic");
}
