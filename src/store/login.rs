//! Logins: a browser that showed an API key once is known by a cookie instead, for a while. Scripts of a page cannot read the
//! cookie, and it is worth less than the key: it ends by itself, with its key, or when its user logs out.

use time::OffsetDateTime;
use uuid::Uuid;

use super::keys::{KeyError, Principal};
use super::opaque::OpaqueSecret;
use super::{Pool, Store, StoreError};

/// What the cookie's value begins with.
pub const LOGIN_PREFIX: &str = "lws_";
/// How long a login lasts, in days, unless its key ends before.
pub const LOGIN_DAYS: i32 = 7;
/// The most logins of one key: a further one ends the oldest.
const MAX_LOGINS: i64 = 20;

/// The secret in a logged-in browser's cookie.
pub struct LoginSecret(OpaqueSecret);

impl LoginSecret {
    /// Reads a cookie's value; `None`: it is none of ours.
    pub fn read(text: &str) -> Option<Self> {
        OpaqueSecret::read(LOGIN_PREFIX, text).map(LoginSecret)
    }
}

impl Store {
    /// Logs a browser in by this key. Answers with the cookie's value, which is a secret, and the time when it ends; `None`: the key
    /// is no longer good.
    pub async fn log_in(&self, key: Uuid) -> Result<Option<(String, OffsetDateTime)>, StoreError> {
        let secret = OpaqueSecret::generate();
        let until: Option<OffsetDateTime> = sqlx::query_scalar(
            "WITH surplus AS (
               DELETE FROM login WHERE hash IN
                 (SELECT hash FROM login WHERE key = $2 ORDER BY created_at DESC OFFSET $4))
             INSERT INTO login (hash, key, expires_at)
             SELECT $1, id, least(expires_at, clock_timestamp() + make_interval(days => $3)) FROM api_key
             WHERE id = $2 AND revoked_at IS NULL AND coalesce(expires_at > clock_timestamp(), true)
             RETURNING expires_at",
        )
        .bind(secret.hash())
        .bind(key)
        .bind(LOGIN_DAYS)
        .bind(MAX_LOGINS - 1)
        .fetch_optional(&self.general)
        .await?;
        Ok(until.map(|until| (secret.reveal(LOGIN_PREFIX), until)))
    }

    /// Ends a login, if it is one.
    pub async fn log_out(&self, login: &LoginSecret) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM login WHERE hash = $1").bind(login.0.hash()).execute(&self.general).await?;
        Ok(())
    }
}

/// Whose login this is, and the id of its key; `None` if it is unknown or has ended, or its key has.
pub async fn authenticate(pool: &Pool, login: &LoginSecret) -> Result<Option<(Principal, Uuid)>, KeyError> {
    let found: Option<(Uuid, String, String, String)> = sqlx::query_as(
        r#"SELECT k.id, k.organization, k."user", k.role FROM login l JOIN api_key k ON k.id = l.key
           WHERE l.hash = $1 AND l.expires_at > clock_timestamp() AND k.revoked_at IS NULL
             AND coalesce(k.expires_at > clock_timestamp(), true)"#,
    )
    .bind(login.0.hash())
    .fetch_optional(pool)
    .await?;
    let Some((id, organization, user, role)) = found else { return Ok(None) };
    let role = role.parse().map_err(|why| KeyError::Malformed(id, why))?;
    Ok(Some((Principal { organization, user, role }, id)))
}
