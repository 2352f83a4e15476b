//! Walls: what one user does, or calls a thing, changes nothing of another's. Worker groups, limits of principals, the order
//! of claims.

use std::collections::HashSet;

use lastword::store::keys::{self, KeyError, KeyRole, NewKey};
use lastword::store::{
    Arm, ArmError, ClaimFor, ClaimOrder, NewStart, OrganizationTie, PrincipalLimits, Retention, Store,
};
use lastword::turn::keys::{Grouping, NameError, TurnId, WorkerGroup, kubernetes_user};
use lastword::turn::reason::Reason;
use lastword::turn::terminal::Failure;
use time::OffsetDateTime;

use crate::support::Db;
use crate::support::actors::{AGENT, Worker, arm, armed, failure, finish, message, new_start};

/// A turn whose conversation has workers of its own.
fn own(conversation: &str) -> Arm {
    Arm { grouping: Grouping::PerConversation, ..arm(conversation) }
}

fn of(user: &str, arm: Arm) -> Arm {
    Arm { user: user.into(), ..arm }
}

fn start_for(worker_group: WorkerGroup) -> NewStart {
    NewStart { worker_group, ..new_start().0 }
}

/// Two users call their conversations the same; an erased name is used again; another Agent is named as people call a group:
/// nobody's worker gets another's turn.
async fn a_worker_group_is_no_name(db: Db) {
    let adas = armed(&db.store, own("c")).await;
    let eves = armed(&db.store, of("eve", own("c"))).await;
    assert_ne!(adas.worker_group, eves.worker_group);
    let worker = Worker::with(&db.store, |start| start.worker_group = adas.worker_group).await;
    assert_eq!(worker.claim_ids(&db.store, 10).await, [adas.turn_id]);

    db.erase("c").await.expect("erases").expect("it was there");
    let again = armed(&db.store, own("c")).await;
    assert_ne!(again.worker_group, adas.worker_group);
    assert_eq!(worker.claim_ids(&db.store, 10).await, [], "of the erased one");

    // As people call the group, in the log, in pods' annotations and in the API.
    let name = again.worker_group.name(AGENT);
    let agent = Worker::with(&db.store, |start| start.agent = name.clone()).await;
    assert_eq!(agent.claim_ids(&db.store, 10).await, [], "an Agent of that name");
    let demand = db.store.put_agent("acme", &name, &serde_json::json!({})).await;
    assert!(demand.expect("puts"));
    db.store.put_agent("acme", AGENT, &serde_json::json!({})).await.expect("puts");
    let demand = db.store.demand_of_worker_groups(ClaimOrder::ByRank).await.expect("answers");
    let groups: HashSet<(&str, WorkerGroup)> = demand.iter().map(|d| (d.agent.as_str(), d.worker_group)).collect();
    assert_eq!(groups, HashSet::from([(AGENT, again.worker_group), (AGENT, eves.worker_group)]));
    // A failed start of that Agent ends nothing of theirs, and keeps nothing of theirs waiting.
    db.store.fail_worker(agent.incarnation, &failure(Reason::StartFailed)).await.expect("answers");
    for turn in [again.turn_id, eves.turn_id] {
        assert_eq!(db.phase(turn).await.as_deref(), Some("waiting"));
    }
}

