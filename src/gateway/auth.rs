//! Finds out who calls: the principal of an API key, or, with `--auth none`, the one local user.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use tokio::sync::watch;
use uuid::Uuid;

use super::caller::ApiCaller;
use crate::problem::Problem;
use crate::store::Store;
use crate::store::keys::{self, KeyRole, Principal};

/// How long a key's principal is remembered without asking the database again. A revoked key is refused within a second.
const REMEMBERED_FOR: Duration = Duration::from_millis(500);
/// How often the database is asked whether the key of an open stream is still good, whatever notices said.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// How many keys are remembered.
const MAX_REMEMBERED: usize = 10_000;

/// How callers are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AuthMode {
    /// Everybody is the user `local`, an operator of `default`. Binds loopback only.
    None,
    /// API keys (see `lastword keys`).
    Keys,
}

/// Checks who calls.
#[derive(Clone)]
pub struct Auth {
    mode: AuthMode,
    store: Store,
    /// Keys that were checked lately, by their [`fingerprint`], and when.
    remembered: Arc<Mutex<HashMap<String, (KnownKey, Instant)>>>,
    /// Changes whenever a key was revoked on any replica.
    changes: Arc<watch::Sender<()>>,
}

/// A key's principal and its id.
type KnownKey = (Principal, Uuid);

impl Auth {
    pub fn new(mode: AuthMode, store: Store) -> Self {
        Auth { mode, store, remembered: Arc::default(), changes: Arc::new(watch::Sender::new(())) }
    }

    /// Forgets all keys, since one was revoked somewhere: each is asked about again.
    pub fn forget(&self) {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.changes.send_replace(());
    }

    /// Waits until this key is revoked or has expired. What was opened with the key is to end then.
    pub async fn until_revoked(&self, key: Option<Uuid>) {
        let Some(key) = key else { return std::future::pending().await };
        let mut changes = self.changes.subscribe();
        loop {
            tokio::select! {
                // The sender lives as long as this value.
                _ = changes.changed() => {}
                () = tokio::time::sleep(ASK_AGAIN) => {}
            }
            // While the database is away, nobody is cut off.
            if let Ok(false) = keys::is_good(self.store.pool(), key).await {
                return;
            }
        }
    }

    /// Who sent a request with this header.
    ///
    /// # Errors
    /// 401 without a good key, 403 for another Host than loopback under `--auth none`, 503 while the database is away.
    pub(super) async fn caller(&self, parts: &Parts) -> Result<ApiCaller, Problem> {
        match self.mode {
            AuthMode::None => local(parts).map(|principal| ApiCaller { principal, key: None }),
            AuthMode::Keys => {
                let shown = parts
                    .headers
                    .get(header::AUTHORIZATION)
                    .and_then(|v| v.to_str().ok())
                    .and_then(|v| v.strip_prefix("Bearer "))
                    .ok_or_else(|| unauthorized("show an API key as a bearer token"))?;
                self.keyed(shown).await.map(|(principal, key)| ApiCaller { principal, key: Some(key) })
            }
        }
    }

    async fn keyed(&self, shown: &str) -> Result<KnownKey, Problem> {
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

    fn recall(&self, shown: &str) -> Option<KnownKey> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, at) = remembered.get(&fingerprint(shown))?;
        (at.elapsed() < REMEMBERED_FOR).then(|| known.clone())
    }
}

/// The digest that a key is remembered by: the key itself is not kept in memory longer than its request.
fn fingerprint(secret: &str) -> String {
    use sha2::{Digest, Sha256};
    crate::turn::keys::hex(&Sha256::digest(secret.as_bytes()))
}

/// The caller under `--auth none`, where only programs on this machine may call. A web page whose name resolves to loopback
/// (DNS rebinding) is refused by its `Host`.
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
