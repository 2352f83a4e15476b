//! Deliveries: a terminal has its row until somebody was shown it.

use lastword::store::{Heard, Notice, PostPlace};
use lastword::turn::keys::{ConversationId, GatewayId, SessionId, TurnId};
use lastword::turn::routing::Routing;

use crate::steps::tick;
use crate::support::Db;
use crate::support::actors::{Worker, arm, armed, finish};

/// Ends a turn on this platform; its delivery is due at once.
async fn ended(db: &Db, worker: &Worker, platform: &str) -> (TurnId, ConversationId) {
    let mut arm = arm(&uuid::Uuid::new_v4().to_string());
    arm.routing = serde_json::to_value(Routing::on(platform, serde_json::Value::Null)).expect("serializable");
    let armed = armed(&db.store, arm).await;
    assert_eq!(worker.claim_ids(&db.store, 1).await, [armed.turn_id]);
    assert_eq!(finish(&db.store, worker.reply(&[armed.turn_id], "hello")).await, Ok(true));
    due(db).await;
    (armed.turn_id, armed.conversation_id)
}

async fn due(db: &Db) {
    db.sql("UPDATE delivery SET due_at = clock_timestamp() - interval '1 second'").await;
}

async fn taken(db: &Db, platform: &str) -> Vec<TurnId> {
    let rows = db.store.take_deliveries(platform, GatewayId::new(), 30, 10).await.expect("takes");
    rows.into_iter().map(|row| row.turn_id).collect()
}

/// A renderer takes only its platform's rows, one renderer each, again after its claim ran out, until it was shown.
async fn a_row_is_taken_by_one_renderer_at_a_time(db: Db) {
    let worker = Worker::live(&db.store).await;
    let (hook, _) = ended(&db, &worker, "webhook").await;
    let (api, _) = ended(&db, &worker, "api").await;
    assert!(taken(&db, "slack").await.is_empty());
    assert_eq!(taken(&db, "webhook").await, [hook]);
    assert!(taken(&db, "webhook").await.is_empty(), "it is claimed");
    due(&db).await;
    let again = db.store.take_deliveries("webhook", GatewayId::new(), 30, 10).await.expect("takes");
    assert_eq!((again[0].turn_id, again[0].attempts), (hook, 2));
    db.store.remove_deliveries("api", &[hook]).await.expect("removes");
    assert_eq!(db.count("delivery").await, 2, "another platform's row");
    db.store.remove_deliveries("webhook", &[hook]).await.expect("removes");
    db.store.remove_deliveries("webhook", &[hook]).await.expect("removes");
    due(&db).await;
    assert!(taken(&db, "webhook").await.is_empty());
    assert_eq!(taken(&db, "api").await, [api]);
}

/// Renderers of two replicas at once: no row twice, none left.
async fn renderers_at_once_take_each_row_once(db: Db) {
    let worker = Worker::live(&db.store).await;
    for _ in 0..40 {
        ended(&db, &worker, "webhook").await;
    }
    let other = db.another_store();
    let takes = (0..8).map(|i| {
        let store = if i % 2 == 0 { &db.store } else { &other };
        store.take_deliveries("webhook", GatewayId::new(), 30, 5)
    });
    let taken = futures::future::join_all(takes).await;
    let mut all: Vec<TurnId> = taken.into_iter().flat_map(|t| t.expect("takes")).map(|row| row.turn_id).collect();
    // Whoever came while all rows were locked by others got none.
    all.extend(
        db.store.take_deliveries("webhook", GatewayId::new(), 30, 40).await.expect("takes").iter().map(|r| r.turn_id),
    );
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!((all.len(), count), (40, 40));
}

