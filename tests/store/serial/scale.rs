//! At a million rows no hot statement scans a large table, none touches much of one, and a sweep with nothing lapsed costs what
//! it costs at ten thousand.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lastword::local::postgres::Version;
use lastword::store::keys::{KeyRole, Principal};
use lastword::store::{Arm, ClaimOrder, ListFilter, Retention, Store, Ticket, TicketHolder};
use lastword::turn::keys::{ConversationId, GatewayId, Grouping, TurnId, WorkerGroup};
use lastword::turn::reason::Reason;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::counted::{CALLS, Judge, counted, touched};
use super::million::{analyze, fill, filled, people};
use crate::steps::tick;
use crate::support::Db;
use crate::support::actors::{Worker, arm, armed, failure, finish};

const ROWS: i64 = 1_000_000;
const FEW: i64 = 10_000;
/// Leases and turn times here, in seconds. Longer than the test takes on any machine: none runs out but where a verb is to find
/// it. Shorter than the hour for which gateways have ticked (`Db::settled`): verdicts wait for a lease after a gap.
const LONG: u32 = 3_000;

#[test]
fn hot_verbs_scan_nothing() {
    counted(Version::V18, at_a_million_rows);
}

async fn at_a_million_rows(db: &Db) {
    people(db).await;
    fill(db, 0, FEW).await;
    analyze(db).await;
    let few = idle_sweep(db).await;
    let begun = Instant::now();
    fill(db, FEW, ROWS).await;
    analyze(db).await;
    println!("{ROWS} rows of each table in {:?}", begun.elapsed());
    let many = idle_sweep(db).await;
    println!("a sweep with nothing lapsed touches {few} pages at {FEW} markers, {many} at {ROWS}");

    let mut judge = Judge { db, faults: Vec::new() };
    if 2 * many > 3 * few.max(8) {
        judge.faults.push(format!("an idle sweep touches {many} pages at {ROWS} markers, {few} at {FEW}"));
    }
    writers(&mut judge).await;
    readers(&mut judge).await;
    loops(&mut judge).await;
    assert!(judge.faults.is_empty(), "{}", judge.faults.join("\n"));
}

/// Pages that a sweep touches with nothing to do.
async fn idle_sweep(db: &Db) -> i64 {
    let (_, pages) = touched(db, async |store: &Store, _| {
        db.settled().await;
        tick(store, &[]).await;
        assert_eq!(store.sweep().await.expect("sweeps"), Default::default());
    })
    .await;
    pages
}

/// A turn of a new conversation among the many.
fn among(number: usize) -> Arm {
    let arm = arm(&Uuid::new_v4().to_string());
    let agent = format!("a{}", number % 100);
    Arm { organization: "big".into(), agent, grouping: Grouping::PerConversation, turn_seconds: LONG, ..arm }
}

/// A worker of this Agent's: for a worker group of the many, or, where it is to have nothing but what a test arms, for an Agent
/// of its own.
async fn worker(store: &Store, agent: &str, worker_group: WorkerGroup) -> Worker {
    Worker::with(store, |start| {
        (start.organization, start.agent, start.worker_group) = ("big".into(), agent.into(), worker_group);
        start.lease_seconds = LONG;
    })
    .await
}

/// A turn for the workers of an Agent of its own.
fn alone(agent: &str) -> Arm {
    Arm { agent: agent.into(), grouping: Grouping::PerAgent, ..among(7) }
}

/// A worker with turns in hand, of an Agent of its own.
async fn in_hand(store: &Store, agent: &str, count: usize) -> (Worker, Vec<TurnId>) {
    let worker = worker(store, agent, WorkerGroup::OfAgent).await;
    for _ in 0..count {
        armed(store, alone(agent)).await;
    }
    let held = worker.claim_ids(store, count as u32).await;
    assert_eq!(held.len(), count);
    (worker, held)
}

