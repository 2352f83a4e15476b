//! What this gateway knows of API keys: those shown lately, good and bad, and those whose streams are open here.
//!
//! A key is checked in the database, and remembered for a moment. Strangers can make up keys as fast as they like, so what
//! is no key by its own checksum is refused unasked, what was refused is refused from memory for a while, and keys that
//! were never good here are checked few at a time; holders of good keys do not wait behind them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::every::{Again, Every};
use crate::store::keys::{self, ApiKey, KeyError, Principal};
use crate::store::login::{self, LoginSecret};
use crate::store::{Store, StoreError, Ticket, TicketHolder};

/// How long a key's principal is remembered without asking the database again. A revoked key is refused within a second.
const REMEMBERED_FOR: Duration = Duration::from_millis(500);
/// How long a refused key is refused without asking again.
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// How many keys of either kind are remembered.
const MAX_REMEMBERED: usize = 10_000;
/// Keys never seen good here that are checked at a time.
const STRANGERS: usize = 4;
/// How long such a key waits for one of these places.
const STRANGER_WAITS: Duration = Duration::from_secs(2);
/// How often the database is asked whether the keys of open streams are still good, whatever notices said.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// What a caller shows to be known by, as text.
#[derive(Debug, Clone, Copy)]
pub(super) enum ShownKey<'a> {
    /// An API key.
    Key(&'a str),
    /// The secret of a browser's login, which stands for a key.
    Login(&'a str),
}

/// The same, read.
enum ReadCredential {
    Key(ApiKey),
    Login(LoginSecret),
}

/// A key's principal and its id.
pub(super) type KnownKey = (Principal, Uuid);
type Fingerprint = [u8; 32];

/// Why a shown key opens nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyRefused {
    /// No key, or an unknown, revoked or expired one.
    #[error("the API key is unknown, revoked or expired")]
    Bad,
    #[error("the ticket is unknown, used, too old or for another path; each opens one stream")]
    BadTicket,
    #[error("the login has ended; log in again")]
    BadLogin,
    #[error("too many unknown keys are shown at once")]
    Crowded,
    #[error("an API key could not be checked: {0}")]
    Unchecked(#[from] KeyError),
    #[error("a ticket could not be checked: {0}")]
    UncheckedTicket(#[from] StoreError),
}

/// Clones share all.
#[derive(Clone)]
pub(super) struct KnownKeys {
    store: Store,
    shown: Arc<Mutex<ShownKeys>>,
    strangers: Arc<Semaphore>,
    /// Tickets that are looked up at a time: each is unknown here, so there is no telling which are somebody's.
    tickets: Arc<Semaphore>,
    in_use: Arc<KeysInUse>,
}

/// Keys shown lately, by a digest: the key itself is not kept in memory longer than its request.
#[derive(Default)]
struct ShownKeys {
    /// When each was checked; `None`: it is to be checked again.
    good: HashMap<Fingerprint, (KnownKey, Option<Instant>)>,
    refused: HashMap<Fingerprint, Instant>,
}

/// Keys of open streams.
#[derive(Default)]
struct KeysInUse {
    /// Each is cancelled when its key is no longer good. A key that nobody else holds is not in use.
    by_id: Mutex<HashMap<Uuid, Arc<CancellationToken>>>,
    /// Asks for a look at all of them.
    look: Notify,
    /// When keys were last said to have changed.
    changed: Mutex<Option<Instant>>,
}

impl KnownKeys {
    /// Knows none yet.
    pub fn new(store: Store) -> Self {
        let places = || Arc::new(Semaphore::new(STRANGERS));
        KnownKeys { store, shown: Arc::default(), strangers: places(), tickets: places(), in_use: Arc::default() }
    }

    /// Whose key this is, or whose login.
    pub async fn check(&self, shown: ShownKey<'_>) -> Result<KnownKey, KeyRefused> {
        let (credential, text, bad) = match shown {
            ShownKey::Key(text) => (text.parse().ok().map(ReadCredential::Key), text, KeyRefused::Bad),
            ShownKey::Login(text) => (LoginSecret::read(text).map(ReadCredential::Login), text, KeyRefused::BadLogin),
        };
        let Some(credential) = credential else { return Err(bad) };
        let fingerprint: Fingerprint = Sha256::digest(text.as_bytes()).into();
        let was_good = match self.recall(&fingerprint) {
            Recalled::Good(known) => return Ok(known),
            Recalled::Refused => return Err(bad),
            Recalled::WasGood => true,
            Recalled::Stranger => false,
        };
        let _place = if was_good { None } else { Some(place(&self.strangers).await?) };
        let found = match &credential {
            ReadCredential::Key(key) => keys::authenticate(self.store.pool(), key).await?,
            ReadCredential::Login(login) => login::authenticate(self.store.pool(), login).await?,
        };
        let mut shown = lock(&self.shown);
        match found {
            Some(known) => {
                make_room(&mut shown.good);
                shown.good.insert(fingerprint, (known.clone(), Some(Instant::now())));
                Ok(known)
            }
            None => {
                shown.good.remove(&fingerprint);
                make_room(&mut shown.refused);
                shown.refused.insert(fingerprint, Instant::now());
                Err(bad)
            }
        }
    }

    /// Whose ticket this is, and what it was asked for with. It is used up.
    pub async fn use_ticket(&self, shown: &str, path: &str) -> Result<(Principal, TicketHolder), KeyRefused> {
        let ticket = Ticket::read(shown).ok_or(KeyRefused::BadTicket)?;
        let _place = place(&self.tickets).await?;
        self.store.use_ticket(&ticket, path).await?.ok_or(KeyRefused::BadTicket)
    }

    fn recall(&self, fingerprint: &Fingerprint) -> Recalled {
        let shown = lock(&self.shown);
        match (shown.good.get(fingerprint), shown.refused.get(fingerprint)) {
            (Some((known, Some(at))), _) if at.elapsed() < REMEMBERED_FOR => Recalled::Good(known.clone()),
            (Some(_), _) => Recalled::WasGood,
            (None, Some(at)) if at.elapsed() < REFUSED_FOR => Recalled::Refused,
            (None, _) => Recalled::Stranger,
        }
    }

    /// Keys have changed somewhere: each is checked again when it is shown next, and those in use are looked at now.
    pub fn changed(&self) {
        lock(&self.shown).good.values_mut().for_each(|(_, checked)| *checked = None);
        *lock(&self.in_use.changed) = Some(Instant::now());
        self.in_use.look.notify_one();
    }

    /// Waits until this key is revoked or has expired. What was opened with the key is to end then.
    pub async fn until_revoked(&self, key: Uuid) {
        let token = lock(&self.in_use.by_id).entry(key).or_default().clone();
        // The key was checked before: a change since then was told before this key was in use.
        if lock(&self.in_use.changed).is_some_and(|at| at.elapsed() < 2 * REMEMBERED_FOR) {
            self.in_use.look.notify_one();
        }
        token.cancelled().await;
    }

    /// Looks after the keys in use until `shutdown`: all of them with one question, however many streams there are.
    pub async fn look_after(self, shutdown: CancellationToken) {
        let mut looks = Every::new("the look after keys in use", ASK_AGAIN).woken_by(&self.in_use.look);
        while looks.next(&shutdown).await.is_some() {
            looks.ended(self.look().await);
        }
    }

    async fn look(&self) -> Result<Again, KeyError> {
        let ids: Vec<Uuid> = {
            let mut in_use = lock(&self.in_use.by_id);
            in_use.retain(|_, token| Arc::strong_count(token) > 1);
            in_use.keys().copied().collect()
        };
        // While the database is away, nobody is cut off.
        for ended in keys::ended(self.store.pool(), &ids).await? {
            if let Some(token) = lock(&self.in_use.by_id).remove(&ended) {
                token.cancel();
            }
        }
        Ok(Again::Later)
    }
}

/// One of these places, once one is free.
async fn place(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, KeyRefused> {
    let place = tokio::time::timeout(STRANGER_WAITS, places.clone().acquire_owned()).await;
    place.ok().and_then(Result::ok).ok_or(KeyRefused::Crowded)
}

/// What is remembered of a key.
enum Recalled {
    Good(KnownKey),
    /// It was good here, and is to be checked again.
    WasGood,
    Refused,
    /// It was never good here, as far as that is remembered.
    Stranger,
}

/// Forgets all where there are too many: what is forgotten is asked for again.
fn make_room<T>(remembered: &mut HashMap<Fingerprint, T>) {
    if remembered.len() >= MAX_REMEMBERED {
        remembered.clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
