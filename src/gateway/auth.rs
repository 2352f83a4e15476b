//! Finds out who calls: the principal of an API key or of an OIDC issuer's token; with `--auth none`, the user of this machine
//! who runs the gateway.

use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use tokio_util::sync::CancellationToken;

use super::caller::{ApiCaller, KnownBy};
use super::known_keys::{KeyRefused, KnownKeys};
use super::oidc::{Oidc, TokenRefused};
use crate::edge::peer::PeerUser;
use crate::problem::Problem;
use crate::store::Store;
use crate::store::keys::{KeyRole, Principal, looks_like_key};

/// How callers are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AuthMode {
    /// Whoever runs the gateway is the user `local`, an operator of `default`, without a key; other users of this machine
    /// need one. Binds loopback only.
    None,
    /// API keys (see `lastword keys`), and tokens of the OIDC issuer, if one is named.
    Keys,
}

/// Checks who calls.
#[derive(Clone)]
pub struct Auth {
    mode: AuthMode,
    keys: KnownKeys,
    oidc: Option<Oidc>,
    /// The user who runs this process.
    user: u32,
}

impl Auth {
    pub(super) fn new(mode: AuthMode, store: Store, oidc: Option<Oidc>) -> Self {
        Auth { mode, keys: KnownKeys::new(store), oidc, user: rustix::process::geteuid().as_raw() }
    }

    /// Keys have changed somewhere: each is asked about again.
    pub fn forget(&self) {
        self.keys.changed();
    }

    /// Waits until what a caller has shown is good no more: its key revoked or expired, its token expired.
    pub(super) async fn until_ended(&self, known_by: KnownBy) {
        match (known_by, &self.oidc) {
            (KnownBy::Key(key), _) => self.keys.until_revoked(key).await,
            (KnownBy::Token { expires_at }, Some(oidc)) => oidc.until(expires_at).await,
            (KnownBy::Token { .. }, None) => {}
            (KnownBy::OfThisMachine, _) => std::future::pending().await,
        }
    }

    /// The issuer whose tokens are taken.
    pub(super) fn oidc(&self) -> Option<&Oidc> {
        self.oidc.as_ref()
    }

    /// Looks after the keys of open streams until `shutdown`.
    pub(super) async fn look_after_keys(self, shutdown: CancellationToken) {
        self.keys.look_after(shutdown).await;
    }

    /// Who sent a request with this head.
    ///
    /// # Errors
    /// 401 without a good key or token, 503 while they cannot be checked.
    pub(super) async fn caller(&self, parts: &Parts) -> Result<ApiCaller, Problem> {
        if self.mode == AuthMode::None && self.is_ours(parts) {
            let principal = Principal { organization: "default".into(), user: "local".into(), role: KeyRole::Operator };
            return Ok(ApiCaller { principal, known_by: KnownBy::OfThisMachine });
        }
        let shown = parts.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let shown = shown.and_then(|v| v.strip_prefix("Bearer ")).ok_or_else(|| self.nobody())?;
        if let Some(oidc) = self.oidc.as_ref().filter(|_| !looks_like_key(shown)) {
            return by_token(oidc, shown).await;
        }
        match self.keys.check(shown).await {
            Ok((principal, key)) => Ok(ApiCaller { principal, known_by: KnownBy::Key(key) }),
            Err(error @ KeyRefused::Bad) => Err(Problem::new(StatusCode::UNAUTHORIZED, error.to_string())),
            Err(KeyRefused::Crowded) => {
                Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the API key cannot be checked now; try again"))
            }
            Err(error @ KeyRefused::Unchecked(_)) => {
                tracing::warn!(%error, "{error}");
                Err(Problem::unavailable())
            }
        }
    }

    /// Whether a request comes from a process of the user who runs this one. Root is no exception: what root runs may pass
    /// on what strangers send.
    fn is_ours(&self, parts: &Parts) -> bool {
        matches!(parts.extensions.get(), Some(PeerUser(Some(user))) if *user == self.user)
    }

    fn nobody(&self) -> Problem {
        let said = match self.mode {
            AuthMode::Keys if self.oidc.is_some() => {
                "show an API key, or a token of the OIDC issuer, as a bearer token"
            }
            AuthMode::Keys => "show an API key as a bearer token",
            AuthMode::None => {
                "without --auth keys only the user who runs this gateway is served without a key; show an API key as a \
                 bearer token (`lastword keys create`)"
            }
        };
        Problem::new(StatusCode::UNAUTHORIZED, said)
    }
}

/// Who shows this token.
async fn by_token(oidc: &Oidc, shown: &str) -> Result<ApiCaller, Problem> {
    match oidc.check(shown).await {
        Ok((principal, expires_at)) => Ok(ApiCaller { principal, known_by: KnownBy::Token { expires_at } }),
        Err(error @ TokenRefused::Bad(_)) => Err(Problem::new(StatusCode::UNAUTHORIZED, error.to_string())),
        Err(error @ TokenRefused::Unchecked(_)) => {
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, format!("{error}; try again")))
        }
    }
}
