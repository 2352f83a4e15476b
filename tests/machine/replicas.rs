//! Several gateways on one database: workers move, pushes are lost, nobody alive is declared dead; and a terminal is rendered
//! once, by the replica that holds its session, whatever the registry of sessions says.

use std::time::Duration;

use lastword::turn::keys::TurnId;
use lastword::wire::FinishResult;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::support::client::{End, Event, Stream, names, text};
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::{Gateway, Sweeper};
use crate::support::wait::{eventually, try_eventually};
use crate::support::{Db, seed};

crate::newest! {
    a_worker_that_moves_is_not_suspected_by_the_gateway_it_left,
    a_worker_that_drops_its_stream_is_suspected_and_not_failed,
    a_lost_push_is_pushed_again_on_reconnect,
    a_lost_push_is_pushed_again_by_heartbeat,
    a_worker_that_was_cut_off_replies,
    a_killed_gateway_fails_no_turn,
    a_word_through_another_gateway_makes_room,
    output_through_one_gateway_is_seen_on_the_other_before_the_end,
    a_terminal_is_rendered_once_by_its_sessions_owner,
    a_wrong_registry_loses_and_doubles_nothing,
    a_session_that_comes_while_its_row_is_parked_sees_it_once,
}

async fn suspected(db: &Db, worker: &FakeWorker) -> bool {
    db.count(&format!("lease WHERE suspected_at IS NOT NULL AND incarnation = '{}'", worker.incarnation)).await == 1
}

/// The gateway that the worker left notices the old close late: its suspicion names a stream that the lease no
/// longer has, and nothing comes of it.
async fn a_worker_that_moves_is_not_suspected_by_the_gateway_it_left(db: Db) {
    let (first, second) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let _sweeper = Sweeper::start(db.store.clone());
    let mut worker = FakeWorker::on(&db.store, &first).await;
    let turn = first.client().submit("c", "m", "hello").await.turn_id;
    assert_eq!(worker.turn().await.turn_id, turn);
    let stream = "SELECT stream FROM lease";
    let before = db.text(stream).await;
    let old = worker.connect(&second, &[turn]).await;
    assert_ne!(db.text(stream).await, before);
    drop(old);
    // Another worker's stream on the first gateway, closed later, is suspected: so the late close was looked at.
    let mut other = FakeWorker::on(&db.store, &first).await;
    other.drop_stream();
    eventually("the other is suspected", async || suspected(&db, &other).await).await;
    assert!(!suspected(&db, &worker).await);
    assert_eq!(db.phase(turn).await.as_deref(), Some("claimed"));
    assert_eq!(worker.heartbeat(&[turn]).await.expect("lives").stop, []);
    assert_eq!(worker.reply(&[turn], "moved").await, Ok(FinishResult::Accepted));
    assert_eq!(db.ending(turn).await, "reply");
}

/// A stream that closes without goodbye is a reason to look, and no more.
async fn a_worker_that_drops_its_stream_is_suspected_and_not_failed(db: Db) {
    let gateway = Gateway::start(&db).await;
    let _sweeper = Sweeper::start(db.store.clone());
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let turn = gateway.client().submit("c", "m", "hello").await.turn_id;
    worker.turn().await;
    worker.drop_stream();
    eventually("it is suspected", async || suspected(&db, &worker).await).await;
    assert_eq!(db.outcome(turn).await, None);
    worker.connect(&gateway, &[turn]).await;
    assert!(!suspected(&db, &worker).await, "void while its stream lives");
    assert_eq!(worker.reply(&[turn], "here").await, Ok(FinishResult::Accepted));
}

/// A worker whose turn was claimed while nobody read its stream: the push is lost with it.
async fn lost_push(db: &Db, gateway: &Gateway) -> (FakeWorker, TurnId) {
    let mut worker = FakeWorker::on(&db.store, gateway).await;
    let turn = gateway.client().submit("c", "m", "hello").await.turn_id;
    eventually("it is claimed", async || db.phase(turn).await.as_deref() == Some("claimed")).await;
    worker.drop_stream();
    (worker, turn)
}

