//! Who a pod is: its ServiceAccount token is shown once, and exchanged for a credential of the worker protocol that any
//! replica accepts.
//!
//! The token is reviewed by Kubernetes, which names the pod and its UID; both are held against what the controller recorded
//! when it made the pod, never against a label.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::endpoint::WorkerPort;
use crate::problem::Problem;
use crate::store::CredentialExchange;
use crate::wire::{Credential, Session};

/// Reviews at a time; others wait, for so long at the most.
const REVIEWS: usize = 16;
const WAIT: Duration = Duration::from_secs(5);
/// How long a refused token is refused without asking again, and how many are remembered.
const REFUSED_FOR: Duration = Duration::from_secs(10);
const REMEMBERED: usize = 1000;
/// No ServiceAccount token is longer.
const MAX_TOKEN: usize = 16 * 1024;

/// A pod that has proven who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodIdentity {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// Why a token proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// It is not valid for us: expired, of another audience, made up.
    #[error("the token is not good here")]
    Refused,
    /// It is valid, but not a pod's.
    #[error("the token is no pod's")]
    NotAPod,
    /// Nobody could be asked; for the log.
    #[error("nobody can review tokens now: {0}")]
    Unavailable(String),
}

/// Who reviews tokens; Kubernetes, outside tests.
pub trait Reviewer: fmt::Debug + Send + Sync + 'static {
    /// The pod that a token is bound to. Returns within seconds.
    ///
    /// # Errors
    /// If it is not good for our audience, is not bound to a pod, or cannot be reviewed now.
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<PodIdentity, ReviewError>>;
}

/// The reviewer with its bounds.
#[derive(Clone)]
pub(super) struct Reviews {
    reviewer: Arc<dyn Reviewer>,
    room: Arc<Semaphore>,
    refused: Arc<Mutex<Refused>>,
}

/// Tokens that were refused lately, by their hash.
type Refused = HashMap<[u8; 32], (ReviewError, Instant)>;

impl Reviews {
    pub fn new(reviewer: Arc<dyn Reviewer>) -> Self {
        Reviews { reviewer, room: Arc::new(Semaphore::new(REVIEWS)), refused: Arc::default() }
    }

    async fn review(&self, token: &str) -> Result<PodIdentity, ReviewError> {
        // Every ServiceAccount token is a JWT: three parts.
        if token.len() > MAX_TOKEN || token.split('.').count() != 3 {
            return Err(ReviewError::Refused);
        }
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(refused) = self.remembered(&hash) {
            return Err(refused);
        }
        let permit = tokio::time::timeout(WAIT, self.room.acquire()).await;
        let Ok(Ok(_permit)) = permit else { return Err(ReviewError::Unavailable("too many reviews at once".into())) };
        let reviewed = self.reviewer.review(token).await;
        if let Err(error @ (ReviewError::Refused | ReviewError::NotAPod)) = &reviewed {
            self.remember(hash, error.clone());
        }
        reviewed
    }

    fn remembered(&self, hash: &[u8; 32]) -> Option<ReviewError> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let (error, at) = refused.get(hash)?;
        (at.elapsed() < REFUSED_FOR).then(|| error.clone())
    }

    fn remember(&self, hash: [u8; 32], error: ReviewError) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() >= REMEMBERED {
            refused.retain(|_, (_, at)| at.elapsed() < REFUSED_FOR);
        }
        if refused.len() < REMEMBERED {
            refused.insert(hash, (error, Instant::now()));
        }
    }
}

/// `POST /worker/v1/session`
pub(super) async fn session(State(port): State<WorkerPort>, headers: HeaderMap) -> Result<Response, Problem> {
    let token = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
    let token = token.ok_or_else(|| {
        Problem::new(StatusCode::UNAUTHORIZED, "show the token of the pod's ServiceAccount as a bearer token")
    })?;
    let Some(reviews) = &port.reviews else {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "this gateway reviews no tokens (--token-review)"));
    };
    let pod = reviews.review(token).await.map_err(|error| match error {
        ReviewError::Refused => Problem::new(StatusCode::UNAUTHORIZED, error.to_string()),
        ReviewError::NotAPod => Problem::new(StatusCode::FORBIDDEN, error.to_string()),
        ReviewError::Unavailable(why) => {
            tracing::warn!(%why, "a worker's token was not reviewed");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the token cannot be reviewed now; try again")
        }
    })?;
    let reference = format!("{}/{}", pod.namespace, pod.name);
    let fresh = Mutex::new(None);
    let hash = |start| {
        let credential = Credential::new(start);
        let hash = credential.hash();
        *fresh.lock().unwrap_or_else(PoisonError::into_inner) = Some(credential);
        hash
    };
    let granted = port.store.exchange_credential_of_pod(&reference, &pod.uid, hash).await?;
    let credential = fresh.into_inner().unwrap_or_else(PoisonError::into_inner);
    match (granted, credential) {
        (CredentialExchange::Granted(start), Some(credential)) => {
            tracing::info!(pod = reference, %start, "pod {reference} has shown who it is");
            let mut answer = Json(Session { credential: credential.reveal() }).into_response();
            answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            Ok(answer)
        }
        (CredentialExchange::NotRecorded, _) => {
            let problem = Problem::new(StatusCode::TOO_EARLY, "this pod is not recorded yet; ask again");
            let mut answer = problem.into_response();
            answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            Ok(answer)
        }
        (CredentialExchange::Dead, _) => Err(Problem::new(StatusCode::GONE, "this pod's lease is dead; stop")),
        (CredentialExchange::AlreadyConnected, _) => {
            tracing::warn!(
                pod = reference,
                "pod {reference} asked for another session: not by its adapter, which has one"
            );
            Err(Problem::new(StatusCode::GONE, "this pod's session has begun, and is given once"))
        }
        (CredentialExchange::Unknown | CredentialExchange::Granted(_), _) => {
            tracing::warn!(pod = reference, "pod {reference} is no worker of ours");
            Err(Problem::new(StatusCode::FORBIDDEN, "this pod is no worker"))
        }
    }
}
