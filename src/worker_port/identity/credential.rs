//! The credential that every call of the worker protocol shows, and its check.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};

use crate::problem::Problem;
use crate::store::{ConnectError, Connected};
use crate::turn::keys::Incarnation;
use crate::wire::{Credential, INCARNATION};
use crate::worker_port::WorkerPort;

/// The credential and the incarnation that a request's headers show; neither is checked yet.
pub(in crate::worker_port) struct ShownCredential {
    pub credential: Credential,
    pub incarnation: Incarnation,
}

impl<S: Sync> FromRequestParts<S> for ShownCredential {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let text = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok());
        let credential = text(header::AUTHORIZATION.as_str())
            .and_then(|v| v.strip_prefix("Bearer "))
            .and_then(Credential::parse)
            .ok_or_else(|| Problem::new(StatusCode::UNAUTHORIZED, "show the worker credential as a bearer token"))?;
        let incarnation = text(INCARNATION).and_then(|v| v.parse().ok()).ok_or_else(|| {
            Problem::bad_request(format!(
                "the header {INCARNATION} must hold the UUID that the worker made at its start"
            ))
        })?;
        Ok(ShownCredential { credential, incarnation })
    }
}

/// A worker whose credential was checked, with the terms of its lease.
pub(in crate::worker_port) struct AuthenticatedWorker {
    pub incarnation: Incarnation,
    pub terms: Connected,
}

impl AuthenticatedWorker {
    /// Whose room its bodies take.
    pub fn account(&self) -> String {
        self.incarnation.to_string()
    }
}

impl FromRequestParts<WorkerPort> for AuthenticatedWorker {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, port: &WorkerPort) -> Result<Self, Problem> {
        let ShownCredential { credential, incarnation } = ShownCredential::from_request_parts(parts, port).await?;
        if let Some(terms) = port.verified.get(&credential, incarnation) {
            return Ok(AuthenticatedWorker { incarnation, terms });
        }
        let terms = port.store.authenticate_worker(&credential, incarnation).await.map_err(refused)?;
        port.verified.insert(&credential, incarnation, terms.clone());
        Ok(AuthenticatedWorker { incarnation, terms })
    }
}

/// The answer to a worker that the store does not let speak.
pub(in crate::worker_port) fn refused(error: ConnectError) -> Problem {
    match error {
        ConnectError::Forbidden => Problem::new(StatusCode::FORBIDDEN, "unknown worker credential"),
        ConnectError::Dead => gone(),
        ConnectError::Store(error) => error.into(),
    }
}

/// The answer to a worker whose lease is dead: 410, on which a worker stops for good.
pub(in crate::worker_port) fn gone() -> Problem {
    Problem::new(StatusCode::GONE, "this incarnation is dead to Lastword; stop")
}
