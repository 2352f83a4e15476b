//! Which keys of the issuer are known here, when they are asked for again, and how long they are believed.
//!
//! An issuer changes its keys, often without notice: a token that names a key that is not known is a reason to ask again. It
//! is also what a stranger can make up at will, so the issuer is asked once in [`SELDOM`] at most, whatever is shown, and few
//! wait for the answer at a time. While the issuer is away, its last keys are believed for [`BELIEVED`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::issuer::{Issuer, IssuerError, KeySet};
use crate::every::{Again, Cause, Every};

/// How often the keys are read when nothing asks for it. So long a key that its issuer has withdrawn is still believed.
const REFRESH: Duration = Duration::from_secs(300);
/// How often an issuer that did not answer is asked again.
const RETRY: Duration = Duration::from_secs(5);
/// The issuer is asked no sooner than this after it was asked last.
const SELDOM: Duration = Duration::from_secs(5);
/// How long keys are believed while the issuer does not answer.
const BELIEVED: Duration = Duration::from_secs(24 * 3600);
/// How long a key that the issuer did not have is refused without asking again, and how many such keys are remembered.
const REFUSED_FOR: Duration = Duration::from_secs(10);
const MAX_REFUSED: usize = 1_000;
/// Callers who wait for the issuer's answer about a key that is not known.
const STRANGERS: usize = 64;
/// How long each of them waits: for the time that must be between two questions, and for the answers to both.
const STRANGER_WAITS: Duration = Duration::from_secs(17);

/// Why there is no key for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyMissing {
    /// The issuer has no such key.
    Unknown,
    /// The issuer's keys are not known, or were read too long ago.
    Away,
    /// As many wait for an answer as may.
    Crowded,
}

/// The keys. Clones share all.
#[derive(Clone)]
pub(super) struct IssuerKeys {
    issuer: Issuer,
    known: Arc<watch::Sender<KnownIssuer>>,
    ask: Arc<Notify>,
    strangers: Arc<Semaphore>,
    refused: Arc<Mutex<HashMap<String, Instant>>>,
}

/// What is known of the issuer.
#[derive(Debug, Default)]
struct KnownIssuer {
    keys: KeySet,
    /// When they were read.
    read: Option<Instant>,
    /// When the issuer was last asked.
    asked: Option<Instant>,
}

impl KnownIssuer {
    /// Whether the issuer answered the last question.
    fn answered(&self) -> bool {
        self.read >= self.asked
    }

    fn believed(&self) -> bool {
        self.read.is_some_and(|at| at.elapsed() < BELIEVED)
    }

    /// The key for a token. One that names none gets the only one that there is for its algorithm.
    fn key(&self, id: Option<&str>, algorithm: Algorithm) -> Option<DecodingKey> {
        let found = match id {
            Some(id) => self.keys.get(id)?.iter().find(|key| key.verifies(algorithm)),
            None => {
                let mut fitting = self.keys.values().flatten().filter(|key| key.verifies(algorithm));
                fitting.next().filter(|_| fitting.next().is_none())
            }
        };
        found.map(|key| key.key.clone())
    }
}

impl IssuerKeys {
    pub fn new(issuer: Issuer) -> Self {
        IssuerKeys {
            issuer,
            known: Arc::new(watch::Sender::new(KnownIssuer::default())),
            ask: Arc::default(),
            strangers: Arc::new(Semaphore::new(STRANGERS)),
            refused: Arc::default(),
        }
    }

    /// The key of this id that verifies this algorithm; the issuer is asked again for one that is not known.
    pub async fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Result<DecodingKey, KeyMissing> {
        if let Some(key) = self.believed_key(id, algorithm)? {
            return Ok(key);
        }
        // Without an id there is nothing to ask for.
        let id = id.ok_or(KeyMissing::Unknown)?;
        if self.was_refused(id) {
            return Err(KeyMissing::Unknown);
        }
        let _place = self.strangers.try_acquire().map_err(|_| KeyMissing::Crowded)?;
        let mut known = self.known.subscribe();
        // A question that is under way now may have been put before the key was made, so one that is put from now on counts.
        let arrived = Instant::now();
        let answered = async {
            while known.borrow_and_update().asked < Some(arrived) {
                if self.believed_key(Some(id), algorithm).is_ok_and(|key| key.is_some()) {
                    break;
                }
                self.ask.notify_one();
                if known.changed().await.is_err() {
                    break;
                }
            }
        };
        let in_time = timeout(STRANGER_WAITS, answered).await.is_ok();
        if let Some(key) = self.believed_key(Some(id), algorithm)? {
            return Ok(key);
        }
        if !in_time || !self.known.borrow().answered() {
            return Err(KeyMissing::Away);
        }
        self.refuse(id);
        Err(KeyMissing::Unknown)
    }

    /// # Errors
    /// If what is known of the issuer is not to be believed.
    fn believed_key(&self, id: Option<&str>, algorithm: Algorithm) -> Result<Option<DecodingKey>, KeyMissing> {
        let known = self.known.borrow();
        if known.believed() { Ok(known.key(id, algorithm)) } else { Err(KeyMissing::Away) }
    }

    fn was_refused(&self, id: &str) -> bool {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.get(id).is_some_and(|at| at.elapsed() < REFUSED_FOR)
    }

    fn refuse(&self, id: &str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() >= MAX_REFUSED {
            refused.clear();
        }
        refused.insert(id.to_owned(), Instant::now());
    }

    /// Reads the keys now, and then once in a while and when a key was asked for, until `shutdown`.
    pub async fn look_after(self, shutdown: CancellationToken) {
        let mut looks = Every::new("the reading of the OIDC issuer's keys", RETRY).at_once().woken_by(&self.ask);
        while let Some(cause) = looks.next(&shutdown).await {
            let due = {
                let known = self.known.borrow();
                let fresh = known.read.is_some_and(|at| at.elapsed() < REFRESH) && known.answered();
                match (cause, known.asked) {
                    (Cause::Period, _) if fresh => continue,
                    (_, Some(asked)) => asked + SELDOM,
                    (_, None) => Instant::now(),
                }
            };
            tokio::select! {
                () = sleep_until(due) => {}
                () = shutdown.cancelled() => return,
            }
            looks.ended(self.look().await);
        }
    }

    async fn look(&self) -> Result<Again, IssuerError> {
        let asked = Instant::now();
        let found = self.issuer.keys().await;
        let mut result = Ok(Again::Later);
        self.known.send_modify(|known| {
            known.asked = Some(asked);
            match found {
                Ok(keys) => {
                    known.keys = keys;
                    known.read = Some(asked);
                }
                Err(error) => result = Err(error),
            }
        });
        result
    }
}