/// However many callers ask at once, and whether they look first or not.
async fn a_conversation_has_one_worker_that_starts_or_is_live(db: Db) {
    let turn = armed(&db.store, own("c")).await;
    let other = db.another_store();
    let starts: Vec<NewStart> = (0..24).map(|_| start_for(turn.worker_group)).collect();
    let tries = starts.iter().enumerate().map(|(i, start)| {
        let store = if i % 2 == 0 { &db.store } else { &other };
        async move { store.start_worker(start, i % 3 == 0).await.expect("answers") }
    });
    let started = futures::future::join_all(tries).await;
    assert_eq!(started.iter().filter(|started| **started).count(), 1);
    assert_eq!(db.count("lease").await, 1);

    // One that drains is beside the one that serves.
    let first = db.store.living_workers().await.expect("answers")[0].incarnation;
    assert!(db.store.drain_worker(first, Reason::Deleted).await.expect("answers"));
    assert!(db.store.start_worker(&start_for(turn.worker_group), true).await.expect("answers"));
    assert!(!db.store.start_worker(&start_for(turn.worker_group), false).await.expect("answers"));
    // Another incarnation in the container of the one that serves takes its place, not one beside it.
    let (credential, incarnations) = {
        let next = armed(&db.store, own("d")).await;
        let (start, credential) = new_start();
        let start = NewStart { worker_group: next.worker_group, ..start };
        assert!(db.store.start_worker(&start, true).await.expect("answers"));
        (credential, next)
    };
    Worker::connect(&db.store, credential.clone()).await;
    let second = Worker::connect(&db.store, credential).await;
    assert_eq!(second.claim_ids(&db.store, 1).await, [incarnations.turn_id]);
    // Workers that all conversations share are as many as are asked for.
    for _ in 0..3 {
        assert!(db.store.start_worker(&new_start().0, false).await.expect("answers"));
    }
}

/// Whether it was erased or its time was over; and what the fleet sees does not depend on who removed it.
async fn a_worker_is_seen_whose_conversation_is_gone(db: Db) {
    let gone = async |db: &Db, worker: &Worker| {
        let workers = db.store.living_workers().await.expect("answers");
        workers.iter().find(|w| w.incarnation == worker.incarnation).expect("lives").conversation_gone
    };
    let shared = Worker::live(&db.store).await;
    let mut workers = Vec::new();
    for conversation in ["erased", "pruned"] {
        let turn = armed(&db.store, own(conversation)).await;
        let worker = Worker::with(&db.store, |start| start.worker_group = turn.worker_group).await;
        assert_eq!(worker.claim_ids(&db.store, 1).await, [turn.turn_id]);
        assert_eq!(finish(&db.store, worker.reply(&[turn.turn_id], "done")).await, Ok(true));
        assert!(!gone(&db, &worker).await);
        workers.push(worker);
    }
    db.erase("erased").await.expect("erases");
    assert!(gone(&db, &workers[0]).await && !gone(&db, &workers[1]).await);
    for table in ["terminal SET ended_at = ended_at", "conversation SET empty_since = empty_since"] {
        db.sql(format!("UPDATE {table} - interval '60 days'")).await;
        db.store.prune_past_retention(&Retention::default()).await.expect("prunes");
    }
    assert_eq!(db.count("conversation").await, 0);
    assert!(gone(&db, &workers[1]).await && !gone(&db, &shared).await);
}

/// The most that a principal may have, counted when it arms.
fn at_most(open_turns: u32, conversations: u64) -> Option<PrincipalLimits> {
    Some(PrincipalLimits { open_turns, conversations, exact: true })
}

/// Many at once on two replicas; a repeat of what was armed is answered, however full it is; another user is not concerned.
async fn open_turns_are_limited_exactly(db: Db) {
    let other = db.another_store();
    for round in 0..8 {
        let user = format!("u{round}");
        let arms: Vec<Arm> = (0..40)
            .map(|i| Arm {
                limits: at_most(5, 100),
                ..of(&user, message(&format!("c{}", i % 7), &format!("m{i}"), "hello"))
            })
            .collect();
        let tries = arms.iter().enumerate().map(|(i, arm)| {
            let store = if i % 2 == 0 { &db.store } else { &other };
            store.arm(Arm { turn_id: TurnId::new(), ..arm.clone() })
        });
        let answers = futures::future::join_all(tries).await;
        let taken: Vec<usize> = (0..answers.len()).filter(|&i| answers[i].is_ok()).collect();
        assert_eq!(taken.len(), 5, "{answers:?}");
        assert!(answers.iter().all(|a| matches!(a, Ok(_) | Err(ArmError::TooManyOpen(5)))), "{answers:?}");
        for &i in &taken {
            assert!(!armed(&db.store, Arm { turn_id: TurnId::new(), ..arms[i].clone() }).await.fresh);
        }
        assert!(armed(&db.store, Arm { limits: at_most(5, 100), ..of("eve", arm(&format!("r{round}"))) }).await.fresh);
        db.store
            .fail_turn(answers[taken[0]].as_ref().expect("armed").turn_id, &failure(Reason::Cancelled))
            .await
            .expect("ends");
        assert!(
            armed(&db.store, Arm { limits: at_most(5, 100), ..of(&user, arm("c0")) }).await.fresh,
            "there is room again"
        );
        db.sql("DELETE FROM marker WHERE owner = 'eve'").await;
    }
}

