//! The million rows of each table that the store is measured over.

use uuid::Uuid;

use crate::support::Db;

/// What is there already: for `after + 1 ..= upto` an open turn and an ended one, four of each a conversation. The first
/// open one of every second hundred of conversations is in a worker's hand, the others wait.
pub async fn fill(db: &Db, after: i64, upto: i64) {
    let id = |what: &str, of: &str| format!("('{what}' || lpad(to_hex({of}), 31, '0'))::uuid");
    let (turn, conversation) = (id("1", "i"), id("2", "(i - 1) / 4"));
    let group = id("d", "(i - 1) / 4 % 1000");
    let (number, range) = ("(i - 1) % 4 + 1", format!("generate_series({}, {upto}) AS i", after + 1));
    let past = "clock_timestamp() - interval '1 day' + i * interval '80 milliseconds'";
    let open = async {
        db.sql(format!(
            "INSERT INTO conversation (id, organization, name, owner, agent, last_number)
             SELECT {}, 'big', 'c' || c, 'u' || c % 1000, 'a' || c % 100, 8
             FROM generate_series({}, {}) AS c",
            id("2", "c"),
            after,
            upto - 1
        ))
        .await;
        db.sql(format!(
            r#"INSERT INTO turn (id, conversation_id, number, organization, conversation, message_id, agent, worker_group, "user",
                                routing, input, content_hash, armed_at)
               SELECT {turn}, {conversation}, {number}, 'big', 'c' || (i - 1) / 4, 'm' || i, 'a' || (i - 1) / 4 % 100,
                      {group}, 'u' || (i - 1) / 4 % 1000, '{{"platform": "api"}}', 'hello ' || i, '\x00', {past}
               FROM {range}"#
        ))
        .await;
        // Ten turns of each digest.
        db.sql(format!(
            "INSERT INTO request (turn_id, organization, owner, digest, place, body, by_retry, context, asked, armed_at)
             SELECT {turn}, 'big', 'u' || (i - 1) / 10 % 1000, sha256(((i - 1) / 10)::text::bytea), (i - 1) % 10, '\\x00', true,
                    sha256(i::text::bytea), '{{}}', {past} FROM {range}"
        ))
        .await;
        let held = "((i - 1) / 400 % 2 = 0 AND (i - 1) % 4 = 0)";
        db.sql(format!(
            "INSERT INTO marker (turn_id, conversation_id, number, organization, owner, agent, worker_group, rank, phase, incarnation,
                                 claimed_at, armed_at, deadline_at)
             SELECT {turn}, {conversation}, {number}, 'big', 'u' || (i - 1) / 4 % 1000, 'a' || (i - 1) / 4 % 100, {group},
                    least(i / 1000, 100),
                    CASE WHEN {held} THEN 'claimed' ELSE 'waiting' END,
                    CASE WHEN {held} THEN {} END, CASE WHEN {held} THEN clock_timestamp() END, {past},
                    clock_timestamp() + interval '1 day' FROM {range}",
            id("3", "(i - 1) / 4 % 2000")
        ))
        .await;
    };
    let ended = async {
        // Ended turns are others than the open ones, of the same conversations.
        let (ended, number) = (id("4", "i"), "(i - 1) % 4 + 5");
        db.sql(format!(
            "INSERT INTO terminal (turn_id, conversation_id, number, organization, outcome, reason, message, retryable, holder, end_at,
                                   ended_at)
             SELECT {ended}, {conversation}, {number}, 'big', CASE WHEN failed THEN 'error' ELSE 'reply' END,
                    CASE WHEN failed THEN 'Internal' END, CASE WHEN failed THEN '' END, CASE WHEN failed THEN true END, {ended}, 5,
                    {past}
             FROM {range}, LATERAL (SELECT i % 100 = 0) AS f(failed)"
        ))
        .await;
        // Some of them have their turns' rows, so that lists find them.
        db.sql(format!(
            r#"INSERT INTO turn (id, conversation_id, number, organization, conversation, message_id, agent, worker_group, "user",
                                routing, input, content_hash, armed_at)
               SELECT {ended}, {conversation}, {number}, 'big', 'c' || (i - 1) / 4, 'e' || i, 'a1', {group}, 'u1', '{{}}', 'hello', '\x00',
                      {past}
               FROM {range} WHERE i % 97 = 0 OR i % 100 = 0"#
        ))
        .await;
        db.sql(format!(
            "INSERT INTO delivery (turn_id, platform, organization, conversation_id, number, state, due_at)
             SELECT {ended}, 'api', 'big', {conversation}, {number}, CASE i % 10 WHEN 0 THEN 'ready' ELSE 'parked' END,
                    clock_timestamp() + interval '1 day' FROM {range}"
        ))
        .await;
        let frames = r#"'[{"type":"text","text":"hello"}]'"#;
        db.sql(format!(
            "INSERT INTO output (turn_id, start_at, end_at, frames) SELECT {ended}, 0, 5, {frames} FROM {range}"
        ))
        .await;
    };
    tokio::join!(open, ended);
    db.sql(
        "INSERT INTO principal (organization, owner, conversations) SELECT organization, owner, count(*) FROM conversation GROUP BY 1, 2
         ON CONFLICT (organization, owner) DO UPDATE SET conversations = excluded.conversations",
    )
    .await;
}

/// What autovacuum would have done by then.
pub async fn analyze(db: &Db) {
    db.sql("VACUUM ANALYZE").await;
}

/// The id that `fill` gave to the `number`th of a kind.
pub fn filled(kind: u128, number: usize) -> Uuid {
    Uuid::from_u128(kind << 124 | number as u128)
}

/// Leases of 2,000 workers, agents, and gateways that have been ticking.
pub async fn people(db: &Db) {
    db.sql(
        "INSERT INTO lease (incarnation, start_id, organization, agent, worker_group, phase, runtime, runtime_ref, secret_hash,
                            heartbeat_seconds, lease_seconds, drain_seconds, expires_at, died_at)
         SELECT ('3' || lpad(to_hex(i), 31, '0'))::uuid, gen_random_uuid(), 'big', 'a' || i % 100,
                ((CASE p WHEN 'live' THEN 'e' ELSE 'd' END) || lpad(to_hex(i), 31, '0'))::uuid, p, 'process', '', '',
                20, 60, 30, clock_timestamp() + interval '1 day', CASE p WHEN 'dead' THEN clock_timestamp() - interval '1 hour' END
         FROM generate_series(0, 2999) AS i, LATERAL (SELECT CASE WHEN i < 2000 THEN 'live' ELSE 'dead' END) AS l(p)",
    )
    .await;
    db.sql("INSERT INTO agent (namespace, name, spec) SELECT 'big', 'a' || i, '{}' FROM generate_series(0, 99) AS i")
        .await;
}
