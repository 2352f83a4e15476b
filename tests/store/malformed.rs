//! A marker whose turn cannot be read is never dropped: it ends with `Internal`, on every path.

use lastword::store::GuardedTurn;
use lastword::turn::keys::{GatewayId, TurnId};
use lastword::turn::reason::Reason;

use crate::support::Db;
use crate::support::actors::{Worker, arm, armed, failure, finish};

/// What can be wrong with a turn's row, as SQL behind which its id comes.
const DAMAGES: [&str; 6] = [
    r#"UPDATE turn SET routing = '"x"' WHERE id ="#,
    r#"UPDATE turn SET routing = '{"platform": 7}' WHERE id ="#,
    r#"UPDATE turn SET routing = '{"platform": ""}' WHERE id ="#,
    // Postgres holds numbers and depths that no parser of ours takes.
    r#"UPDATE turn SET routing = '{"platformMetadata": 1e400}' WHERE id ="#,
    r#"UPDATE turn SET routing = (repeat('[', 200) || repeat(']', 200))::jsonb WHERE id ="#,
    "DELETE FROM turn WHERE id =",
];

async fn damage(db: &Db, how: &str, turn: TurnId) {
    assert_eq!(db.sql(format!("{how} '{turn}'")).await, 1);
}

/// The turn ended with `Internal`, once, and is shown where every client looks.
async fn ended_internal(db: &Db, turn: TurnId, how: &str) {
    assert_eq!(db.outcome(turn).await.as_deref(), Some("Internal"), "{how}");
    assert_eq!(db.phase(turn).await, None, "{how}");
    let platform = db.text(format!("SELECT platform FROM delivery WHERE turn_id = '{turn}'")).await;
    assert_eq!(platform.as_deref(), Some("api"), "{how}");
}

/// The fast path of many at once: the worker's own word, in one batch with others'.
async fn a_word_on_an_unreadable_turn_ends_it(db: Db) {
    let worker = Worker::live(&db.store).await;
    for how in DAMAGES {
        let (bad, good) = (db.in_hand(&worker).await, db.in_hand(&worker).await);
        damage(&db, how, bad).await;
        let words = [worker.reply(&[bad], "hello"), worker.reply(&[good], "hello")];
        let answers = futures::future::join_all(words.map(|word| finish(&db.store, word))).await;
        assert_eq!(answers, [Ok(true), Ok(true)], "{how}");
        ended_internal(&db, bad, how).await;
        assert_eq!(db.outcome(good).await.as_deref(), Some("reply"), "{how}");
    }
}

/// A reply for several turns of which one is unreadable still answers the others.
async fn a_reply_to_several_goes_to_a_readable_one(db: Db) {
    for how in DAMAGES {
        let worker = Worker::together(&db.store).await;
        let turns = [db.armed(how).await.turn_id, db.armed(how).await.turn_id];
        assert_eq!(worker.claim_ids(&db.store, 1).await, turns);
        damage(&db, how, turns[0]).await;
        assert_eq!(finish(&db.store, worker.reply(&turns, "hello")).await, Ok(true), "{how}");
        ended_internal(&db, turns[0], how).await;
        let record = db.store.turn_record(turns[1]).await.expect("answers").expect("exists");
        assert_eq!(record.reply.map(|r| (r.holder, r.text)), Some((turns[1], Some("hello".into()))), "{how}");
        db.store.fail_worker(worker.incarnation, &failure(Reason::Deleted)).await.expect("answers");
    }
}

/// One turn alone: a cancel.
async fn a_cancel_ends_an_unreadable_turn(db: Db) {
    for how in DAMAGES {
        let turn = db.armed(how).await.turn_id;
        damage(&db, how, turn).await;
        let ended = db.store.fail_turn(turn, &failure(Reason::Cancelled)).await.expect("answers");
        assert_eq!(ended.expect("was open").turn_id, turn, "{how}");
        ended_internal(&db, turn, how).await;
    }
}

/// The death of a worker ends an unreadable turn with all others.
async fn a_death_ends_an_unreadable_turn(db: Db) {
    for how in DAMAGES {
        let worker = Worker::live(&db.store).await;
        let (bad, good) = (db.in_hand(&worker).await, db.in_hand(&worker).await);
        damage(&db, how, bad).await;
        let died = db.store.fail_worker(worker.incarnation, &failure(Reason::Evicted)).await.expect("answers");
        assert_eq!(died.ended.len(), 2, "{how}");
        ended_internal(&db, bad, how).await;
        assert_eq!(db.outcome(good).await.as_deref(), Some("Evicted"), "{how}");
    }
}

/// By the sweep: the hard deadline ends unreadable turns and all others with them.
async fn the_sweep_ends_unreadable_turns(db: Db) {
    let mut bad = Vec::new();
    for how in DAMAGES {
        let turn = db.armed(how).await.turn_id;
        db.overdue(turn).await;
        damage(&db, how, turn).await;
        bad.push((turn, how));
    }
    let good = db.armed("good").await.turn_id;
    db.overdue(good).await;
    db.settled().await;
    assert_eq!(db.store.sweep().await.expect("sweeps").turns, DAMAGES.len() as u32 + 1);
    for (turn, how) in bad {
        ended_internal(&db, turn, how).await;
    }
    assert_eq!(db.outcome(good).await.as_deref(), Some("DeadlineExceeded"));
}

/// An unreadable turn keeps nobody else from being claimed, guarded, listed or shown.
async fn an_unreadable_turn_is_in_nobodys_way(db: Db) {
    let worker = Worker::live(&db.store).await;
    for how in DAMAGES {
        let (bad, good) = (db.armed(&format!("1{how}")).await.turn_id, db.armed(&format!("2{how}")).await.turn_id);
        damage(&db, how, bad).await;
        let claimed = worker.claim_ids(&db.store, 10).await;
        assert!(claimed.contains(&good), "{how}: {claimed:?}");
        assert!(!db.store.list_turns("acme", &filter()).await.expect("lists").is_empty(), "{how}");
        db.store.turn_record(bad).await.expect("answers");

        let guard = Some((GatewayId::new(), 1));
        let guarded = armed(&db.store, lastword::store::Arm { guard, ..arm(&format!("3{how}")) }).await.turn_id;
        let other = armed(&db.store, lastword::store::Arm { guard, ..arm(&format!("4{how}")) }).await.turn_id;
        db.sql("UPDATE marker SET guard_until = guard_until - interval '1 minute' WHERE phase = 'guarding'").await;
        damage(&db, how, guarded).await;
        let taken = db.store.take_unguarded_turns(GatewayId::new(), 10).await.expect("answers");
        assert!(taken.iter().map(|t: &GuardedTurn| t.turn_id).any(|t| t == other), "{how}");
        for turn in [bad, good, guarded, other] {
            db.store.fail_turn(turn, &failure(Reason::Cancelled)).await.expect("answers");
        }
    }
}

fn filter() -> lastword::store::ListFilter {
    lastword::store::ListFilter { limit: 100, ..Default::default() }
}

crate::both!(
    a_word_on_an_unreadable_turn_ends_it,
    a_reply_to_several_goes_to_a_readable_one,
    a_cancel_ends_an_unreadable_turn,
    a_death_ends_an_unreadable_turn,
    the_sweep_ends_unreadable_turns,
    an_unreadable_turn_is_in_nobodys_way,
);