/// Only what makes one is refused; and what was erased or pruned makes room.
async fn conversations_are_limited_exactly(db: Db) {
    let other = db.another_store();
    let limited = |conversation: &str| Arm { limits: at_most(1_000, 3), ..arm(conversation) };
    let tries = (0..30).map(|i| {
        let store = if i % 2 == 0 { &db.store } else { &other };
        let arm = limited(&format!("c{}", i % 10));
        async move { (i % 10, store.arm(arm).await) }
    });
    let answers = futures::future::join_all(tries).await;
    let taken: HashSet<i32> = answers.iter().filter(|(_, a)| a.is_ok()).map(|(i, _)| *i).collect();
    assert_eq!(taken.len(), 3, "{answers:?}");
    for (i, answer) in &answers {
        let refused = matches!(answer, Err(ArmError::TooManyConversations(3)));
        assert!(answer.is_ok() || (refused && !taken.contains(i)), "{i}: {answer:?}");
    }
    assert_eq!((db.count("conversation").await, db.number("SELECT conversations FROM principal").await), (3, 3));
    let mut taken: Vec<i32> = taken.into_iter().collect();
    armed(&db.store, limited(&format!("c{}", taken[0]))).await;
    assert!(armed(&db.store, of("eve", limited("c"))).await.fresh, "another user is not concerned");

    db.erase(&format!("c{}", taken.pop().expect("three"))).await.expect("erases");
    armed(&db.store, limited("erased makes room")).await;
    assert!(matches!(db.store.arm(limited("full")).await, Err(ArmError::TooManyConversations(3))));
    db.erase("erased makes room").await.expect("erases");
    db.emptied("pruned").await;
    db.sql("UPDATE conversation SET empty_since = empty_since - interval '60 days' WHERE empty_since IS NOT NULL")
        .await;
    db.store.prune_past_retention(&Retention::default()).await.expect("prunes");
    armed(&db.store, limited("pruned makes room")).await;
    // Nobody who owns nothing has a row.
    for conversation in taken {
        db.erase(&format!("c{conversation}")).await.expect("erases");
    }
    db.erase("pruned makes room").await.expect("erases");
    assert_eq!(db.count("principal WHERE owner = 'ada'").await, 0);
}

/// A worker of capacity one: claims a turn as gateways do, with both orders in turn, and ends it.
async fn serve(store: &Store, worker: &Worker, order: &mut ClaimOrder) -> Option<TurnId> {
    let claim = ClaimFor { incarnation: worker.incarnation, room: 1, together: false, order: *order };
    let turn = store.claim(claim).await.expect("claims").first()?.turn_id;
    *order = order.next();
    assert_eq!(finish(store, worker.reply(&[turn], "done")).await, Ok(true));
    Some(turn)
}

