//! What browsers are served by: the list of a user's conversations, tools in records, tickets and logins.

use std::time::Duration;

use lastword::store::keys::{self, KeyRole, NewKey, Principal};
use lastword::store::login::{self, LoginSecret};
use lastword::store::{MAX_TICKETS, Retention, Ticket, TicketHolder};
use lastword::turn::frame::Frame;
use lastword::turn::phase::Phase;
use lastword::turn::reason::Reason;
use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::support::Db;
use crate::support::actors::{ORGANIZATION, USER, Worker, armed, failure, finish, message};

async fn key(db: &Db, user: &str) -> Uuid {
    let new = NewKey {
        organization: ORGANIZATION.into(),
        name: "k".into(),
        user: user.into(),
        role: KeyRole::User,
        valid_for: Some(Duration::from_secs(3600)),
    };
    keys::create(db.store.pool(), &new).await.expect("a key").0.id
}

fn principal(user: &str) -> Principal {
    Principal { organization: ORGANIZATION.into(), user: user.into(), role: KeyRole::User }
}

fn holder(key: Option<Uuid>) -> TicketHolder {
    TicketHolder { key, until: None }
}

/// Newest first, page by page, each with its first words and its newest turn; nobody else's.
async fn a_users_conversations_are_listed_newest_first(db: Db) {
    let worker = Worker::live(&db.store).await;
    for (name, text) in [("a", "6*7"), ("b", "  What\nis this?  "), ("c", "hello")] {
        armed(&db.store, message(name, "m", text)).await;
    }
    let mut other = message("a", "m", "somebody else's");
    other.user = "eve".into();
    armed(&db.store, other).await;
    let held = worker.claim_ids(&db.store, 2).await;
    assert_eq!(finish(&db.store, worker.reply(&[held[0]], "42")).await, Ok(true));
    db.store.fail_turn(held[1], &failure(Reason::Cancelled)).await.expect("answers");
    let newer = armed(&db.store, message("a", "m2", "and again")).await;

    let list =
        async |before, limit| db.store.list_conversations(ORGANIZATION, USER, before, limit).await.expect("reads");
    let all = list(None, 10).await;
    let told: Vec<_> = all.iter().map(|c| (c.name.as_str(), c.title.as_str())).collect();
    assert_eq!(told, [("c", "hello"), ("b", "What is this?"), ("a", "6*7")]);
    let states: Vec<_> = all.iter().map(|c| c.newest.clone().map(|t| (t.phase, t.reason))).collect();
    let cancelled = Some((Phase::Failed, Some(Reason::Cancelled)));
    assert_eq!(states, [Some((Phase::Armed, None)), cancelled, Some((Phase::Armed, None))]);
    assert_eq!(all[2].newest.as_ref().map(|t| t.turn_id), Some(newer.turn_id), "the newest turn's state");
    assert_eq!(list(None, 2).await, all[..2]);
    assert_eq!(list(Some(all[1].id), 2).await, all[2..]);
    assert_eq!(list(Some(all[2].id), 2).await, []);

    // A conversation whose turns are all past their retention has neither words nor a newest turn.
    db.sql("UPDATE terminal SET ended_at = ended_at - interval '60 days'").await;
    db.sql("DELETE FROM delivery").await;
    db.store.prune_past_retention(&Retention::default()).await.expect("prunes");
    let all = list(None, 10).await;
    assert_eq!((all[1].newest.clone(), all[1].title.as_str()), (None, "\u{2026}"));
    assert_eq!(all[2].title, "and again");
}

/// A record tells what the agent called, in order and up to a size, also of a turn that failed; beside what it had said.
async fn a_record_has_the_tool_calls(db: Db) {
    let worker = Worker::live(&db.store).await;
    let call = |i: usize, size: usize| Frame::ToolCall {
        id: i.to_string(),
        name: "look".into(),
        arguments: json!({"x": "y".repeat(size)}),
    };
    let result = Frame::ToolResult { id: "0".into(), result: json!(42) };
    let replied = db.in_hand(&worker).await;
    let frames = vec![call(0, 1), Frame::text("hello"), Frame::Progress { message: "p".into() }, result.clone()];
    assert_eq!(worker.append_frames(&db.store, replied, 0, frames).await, Ok(8));
    assert_eq!(finish(&db.store, worker.ended(&[replied], 8)).await, Ok(true));
    let record = db.store.turn_record(replied).await.expect("reads").expect("there");
    assert_eq!(record.tools.frames, [call(0, 1), result]);
    assert!(!record.tools.truncated && record.partial.is_none() && record.undelivered);
    let (first, ended) = (record.first_output_at.expect("it spoke"), record.ended_at.expect("it ended"));
    assert!(record.claimed_at.expect("claimed") <= first && first <= ended, "{record:?}");

    let failed = db.in_hand(&worker).await;
    let frames: Vec<Frame> = (0..70).map(|i| call(i, 1)).chain([Frame::text("half")]).collect();
    assert_eq!(worker.append_frames(&db.store, failed, 0, frames).await, Ok(74));
    let large = db.in_hand(&worker).await;
    let frames = vec![call(0, 30_000), call(1, 30_000), call(2, 30_000)];
    assert_eq!(worker.append_frames(&db.store, large, 0, frames).await, Ok(3));
    for turn in [failed, large] {
        db.store.fail_turn(turn, &failure(Reason::Cancelled)).await.expect("answers");
    }
    let record = db.store.turn_record(failed).await.expect("reads").expect("there");
    assert_eq!((record.tools.frames.len(), record.tools.truncated), (64, true));
    assert_eq!(record.partial.as_deref(), Some("half"));
    let record = db.store.turn_record(large).await.expect("reads").expect("there");
    assert_eq!((record.tools.frames.len(), record.tools.truncated), (2, true));
}

