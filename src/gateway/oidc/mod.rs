//! Callers who show a token of an OpenID Connect issuer: a JWT (RFC 7519, RFC 9068) in place of an API key.
//!
//! Strangers can make up tokens as fast as they like, so the cheap questions come first: the form, the algorithm and the
//! key's id, then the signature, and only then what the token says. The database is not asked at all: a token says itself
//! who its holder is, and until when. That end is compared with the database's clock, as every deadline is, which this
//! gateway knows by its own ticks.
//!
//! | file | holds |
//! |---|---|
//! | `args` | the flags, and the configuration that they make |
//! | `token` | what is asked of a token: its header, its signature, its claims |
//! | `claims` | which principal a token's claims make: pure |
//! | `issuer` | the issuer's documents: where its keys are, and the keys |
//! | `keys` | which keys are known, when they are asked for again, and how long they are believed |
//! | `signature` | verifies signatures by `ring`, which speaks TLS here too |

pub mod args;
mod claims;
mod issuer;
mod keys;
mod signature;
mod token;

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::heartbeat::Ticks;
use crate::store::keys::Principal;
pub use claims::{ClaimMapping, ClaimName, OperatorClaim, TokenOrganization};
use issuer::Issuer;
pub use issuer::IssuerId;
use keys::{IssuerKeys, KeyMissing};

/// Whose tokens are taken, and for whom their holders are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcConfig {
    /// What `iss` must be, to the letter.
    pub issuer: IssuerId,
    /// One of these must be in `aud`.
    pub audiences: Vec<String>,
    pub claims: ClaimMapping,
}

/// Why a token opens nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenRefused {
    /// The token is not good. Only who holds one that the issuer signed is told more than that.
    #[error("the token is refused: {0}")]
    Bad(String),
    /// It cannot be told whether the token is good.
    #[error("the token cannot be checked now: {0}")]
    Unchecked(&'static str),
}

/// A caller who showed a good token, and when the token ends.
pub(super) type KnownToken = (Principal, OffsetDateTime);

/// Checks tokens. Clones share the issuer's keys.
#[derive(Clone)]
pub(super) struct Oidc {
    config: OidcConfig,
    keys: IssuerKeys,
    ticks: Ticks,
}

impl Oidc {
    /// Knows no keys yet: [`look_after_keys`](Self::look_after_keys) asks for them.
    ///
    /// # Errors
    /// If the TLS backend cannot be initialised.
    pub fn new(config: OidcConfig, ticks: Ticks) -> Result<Self, reqwest::Error> {
        signature::install();
        let issuer = Issuer::new(config.issuer.clone())?;
        Ok(Oidc { config, keys: IssuerKeys::new(issuer), ticks })
    }

    /// Whose token this is.
    pub async fn check(&self, shown: &str) -> Result<KnownToken, TokenRefused> {
        let header = token::header(shown)?;
        let key =
            self.keys.find(header.key_id.as_deref(), header.algorithm).await.map_err(|missing| match missing {
                KeyMissing::Unknown => TokenRefused::Bad("its issuer has no such key".into()),
                KeyMissing::Away => TokenRefused::Unchecked("its issuer's keys are not known"),
                KeyMissing::Crowded => TokenRefused::Unchecked("many tokens with unknown keys are shown at once"),
            })?;
        let claims = token::claims(shown, header.algorithm, &key, &self.config)?;
        let now = self.ticks.database_time().ok_or(TokenRefused::Unchecked("the database's time is not known yet"))?;
        let expires_at = token::check_times(&claims, now)?;
        let principal = self.config.claims.principal(&claims).map_err(TokenRefused::Bad)?;
        Ok((principal, expires_at))
    }

    /// Waits until the database's clock says that a token is over.
    pub async fn until(&self, expires_at: OffsetDateTime) {
        while let Some(left) = self.ticks.database_time().and_then(|now| (expires_at - now).try_into().ok()) {
            // The database's clock may be set meanwhile.
            tokio::time::sleep(std::cmp::min(left, LOOK_AGAIN)).await;
            if left.is_zero() {
                return;
            }
        }
    }

    /// Keeps the issuer's keys until `shutdown`.
    pub async fn look_after_keys(self, shutdown: CancellationToken) {
        self.keys.look_after(shutdown).await;
    }
}

/// How long a stream waits for its token's end before it reads the database's clock again.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(10);