/// One user's many turns hold up nobody's first one; they all come, in their order, however many others go on to send.
async fn a_backlog_holds_up_nobody_else(db: Db) {
    let worker = Worker::live(&db.store).await;
    let mut heavy = Vec::new();
    for i in 0..40 {
        heavy.push(armed(&db.store, of("heavy", arm(&format!("h{i}")))).await.turn_id);
    }
    let (mut order, mut served, mut sent) = (ClaimOrder::default(), Vec::new(), Vec::new());
    for i in 0..40 {
        // Each round somebody new comes, more than the worker can serve beside the backlog.
        for j in 0..2 {
            let turn = armed(&db.store, of(&format!("light{i}-{j}"), arm("l"))).await.turn_id;
            sent.push((turn, served.len()));
        }
        served.push(serve(&db.store, &worker, &mut order).await.expect("one waits"));
    }
    let place = |turn: &TurnId| served.iter().position(|s| s == turn);
    // Every second claim was of somebody's first turn, oldest first: the tenth of those who came has waited for nine like it.
    for (nth, (turn, came)) in sent.iter().take(18).enumerate() {
        let at = place(turn).unwrap_or_else(|| panic!("the light turn {nth} was not served"));
        assert!(at <= came + 2 * (nth + 1), "{nth}: came at {came}, served at {at}");
    }
    // And every second one was of the longest waiting: the backlog goes on, in its order.
    let heavies: Vec<usize> = heavy.iter().filter_map(place).collect();
    assert!(heavies.len() >= 20, "{heavies:?}");
    assert!(heavies.is_sorted(), "{heavies:?}");
    while serve(&db.store, &worker, &mut order).await.is_some() {}
    assert_eq!(db.count("marker").await, 0);
}

/// Where there are too few places for all conversations, both orders decide who gets the next worker.
async fn demand_is_seen_of_everybody(db: Db) {
    db.store.put_agent("acme", AGENT, &serde_json::json!({"limits": {"maxWorkers": 1}})).await.expect("puts");
    for i in 0..60 {
        armed(&db.store, of("heavy", own(&format!("h{i}")))).await;
    }
    let light = armed(&db.store, of("light", own("l"))).await.worker_group;
    let seen = async |order| {
        let demand = db.store.demand_of_worker_groups(order).await.expect("answers");
        demand.iter().map(|d| d.worker_group).collect::<Vec<_>>()
    };
    assert_eq!(seen(ClaimOrder::ByRank).await.iter().position(|g| *g == light), Some(1), "behind heavy's first");
    assert_ne!(seen(ClaimOrder::OldestFirst).await[0], light);
}

/// Its keys are revoked and its Agents gone with the tie; its conversations are erased before the tie is ready. Nobody else's
/// organization is touched, and whoever has read the former namespace is late.
async fn a_namespace_that_is_made_again_inherits_nothing(db: Db) {
    let at = |seconds: i64| OffsetDateTime::from_unix_timestamp(1_800_000_000 + seconds).expect("a time");
    let tie =
        async |uid: &str, seconds: i64| db.store.tie_organization("acme", uid, at(seconds)).await.expect("answers");
    assert_eq!(tie("u", 0).await, OrganizationTie::Ready);
    let key = async |organization: &str| {
        let new = NewKey {
            organization: organization.into(),
            name: "k".into(),
            user: "ada".into(),
            role: KeyRole::Operator,
            valid_for: None,
        };
        keys::create(db.store.pool(), &new).await.expect("a key").1.reveal()
    };
    let (old, other) = (key("acme").await, key("umbrella").await);
    let good = async |key: &str| {
        keys::authenticate(db.store.pool(), &key.parse().expect("a key")).await.expect("answers").is_some()
    };
    db.store.put_agent_object("acme", "bot", &serde_json::json!({}), "a", 1).await.expect("puts");
    let worker = Worker::live(&db.store).await;
    for conversation in ["open", "held"] {
        db.armed(conversation).await;
    }
    assert_eq!(worker.claim_ids(&db.store, 1).await.len(), 1);
    let elsewhere = armed(&db.store, Arm { organization: "umbrella".into(), ..arm("c") }).await.turn_id;
    assert_eq!(tie("u", 0).await, OrganizationTie::Ready, "the same one again changes nothing");
    assert!(good(&old).await && good(&other).await);

    assert_eq!(tie("v", 60).await, OrganizationTie::NotEmptied);
    assert!(!good(&old).await && good(&other).await);
    assert_eq!(db.store.agents().await.expect("reads"), []);
    assert_eq!(tie("u", 0).await, OrganizationTie::Late, "a leader of before");
    while db.store.empty_organizations().await.expect("erases") {}
    assert_eq!(tie("v", 60).await, OrganizationTie::NotEmptied, "a gateway may still go by what it has read");
    db.sql("UPDATE organization SET tied_at = tied_at - interval '1 minute'").await;
    assert!(!db.store.empty_organizations().await.expect("erases"));
    assert_eq!(tie("v", 60).await, OrganizationTie::Ready);
    assert_eq!(db.count("conversation WHERE organization = 'acme'").await, 0);
    assert_eq!(db.count("turn WHERE organization = 'acme'").await, 0);
    assert_eq!(db.phase(elsewhere).await.as_deref(), Some("waiting"));
    assert_eq!(db.count("audit WHERE action = 'erase'").await, 2);
    // A key of the new one is good, and stays so.
    let new = key("acme").await;
    assert_eq!(tie("v", 60).await, OrganizationTie::Ready);
    assert!(good(&new).await);
}

