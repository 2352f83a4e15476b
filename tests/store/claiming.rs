//! Claim: turns of a conversation are claimed in arm order, one at a time or together, by live workers of their worker
//! group only.

use std::collections::HashSet;

use lastword::turn::keys::{GatewayId, TurnId, WorkerGroup};
use lastword::turn::reason::Reason;

use crate::support::Db;
use crate::support::actors::{Worker, arm, armed, failure, finish};

/// Turns of a conversation are claimed in arm order, the next one when the one before has its terminal.
async fn turns_of_a_conversation_are_claimed_one_at_a_time_in_arm_order(db: Db) {
    let mut turns = Vec::new();
    for _ in 0..5 {
        turns.push(db.armed("c").await.turn_id);
    }
    let workers = [Worker::live(&db.store).await, Worker::live(&db.store).await];
    for (i, turn) in turns.iter().enumerate() {
        let worker = &workers[i % 2];
        assert_eq!(worker.claim_ids(&db.store, 10).await, [*turn]);
        assert!(workers[0].claim(&db.store, 10).await.is_empty());
        assert!(workers[1].claim(&db.store, 10).await.is_empty());
        if i % 2 == 0 {
            assert_eq!(finish(&db.store, worker.reply(&[*turn], "next")).await, Ok(true));
        } else {
            db.store.fail_turn(*turn, &failure(Reason::Cancelled)).await.expect("answers");
        }
    }
    assert_eq!(db.count("marker").await, 0);
}

/// `together` claims all that wait, at most 32; with none of them beside one that is in hand.
async fn together_claims_all_that_wait(db: Db) {
    let mut turns = Vec::new();
    for _ in 0..40 {
        turns.push(db.armed("c").await.turn_id);
    }
    let lone = db.armed("d").await.turn_id;
    let worker = Worker::together(&db.store).await;
    let claimed = worker.claim_ids(&db.store, 1).await;
    assert_eq!(claimed, turns[..32], "the oldest conversation, in order, up to the limit");
    let next = worker.claim_ids(&db.store, 10).await;
    assert_eq!(next, [lone], "the rest waits for those in hand");
    assert_eq!(finish(&db.store, worker.reply(&claimed, "all")).await, Ok(true));
    assert_eq!(worker.claim_ids(&db.store, 10).await, turns[32..]);
}

/// A turn under guard holds back those behind it; the guard's lease goes over to another, who passes it.
async fn a_turn_under_guard_holds_back_those_behind_it(db: Db) {
    let (guard, other) = (GatewayId::new(), GatewayId::new());
    let mut guarded = arm("c");
    guarded.guard = Some((guard, 30));
    let guarded = armed(&db.store, guarded).await.turn_id;
    let behind = db.armed("c").await.turn_id;
    let worker = Worker::live(&db.store).await;
    assert!(worker.claim(&db.store, 10).await.is_empty());
    assert!(db.store.take_unguarded_turns(other, 30).await.expect("answers").is_empty(), "its lease has not run out");
    assert!(db.store.keep_guarding_turn(guarded, guard, 30).await.expect("answers"));
    db.sql("UPDATE marker SET guard_until = clock_timestamp() - interval '1 second' WHERE phase = 'guarding'").await;
    let taken = db.store.take_unguarded_turns(other, 30).await.expect("answers");
    assert_eq!(taken.iter().map(|t| t.turn_id).collect::<Vec<_>>(), [guarded]);
    assert!(!db.store.keep_guarding_turn(guarded, guard, 30).await.expect("answers"));
    assert!(!db.store.pass_guarded_turn(guarded, guard).await.expect("answers"), "no longer the first guard's");
    assert!(db.store.pass_guarded_turn(guarded, other).await.expect("answers"));
    assert_eq!(worker.claim_ids(&db.store, 10).await, [guarded]);
    db.store.fail_turn(guarded, &failure(Reason::GuardrailRejected)).await.expect("answers");
    assert_eq!(worker.claim_ids(&db.store, 10).await, [behind]);
}

/// Many workers on two replicas: each turn is claimed once, no conversation is in two hands, and room is kept.
async fn a_turn_is_claimed_once(db: Db) {
    let other = db.another_store();
    for c in 0..60 {
        for _ in 0..3 {
            db.armed(&format!("c{c}")).await;
        }
    }
    let mut workers = Vec::new();
    for _ in 0..10 {
        workers.push(Worker::live(&db.store).await);
    }
    let claims = workers.iter().flat_map(|w| [w.claim_ids(&db.store, 3), w.claim_ids(&other, 3)]);
    let claimed = futures::future::join_all(claims).await;
    assert!(claimed.iter().all(|c| c.len() <= 3));
    let all: Vec<TurnId> = claimed.into_iter().flatten().collect();
    assert_eq!(all.len(), all.iter().collect::<HashSet<_>>().len());
    assert_eq!(all.len(), 60, "twenty claims of three");
    assert_eq!(db.count("marker WHERE phase = 'claimed' AND number > 1").await, 0);
    let held = db.store.turns_held_by(&all, workers[0].incarnation).await.expect("answers");
    assert_eq!(held.len() as i64, db.count(&format!("marker WHERE incarnation = '{}'", workers[0].incarnation)).await);
}

