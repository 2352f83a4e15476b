//! How connections reach Postgres: each a session of its own, or through a *pooler* in transaction mode (pgbouncer and those
//! that managed services put in front), which lends a server's connection for the length of one transaction.
//!
//! Behind a pooler nothing may outlive its transaction: no settings, no named statements, no LISTEN, no session locks. So
//! there every statement is in a transaction, which begins with the settings; statements have no name and are planned each
//! time; and notices are heard over a direct connection, where one is given, or replaced by looking often.

use std::sync::LazyLock;

use sqlx::postgres::PgConnectOptions;

use super::server::ConnectOptions;

/// What all of the store's work is done under.
const SETTINGS: [(&str, &str); 6] = [
    ("search_path", "lastword"),
    ("statement_timeout", "8000"),
    ("idle_in_transaction_session_timeout", "4000"),
    ("lock_timeout", "6000"),
    ("timezone", "UTC"),
    ("jit", "off"),
];

/// A setting that Postgres ignores. A connection that was asked for it and does not have it is not a session of its own.
pub(super) const MARK: &str = "lastword.session";

/// How each transaction behind a pooler begins, in one round trip.
pub(super) static BEGIN_WITH_SETTINGS: LazyLock<String> = LazyLock::new(|| {
    let settings = SETTINGS.map(|(name, value)| format!("SET LOCAL {name} = '{value}'"));
    format!("BEGIN; {}", settings.join("; "))
});

/// Whether a database is behind a pooler in transaction mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Pooler {
    /// Found out at the first connection: a pooler refuses, or forgets, the settings that a session begins with.
    #[default]
    Auto,
    /// There is none, or one in session mode that passes the settings on.
    None,
    /// There is one, whatever the first connection shows.
    Transaction,
}

/// How connections reach the database.
#[derive(Debug, Clone, Default)]
pub struct DatabaseReach {
    /// Whether there is a pooler in between.
    pub pooler: Pooler,
    /// How to connect to the same database past the pooler: for LISTEN, and for migrations.
    pub direct: Option<Box<ConnectOptions>>,
}

/// The way that connections take, once it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// Each connection is a session of its own.
    Sessions,
    /// Each transaction may run on another session.
    Transactions,
}

/// Options for a session of its own, which begins with the settings.
pub(super) fn session(options: PgConnectOptions) -> PgConnectOptions {
    named(options).options(SETTINGS).options([
        ("tcp_user_timeout", "8000"),
        // A plan made while the tables were empty would be kept when they are not.
        ("plan_cache_mode", "force_custom_plan"),
        (MARK, "own"),
    ])
}

/// Options for a connection that begins without settings, since a pooler refuses those that it does not know.
pub(super) fn plain(options: PgConnectOptions) -> PgConnectOptions {
    named(options).extra_float_digits(None)
}

fn named(options: PgConnectOptions) -> PgConnectOptions {
    options.application_name("lastword")
}

/// Whether a refused connection was refused for its settings, or by a pooler for whatever reason: Postgres itself answers a
/// well-formed beginning with neither of these codes, pgbouncer with the first (`protocol_violation`), RDS Proxy with the
/// second (`feature_not_supported`).
pub(super) fn refused_by_pooler(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("08P01" | "0A000"))
}