/// An `api` row that nobody holds a session for is parked; one that a live replica holds one for is woken there, and
/// stays ready until it was shown.
async fn a_row_without_a_session_is_parked(db: Db) {
    let worker = Worker::live(&db.store).await;
    let (turn, conversation) = ended(&db, &worker, "api").await;
    let take = async || db.store.take_deliveries("api", GatewayId::new(), 30, 10).await.expect("takes");
    let state = async || db.text("SELECT state FROM delivery").await;

    let session = SessionId::new();
    let gateway = GatewayId(uuid::Uuid::nil());
    db.store.register_session(session, gateway, "acme", conversation, true).await.expect("registers");
    tick(&db.store, &[]).await;
    let mut hearing = db.another_store().hear();
    assert_eq!(hearing.next().await, Heard::Missed, "another replica listens");
    db.store.put_back_deliveries(&take().await).await.expect("puts back");
    assert_eq!(state().await.as_deref(), Some("ready"));
    let woken = async { while hearing.next().await != Heard::Notice(Notice::Conversation(conversation)) {} };
    tokio::time::timeout(std::time::Duration::from_secs(10), woken).await.expect("the session's replica is woken");
    let on = db.store.sessions_on_conversation(conversation).await.expect("reads");
    assert_eq!(on.iter().map(|s| (s.gateway, s.owner)).collect::<Vec<_>>(), [(gateway, true)]);

    // The replica is gone: its session is nobody.
    db.sql("UPDATE gateway SET expires_at = clock_timestamp() - interval '2 minutes'").await;
    due(&db).await;
    db.store.put_back_deliveries(&take().await).await.expect("puts back");
    assert_eq!(state().await.as_deref(), Some("parked"));
    due(&db).await;
    assert!(take().await.is_empty(), "parked rows cost nothing");
    assert_eq!(db.store.forget_lost_gateways().await.expect("forgets"), 1);
    assert!(db.store.sessions_on_conversation(conversation).await.expect("reads").is_empty());

    // Whoever comes later sees the terminal all the same, whatever the row's state.
    assert_eq!(db.store.session_base(conversation).await.expect("reads"), 0);
    let views = db.store.turn_views_after(&[(conversation, 0)]).await.expect("reads");
    assert!(views[0].turn_id == turn && views[0].terminal.is_some());
    db.store.remove_deliveries("api", &[turn]).await.expect("removes");
    assert_eq!(db.count("delivery").await, 0);
    assert_eq!(db.store.session_base(conversation).await.expect("reads"), 1, "all was shown");
}

/// A row that is looked at in vain for ever is parked, though the registry names a session.
async fn a_row_that_is_looked_at_in_vain_is_parked(db: Db) {
    let worker = Worker::live(&db.store).await;
    let (_, conversation) = ended(&db, &worker, "api").await;
    let gateway = GatewayId(uuid::Uuid::nil());
    db.store.register_session(SessionId::new(), gateway, "acme", conversation, true).await.expect("registers");
    tick(&db.store, &[]).await;
    let mut looks = 0;
    while db.count("delivery WHERE state = 'ready'").await == 1 {
        due(&db).await;
        let rows = db.store.take_deliveries("api", GatewayId::new(), 30, 10).await.expect("takes");
        db.store.put_back_deliveries(&rows).await.expect("puts back");
        looks += 1;
        assert!(looks < 100);
    }
    assert_eq!(looks, 20);
}

/// A session starts before the oldest turn that is open or undelivered.
async fn a_session_starts_at_what_is_owed(db: Db) {
    let worker = Worker::live(&db.store).await;
    let mut turns = Vec::new();
    for _ in 0..4 {
        turns.push(db.armed("c").await);
    }
    let conversation = turns[0].conversation_id;
    let base = async || db.store.session_base(conversation).await.expect("reads");
    assert_eq!(base().await, 0);
    for (i, turn) in turns.iter().enumerate().take(3) {
        assert_eq!(worker.claim_ids(&db.store, 1).await, [turn.turn_id]);
        assert_eq!(finish(&db.store, worker.reply(&[turn.turn_id], "hello")).await, Ok(true));
        assert_eq!(base().await, [0, 1, 1][i], "undelivered");
        if i != 1 {
            db.store.remove_deliveries("api", &[turn.turn_id]).await.expect("removes");
        }
        assert_eq!(base().await, [1, 1, 1][i]);
    }
    db.store.remove_deliveries("api", &[turns[1].turn_id]).await.expect("removes");
    assert_eq!(base().await, 3, "the last one is open");
    assert_eq!(db.store.backlog_before_turn("acme", "ada", "bot", "c", (10, 10)).await.expect("reads").open, 1);
}

/// What has enough under way is left: one platform of an organization, or all of them.
async fn posts_of_busy_places_are_left(db: Db) {
    let worker = Worker::live(&db.store).await;
    let (hook, _) = ended(&db, &worker, "hook").await;
    let (slack, _) = ended(&db, &worker, "slack").await;
    let place = |organization: &str, platform: Option<&str>| PostPlace {
        organization: organization.into(),
        platform: platform.map(Into::into),
    };
    for (busy, expected) in [
        (vec![], vec![hook, slack]),
        (vec![place("acme", Some("hook")), place("other", None)], vec![slack]),
        (vec![place("acme", Some("hook")), place("acme", None)], vec![]),
    ] {
        due(&db).await;
        let posts = db.store.take_posts(GatewayId::new(), 60, 10, &busy).await.expect("takes");
        let mut taken: Vec<TurnId> = posts.iter().map(|post| post.turn_id).collect();
        taken.sort();
        assert_eq!(taken, expected, "{busy:?}");
    }
}

crate::both!(
    posts_of_busy_places_are_left,
    a_row_is_taken_by_one_renderer_at_a_time,
    renderers_at_once_take_each_row_once,
    a_row_without_a_session_is_parked,
    a_row_that_is_looked_at_in_vain_is_parked,
    a_session_starts_at_what_is_owed,
);