async fn writers(judge: &mut Judge<'_>) {
    let db = judge.db;
    judge
        .verb("arm", async |store, i| {
            armed(store, among(i)).await;
            armed(store, Arm { conversation: format!("c{i}"), user: format!("u{i}"), ..among(i) }).await;
        })
        .await;
    let mut workers = Vec::new();
    for i in 0..CALLS {
        let group = WorkerGroup::from_key(filled(0xd, 101 + i));
        workers.push(worker(&db.store, &format!("a{}", (101 + i) % 100), group).await);
        workers[i].together = i % 2 == 0;
    }
    // Each conversation's open turns lie behind its head: what is claimed is found among some hundreds that wait.
    judge.within(20_000, "claim", async |store, i| assert!(!workers[i].claim(store, 3).await.is_empty())).await;

    let (worker, held) = in_hand(&db.store, "own", 3 * CALLS).await;
    judge.verb("append", async |store, i| assert_eq!(worker.append(store, held[i], 0, "hello").await, Ok(5))).await;
    judge
        .verb("finish", async |store, i| {
            assert_eq!(finish(store, worker.reply(&[held[i]], "hello")).await, Ok(true));
            assert_eq!(finish(store, worker.reply(&[held[i]], "late")).await, Ok(false));
        })
        .await;
    judge
        .verb("fail_turn", async |store, i| {
            assert!(store.fail_turn(held[CALLS + i], &failure(Reason::Cancelled)).await.expect("answers").is_some());
        })
        .await;
    judge
        .verb("heartbeat", async |store, _| {
            let beats = [worker.beat(true), workers[0].beat(true)];
            assert_eq!(tick(store, &beats).await[&worker.incarnation].held.len(), CALLS);
        })
        .await;
    let mut doomed = Vec::new();
    for i in 0..CALLS {
        doomed.push(in_hand(&db.store, &format!("doomed{i}"), 3).await);
    }
    judge
        .verb("fail_worker", async |store, i| {
            let died =
                store.fail_worker(doomed[i].0.incarnation, &failure(Reason::WorkerExited)).await.expect("answers");
            assert_eq!(died.ended.len(), 3);
        })
        .await;
    let mut leaving = Vec::new();
    for i in 0..CALLS {
        leaving.push(in_hand(&db.store, &format!("leaving{i}"), 2).await);
    }
    judge
        .verb("goodbye", async |store, i| {
            let (worker, held) = &leaving[i];
            store.drain_worker(worker.incarnation, Reason::Deleted).await.expect("answers");
            assert_eq!(store.worker_gone(worker.incarnation, &held[..1]).await.expect("answers").ended.len(), 1);
        })
        .await;
    judge
        .verb("failed start", async |store, i| {
            let name = format!("unstartable{i}");
            armed(store, alone(&name)).await;
            let worker = self::worker(store, &name, WorkerGroup::OfAgent).await;
            let died = store.fail_worker(worker.incarnation, &failure(Reason::StartFailed)).await.expect("answers");
            assert_eq!(died.ended.len(), 1);
        })
        .await;
}

