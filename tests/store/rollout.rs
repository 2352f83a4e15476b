//! A change of an Agent: which of them takes other workers, and how these replace the ones before.

use lastword::store::{ClaimFor, ClaimOrder};
use lastword::turn::keys::{ConversationId, GatewayId, WorkerGroup};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::steps::tick;
use crate::support::Db;
use crate::support::actors::{AGENT, ORGANIZATION, Worker, finish};

fn spec(change: Value) -> Value {
    let mut spec = json!({"scope": "Agent", "adapter": "OpenAI", "openai": {"baseURL": "http://m/v1", "model": "m"}});
    spec.as_object_mut().expect("an object").extend(change.as_object().expect("an object").clone());
    spec
}

async fn put(db: &Db, change: Value) -> i64 {
    db.store.put_agent(ORGANIZATION, AGENT, &spec(change)).await.expect("puts");
    config(db).await
}

async fn config(db: &Db) -> i64 {
    db.store.agents().await.expect("reads").pop().expect("is there").config
}

async fn of_config(db: &Db, config: i64) -> Worker {
    Worker::with(&db.store, |start| start.config = config).await
}

async fn retires(db: &Db, worker: &Worker) -> bool {
    let workers = db.store.living_workers().await.expect("reads");
    workers.into_iter().find(|w| w.incarnation == worker.incarnation).expect("it lives").retiring
}

/// Only what is baked into a worker takes another one, and what goes back is another config all the same.
async fn a_config_is_what_workers_are_made_of(db: Db) {
    assert_eq!(put(&db, json!({})).await, 1);
    for change in [
        json!({"limits": {"maxWorkers": 20, "turnsPerWorker": 3}}),
        json!({"timing": {"idleSeconds": 9, "turnSeconds": 8, "leaseSeconds": 30, "drainSeconds": 1, "startSeconds": 7}}),
        json!({"guardrails": {"input": [{"name": "a", "cel": {"expression": "true"}}]}}),
        json!({"platforms": [{"name": "hook", "slack": {"url": "https://h"}}]}),
        json!({"rollout": {"maxSurge": 2}}),
        json!({}),
    ] {
        assert_eq!(put(&db, change.clone()).await, 1, "{change}");
    }
    for (number, change) in [
        json!({"openai": {"baseURL": "http://m/v1", "model": "n"}}),
        json!({"template": {"spec": {"containers": [{"name": "agent", "image": "i"}]}}}),
        json!({"scope": "Conversation"}),
        json!({"scope": "Conversation", "adapter": "Custom"}),
        json!({}),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(put(&db, change.clone()).await, number as i64 + 2, "{change}");
    }
    assert!(db.store.remove_agent(ORGANIZATION, AGENT).await.expect("removes"));
    assert_eq!(put(&db, json!({})).await, 7, "what comes back is another");
}

/// The lease takes its terms when the worker connects, and its capacity at once.
async fn terms_hold_for_workers_that_run(db: Db) {
    put(&db, json!({"limits": {"turnsPerWorker": 2}})).await;
    let worker = of_config(&db, 1).await;
    let terms = async || {
        let [lease] = &db.store.living_workers().await.expect("reads")[..] else { panic!("one worker") };
        let numbers = format!(
            "SELECT lease_seconds || ' ' || heartbeat_seconds FROM lease WHERE start_id = '{}'",
            lease.start_id
        );
        (lease.capacity, db.text(numbers).await.expect("there"))
    };
    assert_eq!(terms().await, (2, "60 20".to_owned()));
    put(&db, json!({"limits": {"turnsPerWorker": 5}, "timing": {"leaseSeconds": 30}})).await;
    assert_eq!(terms().await, (5, "60 20".to_owned()), "whoever beats by the old lease is judged by it");
    assert_eq!(db.store.worker_state(worker.incarnation).await.expect("reads").expect("lives").capacity, 5);
    let connect =
        db.store.connect_worker(&worker.credential, worker.incarnation, GatewayId::new(), Uuid::new_v4(), 3, false);
    let connected = connect.await.expect("connects");
    assert_eq!((connected.capacity, connected.lease_seconds, connected.heartbeat_seconds), (3, 30, 10));
    assert_eq!(terms().await, (3, "30 10".to_owned()), "no more than the worker offers");
}

