//! Erasing, retention and API keys.

use std::time::Duration;

use lastword::store::keys::{self, KeyRole, NewKey};
use lastword::store::{Actor, ErasedConversation, FinishError, Retention, StoreError};
use lastword::turn::keys::{GatewayId, SessionId, TurnId};
use lastword::turn::reason::Reason;

use crate::support::Db;
use crate::support::actors::{Worker, arm, armed, failure, finish};

const TABLES: [&str; 6] = ["turn", "marker", "terminal", "delivery", "output", "superseded"];

/// Erasing cancels what is open, leaves nothing of the conversation, and is audited; the others are as they were.
async fn erasing_leaves_nothing_of_a_conversation(db: Db) {
    let worker = Worker::live(&db.store).await;
    let (kept, held) = (db.armed("kept").await, db.armed("gone").await);
    assert_eq!(worker.claim_ids(&db.store, 10).await, [kept.turn_id, held.turn_id]);
    assert_eq!(worker.append(&db.store, held.turn_id, 0, "secret").await, Ok(6));
    assert_eq!(finish(&db.store, worker.reply(&[kept.turn_id], "stays")).await, Ok(true));
    db.armed("gone").await;
    db.armed("gone").await;
    db.store.fail_turn(held.turn_id, &failure(Reason::Cancelled)).await.expect("answers");
    assert_eq!(finish(&db.store, worker.reply(&[held.turn_id], "late secret")).await, Ok(false));

    let erased = db.erase("gone").await.expect("erases");
    assert_eq!(erased, Some(ErasedConversation { turns: 3, cancelled: 2 }));
    for table in TABLES {
        let id = if table == "turn" { "id" } else { "turn_id" };
        assert_eq!(db.count(&format!("{table} WHERE {id} <> '{}'", kept.turn_id)).await, 0, "{table}");
    }
    assert_eq!(db.count("conversation").await, 1);
    let audited = db.text("SELECT concat_ws(' ', action, actor, key, counts::text) FROM audit").await;
    assert_eq!(
        audited.as_deref(),
        Some(r#"erase ada 00000000-0000-0000-0000-000000000000 {"turns": 3, "cancelled": 2}"#)
    );
    assert_eq!(db.erase("gone").await.expect("answers"), None);
    let actor = Actor { organization: "acme", user: "ada", key: None };
    assert_eq!(db.store.erase_conversation(held.conversation_id, actor).await.expect("answers"), None);
    assert_eq!(finish(&db.store, worker.reply(&[held.turn_id], "hello")).await, Err(FinishError::Foreign));
    assert!(armed(&db.store, arm("gone")).await.conversation_id != held.conversation_id, "a new one");
}

/// Erasing while others arm: every turn that was armed has a terminal or is gone, and no marker lacks its turn.
async fn erasing_while_others_arm_loses_no_terminal(db: Db) {
    let other = db.another_store();
    for _ in 0..10 {
        let arms = futures::future::join_all((0..20).map(|_| other.arm(arm("c"))));
        let (answers, erased) = tokio::join!(arms, async {
            db.armed("c").await;
            db.erase("c").await
        });
        erased.expect("erases");
        for answer in answers {
            // An arm that lost its conversation again and again may say so; it is then not armed.
            let turn = answer.expect("armed").turn_id;
            let known = db.count(&format!("turn WHERE id = '{turn}'")).await;
            assert_eq!(db.count(&format!("marker WHERE turn_id = '{turn}'")).await, known);
        }
        db.erase("c").await.expect("erases");
    }
    for table in TABLES {
        assert_eq!(db.count(table).await, 0, "{table}");
    }
}

async fn aged(db: &Db, turn: TurnId) {
    db.sql(format!("UPDATE terminal SET ended_at = ended_at - interval '60 days' WHERE turn_id = '{turn}'")).await;
}

/// Retention removes what ended long ago, moves the conversation's `pruned_through`, and waits for what other platforms
/// have yet to show. What is open is never touched.
async fn retention_removes_what_is_old_and_shown(db: Db) {
    let worker = Worker::live(&db.store).await;
    let mut turns = Vec::new();
    for _ in 0..4 {
        turns.push(db.armed("c").await.turn_id);
    }
    for turn in &turns[..3] {
        assert_eq!(worker.claim_ids(&db.store, 1).await, [*turn]);
        assert_eq!(finish(&db.store, worker.reply(&[*turn], "hello")).await, Ok(true));
    }
    aged(&db, turns[0]).await;
    aged(&db, turns[1]).await;
    db.sql(format!("UPDATE delivery SET platform = 'kubernetes' WHERE turn_id = '{}'", turns[1])).await;
    db.sql("UPDATE marker SET armed_at = armed_at - interval '60 days'").await;

    let retention = Retention::default();
    assert_eq!(db.store.prune_past_retention(&retention).await.expect("prunes"), 1);
    assert!(db.store.turn_record(turns[0]).await.expect("answers").is_none());
    assert!(db.store.turn_record(turns[1]).await.expect("answers").is_some(), "its status patch is owed");
    let conversation = db.store.conversation("acme", "ada", "c").await.expect("answers").expect("exists");
    assert_eq!((conversation.pruned_through, conversation.last_number), (1, 4));
    assert_eq!((db.count("output").await, db.count("delivery").await), (2, 2));

    db.store.remove_deliveries("kubernetes", &[turns[1]]).await.expect("removes");
    assert_eq!(db.store.prune_past_retention(&retention).await.expect("prunes"), 1);
    assert_eq!(db.store.prune_past_retention(&retention).await.expect("prunes"), 0);
    assert_eq!(db.phase(turns[3]).await.as_deref(), Some("waiting"));
    assert!(db.armed("c").await.number > 4, "numbers are not used again");
}

/// One reply answers turns that are further from each other than turns are open at once, since others ended between them: it
/// goes with all of them, however few a transaction looks at.
async fn a_reply_to_turns_far_apart_goes_whole(db: Db) {
    let worker = Worker::together(&db.store).await;
    let first = db.armed("c").await.turn_id;
    for _ in 0..150 {
        let between = db.armed("c").await.turn_id;
        db.store.fail_turn(between, &failure(Reason::Cancelled)).await.expect("answers");
    }
    let last = db.armed("c").await.turn_id;
    assert_eq!(worker.claim_ids(&db.store, 1).await, [first, last]);
    assert_eq!(finish(&db.store, worker.reply(&[first, last], "hello")).await, Ok(true));
    let answered = db.store.turns_answered_by(first).await.expect("answers");
    assert_eq!(answered.iter().map(|a| a.0).collect::<Vec<_>>(), [first, last]);
    assert_eq!(db.store.turn_record(last).await.expect("answers").expect("there").reply.expect("one").turns, answered);
    db.sql("UPDATE terminal SET ended_at = ended_at - interval '60 days'").await;
    let retention = Retention { batch: 5, ..Retention::default() };
    assert_eq!(db.store.prune_past_retention(&retention).await.expect("prunes"), 152);
    assert_eq!(db.count("terminal").await, 0);
}

/// A conversation goes a retention after its last turn, when nobody has a session on it. Under its name there is then another
/// one.
async fn empty_conversations_are_removed(db: Db) {
    let worker = Worker::live(&db.store).await;
    let turn = db.in_hand(&worker).await;
    assert_eq!(finish(&db.store, worker.reply(&[turn], "hello")).await, Ok(true));
    let spoken = db.text("SELECT name FROM conversation").await.expect("one");
    let opened = db.emptied("opened").await;
    let watched = db.emptied("watched").await;
    db.store.register_session(SessionId::new(), GatewayId::new(), "acme", watched, true).await.expect("registers");
    db.armed("spoken").await;
    let retention = Retention { batch: 1, ..Retention::default() };
    let passes = async || {
        for _ in 0..5 {
            db.store.prune_past_retention(&retention).await.expect("prunes");
        }
        db.text("SELECT string_agg(name, ' ' ORDER BY name) FROM conversation").await.unwrap_or_default()
    };
    let later = async || db.sql("UPDATE conversation SET empty_since = empty_since - interval '31 days'").await;
    aged(&db, turn).await;
    assert_eq!(passes().await, format!("{spoken} opened spoken watched"), "the turn goes; cursors are still told");
    later().await;
    assert_eq!(passes().await, "spoken watched");
    db.sql("DELETE FROM session").await;
    assert_eq!(passes().await, "spoken watched", "it is looked at a retention later");
    later().await;
    assert_eq!(passes().await, "spoken");

    let late = db.store.register_session(SessionId::new(), GatewayId::new(), "acme", opened, true).await;
    assert!(matches!(late, Err(StoreError::Raced(_))), "{late:?}");
    assert_ne!(db.armed("opened").await.conversation_id, opened, "another one");
    assert_eq!(
        db.number("SELECT conversations FROM principal WHERE owner = 'ada'").await,
        2,
        "what went is not counted"
    );
}

/// Removing while others arm and open: what was armed or registered has its conversation.
async fn removing_while_others_come_takes_nothing_from_them(db: Db) {
    let other = db.another_store();
    let retention = Retention { turn_seconds: 0, ..Retention::default() };
    for _ in 0..20 {
        let open = db.emptied("c").await;
        db.sql("UPDATE conversation SET empty_since = empty_since - interval '1 s' WHERE empty_since IS NOT NULL")
            .await;
        let session = SessionId::new();
        let (pruned, arming, registered) = tokio::join!(
            db.store.prune_past_retention(&retention),
            other.arm(arm("c")),
            db.store.register_session(session, GatewayId::new(), "acme", open, true),
        );
        pruned.expect("prunes");
        let turn = arming.expect("armed");
        let place = format!("conversation WHERE id = '{}' AND empty_since IS NULL", turn.conversation_id);
        assert_eq!(db.count(&place).await, 1);
        match registered {
            Ok(()) => assert_eq!(open, turn.conversation_id),
            Err(error) => assert!(matches!(error, StoreError::Raced(_)), "{error}"),
        }
        db.erase("c").await.expect("erases");
    }
}

/// A reply that another turn still has to show keeps its log, though the turn that holds it was shown.
async fn a_shared_reply_is_kept_until_the_last_was_shown(db: Db) {
    let worker = Worker::together(&db.store).await;
    let turns = [db.armed("c").await.turn_id, db.armed("c").await.turn_id];
    assert_eq!(worker.claim_ids(&db.store, 1).await, turns);
    assert_eq!(finish(&db.store, worker.reply(&turns, "for both")).await, Ok(true));
    db.sql(format!("UPDATE delivery SET platform = 'kubernetes' WHERE turn_id = '{}'", turns[1])).await;
    aged(&db, turns[0]).await;
    aged(&db, turns[1]).await;
    db.store.prune_past_retention(&Retention::default()).await.expect("prunes");
    let record = db.store.turn_record(turns[1]).await.expect("answers").expect("is owed");
    assert_eq!(record.reply.expect("a reply").text.as_deref(), Some("for both"));
}

/// A conversation's turns go in order: what stays keeps all behind it, and `pruned_through` overtakes no turn that exists.
async fn retention_takes_no_turn_behind_one_that_stays(db: Db) {
    let turns = [db.armed("c").await.turn_id, db.armed("c").await.turn_id, db.armed("c").await.turn_id];
    let through =
        async || db.store.conversation("acme", "ada", "c").await.expect("answers").expect("exists").pruned_through;
    let prune = async || db.store.prune_past_retention(&Retention::default()).await.expect("prunes");
    let end = async |turn: TurnId| {
        db.store.fail_turn(turn, &failure(Reason::Cancelled)).await.expect("answers");
        aged(&db, turn).await;
    };
    end(turns[1]).await;
    end(turns[2]).await;
    assert_eq!((prune().await, through().await), (0, 0), "the first is open");
    end(turns[0]).await;
    db.sql(format!("UPDATE delivery SET platform = 'kubernetes' WHERE turn_id = '{}'", turns[1])).await;
    assert_eq!((prune().await, through().await), (1, 1), "the second's status is owed");
    db.store.remove_deliveries("kubernetes", &[turns[1]]).await.expect("removes");
    db.sql(format!("UPDATE terminal SET ended_at = clock_timestamp() WHERE turn_id = '{}'", turns[1])).await;
    assert_eq!((prune().await, through().await), (0, 1), "the second is not old enough");
    aged(&db, turns[1]).await;
    assert_eq!((prune().await, through().await), (2, 3));
}

/// The turns of one reply go together, whatever the limits: none is left without the log that has its text.
async fn a_replys_turns_go_together(db: Db) {
    let worker = Worker::together(&db.store).await;
    let turns = [db.armed("c").await.turn_id, db.armed("c").await.turn_id, db.armed("c").await.turn_id];
    assert_eq!(worker.claim_ids(&db.store, 1).await, turns);
    db.store.fail_turn(turns[1], &failure(Reason::Cancelled)).await.expect("answers");
    assert_eq!(finish(&db.store, worker.reply(&[turns[0], turns[2]], "for both")).await, Ok(true));
    let retention = Retention { batch: 1, pass_turns: 1, ..Retention::default() };
    let prune = async || db.store.prune_past_retention(&retention).await.expect("prunes");
    aged(&db, turns[0]).await;
    aged(&db, turns[1]).await;
    for _ in 0..3 {
        assert_eq!(prune().await, 0, "the last of the reply's turns stays");
    }
    aged(&db, turns[2]).await;
    // A pass may be on its way behind them.
    let (first, second) = (prune().await, prune().await);
    assert_eq!(first + second, 3);
    for table in TABLES {
        assert_eq!(db.count(table).await, 0, "{table}");
    }
}

/// Conversations that stay hold up no others, however many terminals they have and however little a pass may look at.
async fn what_stays_holds_up_nothing_else(db: Db) {
    db.armed("stays").await;
    for _ in 0..12 {
        let turn = db.armed("stays").await.turn_id;
        db.store.fail_turn(turn, &failure(Reason::Cancelled)).await.expect("answers");
        aged(&db, turn).await;
    }
    let mut goes = Vec::new();
    for conversation in ["a", "b", "a"] {
        goes.push(db.armed(conversation).await.turn_id);
        db.store.fail_turn(goes[goes.len() - 1], &failure(Reason::Cancelled)).await.expect("answers");
        aged(&db, goes[goes.len() - 1]).await;
    }
    let retention = Retention { batch: 5, pass_time: Duration::ZERO, ..Retention::default() };
    let mut removed = Vec::new();
    for _ in 0..4 {
        removed.push(db.store.prune_past_retention(&retention).await.expect("prunes"));
    }
    assert_eq!(removed.iter().sum::<u64>(), 3, "{removed:?}");
    assert_eq!(db.count("turn").await, 13);
}

/// The retention keeps up with what arrives: a pass goes on while there is more. What it leaves is told by the metrics.
async fn the_retention_keeps_up(db: Db) {
    const TURNS: u64 = 45;
    let worker = Worker::live(&db.store).await;
    for turn in crate::race::many_in_hand(&db.store, &worker, TURNS as usize).await {
        assert_eq!(finish(&db.store, worker.reply(&[turn], "hello")).await, Ok(true));
    }
    let overdue = async || db.store.metrics().await.expect("reads").retention_backlog_seconds;
    assert_eq!(overdue().await, 0.0);
    db.sql("UPDATE terminal SET ended_at = ended_at - interval '40 days'").await;
    let ten_days = 10.0 * 24.0 * 3600.0;
    assert!((ten_days..ten_days + 3600.0).contains(&overdue().await), "{}", overdue().await);
    let retention = Retention { batch: 10, pass_turns: 20, ..Retention::default() };
    assert_eq!(db.store.prune_past_retention(&retention).await.expect("prunes"), 20, "within its budget");
    assert!(overdue().await > 0.0);
    let all = Retention { pass_turns: 1000, ..retention };
    assert_eq!(db.store.prune_past_retention(&all).await.expect("prunes"), TURNS - 20);
    assert_eq!(overdue().await, 0.0);
    // It is measured by the retention that the installation has.
    let short = Retention { turn_seconds: 3600, ..all };
    db.store.prune_past_retention(&short).await.expect("prunes");
    let turn = db.in_hand(&worker).await;
    assert_eq!(finish(&db.store, worker.reply(&[turn], "hello")).await, Ok(true));
    db.sql("UPDATE terminal SET ended_at = ended_at - interval '2 hours'").await;
    assert!((3600.0..7200.0).contains(&overdue().await), "{}", overdue().await);
    let text = db.store.metrics().await.expect("reads").text(Duration::ZERO);
    assert!(text.contains("\nlastword_retention_backlog_seconds 3"), "{text}");
}

/// A pass keeps to its limit; tombstones go after their time, never one that a marker still names.
async fn a_pass_of_retention_keeps_to_its_limit(db: Db) {
    let worker = Worker::live(&db.store).await;
    for turn in crate::race::many_in_hand(&db.store, &worker, 25).await {
        assert_eq!(finish(&db.store, worker.reply(&[turn], "hello")).await, Ok(true));
        aged(&db, turn).await;
    }
    let retention = Retention { batch: 10, pass_turns: 10, lease_seconds: 0, ..Retention::default() };
    let mut passes = Vec::new();
    for _ in 0..4 {
        passes.push(db.store.prune_past_retention(&retention).await.expect("prunes"));
    }
    assert_eq!(passes, [10, 10, 5, 0]);

    let held = db.in_hand(&worker).await;
    db.sql("UPDATE lease SET phase = 'dead', died_at = clock_timestamp() - interval '119 seconds'").await;
    db.store.prune_past_retention(&retention).await.expect("prunes");
    assert_eq!(db.count("lease").await, 1, "two leases have not passed");
    db.sql("UPDATE lease SET died_at = clock_timestamp() - interval '121 seconds'").await;
    db.store.prune_past_retention(&retention).await.expect("prunes");
    assert_eq!(db.count("lease").await, 1, "a marker names it");
    db.store.fail_turn(held, &failure(Reason::WorkerExited)).await.expect("answers");
    db.store.prune_past_retention(&retention).await.expect("prunes");
    assert_eq!(db.count("lease").await, 0);
}

/// A key opens what it was made for until it is revoked or expires, by the database's clock; its secret is nowhere.
async fn a_key_lives_until_it_is_revoked(db: Db) {
    let new = |name: &str, valid_for| NewKey {
        organization: "acme".into(),
        name: name.into(),
        user: "ada".into(),
        role: KeyRole::Operator,
        valid_for,
    };
    let pool = db.store.pool();
    let (info, key) = keys::create(pool, &new("ci", None)).await.expect("creates");
    let (brief, brief_key) = keys::create(pool, &new("brief", Some(Duration::from_secs(60)))).await.expect("creates");
    let shown = async |key: &str| keys::authenticate(pool, &key.parse().expect("a key")).await.expect("answers");
    let (who, id) = shown(&key.reveal()).await.expect("known");
    assert_eq!(
        (who.organization.as_str(), who.user.as_str(), who.role, id),
        ("acme", "ada", KeyRole::Operator, info.id)
    );
    let used = db.text(format!("SELECT last_used_at::text FROM api_key WHERE id = '{id}'")).await;
    assert!(used.is_some(), "its use is written down");
    shown(&key.reveal()).await.expect("known");
    assert_eq!(db.text(format!("SELECT last_used_at::text FROM api_key WHERE id = '{id}'")).await, used, "not each");
    db.sql(format!("UPDATE api_key SET last_used_at = last_used_at - interval '1 h' WHERE id = '{id}'")).await;
    shown(&key.reveal()).await.expect("known");
    assert_ne!(db.text(format!("SELECT last_used_at::text FROM api_key WHERE id = '{id}'")).await, used, "a later one");
    // The id of one key and the secret of another, in the form of a key.
    db.sql(format!("UPDATE api_key SET hash = '\\x00' WHERE id = '{}'", brief.id)).await;
    assert!(shown(&brief_key.reveal()).await.is_none(), "another secret");
    let secret = key.reveal().split_off(37);
    assert_eq!(db.count(&format!("api_key k WHERE k::text LIKE '%{secret}%'")).await, 0);

    db.sql(format!("UPDATE api_key SET expires_at = clock_timestamp() - interval '1 s' WHERE id = '{}'", brief.id))
        .await;
    assert!(shown(&brief_key.reveal()).await.is_none());
    let asked = [info.id, brief.id, uuid::Uuid::now_v7()];
    assert_eq!(keys::ended(pool, &asked).await.expect("answers").len(), 2, "expired, and unknown");
    assert!(keys::revoke(pool, info.id).await.expect("revokes"));
    assert!(!keys::revoke(pool, info.id).await.expect("answers"), "once");
    assert!(shown(&key.reveal()).await.is_none());
    assert_eq!(keys::ended(pool, &asked).await.expect("answers").len(), 3);
    let audit =
        "SELECT string_agg(action || ' ' || subject, ', ' ORDER BY at) FROM audit WHERE actor LIKE 'database:%'";
    let made = format!("create-key {}, create-key {}, revoke-key {}", info.id, brief.id, info.id);
    assert_eq!(db.text(audit).await, Some(made), "no second revocation");
    let all = keys::list(pool, Some("acme")).await.expect("lists");
    assert_eq!(
        all.iter().map(|k| (k.name.as_str(), k.expired, k.revoked_at.is_some())).collect::<Vec<_>>(),
        [("ci", false, true), ("brief", true, false)]
    );
    assert!(keys::list(pool, Some("umbrella")).await.expect("lists").is_empty());
    assert!(keys::create(pool, &new("", None)).await.is_err());
}

/// A rollback of the program: the older one finds a newer schema, and leaves it.
async fn a_newer_schema_is_accepted(db: Db) {
    db.sql(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'of the future', true, '', 0)",
    )
    .await;
    assert!(db.store.schema_ready().await.expect("answers"));
    db.store.migrate().await.expect("leaves it as it is");
    assert_eq!(db.count("_sqlx_migrations WHERE version = 9999").await, 1);
}

