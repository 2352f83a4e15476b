//! Finds out who calls: the principal of an API key, of an OIDC issuer's token, or of what stands for one of them (a ticket, a
//! browser's login); with `--auth none`, the user of this machine who runs the gateway.

use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use tokio_util::sync::CancellationToken;

use super::caller::{ApiCaller, KnownBy};
use super::cookie::{self, ShownLogin};
use super::known_keys::{KeyRefused, KnownKey, KnownKeys, ShownKey};
use super::oidc::{Oidc, TokenRefused};
use super::ticket;
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
        let bearer = parts.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let bearer = bearer.and_then(|v| v.strip_prefix("Bearer "));
        let token = bearer.filter(|shown| !looks_like_key(shown)).zip(self.oidc.as_ref());
        if let Some((token, oidc)) = token {
            return by_token(oidc, token).await;
        }
        let checked = match bearer {
            Some(key) => self.keys.check(ShownKey::Key(key)).await.map(by_key),
            None => self.check_substitute(parts).await?,
        };
        checked.map(|(principal, known_by)| ApiCaller { principal, known_by }).map_err(|refused| match refused {
            KeyRefused::Bad | KeyRefused::BadTicket | KeyRefused::BadLogin => {
                Problem::new(StatusCode::UNAUTHORIZED, refused.to_string())
            }
            KeyRefused::Crowded => {
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the API key cannot be checked now; try again")
            }
            KeyRefused::Unchecked(_) | KeyRefused::UncheckedTicket(_) => {
                tracing::warn!(error = %refused, "{refused}");
                Problem::unavailable()
            }
        })
    }

    /// Checks what stands for a key where none is shown: a ticket, or the cookie of a browser that is logged in.
    async fn check_substitute(&self, parts: &Parts) -> Result<Result<(Principal, KnownBy), KeyRefused>, Problem> {
        if let Some(ticket) = ticket::shown(parts) {
            return Ok(self
                .keys
                .use_ticket(&ticket, parts.uri.path())
                .await
                .map(|(principal, of)| (principal, of.into())));
        }
        match cookie::shown(parts) {
            ShownLogin::Login(secret) => Ok(self.keys.check(ShownKey::Login(&secret)).await.map(by_key)),
            ShownLogin::NotOurs => {
                Err(Problem::new(StatusCode::FORBIDDEN, "a login serves the gateway's own page alone; show an API key"))
            }
            ShownLogin::None => Err(self.nobody()),
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

/// Whoever holds a key, or is logged in with one, is known by it.
fn by_key((principal, key): KnownKey) -> (Principal, KnownBy) {
    (principal, KnownBy::Key(key))
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
