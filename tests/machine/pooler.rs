//! Behind a pooler in transaction mode, Debian's pgbouncer: the same promises, found out or told by a flag, and nothing is left
//! behind on the sessions that the pooler lends.
//!
//! `LASTWORD_TEST_POOLER=1` runs every other test of `store` and `machine` behind one.

use std::process::Stdio;
use std::time::Duration;

use futures::future::join_all;
use lastword::store::{DatabaseReach, Heard, Notice, PoolSizes, Pooler, Store, probe};
use lastword::turn::keys::TurnId;
use lastword::turn::reason::Reason;
use lastword::wire::{FinishResult, ToWorker};
use serde_json::json;
use sqlx::{ConnectOptions, Executor, Row};
use tokio::process::Command;

use crate::support::client::End;
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::{AGENT, Gateway, ORGANIZATION, Sweeper};
use crate::support::pgbouncer::{PgBouncer, installed};
use crate::support::wait::{eventually_within, within};
use crate::support::{Db, LASTWORD};

crate::newest! {
    turns_are_served_and_nothing_is_left_on_the_poolers_sessions,
    a_pooler_that_ignores_the_settings_is_found_out_too,
    what_another_replica_did_is_found_by_looking,
    notices_are_heard_over_a_direct_connection,
    time_outs_hold_inside_the_transaction,
    the_commands_work_through_a_pooler,
}

/// A pooler with fewer sessions than the gateways have connections, so that each session goes from hand to hand.
fn pooler(db: &Db, more: &str) -> Option<PgBouncer> {
    installed("nothing was tried behind a pooler").then(|| PgBouncer::start(&db.options(), 3, more))
}

/// Two gateways behind the pooler serve twenty conversations at once, with a worker on one and the clients on both.
async fn serve_turns(db: &Db, pooler: &PgBouncer) {
    let through = pooler.options(&db.options());
    let first = Gateway::with(through.clone(), |_| {}).await;
    let second = Gateway::with(through.clone(), |_| {}).await;
    let store = Store::open(through, PoolSizes::default());
    let _sweeper = Sweeper::start(store.clone());
    let mut worker = FakeWorker::on(&store, &first).await;
    let (left, right) = (first.client(), second.client());
    let turns = join_all((0..20).map(async |n| {
        let client = if n % 2 == 0 { &left } else { &right };
        (client.clone(), client.submit(&format!("c{n}"), "m", "hello").await.turn_id)
    }));
    let turns: Vec<_> = turns.await;
    for _ in &turns {
        let turn: TurnId = worker.turn().await.turn_id;
        assert_eq!(worker.reply(&[turn], "an answer").await, Ok(FinishResult::Accepted));
    }
    for (client, turn) in turns {
        let (frames, end) = client.turn_stream(turn, None).await.rest().await;
        assert_eq!((frames.last().map(|frame| frame.name.as_str()), end), (Some("complete"), End::Clean));
        assert_eq!(client.record(turn).await["reply"]["text"], "an answer");
    }
    db.all_delivered().await;
}

async fn turns_are_served_and_nothing_is_left_on_the_poolers_sessions(db: Db) {
    let Some(pooler) = pooler(&db, "") else { return };
    serve_turns(&db, &pooler).await;
    // Whoever is lent a session next finds it as Postgres makes it. Each of these asks holds its session until all have one.
    let left = "SELECT current_setting('search_path'), current_setting('statement_timeout'), \
                (SELECT count(*) FROM pg_prepared_statements)::int, (SELECT count(*) FROM pg_listening_channels())::int, \
                (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())::int, current_setting('lastword.session', true)";
    let options = pooler.options(&db.options()).extra_float_digits(None);
    let mut asking = Vec::new();
    for _ in 0..3 {
        let mut connection = within("a connection", options.connect()).await.expect("connects");
        connection.execute("BEGIN").await.expect("a session");
        let row = connection.fetch_one(left).await.expect("an answer");
        assert_eq!(row.get::<String, _>(0), "\"$user\", public");
        assert_eq!(row.get::<String, _>(1), "0");
        assert_eq!((row.get::<i32, _>(2), row.get::<i32, _>(3), row.get::<i32, _>(4)), (0, 0, 0));
        assert_eq!(row.get::<Option<String>, _>(5).unwrap_or_default(), "");
        asking.push(connection);
    }
}

async fn a_pooler_that_ignores_the_settings_is_found_out_too(db: Db) {
    let Some(pooler) = pooler(&db, "ignore_startup_parameters = options, extra_float_digits") else { return };
    serve_turns(&db, &pooler).await;
}