/// `spec.user` is whatever an AgentTurn's author wrote: it is never the user whom the API knows by that name.
async fn a_user_of_agent_turns_is_no_user_of_the_api(db: Db) {
    let api = armed(&db.store, message("c", "m", "hello")).await;
    let object = armed(&db.store, of(&kubernetes_user("ada"), message("c", "m", "hello"))).await;
    assert!(object.fresh && object.conversation_id != api.conversation_id);
    let new = NewKey {
        organization: "acme".into(),
        name: "k".into(),
        user: kubernetes_user("ada"),
        role: KeyRole::User,
        valid_for: None,
    };
    assert!(matches!(keys::create(db.store.pool(), &new).await, Err(KeyError::Name(NameError::Realm))));
    // Nor by a row that came into the table by another way.
    let (info, key) = keys::create(db.store.pool(), &NewKey { user: "ada".into(), ..new }).await.expect("a key");
    assert!(keys::authenticate(db.store.pool(), &key).await.expect("answers").is_some());
    db.sql(format!("UPDATE api_key SET \"user\" = 'kubernetes:ada' WHERE id = '{}'", info.id)).await;
    assert!(keys::authenticate(db.store.pool(), &key).await.expect("answers").is_none());
}

/// What others may read of a failure has the exit code, and nothing of what the program wrote.
async fn what_events_are_made_of_has_no_detail(db: Db) {
    let since = db.store.database_time().await.expect("now") - std::time::Duration::from_secs(60);
    let turn = db.armed("c").await.turn_id;
    let detail = "exit code 9\na secret on stderr";
    db.store.fail_turn(turn, &Failure::detailed(Reason::AgentError, detail)).await.expect("ends");
    let starts = new_start().0;
    assert!(db.store.start_worker(&starts, false).await.expect("starts"));
    db.store.fail_start(starts.start_id, &Failure::detailed(Reason::StartFailed, detail)).await.expect("fails");
    let mut failed = db.store.failed_turns(since, 10).await.expect("reads");
    failed.extend(db.store.failed_starts(since, 10).await.expect("reads"));
    assert_eq!(failed.len(), 2);
    for one in failed {
        assert_eq!(one.code, Some(9));
        assert!(!format!("{one:?}").contains("secret"), "{one:?}");
    }
}

crate::both!(
    a_namespace_that_is_made_again_inherits_nothing,
    a_user_of_agent_turns_is_no_user_of_the_api,
    what_events_are_made_of_has_no_detail,
    a_worker_group_is_no_name,
    a_conversation_has_one_worker_that_starts_or_is_live,
    a_worker_is_seen_whose_conversation_is_gone,
    open_turns_are_limited_exactly,
    conversations_are_limited_exactly,
    a_backlog_holds_up_nobody_else,
    demand_is_seen_of_everybody,
);
