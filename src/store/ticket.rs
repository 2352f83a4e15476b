//! Tickets: each opens one stream, once and soon, for whoever asked for it. They are for clients that cannot send a header,
//! such as a browser's EventSource, whose only place for a credential is the URL: what stands in a URL may be read by many, so
//! it is worth nothing a moment later.

use sqlx::Row;
use time::OffsetDateTime;
use uuid::Uuid;

use super::keys::Principal;
use super::opaque::OpaqueSecret;
use super::{Store, StoreError};

/// What every ticket begins with.
const PREFIX: &str = "lwt_";
/// How long a ticket may be used, in seconds.
pub const TICKET_SECONDS: i32 = 60;
/// The most tickets that a principal may have which were not used yet.
pub const MAX_TICKETS: i64 = 100;
/// Rows that one pass of the retention removes at the most.
const PRUNE_BATCH: i64 = 1000;

/// What a ticket was asked for with, which it ends with: an API key, or a token that ends at some time; neither for the user who
/// runs the gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TicketHolder {
    pub key: Option<Uuid>,
    pub until: Option<OffsetDateTime>,
}

/// A ticket as its holder shows it.
pub struct Ticket(OpaqueSecret);

impl Ticket {
    /// Reads a shown ticket; `None`: it is none.
    pub fn read(text: &str) -> Option<Self> {
        OpaqueSecret::read(PREFIX, text).map(Ticket)
    }
}

impl Store {
    /// Makes a ticket for a caller who is known so, for this path or for any stream. Answers with the ticket's text,
    /// which is a secret, and the time when it ends; `None`: the principal has [`MAX_TICKETS`] already.
    pub async fn issue_ticket(
        &self,
        principal: &Principal,
        holder: TicketHolder,
        path: Option<&str>,
    ) -> Result<Option<(String, OffsetDateTime)>, StoreError> {
        let secret = OpaqueSecret::generate();
        let until: Option<OffsetDateTime> = sqlx::query_scalar(
            r#"INSERT INTO ticket (hash, organization, "user", role, key, until, path, expires_at)
               SELECT $1, $2, $3, $4, $5, $9, $6, clock_timestamp() + make_interval(secs => $7)
               WHERE (SELECT count(*) FROM (SELECT FROM ticket WHERE organization = $2 AND "user" = $3
                                              AND expires_at > statement_timestamp() LIMIT $8) AS own) < $8
               RETURNING expires_at"#,
        )
        .bind(secret.hash())
        .bind(&principal.organization)
        .bind(&principal.user)
        .bind(principal.role.as_str())
        .bind(holder.key)
        .bind(path)
        .bind(f64::from(TICKET_SECONDS))
        .bind(MAX_TICKETS)
        .bind(holder.until)
        .fetch_optional(&self.general)
        .await?;
        Ok(until.map(|until| (secret.reveal(PREFIX), until)))
    }

    /// Uses a ticket up, whatever comes of it. Answers who asked for it, and with what; `None`: it is unknown, used, too old,
    /// for another path, or what it was asked for with is no longer good.
    pub async fn use_ticket(
        &self,
        ticket: &Ticket,
        path: &str,
    ) -> Result<Option<(Principal, TicketHolder)>, StoreError> {
        let used = sqlx::query(
            r#"WITH used AS (DELETE FROM ticket WHERE hash = $1 RETURNING *)
               SELECT u.organization, u."user", u.role, u.key, u.until FROM used u LEFT JOIN api_key k ON k.id = u.key
               WHERE least(u.expires_at, u.until) > clock_timestamp() AND coalesce(u.path = $2, true)
                 AND (u.key IS NULL OR (k.revoked_at IS NULL AND k.id IS NOT NULL
                                        AND coalesce(k.expires_at > clock_timestamp(), true)))"#,
        )
        .bind(ticket.0.hash())
        .bind(path)
        .fetch_optional(&self.general)
        .await?;
        let Some(row) = used else { return Ok(None) };
        let role = row.try_get::<String, _>("role")?.parse().map_err(|why: String| StoreError::Refused(why.into()))?;
        let principal = Principal { organization: row.try_get("organization")?, user: row.try_get("user")?, role };
        Ok(Some((principal, TicketHolder { key: row.try_get("key")?, until: row.try_get("until")? })))
    }

    /// Removes tickets that nobody used in time, and logins that have ended; a part of them.
    pub(super) async fn prune_short_lived(&self) -> Result<(), StoreError> {
        for table in ["ticket", "login"] {
            sqlx::query(sqlx::AssertSqlSafe(format!(
                "DELETE FROM {table} WHERE hash IN
                   (SELECT hash FROM {table} WHERE expires_at < statement_timestamp() ORDER BY expires_at LIMIT $1)"
            )))
            .bind(PRUNE_BATCH)
            .execute(&self.general)
            .await?;
        }
        Ok(())
    }
}