/// A ticket opens one stream, for a while, for whoever asked for it; of two who use it at once, one gets in.
async fn a_ticket_is_used_once(db: Db) {
    let id = key(&db, "ada").await;
    let issue = async |key, path: Option<&str>| {
        db.store.issue_ticket(&principal("ada"), holder(key), path).await.expect("answers").expect("there is room").0
    };
    let used = async |text: &str, path: &str| {
        db.store.use_ticket(&Ticket::read(text).expect("a ticket"), path).await.expect("answers")
    };
    let ticket = issue(Some(id), None).await;
    assert_eq!(db.count(&format!("ticket WHERE encode(hash, 'hex') = '{}'", &ticket[4..68])).await, 0, "only hashed");
    let (a, b) = tokio::join!(used(&ticket, "/a"), used(&ticket, "/b"));
    assert_eq!([&a, &b].into_iter().flatten().collect::<Vec<_>>(), [&(principal("ada"), holder(Some(id)))]);
    assert_eq!(used(&ticket, "/a").await, None, "used");

    let ticket = issue(None, Some("/v1/turns/x/events")).await;
    assert_eq!(used(&ticket, "/v1/turns/y/events").await, None, "for another path");
    assert_eq!(used(&ticket, "/v1/turns/x/events").await, None, "and used up by that");
    let ticket = issue(None, Some("/v1/turns/x/events")).await;
    assert_eq!(used(&ticket, "/v1/turns/x/events").await, Some((principal("ada"), holder(None))));

    let (old, revoked, expired) = (issue(Some(id), None).await, issue(Some(id), None).await, key(&db, "eve").await);
    let of_expired = issue(Some(expired), None).await;
    db.sql("UPDATE ticket SET expires_at = clock_timestamp() - interval '1 s' WHERE hash = (SELECT hash FROM ticket ORDER BY expires_at LIMIT 1)").await;
    assert_eq!(used(&old, "/a").await, None, "too old");
    keys::revoke(db.store.pool(), id).await.expect("revokes");
    assert_eq!(used(&revoked, "/a").await, None, "its key was revoked");
    db.sql(format!("UPDATE api_key SET expires_at = clock_timestamp() WHERE id = '{expired}'")).await;
    assert_eq!(used(&of_expired, "/a").await, None, "its key has expired");

    let until =
        |seconds| TicketHolder { key: None, until: Some(OffsetDateTime::now_utc() + Duration::from_secs(seconds)) };
    for (seconds, good) in [(600, true), (0, false)] {
        let issued =
            db.store.issue_ticket(&principal("ada"), until(seconds), None).await.expect("answers").expect("room");
        assert_eq!(used(&issued.0, "/a").await.is_some(), good, "no longer than the token that asked for it");
    }

    for _ in 0..MAX_TICKETS {
        issue(None, None).await;
    }
    assert_eq!(db.store.issue_ticket(&principal("ada"), holder(None), None).await.expect("answers"), None, "too many");
    assert!(
        db.store.issue_ticket(&principal("bob"), holder(None), None).await.expect("answers").is_some(),
        "another's"
    );
    db.sql("UPDATE ticket SET expires_at = clock_timestamp() - interval '1 s'").await;
    issue(None, None).await;
    db.store.prune_past_retention(&Retention::default()).await.expect("prunes");
    assert_eq!(db.count("ticket").await, 1, "those that nobody used are removed");
}

/// A login stands for its key until one of them ends.
async fn a_login_ends_with_its_key(db: Db) {
    let (ada, eve) = (key(&db, "ada").await, key(&db, "eve").await);
    let log_in = async |key| db.store.log_in(key).await.expect("answers").map(|(text, _)| text);
    let whose = async |text: &str| {
        let secret = LoginSecret::read(text).expect("a login's secret");
        login::authenticate(db.store.pool(), &secret)
            .await
            .expect("answers")
            .map(|(principal, key)| (principal.user, key))
    };
    let first = log_in(ada).await.expect("a good key");
    assert_eq!(whose(&first).await, Some(("ada".into(), ada)));
    let until = db.number("SELECT extract(epoch FROM expires_at - created_at)::bigint FROM login").await;
    assert!(until <= 3600, "no longer than its key: {until} s");
    let second = log_in(ada).await.expect("a good key");
    db.store.log_out(&LoginSecret::read(&first).expect("one")).await.expect("answers");
    assert_eq!(whose(&first).await, None, "logged out");
    assert_eq!(whose(&second).await, Some(("ada".into(), ada)), "another browser's");
    for _ in 0..25 {
        log_in(ada).await.expect("a good key");
    }
    assert_eq!(whose(&second).await, None, "the oldest of too many");
    assert_eq!(db.count("login").await, 20);
    let of_eve = log_in(eve).await.expect("a good key");
    keys::revoke(db.store.pool(), ada).await.expect("revokes");
    assert_eq!(log_in(ada).await, None);
    db.sql("UPDATE login SET expires_at = clock_timestamp()").await;
    assert_eq!(whose(&of_eve).await, None, "too old");
    db.store.prune_past_retention(&Retention::default()).await.expect("prunes");
    assert_eq!(db.count("login").await, 0);
}

crate::both!(
    a_users_conversations_are_listed_newest_first,
    a_record_has_the_tool_calls,
    a_ticket_is_used_once,
    a_login_ends_with_its_key,
);
