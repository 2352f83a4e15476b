//! API keys. A key is shown once, when it is made: `lwk_<id>_<secret><checksum>`. The table keeps only the SHA-256 of its
//! secret.
//!
//! The secret is 256 random bits, so a fast hash suffices: there is nothing to guess. The checksum is no secret. It tells a
//! mistyped or cut key, and noise, from a key without asking the database, and a scanner for leaked secrets that it has found
//! one.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Pool;
use crate::turn::keys::{NameError, check_name, check_user, hex, unhex};

/// What every key begins with, so that scanners for leaked secrets can know it.
const PREFIX: &str = "lwk_";
/// A use of a key is written down this long after the last one that was, not before.
const USED_EVERY: Duration = Duration::from_secs(600);
/// The longest time that a key with an end may be valid for: a hundred years.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Why a key could not be made, listed, revoked or looked up.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{0}")]
    Name(#[from] NameError),
    #[error("a key is valid for a second at least, and for {} days at most", LONGEST.as_secs() / 86_400)]
    Validity,
    #[error("the database failed: {0}; has `lastword migrate` run?")]
    Database(#[from] sqlx::Error),
    /// What the database holds is not what this version writes.
    #[error("key {0} is not readable: {1}")]
    Malformed(Uuid, String),
}

/// What a key's holder may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum KeyRole {
    /// Its own conversations.
    User,
    /// Everything of the organization.
    Operator,
}

impl KeyRole {
    /// The word in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            KeyRole::User => "user",
            KeyRole::Operator => "operator",
        }
    }
}

impl fmt::Display for KeyRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KeyRole {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "user" => Ok(KeyRole::User),
            "operator" => Ok(KeyRole::Operator),
            other => Err(format!("no role {other:?}")),
        }
    }
}

/// Who a caller is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    pub organization: String,
    pub user: String,
    pub role: KeyRole,
}

/// Whether a text is meant to be a key, by its beginning; it may be a bad one.
pub fn looks_like_key(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// A key as its holder presents it. Its `Debug` hides the secret.
#[derive(Clone)]
pub struct ApiKey {
    pub id: Uuid,
    secret: [u8; 32],
}

impl ApiKey {
    /// A key with a new id and a new random secret.
    pub fn generate() -> Self {
        ApiKey { id: Uuid::now_v7(), secret: rand::random() }
    }

    /// The text that the holder keeps: a secret.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}_{}{}", self.id.simple(), hex(&self.secret), hex(&self.checksum()))
    }

    /// The first bytes of a digest of all of the key.
    fn checksum(&self) -> [u8; 4] {
        let digest = Sha256::new().chain_update(self.id.as_bytes()).chain_update(self.secret).finalize();
        [digest[0], digest[1], digest[2], digest[3]]
    }

    /// What the table keeps of the secret.
    fn hash(&self) -> Vec<u8> {
        Sha256::digest(self.secret).to_vec()
    }

    /// Compares the secret with a stored hash, in a time that tells nothing of where they differ.
    fn matches(&self, hash: &[u8]) -> bool {
        self.hash().ct_eq(hash).into()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}_\u{2026}", self.id.simple())
    }
}

/// What was presented is no key. The error does not repeat the text, which may be somebody's secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an API key: one looks like {PREFIX}<32 hex digits>_<72 hex digits>, the last 8 of which are a checksum")]
pub struct NoKey;

impl FromStr for ApiKey {
    type Err = NoKey;

    /// Takes exactly the form that [`ApiKey::reveal`] writes.
    fn from_str(text: &str) -> Result<Self, NoKey> {
        let (id, secret) = text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')).ok_or(NoKey)?;
        let (secret, checksum) = secret.split_at_checked(64).ok_or(NoKey)?;
        let id: [u8; 16] = unhex(id).ok_or(NoKey)?;
        let key = ApiKey { id: Uuid::from_bytes(id), secret: unhex(secret).ok_or(NoKey)? };
        if unhex(checksum) == Some(key.checksum()) { Ok(key) } else { Err(NoKey) }
    }
}

/// A key to make.
#[derive(Debug, Clone)]
pub struct NewKey {
    pub organization: String,
    /// What people call the key.
    pub name: String,
    pub user: String,
    pub role: KeyRole,
    /// How long it is valid, to the second; `None`: until it is revoked.
    pub valid_for: Option<Duration>,
}

