//! A15: at a million rows no hot statement scans a large table, none touches much of one, and a sweep with nothing lapsed
//! costs what it costs at ten thousand.
//!
//! The statements are the store's own: each verb is called, and Postgres' statistics of that database tell what it
//! touched. Each is called often enough that its prepared statements get their generic plans.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lastword::local::postgres::{Embedded, Options, Shutdown, Version};
use lastword::store::{Arm, ListFilter, PoolSizes, Retention, Store};
use lastword::turn::keys::{ConversationId, GatewayId, TurnId};
use lastword::turn::reason::Reason;
use sqlx::Row;
use uuid::Uuid;

use crate::million::{analyze, count_now, fill, filled, people};
use crate::support::actors::{Worker, arm, armed, failure, finish, tick};
use crate::support::{Db, cache, wanted};

const ROWS: i64 = 1_000_000;
const FEW: i64 = 10_000;
const LARGE: [&str; 6] = ["turn", "marker", "terminal", "delivery", "output", "conversation"];
/// Calls of each verb: more than the five after which Postgres considers a generic plan.
const CALLS: usize = 8;
/// Pages that one call of a verb may touch, if nothing else is said of it. A table of a million rows has 10,000 and more.
const PAGES: i64 = 400;

/// What was touched since the last look.
#[derive(Debug, Clone, Default, PartialEq)]
struct Touched {
    scans: BTreeMap<String, i64>,
    pages: i64,
}

/// The server's processes that work for stores on this database.
async fn backends(db: &Db) -> Vec<i32> {
    let query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'lastword'";
    sqlx::query_scalar(query).fetch_all(&db.pool).await.expect("reads")
}

/// The counters of all tables.
async fn counters(db: &Db) -> Touched {
    let rows = sqlx::query(
        "SELECT relname::text, t.seq_scan, coalesce(heap_blks_read, 0) + coalesce(heap_blks_hit, 0) + coalesce(idx_blks_read, 0)
                + coalesce(idx_blks_hit, 0) AS pages
         FROM pg_stat_user_tables t JOIN pg_statio_user_tables USING (relid, relname) WHERE relname = ANY($1)",
    );
    let rows = rows.bind(LARGE.as_slice()).fetch_all(&db.pool).await.expect("statistics");
    let mut touched = Touched::default();
    for row in rows {
        touched.scans.insert(row.get("relname"), row.get("seq_scan"));
        touched.pages += row.get::<i64, _>("pages");
    }
    touched
}

/// What `CALLS` calls of a verb on a store of their own touch: the tables that were scanned, and pages a call.
async fn touched(db: &Db, verb: impl AsyncFn(&Store, usize)) -> (Vec<String>, i64) {
    let others = backends(db).await;
    touched_by(db, &others, db.another_store(), verb).await
}

/// The same on this store, which has all processes but the others'. It is closed then: only so do they tell what they did.
async fn touched_by(db: &Db, others: &[i32], store: Store, verb: impl AsyncFn(&Store, usize)) -> (Vec<String>, i64) {
    let before = counters(db).await;
    for call in 0..CALLS {
        verb(&store, call).await;
    }
    let own: Vec<i32> = backends(db).await.into_iter().filter(|pid| !others.contains(pid)).collect();
    store.close().await;
    // A backend reports what it did when it ends at the latest.
    let begun = Instant::now();
    while backends(db).await.iter().any(|pid| own.contains(pid)) {
        assert!(begun.elapsed() < Duration::from_secs(10), "connections stay");
    }
    let after = counters(db).await;
    let scanned = after.scans.iter().filter(|(table, n)| before.scans[*table] < **n).map(|(t, _)| t.clone()).collect();
    (scanned, (after.pages - before.pages) / CALLS as i64)
}

/// Collects what went wrong, so that one run tells all.
struct Judge<'a> {
    db: &'a Db,
    faults: Vec<String>,
}

impl Judge<'_> {
    async fn verb(&mut self, name: &str, verb: impl AsyncFn(&Store, usize)) {
        self.within(PAGES, name, verb).await;
    }

    async fn within(&mut self, pages: i64, name: &str, verb: impl AsyncFn(&Store, usize)) {
        let begun = Instant::now();
        let (scanned, touched) = touched(self.db, verb).await;
        let time = begun.elapsed() / CALLS as u32;
        println!("{name}: {touched} pages a call, {time:?}; scanned: {scanned:?}");
        if !scanned.is_empty() {
            self.faults.push(format!("{name} scans {scanned:?}"));
        }
        if touched > pages {
            self.faults.push(format!("{name} touches {touched} pages a call, more than {pages}"));
        }
    }
}

fn worker_group(number: usize) -> (String, String, String) {
    ("big".into(), format!("a{}", number % 100), format!("d{number}"))
}

/// A turn of a new conversation among the many.
fn among(number: usize) -> Arm {
    let (organization, agent, worker_group) = worker_group(number);
    Arm { organization, agent, worker_group, ..arm(&Uuid::new_v4().to_string()) }
}

/// A worker for a worker group of the many, or, where it is to have nothing but what a test arms, for one of its own.
async fn worker(store: &Store, name: &str) -> Worker {
    Worker::with(store, |start| {
        (start.organization, start.agent, start.worker_group) = ("big".into(), "a7".into(), name.into());
    })
    .await
}

