//! The audit: who did what that others should be able to find out. Rows are only added, and go after a year.

use uuid::Uuid;

use super::connection::DbConnection;
use super::transaction::transaction;
use super::{Store, StoreError};

/// How long the audit is kept, in days.
const KEPT_DAYS: i32 = 365;
/// Rows that one pass of the retention removes at the most.
const PRUNE_BATCH: i64 = 1000;

/// Who does something, by which key, if any.
#[derive(Debug, Clone, Copy)]
pub struct Actor<'a> {
    pub organization: &'a str,
    pub user: &'a str,
    pub key: Option<Uuid>,
}

/// What is written down here. (Erasing is written by `erase`, what is done to keys by [`keys`](super::keys).)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Audited {
    /// Somebody cancelled a turn.
    Cancel,
    /// An operator read what another user owns: a turn, or a conversation.
    Read,
    /// An operator listed turns of all users.
    List,
}

impl Audited {
    /// The word in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Audited::Cancel => "cancel",
            Audited::Read => "read",
            Audited::List => "list",
        }
    }
}

/// Writes a row, as a part of what it tells of.
pub(super) async fn write(
    connection: &mut DbConnection,
    actor: Actor<'_>,
    action: Audited,
    subject: &str,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO audit (id, organization, actor, key, action, subject) VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(Uuid::now_v7())
        .bind(actor.organization)
        .bind(actor.user)
        .bind(actor.key)
        .bind(action.as_str())
        .bind(subject)
        .execute(connection)
        .await?;
    Ok(())
}

impl Store {
    /// Writes that somebody did something which changes nothing itself.
    pub async fn note_action(&self, actor: Actor<'_>, action: Audited, subject: &str) -> Result<(), StoreError> {
        transaction!(self.general, |tx| write(tx, actor, action, subject).await).await
    }

    /// Removes a part of what is past its time.
    pub(super) async fn prune_audit(&self) -> Result<(), StoreError> {
        sqlx::query(
            "DELETE FROM audit WHERE id IN
               (SELECT id FROM audit WHERE at < statement_timestamp() - make_interval(days => $1) ORDER BY at LIMIT $2)",
        )
        .bind(KEPT_DAYS)
        .bind(PRUNE_BATCH)
        .execute(&self.general)
        .await?;
        Ok(())
    }
}