/// A key without its secret.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyInfo {
    pub id: Uuid,
    pub organization: String,
    pub name: String,
    pub user: String,
    pub role: KeyRole,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
    /// When it was last good for something, to within [`USED_EVERY`].
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_used_at: Option<OffsetDateTime>,
    /// By the database's clock.
    pub expired: bool,
}

/// A row of `api_key`.
#[derive(sqlx::FromRow)]
struct KeyRow {
    id: Uuid,
    organization: String,
    name: String,
    user: String,
    role: String,
    hash: Vec<u8>,
    created_at: OffsetDateTime,
    expires_at: Option<OffsetDateTime>,
    revoked_at: Option<OffsetDateTime>,
    last_used_at: Option<OffsetDateTime>,
    expired: bool,
}

impl TryFrom<KeyRow> for KeyInfo {
    type Error = KeyError;
    fn try_from(row: KeyRow) -> Result<Self, KeyError> {
        Ok(KeyInfo {
            role: row.role.parse().map_err(|why| KeyError::Malformed(row.id, why))?,
            id: row.id,
            organization: row.organization,
            name: row.name,
            user: row.user,
            created_at: row.created_at,
            expires_at: row.expires_at,
            revoked_at: row.revoked_at,
            last_used_at: row.last_used_at,
            expired: row.expired,
        })
    }
}

/// The audit names the database's user as the actor, since whoever may connect to the database may make and revoke keys.
const CREATE: &str = r#"
    WITH made AS (
        INSERT INTO api_key (id, organization, name, role, "user", hash, created_at, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6, clock_timestamp(), clock_timestamp() + $7 * interval '1 second')
        RETURNING *
    ), audited AS (
        INSERT INTO audit (id, organization, actor, action, subject)
        SELECT gen_random_uuid(), organization, 'database:' || session_user, 'create-key', id::text FROM made
    )
    SELECT id, organization, name, "user", role, hash, created_at, expires_at, revoked_at, last_used_at, false AS expired
    FROM made"#;

const REVOKE: &str = "
    WITH done AS (
        UPDATE api_key SET revoked_at = clock_timestamp() WHERE id = $1 AND revoked_at IS NULL RETURNING id, organization
    ), audited AS (
        INSERT INTO audit (id, organization, actor, action, subject)
        SELECT gen_random_uuid(), organization, 'database:' || session_user, 'revoke-key', id::text FROM done
    )
    SELECT count(*) FROM done";

const LIST: &str = r#"
    SELECT id, organization, name, "user", role, hash, created_at, expires_at, revoked_at, last_used_at,
           coalesce(expires_at <= clock_timestamp(), false) AS expired
    FROM api_key WHERE $1::text IS NULL OR organization = $1 ORDER BY created_at, id"#;

const FIND: &str = r#"
    SELECT id, organization, name, "user", role, hash, created_at, expires_at, revoked_at, last_used_at,
           coalesce(expires_at <= clock_timestamp(), false) AS expired
    FROM api_key WHERE id = $1"#;

/// Makes a key, and writes the audit. The [`ApiKey`] that this returns is the only copy of its secret.
pub async fn create(pool: &Pool, new: &NewKey) -> Result<(KeyInfo, ApiKey), KeyError> {
    check_name("organization", &new.organization)?;
    check_name("name", &new.name)?;
    check_user(&new.user)?;
    if new.valid_for.is_some_and(|time| time < Duration::from_secs(1) || time > LONGEST) {
        return Err(KeyError::Validity);
    }
    let key = ApiKey::generate();
    let row: KeyRow = sqlx::query_as(CREATE)
        .bind(key.id)
        .bind(&new.organization)
        .bind(&new.name)
        .bind(new.role.as_str())
        .bind(&new.user)
        .bind(key.hash())
        .bind(new.valid_for.map(|time| time.as_secs() as f64))
        .fetch_one(pool)
        .await?;
    Ok((row.try_into()?, key))
}

/// All keys, of one organization or of every, oldest first; revoked and expired ones too.
pub async fn list(pool: &Pool, organization: Option<&str>) -> Result<Vec<KeyInfo>, KeyError> {
    let rows: Vec<KeyRow> = sqlx::query_as(LIST).bind(organization).fetch_all(pool).await?;
    rows.into_iter().map(KeyInfo::try_from).collect()
}