/// A worker with turns in hand, in a worker group of its own.
async fn in_hand(store: &Store, name: &str, count: usize) -> (Worker, Vec<TurnId>) {
    let worker = worker(store, name).await;
    for _ in 0..count {
        armed(store, Arm { worker_group: name.into(), ..among(7) }).await;
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
        workers.push(worker(&db.store, &format!("d{}", 101 + i)).await);
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
            armed(store, Arm { worker_group: name.clone(), ..among(7) }).await;
            let worker = self::worker(store, &name).await;
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
        .verb("session_base", async |store, i| assert_eq!(store.session_base(conversation(i)).await.expect("reads"), 0))
        .await;
    judge
        .verb("backlog", async |store, i| {
            let before =
                store.backlog_before_turn("big", &format!("a{i}"), &format!("c{i}"), 100).await.expect("reads");
            assert!(before.queued == 101 && before.open > 0, "{before:?}");
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
    db.settled().await;
    judge
        .verb("sweep", async |store, i| {
            let turn = armed(store, among(i)).await.turn_id;
            db.overdue(turn).await;
            tick(store, &[]).await;
            assert_eq!(store.sweep().await.expect("sweeps").turns, 1);
        })
        .await;
    judge
        .verb("prune", async |store, i| {
            let id = filled(4, 2000 + i);
            db.sql(format!("UPDATE terminal SET ended_at = ended_at - interval '60 days' WHERE turn_id = '{id}'"))
                .await;
            assert_eq!(store.prune_past_retention(&Retention::default()).await.expect("prunes"), 1);
        })
        .await;
    judge
        .verb("prune of a conversation", async |store, i| {
            let name = format!("empty{i}");
            store.open_conversation("big", &name, "ada").await.expect("opens");
            db.sql("UPDATE conversation SET empty_since = empty_since - interval '60 days' WHERE organization = 'big' AND empty_since IS NOT NULL").await;
            store.prune_past_retention(&Retention::default()).await.expect("prunes");
            assert!(store.conversation("big", &name).await.expect("reads").is_none());
        })
        .await;
    // Walks over all that waits for an agent, since nothing is beyond its limit: some 8,750 here.
    judge
        .within(5_000, "shed", async |store, i| {
            assert_eq!(store.shed_queue_of_agent("big", &format!("a{i}"), 1_000_000).await.expect("sheds"), 0);
        })
        .await;
    // Looks for 36 heads of each of the hundred agents, and finds one among seven that wait behind another.
    judge
        .within(400_000, "demand", async |store, _| {
            assert!(!store.demand_of_worker_groups().await.expect("reads").is_empty())
        })
        .await;
}

/// Pages that a sweep touches with nothing to do.
async fn idle_sweep(db: &Db) -> i64 {
    db.settled().await;
    let (_, pages) = touched(db, async |store: &Store, _| {
        tick(store, &[]).await;
        assert_eq!(store.sweep().await.expect("sweeps"), Default::default());
    })
    .await;
    pages
}

async fn at_a_million_rows(db: &Db) {
    people(db).await;
    fill(db, 0, FEW).await;
    analyze(db).await;
    count_now(db).await;
    let few = idle_sweep(db).await;
    let begun = Instant::now();
    fill(db, FEW, ROWS).await;
    analyze(db).await;
    count_now(db).await;
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

/// Runs a test on a server of its own, where nothing is counted but what the test does.
fn quietly(version: Version, test: impl AsyncFnOnce(&Db)) {
    if !wanted(version) {
        return;
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        // Its files go with it.
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let mut options = Options::new(directory.path().join("scale"), cache());
        (options.version, options.ephemeral) = (version, true);
        let settings = [
            ("autovacuum", "off"),
            ("max_wal_size", "8GB"),
            ("shared_buffers", "512MB"),
            ("wal_level", "minimal"),
            ("max_wal_senders", "0"),
        ];
        options.extra_settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let mut server = Embedded::start(options).await.expect("Postgres starts");
        let db = Db::on(server.connect_options("lastword"), version).await;
        test(&db).await;
        drop(db);
        server.halt(Shutdown::Immediate).await;
    });
}

/// A15: every hot verb at a million rows.
#[test]
fn hot_verbs_scan_nothing() {
    quietly(Version::V18, at_a_million_rows);
}

#[test]
fn kept_plans_do_not_mind_what_was_there_when_they_were_made_on_15() {
    quietly(Version::V15, planned_while_there_was_nothing);
}

#[test]
fn kept_plans_do_not_mind_what_was_there_when_they_were_made_on_18() {
    quietly(Version::V18, planned_while_there_was_nothing);
}

/// Reads by key keep their plans.
async fn planned_while_there_was_nothing(db: &Db) {
    let others = backends(db).await;
    let early = Store::open(db.options(), PoolSizes { general: 3, vital: 1 });
    let read = async |store: &Store, turn: TurnId| {
        store.turn_head(turn).await.expect("reads");
        store.turn_view(turn).await.expect("reads");
        store.read_log(turn, 0, 100).await.expect("reads");
    };
    read(&early, TurnId::new()).await;
    fill(db, 0, 2 * FEW).await;
    count_now(db).await;
    let (scanned, pages) = touched_by(db, &others, early, async |store, i| {
        read(store, TurnId(filled(1, 1000 + i))).await;
        read(store, TurnId(filled(4, 9700 + 97 * i))).await;
    })
    .await;
    println!("head, view and log of an open and of an ended turn touch {pages} pages");
    assert!(scanned.is_empty() && pages < 100, "{pages} pages; scanned: {scanned:?}");
}