/// A database from before the first release has other migrations. It is refused, also by roles that only wait for their
/// schema, and the words say what to do.
async fn a_database_made_before_the_first_release_is_refused(db: Db) {
    db.sql("UPDATE _sqlx_migrations SET checksum = '\\x00' WHERE version = 1").await;
    db.sql(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (2, 'kubernetes', true, '\\x00', 0)",
    )
    .await;
    for refused in [db.store.migrate().await, db.store.schema_ready().await.map(drop)] {
        let Err(StoreError::Schema(said)) = refused else { panic!("{refused:?}") };
        assert!(said.contains("before its first release") && said.contains("DROP SCHEMA lastword"), "{said}");
    }
}

crate::both!(
    erasing_leaves_nothing_of_a_conversation,
    erasing_while_others_arm_loses_no_terminal,
    a_reply_to_turns_far_apart_goes_whole,
    retention_removes_what_is_old_and_shown,
    empty_conversations_are_removed,
    removing_while_others_come_takes_nothing_from_them,
    a_shared_reply_is_kept_until_the_last_was_shown,
    a_pass_of_retention_keeps_to_its_limit,
    retention_takes_no_turn_behind_one_that_stays,
    a_replys_turns_go_together,
    what_stays_holds_up_nothing_else,
    the_retention_keeps_up,
    a_key_lives_until_it_is_revoked,
    a_newer_schema_is_accepted,
    a_database_made_before_the_first_release_is_refused,
);