/// Claimed, and the stream broke before the worker read the push: it is pushed when the worker connects again,
/// here or elsewhere.
async fn a_lost_push_is_pushed_again_on_reconnect(db: Db) {
    let (first, second) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let (mut worker, turn) = lost_push(&db, &first).await;
    worker.connect(&second, &[]).await;
    assert_eq!(worker.turn().await.turn_id, turn);
    // Named as in hand, it is not pushed again.
    worker.connect(&first, &[turn]).await;
    let next = first.client().submit("d", "m", "hello").await.turn_id;
    assert_eq!(worker.turn().await.turn_id, next);
    assert_eq!(worker.reply(&[turn], "once").await, Ok(FinishResult::Accepted));
}

/// A lost push is found by the heartbeat of a worker whose stream never broke.
async fn a_lost_push_is_pushed_again_by_heartbeat(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let turn = gateway.client().submit("c", "m", "hello").await.turn_id;
    worker.turn().await;
    let answer = worker.heartbeat(&[]).await.expect("lives");
    assert_eq!(answer.push.iter().map(|t| t.turn_id).collect::<Vec<_>>(), [turn]);
    let ghost = TurnId::new();
    let answer = worker.heartbeat(&[turn, ghost]).await.expect("lives");
    assert_eq!((answer.push.len(), answer.stop), (0, vec![ghost]));
    assert_eq!(worker.reply(&[turn], "once").await, Ok(FinishResult::Accepted));
}

/// A live worker is cut off from every gateway for most of its lease, under a sweep that looks ten times a second.
async fn a_worker_that_was_cut_off_replies(db: Db) {
    let gateway = Gateway::start(&db).await;
    let _sweeper = Sweeper::start(db.store.clone());
    let mut worker = FakeWorker::new(&db.store, |s| (s.lease_seconds, s.heartbeat_seconds) = (5, 1)).await;
    worker.connect(&gateway, &[]).await;
    let turn = gateway.client().submit("c", "m", "hello").await.turn_id;
    worker.turn().await;
    db.settled().await;
    worker.heartbeat(&[turn]).await.expect("lives");
    worker.drop_stream();
    let left = "SELECT extract(epoch FROM expires_at - clock_timestamp())::int FROM lease";
    eventually("the most of the lease is over", async || db.number(left).await <= 2).await;
    assert!(suspected(&db, &worker).await);
    worker.connect(&gateway, &[turn]).await;
    assert_eq!(worker.reply(&[turn], "back").await, Ok(FinishResult::Accepted));
    assert_eq!(db.lease(worker.incarnation).await.as_deref(), Some("live"));
    // And one that stays away is failed by its lease.
    let turn = gateway.client().submit("c", "n", "hello").await.turn_id;
    worker.turn().await;
    worker.drop_stream();
    assert_eq!(db.ending(turn).await, "LeaseLapsed");
}

/// The gateway dies that holds the worker, a session and output that is not durable: the worker sends it again elsewhere.
async fn a_killed_gateway_fails_no_turn(db: Db) {
    let (first, second) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let _sweeper = Sweeper::start(db.store.clone());
    let mut worker = FakeWorker::on(&db.store, &first).await;
    let turn = second.client().submit("c", "m", "hello").await;
    worker.turn().await;
    let mut session = first.client().session("c", Some(&turn.cursor)).await;
    worker.say(turn.turn_id, 0, "héll").await;
    assert_eq!(text(&session.until("text").await), "héll");
    first.kill();
    assert_eq!(session.rest().await.1, End::Aborted);
    worker.connect(&second, &[turn.turn_id]).await;
    let acked = worker.output(turn.turn_id, 0, vec![]).await.expect("taken").acked;
    assert!(acked == 0 || acked == 5, "{acked}");
    let end = worker.say(turn.turn_id, acked, &"héllo"[acked as usize..]).await;
    assert_eq!(worker.end(turn.turn_id, end).await, Ok(FinishResult::Accepted));
    let mut session = second.client().session("c", session.last_id.as_deref()).await;
    let rest = session.until("complete").await;
    assert_eq!((names(&rest), text(&rest).as_str()), (vec!["text", "complete"], "o"));
    db.all_delivered().await;
}