async fn readers(judge: &mut Judge<'_>) {
    let conversation = |i: usize| ConversationId(filled(2, 1000 + i));
    let turn = |i: usize| TurnId(filled(1, 1000 + i));
    // With the count of what each of 2,000 has in hand.
    judge
        .within(20_000, "workers", async |store, _| assert!(store.living_workers().await.expect("reads").len() > 1999))
        .await;
    judge
        .verb("views", async |store, i| {
            assert!(
                store.turn_views_after(&[(conversation(i), 0), (conversation(90 + i), 2)]).await.expect("reads").len()
                    >= 6
            );
            assert!(store.turn_view(turn(i)).await.expect("reads").is_some());
        })
        .await;
    judge
        .verb("newest_open_turn", async |store, i| drop(store.newest_open_turn(conversation(i)).await.expect("reads")))
        .await;
    judge
        .verb("session_base", async |store, i| assert_eq!(store.session_base(conversation(i)).await.expect("reads"), 0))
        .await;
    judge
        .verb("backlog", async |store, i| {
            let before = store
                .backlog_before_turn("big", &format!("u{i}"), &format!("a{}", i % 100), &format!("c{i}"), (100, 100))
                .await
                .expect("reads");
            assert!(before.queued == 101 && before.own_queued == 101 && before.own_open == 101, "{before:?}");
            assert!(before.open > 0, "{before:?}");
        })
        .await;
    judge
        .verb("newest_request", async |store, i| {
            let digest = Sha256::digest((100 + i).to_string());
            let owner = format!("u{}", 100 + i);
            let found = store.newest_request("big", &owner, &digest, 600, Duration::from_secs(1)).await.expect("reads");
            assert_eq!(found.expect("a turn").place, 9);
        })
        .await;
    judge
        .verb("turns_behind", async |store, i| {
            let context = Sha256::digest((1000 + i).to_string());
            store.turns_behind("big", &format!("u{}", (999 + i) / 10), &context).await.expect("reads");
        })
        .await;
    judge
        .verb("take_repeated", async |store, i| {
            assert!(store.take_repeated(turn(i), Duration::from_secs(1_000_000)).await.expect("writes"));
            assert!(store.withdraw_response(turn(i)).await.expect("writes"));
        })
        .await;
    judge.verb("record", async |store, i| assert!(store.turn_record(turn(i)).await.expect("reads").is_some())).await;
    judge
        .verb("history", async |store, i| {
            assert!(!store.conversation_history(conversation(i), None, 50).await.expect("reads").is_empty());
        })
        .await;
    judge
        .verb("exchanges", async |store, i| {
            store.conversation_exchanges(conversation(i), i64::MAX, 20).await.expect("reads");
        })
        .await;
    judge
        .within(2_000, "conversations of a user", async |store, i| {
            let before = Some(conversation(200_000 + 1000 * i));
            let listed = store.list_conversations("big", &format!("u{i}"), before, 50).await.expect("reads");
            assert_eq!(listed.len(), 50);
        })
        .await;
    judge
        .verb("ticket", async |store, i| {
            let ada = Principal { organization: "big".into(), user: format!("u{i}"), role: KeyRole::User };
            let (ticket, _) =
                store.issue_ticket(&ada, TicketHolder::default(), None).await.expect("answers").expect("one");
            let ticket = Ticket::read(&ticket).expect("a ticket");
            assert!(store.use_ticket(&ticket, "/").await.expect("answers").is_some());
        })
        .await;
    let limit = |filter: ListFilter| ListFilter { limit: 50, ..filter };
    judge
        .within(1_000, "list", async |store, i| {
            assert_eq!(
                store
                    .list_turns("big", &limit(ListFilter { before: Some(turn(100_000 + i)), ..Default::default() }))
                    .await
                    .expect("reads")
                    .len(),
                50
            );
        })
        .await;
    judge
        .within(8_000, "list of an agent", async |store, i| {
            let agent = Some(format!("a{i}"));
            assert_eq!(
                store.list_turns("big", &limit(ListFilter { agent, ..Default::default() })).await.expect("reads").len(),
                50
            );
        })
        .await;
    judge
        .verb("list of a conversation", async |store, i| {
            let conversation = Some(format!("c{}", 5000 + i));
            assert_eq!(
                store
                    .list_turns("big", &limit(ListFilter { conversation, ..Default::default() }))
                    .await
                    .expect("reads")
                    .len(),
                4
            );
        })
        .await;
    // Each phase from its own turns on: those that ended have the greater ids here.
    let (open, ended) = (TurnId(filled(1, 900_000)), TurnId(filled(5, 0)));
    let newest = BTreeMap::from([("Armed", open), ("Running", open), ("Succeeded", ended), ("Failed", ended)]);
    for phase in ["Armed", "Running", "Succeeded", "Failed"] {
        judge
            .within(5_000, &format!("list of {phase}"), async |store, _| {
                let filter =
                    limit(ListFilter { phase: phase.parse().ok(), before: Some(newest[phase]), ..Default::default() });
                assert_eq!(store.list_turns("big", &filter).await.expect("reads").len(), 50, "{phase}");
            })
            .await;
    }
}

