//! Who calls: an API key's principal, or, with `--auth none` on loopback alone, the one local user.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use uuid::Uuid;

use super::Gateway;
use super::problem::Problem;
use crate::store::Store;
use crate::store::keys::{self, Principal, Role};

/// How long a key's principal is believed without asking again: a revoked key ends within a second.
const BELIEVED_FOR: Duration = Duration::from_millis(500);
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
    remembered: Arc<Mutex<HashMap<String, (Principal, Instant)>>>,
}

impl Auth {
    pub fn new(mode: AuthMode, store: Store) -> Self {
        Auth { mode, store, remembered: Arc::default() }
    }

    /// A key was revoked somewhere.
    pub fn forget(&self) {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn principal(&self, parts: &Parts) -> Result<Principal, Problem> {
        match self.mode {
            AuthMode::None => local(parts),
            AuthMode::Keys => {
                let shown = parts
                    .headers
                    .get(header::AUTHORIZATION)
                    .and_then(|v| v.to_str().ok())
                    .and_then(|v| v.strip_prefix("Bearer "))
                    .ok_or_else(|| unauthorized("show an API key as a bearer token"))?;
                self.keyed(shown).await
            }
        }
    }

    async fn keyed(&self, shown: &str) -> Result<Principal, Problem> {
        if let Some(principal) = self.recall(shown) {
            return Ok(principal);
        }
        let found = keys::authenticate(self.store.pool(), shown).await.map_err(|error| {
            tracing::warn!(%error, "an API key could not be checked");
            Problem::unavailable()
        })?;
        let principal = found
            .map(|(p, _): (Principal, Uuid)| p)
            .ok_or_else(|| unauthorized("the API key is unknown, revoked or expired"))?;
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= MAX_REMEMBERED {
            remembered.clear();
        }
        remembered.insert(fingerprint(shown), (principal.clone(), Instant::now()));
        Ok(principal)
    }

    fn recall(&self, shown: &str) -> Option<Principal> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let (principal, at) = remembered.get(&fingerprint(shown))?;
        (at.elapsed() < BELIEVED_FOR).then(|| principal.clone())
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
    Ok(Principal { organization: "default".into(), user: "local".into(), role: Role::Operator })
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, detail)
}

/// The authenticated caller of a request.
pub struct Caller(pub Principal);

impl Caller {
    /// Whether the caller sees what this user of this organization owns.
    pub fn sees(&self, organization: &str, owner: &str) -> bool {
        self.0.organization == organization && (self.0.user == owner || self.operates())
    }

    pub fn operates(&self) -> bool {
        self.0.role == Role::Operator
    }
}

impl FromRequestParts<Gateway> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Problem> {
        gateway.auth.principal(parts).await.map(Caller)
    }
}
