//! The ServiceAccount token of a pod, and the bounds on its review.
//!
//! Anybody who reaches the worker port may show a token, and Kubernetes would be asked about each one. So a token is first
//! read for what it says itself, which proves nothing: it is reviewed only if it is of a pod that waits for a credential, and
//! strangers do not know the UID of one. Reviews at a time are few, and a token that was refused is refused again from memory
//! for a while.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The most reviews at a time; more wait for one of these to end.
const MAX_REVIEWS: usize = 16;
/// A review that could not begin within this time is answered as unavailable.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// How long a refused token is refused without asking again.
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// The most refused tokens that are remembered; further ones are reviewed each time.
const MAX_REFUSED: usize = 1000;
/// The longest text that is taken for a token, in bytes. ServiceAccount tokens have some 1 to 2 KiB.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// A pod that has proven who it is, as Kubernetes names it.
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
    /// Kubernetes could not be asked; the text is for the log, not for the caller.
    #[error("nobody can review tokens now: {0}")]
    Unavailable(String),
}

/// Asks somebody who can tell whose a token is: Kubernetes, outside tests.
pub trait Reviewer: fmt::Debug + Send + Sync + 'static {
    /// The pod that a token says to be of. That is read from the token alone, and nothing proves it.
    ///
    /// # Errors
    /// If it says not to be for our audience, to have expired, or to be of no pod.
    fn claimed(&self, token: &str) -> Result<PodIdentity, ReviewError>;

    /// The pod that a token is bound to. Returns within seconds.
    ///
    /// # Errors
    /// If it is not good for our audience, is not bound to a pod, or cannot be reviewed now.
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<PodIdentity, ReviewError>>;
}

/// The reviewer, within the bounds above.
#[derive(Clone)]
pub(in crate::worker_port) struct TokenReviews {
    reviewer: Arc<dyn Reviewer>,
    room: Arc<Semaphore>,
    refused: Arc<Mutex<RefusedTokens>>,
}

/// Tokens that were refused within the last [`REFUSED_FOR`], by their SHA-256.
type RefusedTokens = HashMap<[u8; 32], (ReviewError, Instant)>;

impl TokenReviews {
    /// With nothing refused yet.
    pub fn new(reviewer: Arc<dyn Reviewer>) -> Self {
        TokenReviews { reviewer, room: Arc::new(Semaphore::new(MAX_REVIEWS)), refused: Arc::default() }
    }

    /// The pod that a token says to be of; asks nobody.
    pub(super) fn claimed(&self, token: &str) -> Result<PodIdentity, ReviewError> {
        // Every ServiceAccount token is a JWT: three parts.
        if token.len() > MAX_TOKEN_BYTES || token.split('.').count() != 3 {
            return Err(ReviewError::Refused);
        }
        match self.remembered(&hash(token)) {
            Some(refused) => Err(refused),
            None => self.reviewer.claimed(token),
        }
    }

    /// One of the few places for what a token that may be good costs: looking for its pod, and its review.
    pub(super) async fn place(&self) -> Result<OwnedSemaphorePermit, ReviewError> {
        let permit = tokio::time::timeout(MAX_WAIT, self.room.clone().acquire_owned()).await;
        let permit = permit.ok().and_then(Result::ok);
        permit.ok_or_else(|| ReviewError::Unavailable("too many reviews at once".into()))
    }

    /// Has a token reviewed, in a place that was found before. It must be of the pod that it says to be of.
    pub(super) async fn review(
        &self,
        token: &str,
        claimed: &PodIdentity,
        _place: OwnedSemaphorePermit,
    ) -> Result<(), ReviewError> {
        let reviewed = self.reviewer.review(token).await;
        let reviewed = reviewed.and_then(|pod| if pod == *claimed { Ok(()) } else { Err(ReviewError::Refused) });
        if let Err(error @ (ReviewError::Refused | ReviewError::NotAPod)) = &reviewed {
            self.remember(hash(token), error.clone());
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
        if refused.len() >= MAX_REFUSED {
            refused.retain(|_, (_, at)| at.elapsed() < REFUSED_FOR);
        }
        if refused.len() < MAX_REFUSED {
            refused.insert(hash, (error, Instant::now()));
        }
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}