/// A load balancer may spread a worker's calls: the gateway that holds its stream learns that there is room.
async fn a_word_through_another_gateway_makes_room(db: Db) {
    let (first, second) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let mut worker = FakeWorker::on(&db.store, &first).await;
    worker.gateway = second.workers.clone();
    for message in ["m1", "m2", "m3"] {
        let turn = first.client().submit("c", message, "hello").await.turn_id;
        assert_eq!(worker.turn().await.turn_id, turn, "{message}");
        assert_eq!(worker.reply(&[turn], "by way of the other").await, Ok(FinishResult::Accepted));
    }
}

/// After a worker's move, the session on the gateway that it left sees what is said through the other, before the turn ends.
async fn output_through_one_gateway_is_seen_on_the_other_before_the_end(db: Db) {
    let (first, second) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let mut worker = FakeWorker::on(&db.store, &first).await;
    let turn = first.client().submit("c", "m", "hello").await;
    worker.turn().await;
    let mut here = first.client().session("c", Some(&turn.cursor)).await;
    let mut there = second.client().session("c", Some(&turn.cursor)).await;
    let at = worker.say(turn.turn_id, 0, "one ").await;
    assert_eq!(text(&here.until("text").await), "one ");
    assert_eq!(text(&there.until("text").await), "one ");
    durable(&db, at).await;
    drop(worker.connect(&second, &[turn.turn_id]).await);
    let at = worker.say(turn.turn_id, at, "two ").await;
    assert_eq!(text(&here.until("text").await), "two ");
    assert_eq!(text(&there.until("text").await), "two ");
    durable(&db, at).await;
    drop(worker.connect(&first, &[turn.turn_id]).await);
    let at = worker.say(turn.turn_id, at, "three").await;
    assert_eq!(text(&here.until("text").await), "three");
    assert_eq!(text(&there.until("text").await), "three");
    worker.end(turn.turn_id, at).await.expect("accepted");
    for session in [&mut here, &mut there] {
        assert_eq!(names(&session.until("complete").await), ["complete"]);
    }
}

/// Waits until the only log there is is durable up to here: what is not, a worker would have to send again elsewhere.
async fn durable(db: &Db, end: u64) {
    let written = "SELECT coalesce(max(end_at), 0) FROM output";
    eventually("the output is written", async || db.number(written).await >= end as i64).await;
}

/// A reply of this text and an error, each through `worker`, in this conversation.
async fn a_reply_and_an_error(gateway: &Gateway, worker: &mut FakeWorker, conversation: &str) -> [TurnId; 2] {
    let reply = gateway.client().submit(conversation, "reply", "hello").await.turn_id;
    worker.this_turn(reply).await;
    worker.reply(&[reply], conversation).await.expect("accepted");
    let error = gateway.client().submit(conversation, "error", "hello").await.turn_id;
    worker.this_turn(error).await;
    worker.fail(error, 0).await.expect("accepted");
    [reply, error]
}

/// What a session must have shown of these two, and nothing besides.
async fn shows_both_once(session: &mut Stream, turns: [TurnId; 2]) {
    let reply = session.until("complete").await;
    assert_eq!(names(&reply), ["text", "complete"]);
    assert!(reply.iter().all(|e| e.turn() == turns[0]));
    let error = session.until("complete").await;
    assert_eq!(names(&error), ["error", "agent-error", "complete"]);
    assert!(error.iter().all(|e| e.turn() == turns[1]));
}

/// Nothing but one more turn's terminal is on these sessions: what was to come twice would have come before it.
async fn only_this_follows(gateway: &Gateway, sessions: &mut [Stream], conversation: &str) {
    let last = gateway.client().submit(conversation, "last", "hello").await.turn_id;
    gateway.client().cancel(last).await;
    for session in sessions {
        let events: Vec<Event> = session.until("complete").await;
        assert_eq!(names(&events), ["error", "agent-error", "complete"]);
        assert!(events.iter().all(|e| e.turn() == last), "{events:?}");
    }
}

