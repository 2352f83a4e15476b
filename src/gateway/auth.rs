//! Finds out who calls: the principal of an API key, or, with `--auth none`, the user of this machine who runs the gateway.

use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::caller::ApiCaller;
use super::known_keys::{KeyRefused, KnownKeys};
use crate::edge::peer::PeerUser;
use crate::problem::Problem;
use crate::store::Store;
use crate::store::keys::{KeyRole, Principal};

/// How callers are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AuthMode {
    /// Whoever runs the gateway is the user `local`, an operator of `default`, without a key; other users of this machine
    /// need one. Binds loopback only.
    None,
    /// API keys (see `lastword keys`).
    Keys,
}

/// Checks who calls.
#[derive(Clone)]
pub struct Auth {
    mode: AuthMode,
    keys: KnownKeys,
    /// The user who runs this process.
    user: u32,
}

impl Auth {
    pub fn new(mode: AuthMode, store: Store) -> Self {
        Auth { mode, keys: KnownKeys::new(store), user: rustix::process::geteuid().as_raw() }
    }

    /// Keys have changed somewhere: each is asked about again.
    pub fn forget(&self) {
        self.keys.changed();
    }

    /// Waits until this key is revoked or has expired; for ever without one.
    pub async fn until_revoked(&self, key: Option<Uuid>) {
        match key {
            Some(key) => self.keys.until_revoked(key).await,
            None => std::future::pending().await,
        }
    }

    /// Looks after the keys of open streams until `shutdown`.
    pub(super) async fn look_after_keys(self, shutdown: CancellationToken) {
        self.keys.look_after(shutdown).await;
    }

    /// Who sent a request with this head.
    ///
    /// # Errors
    /// 401 without a good key, 503 while keys cannot be checked.
    pub(super) async fn caller(&self, parts: &Parts) -> Result<ApiCaller, Problem> {
        if self.mode == AuthMode::None && self.is_ours(parts) {
            let principal = Principal { organization: "default".into(), user: "local".into(), role: KeyRole::Operator };
            return Ok(ApiCaller { principal, key: None });
        }
        let shown = parts.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let shown = shown.and_then(|v| v.strip_prefix("Bearer ")).ok_or_else(|| self.nobody())?;
        match self.keys.check(shown).await {
            Ok((principal, key)) => Ok(ApiCaller { principal, key: Some(key) }),
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
            AuthMode::Keys => "show an API key as a bearer token",
            AuthMode::None => {
                "without --auth keys only the user who runs this gateway is served without a key; show an API key as a \
                 bearer token (`lastword keys create`)"
            }
        };
        Problem::new(StatusCode::UNAUTHORIZED, said)
    }
}