async fn loops(judge: &mut Judge<'_>) {
    let db = judge.db;
    judge.within(1_500, "deliver", async |store, _| {
        db.sql("UPDATE delivery SET due_at = clock_timestamp() - interval '1 s' WHERE turn_id IN
                (SELECT turn_id FROM delivery WHERE state = 'ready' AND platform = 'api' ORDER BY due_at DESC LIMIT 30)")
            .await;
        let rows = store.take_deliveries("api", GatewayId::new(), 30, 20).await.expect("takes");
        assert_eq!(rows.len(), 20);
        store.put_back_deliveries(&rows[..10]).await.expect("puts back");
        let shown: Vec<TurnId> = rows[10..].iter().map(|r| r.turn_id).collect();
        store.remove_deliveries("api", &shown).await.expect("removes");
    })
    .await;
    judge
        .verb("take_unguarded", async |store, i| {
            let guard = Some((GatewayId::new(), 30));
            let turn = armed(store, Arm { guard, ..among(i) }).await.turn_id;
            db.sql(format!(
                "UPDATE marker SET guard_until = clock_timestamp() - interval '1 s' WHERE turn_id = '{turn}'"
            ))
            .await;
            assert_eq!(store.take_unguarded_turns(GatewayId::new(), 30).await.expect("takes").len(), 1);
        })
        .await;
    judge
        .verb("sweep", async |store, i| {
            let turn = armed(store, among(i)).await.turn_id;
            db.overdue(turn).await;
            db.settled().await;
            tick(store, &[]).await;
            assert_eq!(store.sweep().await.expect("sweeps").turns, 1);
        })
        .await;
    // Looks at a hundred turns behind the one that is to go, since a reply may answer so many and they go together.
    judge
        .within(1_000, "prune", async |store, i| {
            let turn = armed(store, among(i)).await.turn_id;
            store.fail_turn(turn, &failure(Reason::Cancelled)).await.expect("ends");
            db.sql(format!("UPDATE terminal SET ended_at = ended_at - interval '60 days' WHERE turn_id = '{turn}'"))
                .await;
            assert_eq!(store.prune_past_retention(&Retention::default()).await.expect("prunes"), 1);
        })
        .await;
    judge
        .verb("prune of a conversation", async |store, i| {
            let name = format!("empty{i}");
            db.sql(format!(
                "INSERT INTO conversation (id, organization, owner, name, empty_since)
                 VALUES (gen_random_uuid(), 'big', 'ada', '{name}', clock_timestamp())"
            ))
            .await;
            db.sql("UPDATE conversation SET empty_since = empty_since - interval '60 days' WHERE organization = 'big' AND empty_since IS NOT NULL").await;
            store.prune_past_retention(&Retention::default()).await.expect("prunes");
            assert!(store.conversation("big", "ada", &name).await.expect("reads").is_none());
        })
        .await;
    // Walks over all that waits for an agent, since nothing is beyond its limit: some 8,750 here.
    judge
        .within(5_000, "shed", async |store, i| {
            assert_eq!(store.shed_queue_of_agent("big", &format!("a{i}"), 1_000_000).await.expect("sheds"), 0);
        })
        .await;
    // Looks for 36 heads of each of the hundred agents in either order, and finds one among seven that wait behind another.
    judge
        .within(800_000, "demand", async |store, i| {
            let order = if i % 2 == 0 { ClaimOrder::ByRank } else { ClaimOrder::OldestFirst };
            assert!(!store.demand_of_worker_groups(order).await.expect("reads").is_empty())
        })
        .await;
}
