//! What a gateway believes of those who are connected to it: which turns a worker has in hand, which sessions there are.

use std::time::Duration;

use sqlx::AssertSqlSafe;

use crate::support::Db;
use crate::support::fake_worker::FakeWorker;
use crate::support::forwarder::Forwarder;
use crate::support::gateway::Gateway;
use crate::support::wait::{eventually, throughout, within};

crate::newest! {
    a_finish_that_overtakes_a_heartbeat_makes_room,
    turns_that_are_taken_together_count_as_one_conversation,
    a_session_whose_removal_fails_is_removed_later,
}

/// A heartbeat's answer was read before the turn ended, and comes after it. The worker, which takes one turn at a time, gets the
/// next one all the same.
async fn a_finish_that_overtakes_a_heartbeat_makes_room(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::new(&db.store, |start| start.capacity = 1).await;
    worker.connect(&gateway, &[]).await;
    let turn = gateway.client().submit("c", "m1", "hello").await.turn_id;
    worker.turn().await;
    // The tick stops at the worker's lease, before it reads what the worker holds, and then at the settling gate, behind it.
    let waits = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND application_name = 'lastword'";
    let mut lease = db.pool.begin().await.expect("begins");
    let lock = format!("SELECT FROM lease WHERE incarnation = '{}' FOR UPDATE", worker.incarnation);
    sqlx::query(AssertSqlSafe(lock)).execute(&mut *lease).await.expect("locks");
    let beating = async { worker.heartbeat(&[turn]).await.expect("lives") };
    let finishing = async {
        eventually("the tick has come to the lease", async || db.count(waits).await == 1).await;
        let mut gate = db.pool.begin().await.expect("begins");
        sqlx::query("SELECT FROM gate FOR UPDATE").execute(&mut *gate).await.expect("locks");
        lease.rollback().await.expect("unlocks");
        let at_gate = format!("{waits} AND query ILIKE '%gate%'");
        eventually("the tick has come to the gate", async || db.count(&at_gate).await == 1).await;
        worker.reply(&[turn], "done").await.expect("accepted");
        gate.rollback().await.expect("unlocks");
    };
    tokio::join!(beating, finishing);
    let next = gateway.client().submit("c", "m2", "hello").await.turn_id;
    // It is looked for again after 5 s.
    let pushed = tokio::time::timeout(Duration::from_secs(3), worker.this_turn(next)).await;
    assert!(pushed.is_ok(), "the turn that has ended is taken to be in hand");
}

/// Of a worker for two conversations at a time, three turns of one conversation take one place.
async fn turns_that_are_taken_together_count_as_one_conversation(db: Db) {
    let gateway = Gateway::start(&db).await;
    let client = gateway.client();
    for i in 0..3 {
        client.submit("c", &format!("m{i}"), "hello").await;
    }
    let mut worker = FakeWorker::new(&db.store, |start| start.capacity = 2).await;
    worker.together = true;
    worker.connect(&gateway, &[]).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(worker.turn().await.turn_id);
    }
    let other = client.submit("d", "m", "hello").await.turn_id;
    within("the other conversation's turn", worker.this_turn(other)).await;
    // A third conversation waits, also behind a heartbeat, until one of the two is over.
    let third = client.submit("e", "m", "hello").await.turn_id;
    held.push(other);
    worker.heartbeat(&held).await.expect("lives");
    let workers = db.store.living_workers().await.expect("reads");
    assert_eq!(workers.iter().map(|w| w.held).collect::<Vec<_>>(), [2]);
    assert_eq!(db.phase(third).await.as_deref(), Some("waiting"));
    worker.reply(&held[..3], "to all").await.expect("accepted");
    within("the third conversation's turn", worker.this_turn(third)).await;
}

/// Clients go while the gateway has no database: nothing of their sessions stays when it has one again.
async fn a_session_whose_removal_fails_is_removed_later(db: Db) {
    let forwarder = Forwarder::start(db.options());
    let gateway = Gateway::with(forwarder.options(), |_| {}).await;
    let mut sessions = Vec::new();
    for i in 0..5 {
        sessions.push(gateway.client().session(&format!("c{i}"), None).await);
    }
    assert_eq!(db.count("session").await, 5);
    forwarder.cut();
    let stays = sessions.pop();
    drop(sessions);
    // The gateway notices it, and cannot write it.
    throughout(Duration::from_secs(1), "nothing can be written", async || db.count("session").await == 5).await;
    forwarder.mend();
    eventually("the rows are gone", async || db.count("session").await == 1).await;
    drop(stays);
    eventually("the last one too", async || db.count("session").await == 0).await;
}