/// Revokes a key at once and for good, and writes the audit. False: there is no key of this id, or it was revoked before.
pub async fn revoke(pool: &Pool, id: Uuid) -> Result<bool, KeyError> {
    let done: i64 = sqlx::query_scalar(REVOKE).bind(id).fetch_one(pool).await?;
    Ok(done > 0)
}

/// A key, and the hash of its secret; also one that is revoked or expired.
pub async fn find(pool: &Pool, id: Uuid) -> Result<Option<(KeyInfo, Vec<u8>)>, KeyError> {
    let row: Option<KeyRow> = sqlx::query_as(FIND).bind(id).fetch_optional(pool).await?;
    row.map(|mut row| {
        let hash = std::mem::take(&mut row.hash);
        Ok((row.try_into()?, hash))
    })
    .transpose()
}

/// Those of these keys that are revoked, expired, or gone.
pub async fn ended(pool: &Pool, ids: &[Uuid]) -> Result<Vec<Uuid>, KeyError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let ended = sqlx::query_scalar(
        "SELECT asked.id FROM unnest($1::uuid[]) AS asked (id) LEFT JOIN api_key k USING (id)
         WHERE k.id IS NULL OR k.revoked_at IS NOT NULL OR k.expires_at <= clock_timestamp()",
    );
    Ok(ended.bind(ids).fetch_all(pool).await?)
}

/// Who presents this key, and the key's id; `None` if it is unknown, revoked or expired. A good key's use is written down,
/// unless one was a moment ago.
pub async fn authenticate(pool: &Pool, key: &ApiKey) -> Result<Option<(Principal, Uuid)>, KeyError> {
    let Some((info, hash)) = find(pool, key.id).await? else { return Ok(None) };
    if !key.matches(&hash) || info.expired || info.revoked_at.is_some() || check_user(&info.user).is_err() {
        return Ok(None);
    }
    if info.last_used_at.is_none_or(|at| OffsetDateTime::now_utc() - at >= USED_EVERY) {
        let used = sqlx::query(
            "UPDATE api_key SET last_used_at = clock_timestamp()
             WHERE id = $1 AND coalesce(last_used_at <= clock_timestamp() - $2 * interval '1 second', true)",
        );
        if let Err(error) = used.bind(key.id).bind(USED_EVERY.as_secs_f64()).execute(pool).await {
            // The key is good all the same.
            tracing::debug!(%error, key = %key.id, "the use of key {} was not written down", key.id);
        }
    }
    let KeyInfo { organization, user, role, .. } = info;
    Ok(Some((Principal { organization, user, role }, key.id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_and_matches_its_own_hash_alone() {
        let (key, other) = (ApiKey::generate(), ApiKey::generate());
        let read: ApiKey = key.reveal().parse().unwrap();
        assert_eq!(read.id, key.id);
        assert!(read.matches(&key.hash()));
        assert!(!read.matches(&other.hash()) && !read.matches(&[]) && !read.matches(&key.hash()[..31]));
        assert_eq!(key.reveal().len(), 4 + 32 + 1 + 64 + 8);
    }

    #[test]
    fn nothing_else_is_a_key() {
        let text = ApiKey::generate().reveal();
        let upper = text.to_uppercase();
        let spaced = format!("{text} ");
        let cut = &text[..text.len() - 1];
        let wide = format!("{}\u{e4}", &text[..text.len() - 2]);
        let without_checksum = &text[..text.len() - 8];
        let other = ApiKey::generate().reveal();
        let mixed = format!("{}{}", &text[..37], &other[37..]);
        let mut mistyped = text.clone();
        mistyped.replace_range(50..51, if &text[50..51] == "0" { "1" } else { "0" });
        let broken = [without_checksum, &mixed, &mistyped, &text[4..], &upper, &spaced, cut, &wide];
        for no_key in ["", "lwk_", "lwk__", "lwk_a_b"].into_iter().chain(broken) {
            assert!(no_key.parse::<ApiKey>().is_err(), "{no_key}");
        }
    }

    #[test]
    fn debug_hides_the_secret() {
        let key = ApiKey::generate();
        let secret = key.reveal().split_off(4 + 33);
        assert!(!format!("{key:?}").contains(&secret[..8]));
    }

    #[test]
    fn roles_read_back() {
        for role in [KeyRole::User, KeyRole::Operator] {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert!("admin".parse::<KeyRole>().is_err());
    }
}