/// Nobody can listen behind a pooler. A turn that one gateway armed reaches the worker on another all the same, far sooner
/// than by the polls that there are for lost notices.
async fn what_another_replica_did_is_found_by_looking(db: Db) {
    let Some(pooler) = pooler(&db, "") else { return };
    let through = pooler.options(&db.options());
    let holder = Gateway::with(through.clone(), |_| {}).await;
    let other = Gateway::with(through, |_| {}).await;
    let mut worker = FakeWorker::on(&db.store, &holder).await;
    for n in 0..3 {
        let turn = other.client().submit("c", &format!("m{n}"), "hello").await.turn_id;
        let mut session = other.client().turn_stream(turn, None).await;
        let claimed = "the worker on the other gateway gets it";
        let look = async || db.phase(turn).await.as_deref() == Some("claimed");
        eventually_within(Duration::from_secs(4), claimed, look).await;
        assert_eq!(worker.turn().await.turn_id, turn);
        worker.reply(&[turn], "found").await.expect("accepted");
        within("its end, on the gateway without the worker", session.rest()).await;
    }
    // A stop that a controller recorded, while the worker's next heartbeat is far.
    assert!(db.store.drain_worker(worker.incarnation, Reason::Deleted).await.expect("recorded"));
    let told = tokio::time::timeout(Duration::from_secs(4), worker.line()).await;
    assert!(matches!(told, Ok(Some(ToWorker::Drain { .. }))), "{told:?}");
}

async fn notices_are_heard_over_a_direct_connection(db: Db) {
    let Some(pooler) = pooler(&db, "") else { return };
    let reach = DatabaseReach { pooler: Pooler::Auto, direct: Some(Box::new(db.options())) };
    let store = Store::reach(pooler.options(&db.options()), PoolSizes::default(), reach);
    let mut hearing = store.hear();
    assert_eq!(within("the beginning", hearing.next()).await, Heard::Missed);
    db.store
        .put_agent(ORGANIZATION, AGENT, &json!({"scope": "Conversation", "adapter": "Custom"}))
        .await
        .expect("is put");
    assert_eq!(within("a notice of another process", hearing.next()).await, Heard::Notice(Notice::Agents));
}

/// The server's own time-out ends a wait for a lock, not the deadline of the call: it was set where the statement ran.
async fn time_outs_hold_inside_the_transaction(db: Db) {
    let Some(pooler) = pooler(&db, "") else { return };
    let store = Store::open(pooler.options(&db.options()), PoolSizes::default());
    let mut holder = within("a connection", db.pool.begin()).await.expect("begins");
    holder.execute("LOCK TABLE agent IN ACCESS EXCLUSIVE MODE").await.expect("the lock");
    let refused = store.put_agent(ORGANIZATION, AGENT, &json!({})).await.expect_err("it is locked");
    assert!(refused.to_string().contains("lock timeout"), "{refused}");
    holder.rollback().await.expect("lets go");
    store.put_agent(ORGANIZATION, AGENT, &json!({"scope": "Agent"})).await.expect("the store goes on");
}

/// `migrate`, twice at once on an empty database; `keys`; the question that `init` asks; and a gateway that waits for the
/// schema.
async fn the_commands_work_through_a_pooler(db: Db) {
    let Some(pooler) = pooler(&db, "") else { return };
    let url = pooler.url(&db.options());
    let lastword = |arguments: &[&str]| {
        let mut command = Command::new(LASTWORD);
        command.args(arguments).env("LASTWORD_DATABASE_URL", &url).current_dir("/").kill_on_drop(true);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    for way in [&[][..], &["--database-pooler", "transaction"]] {
        db.sql("DROP SCHEMA lastword CASCADE").await;
        let migrate = || lastword(&[&["migrate"], way].concat()).output();
        for done in join_all([migrate(), migrate()]).await {
            let done = done.expect("it runs");
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        assert!(db.another_store().schema_ready().await.expect("asked"), "also in the words of sqlx's own migrator");
        db.another_store().migrate().await.expect("which finds nothing to do");
    }
    let made = lastword(&["keys", "create", "ci", "--user", "ada"]).output().await.expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(probe::version(&url).await.expect("an answer").starts_with("18"));

    db.sql("DROP SCHEMA lastword CASCADE").await;
    let direct = pooler.direct_url(&db.options());
    let done = lastword(&["migrate", "--database-direct-url", &direct]).output().await.expect("it runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(Store::open(pooler.options(&db.options()), PoolSizes::default()).schema_ready().await.expect("asked"));
}