/// The first worker of a config that comes to life proves it, and each retires one older worker. What retires claims nothing,
/// and finishes what it holds.
async fn who_comes_to_life_retires_one_older(db: Db) {
    put(&db, json!({})).await;
    let (one, two) = (of_config(&db, 1).await, of_config(&db, 1).await);
    let held = db.in_hand(&one).await;
    assert!(db.store.agents().await.expect("reads")[0].proven);
    assert_eq!(put(&db, json!({"scope": "Agent", "openai": {"baseURL": "http://m/v1", "model": "n"}})).await, 2);
    assert!(!db.store.agents().await.expect("reads")[0].proven);

    let new = of_config(&db, 2).await;
    assert!(db.store.agents().await.expect("reads")[0].proven);
    assert_eq!((retires(&db, &one).await, retires(&db, &two).await), (false, true), "the idle one");
    let another = of_config(&db, 2).await;
    assert_eq!((retires(&db, &one).await, retires(&db, &new).await), (true, false));
    of_config(&db, 2).await;
    assert_eq!((retires(&db, &new).await, retires(&db, &another).await), (false, false), "none of its own config");

    let waiting = db.armed("waiting").await.turn_id;
    for older in [&one, &two] {
        assert!(older.claim(&db.store, 10).await.is_empty());
    }
    assert_eq!(tick(&db.store, &[one.beat(true)]).await[&one.incarnation].held, [held], "it lives");
    assert_eq!(finish(&db.store, one.reply(&[held], "done")).await, Ok(true));
    assert_eq!(new.claim_ids(&db.store, 10).await, [waiting]);

    // A second process of the container retires as well.
    let second = Worker::connect(&db.store, one.credential.clone()).await;
    assert!(retires(&db, &second).await && second.claim(&db.store, 10).await.is_empty());
}

/// A conversation has one worker that serves it: the one that replaces it can be started once it retires, and while that is
/// there, it cannot serve again.
async fn a_conversations_worker_is_replaced_by_one(db: Db) {
    put(&db, json!({"scope": "Conversation"})).await;
    let conversation = db.emptied("c").await;
    let group = |start: &mut lastword::store::NewStart, config| {
        start.worker_group = WorkerGroup::OfConversation(conversation);
        start.config = config;
    };
    let old = Worker::with(&db.store, |start| group(start, 1)).await;
    let begin = async || {
        let (mut start, _) = crate::support::actors::new_start();
        group(&mut start, 2);
        (start.start_id, db.store.start_worker(&start, true).await.expect("answers"))
    };
    assert!(!begin().await.1, "it serves");
    assert!(db.store.retire_worker(old.incarnation).await.expect("retires"));
    assert!(!db.store.retire_worker(old.incarnation).await.expect("answers"), "it does already");
    let (start, started) = begin().await;
    assert!(started && !begin().await.1, "one of them");
    assert!(!db.store.restore_worker(old.incarnation).await.expect("answers"), "another is on its way");
    let failure = crate::support::actors::failure(lastword::turn::reason::Reason::StartFailed);
    db.store.fail_start(start, &failure).await.expect("fails");
    assert!(db.store.restore_worker(old.incarnation).await.expect("restores"));
    assert!(!begin().await.1, "it serves again");
    let claim = ClaimFor { incarnation: old.incarnation, room: 1, together: false, order: ClaimOrder::OldestFirst };
    assert!(db.store.claim(claim).await.is_ok());
    assert!(!db.store.retire_worker(lastword::turn::keys::Incarnation::new()).await.expect("answers"));
    assert_ne!(conversation, ConversationId::new());
}

crate::both!(
    a_config_is_what_workers_are_made_of,
    terms_hold_for_workers_that_run,
    who_comes_to_life_retires_one_older,
    a_conversations_worker_is_replaced_by_one,
);