/// A worker touches only its own worker group's turns, of its own organization; one that is not live, none.
async fn a_worker_touches_only_its_own_worker_groups_turns(db: Db) {
    let mine = db.armed("c").await.turn_id;
    let own = WorkerGroup::OfConversation(db.armed("d").await.conversation_id);
    for (organization, agent, worker_group) in
        [("acme", "other", WorkerGroup::OfAgent), ("umbrella", "bot", WorkerGroup::OfAgent), ("acme", "bot", own)]
    {
        let stranger = Worker::with(&db.store, |start| {
            (start.organization, start.agent) = (organization.into(), agent.into());
            start.worker_group = worker_group;
        });
        let stranger = stranger.await;
        assert!(stranger.claim(&db.store, 10).await.is_empty());
    }
    let dead = Worker::live(&db.store).await;
    let worker = Worker::live(&db.store).await;
    db.store.fail_worker(dead.incarnation, &failure(Reason::WorkerExited)).await.expect("answers");
    assert!(dead.claim(&db.store, 10).await.is_empty());
    assert!(worker.claim(&db.store, 0).await.is_empty());
    let claimed = worker.claim(&db.store, 1).await;
    assert_eq!(claimed[0].turn_id, mine);
    assert_eq!((claimed[0].conversation.as_str(), claimed[0].number, claimed[0].log_end), ("c", 1, 0));
}

/// A removed agent's waiting turns end, as do those beyond its queue's limit; what is in hand does not.
async fn what_waits_for_a_removed_agent_or_beyond_the_queue_ends(db: Db) {
    let worker = Worker::live(&db.store).await;
    let held = db.in_hand(&worker).await;
    let mut waiting = Vec::new();
    for _ in 0..5 {
        waiting.push(db.armed("c").await.turn_id);
    }
    let queued = async |limit| {
        db.store.backlog_before_turn("acme", "ada", "bot", "c", (limit, 0)).await.expect("answers").queued
    };
    assert_eq!(queued(100).await, 5);
    assert_eq!(queued(3).await, 4);
    assert_eq!(db.store.shed_queue_of_agent("acme", "bot", 3).await.expect("answers"), 2);
    for newest in &waiting[3..] {
        assert_eq!(db.outcome(*newest).await.as_deref(), Some("QuotaExceeded"));
    }
    let orphaned = async || db.store.end_turns_of_removed_agent("acme", "bot").await.expect("answers");
    db.sql("INSERT INTO agent (namespace, name, spec) VALUES ('acme', 'bot', '{}')").await;
    assert_eq!(orphaned().await, 0, "it is there");
    db.store.remove_agent("acme", "bot").await.expect("removed");
    assert_eq!(orphaned().await, 0, "it may be about to be made again");
    db.sql("UPDATE agent SET deleted_at = deleted_at - interval '10 s'").await;
    assert_eq!(orphaned().await, 3);
    assert_eq!(db.outcome(waiting[0]).await.as_deref(), Some("AgentNotFound"));
    assert_eq!(db.phase(held).await.as_deref(), Some("claimed"));
}

/// The backstop: a marker that names a lease that died lately ends with the next sweep, without waiting for the gate.
async fn the_sweep_ends_what_a_dead_lease_left(db: Db) {
    let worker = Worker::live(&db.store).await;
    let turn = db.in_hand(&worker).await;
    db.sql("UPDATE lease SET phase = 'dead', died_at = clock_timestamp(), death_reason = 'OutOfMemory'").await;
    db.sql("UPDATE gate SET seen = clock_timestamp() - interval '1 hour'").await;
    assert_eq!(db.store.sweep().await.expect("sweeps").turns, 1);
    assert_eq!(db.outcome(turn).await.as_deref(), Some("OutOfMemory"), "as its worker died");
}

crate::both!(
    turns_of_a_conversation_are_claimed_one_at_a_time_in_arm_order,
    together_claims_all_that_wait,
    a_turn_under_guard_holds_back_those_behind_it,
    a_turn_is_claimed_once,
    a_worker_touches_only_its_own_worker_groups_turns,
    what_waits_for_a_removed_agent_or_beyond_the_queue_ends,
    the_sweep_ends_what_a_dead_lease_left,
);
