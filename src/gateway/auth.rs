//! Who calls: an API key's principal, or, with `--auth none` on loopback alone, the one local user.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use tokio::sync::watch;
use uuid::Uuid;

use super::Gateway;
use crate::problem::Problem;
use crate::store::Store;
use crate::store::keys::{self, KeyRole, Principal};

/// How long a key's principal is believed without asking again: a revoked key ends within a second.
const BELIEVED_FOR: Duration = Duration::from_millis(500);
/// How often the key of an open stream is asked about, whatever was heard.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// Keys that are remembered.
const MAX_REMEMBERED: usize = 10_000;

/// How callers are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AuthMode {
    /// Everybody is the user `local`, an operator of `default`. Binds loopback only.
    None,
    /// API keys (see `lastword keys`).
    Keys,
}

/// Checks callers.
#[derive(Clone)]
pub struct Auth {
    mode: AuthMode,
    store: Store,
    remembered: Arc<Mutex<HashMap<String, (Known, Instant)>>>,
    /// Told whenever a key was revoked somewhere.
    changes: Arc<watch::Sender<()>>,
}

/// A key's principal and its id.
type Known = (Principal, Uuid);

impl Auth {
    pub fn new(mode: AuthMode, store: Store) -> Self {
        Auth { mode, store, remembered: Arc::default(), changes: Arc::new(watch::Sender::new(())) }
    }

    /// A key was revoked somewhere.
    pub fn forget(&self) {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.changes.send_replace(());
    }

    /// Ends when this key is no longer good: what was opened with it ends too.
    pub async fn until_revoked(&self, key: Option<Uuid>) {
        let Some(key) = key else { return std::future::pending().await };
        let mut changes = self.changes.subscribe();
        loop {
            tokio::select! {
                // The sender lives as long as this value.
                _ = changes.changed() => {}
                () = tokio::time::sleep(ASK_AGAIN) => {}
            }
            // Without the database nobody is cut off.
            if let Ok(false) = keys::is_good(self.store.pool(), key).await {
                return;
            }
        }
    }

    async fn principal(&self, parts: &Parts) -> Result<Caller, Problem> {
        match self.mode {
            AuthMode::None => local(parts).map(|principal| Caller(principal, None)),
            AuthMode::Keys => {
                let shown = parts
                    .headers
                    .get(header::AUTHORIZATION)
                    .and_then(|v| v.to_str().ok())
                    .and_then(|v| v.strip_prefix("Bearer "))
                    .ok_or_else(|| unauthorized("show an API key as a bearer token"))?;
                self.keyed(shown).await.map(|(principal, key)| Caller(principal, Some(key)))
            }
        }
    }

    async fn keyed(&self, shown: &str) -> Result<Known, Problem> {
        if let Some(known) = self.recall(shown) {
            return Ok(known);
        }
        let found = keys::authenticate(self.store.pool(), shown).await.map_err(|error| {
            tracing::warn!(%error, "an API key could not be checked");
            Problem::unavailable()
        })?;
        let known = found.ok_or_else(|| unauthorized("the API key is unknown, revoked or expired"))?;
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= MAX_REMEMBERED {
            remembered.clear();
        }
        remembered.insert(fingerprint(shown), (known.clone(), Instant::now()));
        Ok(known)
    }

    fn recall(&self, shown: &str) -> Option<Known> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, at) = remembered.get(&fingerprint(shown))?;
        (at.elapsed() < BELIEVED_FOR).then(|| known.clone())
    }
}

/// Secrets are not kept in memory longer than a request.
fn fingerprint(secret: &str) -> String {
    use sha2::{Digest, Sha256};
    crate::turn::keys::hex(&Sha256::digest(secret.as_bytes()))
}

/// Without authentication only this machine's own programs may call: a web page that resolves its name to loopback (DNS
/// rebinding) shows itself by its Host.
fn local(parts: &Parts) -> Result<Principal, Problem> {
    let host = parts.headers.get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, port)| if port.ends_with(']') { host } else { name });
    if !matches!(name, "localhost" | "127.0.0.1" | "[::1]" | "") {
        return Err(Problem::new(StatusCode::FORBIDDEN, "without --auth keys only loopback names are served"));
    }
    Ok(Principal { organization: "default".into(), user: "local".into(), role: KeyRole::Operator })
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, detail)
}

/// The authenticated caller of a request, and the key that was shown.
pub struct Caller(pub Principal, pub Option<Uuid>);

impl Caller {
    /// Whether the caller sees what this user of this organization owns.
    pub fn sees(&self, organization: &str, owner: &str) -> bool {
        self.0.organization == organization && (self.0.user == owner || self.operates())
    }

    pub fn operates(&self) -> bool {
        self.0.role == KeyRole::Operator
    }
}

impl FromRequestParts<Gateway> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Problem> {
        gateway.auth.principal(parts).await
    }
}
