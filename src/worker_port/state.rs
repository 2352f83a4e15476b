//! What all handlers of the worker port share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use url::{Host, Url};

use super::identity::{Reviewer, TokenReviews};
use crate::dispatch::live::LiveLogs;
use crate::dispatch::workers::Workers;
use crate::edge::bodies::{Bodies, BodyLimits};
use crate::heartbeat::Heartbeats;
use crate::store::{Connected, Replica, Store};
use crate::turn::keys::Incarnation;
use crate::wire::{self, Credential};

/// The state of the worker port. Cheap to clone.
#[derive(Clone)]
pub struct WorkerPort {
    pub replica: Replica,
    /// Where this replica's worker port is, as `HOST:PORT`: workers are told, see [`Hello`](crate::wire::Hello).
    pub(super) address: Option<String>,
    pub store: Store,
    pub live: LiveLogs,
    pub workers: Workers,
    pub heartbeats: Heartbeats,
    pub room: WorkerRoom,
    /// Reviews the ServiceAccount tokens of pods; absent where workers are no pods.
    pub(super) reviews: Option<TokenReviews>,
    /// How long a worker's last words wait for somebody to record why the worker was stopped; see `stops`.
    pub(super) cause_window: Duration,
    pub(super) verified: VerifiedCredentials,
}

/// The bounds on the bodies of workers' calls; an account is one incarnation. Each kind has its own: whatever output is under
/// way, a turn can be finished, and a worker can say that it lives or leaves.
#[derive(Debug, Clone, Copy)]
pub struct WorkerBodyLimits {
    pub output: BodyLimits,
    pub finish: BodyLimits,
    /// Heartbeats and goodbyes: lists of turns.
    pub signs: BodyLimits,
}

impl Default for WorkerBodyLimits {
    fn default() -> Self {
        let (most, mib) = (wire::MAX_BODY_BYTES, 1024 * 1024);
        WorkerBodyLimits {
            output: BodyLimits { body: most, account: 4 * most, total: 128 * mib },
            finish: BodyLimits { body: most, account: 2 * most, total: 64 * mib },
            signs: BodyLimits { body: mib, account: mib, total: 32 * mib },
        }
    }
}

/// The room itself.
#[derive(Debug, Clone)]
pub struct WorkerRoom {
    pub output: Bodies,
    pub finish: Bodies,
    pub signs: Bodies,
}

impl WorkerRoom {
    /// Empty room within these limits. A body may take as long as `within` to come.
    pub fn new(limits: WorkerBodyLimits, within: Duration) -> Self {
        let WorkerBodyLimits { output, finish, signs } = limits;
        let room = |limits| Bodies::new(limits, within);
        WorkerRoom { output: room(output), finish: room(finish), signs: room(signs) }
    }
}

impl WorkerPort {
    /// A port for workers that this machine starts. They show a credential and nothing else.
    pub fn new(
        replica: Replica,
        store: Store,
        live: LiveLogs,
        workers: Workers,
        heartbeats: Heartbeats,
        room: WorkerRoom,
    ) -> Self {
        let (reviews, cause_window) = (None, Duration::ZERO);
        let verified = VerifiedCredentials::default();
        let address = address_of(&replica.url);
        WorkerPort { replica, address, store, live, workers, heartbeats, room, reviews, cause_window, verified }
    }

    /// The same for workers that are pods, too.
    pub fn for_pods(self, reviewer: Option<Arc<dyn Reviewer>>, cause_window: Duration) -> Self {
        WorkerPort { reviews: reviewer.map(TokenReviews::new), cause_window, ..self }
    }
}

/// The host and port of a URL, where they lead somewhere from another machine.
fn address_of(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    let unspecified = match url.host()? {
        Host::Domain(_) => false,
        Host::Ipv4(address) => address.is_unspecified(),
        Host::Ipv6(address) => address.is_unspecified(),
    };
    // With the brackets that an IPv6 address has in a URL, which belong there here, too.
    (!unspecified).then(|| Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?)))?
}

/// A credential that the database accepted is accepted for this long without asking it again, since a turn's output comes in
/// many calls.
const VERIFIED_FOR: Duration = Duration::from_secs(5);
/// Beyond this many entries the outdated ones are removed.
const TIDY_ABOVE: usize = 10_000;

/// Credentials that the database accepted within the last [`VERIFIED_FOR`].
#[derive(Clone, Default)]
pub(super) struct VerifiedCredentials {
    by_incarnation: Arc<Mutex<HashMap<Incarnation, VerifiedCredential>>>,
}

struct VerifiedCredential {
    /// Hashes are compared, not secrets: comparing two secrets takes the longer the more of their beginning is equal, and
    /// so tells a caller how much of a guess is right.
    hash: Vec<u8>,
    terms: Connected,
    at: Instant,
}

impl VerifiedCredentials {
    /// The terms of this worker's lease, if it showed this very credential a moment ago.
    pub fn get(&self, credential: &Credential, incarnation: Incarnation) -> Option<Connected> {
        let verified = self.by_incarnation.lock().unwrap_or_else(PoisonError::into_inner);
        let known = verified.get(&incarnation)?;
        (known.hash == credential.hash() && known.at.elapsed() < VERIFIED_FOR).then(|| known.terms.clone())
    }

    /// The database has just accepted this credential.
    pub fn insert(&self, credential: &Credential, incarnation: Incarnation, terms: Connected) {
        let mut verified = self.by_incarnation.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() > TIDY_ABOVE {
            verified.retain(|_, known| known.at.elapsed() < VERIFIED_FOR);
        }
        verified.insert(incarnation, VerifiedCredential { hash: credential.hash(), terms, at: Instant::now() });
    }

    /// The worker's lease is dead: its next call is checked in the database.
    pub fn remove(&self, incarnation: Incarnation) {
        self.by_incarnation.lock().unwrap_or_else(PoisonError::into_inner).remove(&incarnation);
    }
}