/// The client's session is on one gateway, the worker on the other. Reply and error come once each, and nothing is
/// left to deliver.
async fn a_terminal_is_rendered_once_by_its_sessions_owner(db: Db) {
    let (first, second) = (Gateway::start(&db).await, Gateway::start(&db).await);
    let mut worker = FakeWorker::on(&db.store, &second).await;
    for i in 0..5 {
        let conversation = format!("c{i}");
        db.spoken(&conversation).await;
        let mut session = first.client().session(&conversation, None).await;
        let turns = a_reply_and_an_error(&second, &mut worker, &conversation).await;
        shows_both_once(&mut session, turns).await;
        db.all_delivered().await;
        only_this_follows(&second, std::slice::from_mut(&mut session), &conversation).await;
        db.all_delivered().await;
    }
}

/// A registry that knows nothing, or names the other gateway, or a dead one, and tabs on both. Seeded.
async fn a_wrong_registry_loses_and_doubles_nothing(db: Db) {
    let mut random = SmallRng::seed_from_u64(seed());
    let gateways = [Gateway::start(&db).await, Gateway::start(&db).await];
    let mut worker = FakeWorker::on(&db.store, &gateways[1]).await;
    eventually("both gateways are known", async || db.count("gateway").await == 2).await;
    for i in 0..12 {
        let conversation = format!("c{i}");
        let here = random.random_range(0..2);
        db.spoken(&conversation).await;
        let mut tabs = vec![gateways[here].client().session(&conversation, None).await];
        if random.random_bool(0.5) {
            tabs.push(gateways[1 - here].client().session(&conversation, None).await);
        }
        let wrong = match random.random_range(0..4) {
            0 => "DELETE FROM session",
            1 => "UPDATE session s SET gateway = (SELECT id FROM gateway g WHERE g.id <> s.gateway LIMIT 1)",
            2 => "UPDATE session SET gateway = gen_random_uuid()",
            _ => "UPDATE session SET owner = NOT owner",
        };
        println!("{conversation}: {} tabs, first on {here}; {wrong}", tabs.len());
        db.sql(wrong).await;
        let turns = a_reply_and_an_error(&gateways[random.random_range(0..2)], &mut worker, &conversation).await;
        for tab in &mut tabs {
            shows_both_once(tab, turns).await;
        }
        only_this_follows(&gateways[0], &mut tabs, &conversation).await;
        drop(tabs);
        db.all_delivered().await;
    }
}

/// A session registers at about the time that its row is parked, on one gateway or the other.
async fn a_session_that_comes_while_its_row_is_parked_sees_it_once(db: Db) {
    let mut random = SmallRng::seed_from_u64(seed());
    let gateways = [Gateway::start(&db).await, Gateway::start(&db).await];
    let mut worker = FakeWorker::on(&db.store, &gateways[0]).await;
    let mut states = std::collections::BTreeSet::new();
    for i in 0..16 {
        let conversation = format!("c{i}");
        let turn = gateways[0].client().submit(&conversation, "m", "hello").await;
        worker.this_turn(turn.turn_id).await;
        worker.reply(&[turn.turn_id], "parked").await.expect("accepted");
        let row = format!("SELECT state FROM delivery WHERE turn_id = '{}'", turn.turn_id);
        // Another moment each time, until it is parked.
        let moment = Duration::from_millis(60 * random.random_range(0..14));
        let _ = try_eventually(moment, async || db.text(&row).await.as_deref() == Some("parked")).await;
        states.insert(db.text(&row).await);
        let mut session = gateways[random.random_range(0..2)].client().session(&conversation, None).await;
        let shown = session.until("complete").await;
        assert_eq!(names(&shown), ["text", "complete"]);
        only_this_follows(&gateways[1], std::slice::from_mut(&mut session), &conversation).await;
    }
    println!("states met: {states:?}");
    db.all_delivered().await;
}
