//! The one way that tests wait: for a condition, by looking again and again ([`eventually`]); for what ends by itself
//! ([`within`]); or to see that something stays as it is ([`throughout`]). Who waits in vain says for what, and what was seen
//! last.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};

/// The longest that a test waits for anything, unless it says otherwise. Generous, because cores are shared; shorter than the
/// lease of a minute that workers have in most tests: what only the end of a lease brings about does not come in time.
pub const BOUND: Duration = Duration::from_secs(50);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// What a look at a condition came to: `bool` for one that holds, `Option` for something that is there, `Result` for a look
/// that tells what it saw instead.
pub trait Look {
    type Found;

    /// What was waited for; or what was seen instead.
    fn found(self) -> Result<Self::Found, String>;
}

impl Look for bool {
    type Found = ();

    fn found(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("it does not hold".into()) }
    }
}

impl<T> Look for Option<T> {
    type Found = T;

    fn found(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".into())
    }
}

impl<T, E: Display> Look for Result<T, E> {
    type Found = T;

    fn found(self) -> Result<T, String> {
        self.map_err(|seen| seen.to_string())
    }
}

/// Looks again and again, within [`BOUND`], until what is waited for is there.
pub async fn eventually<L: Look>(what: &str, look: impl AsyncFnMut() -> L) -> L::Found {
    eventually_within(BOUND, what, look).await
}

/// The same, with a bound of its own.
pub async fn eventually_within<L: Look>(bound: Duration, what: &str, look: impl AsyncFnMut() -> L) -> L::Found {
    match try_eventually(bound, look).await {
        Ok(found) => found,
        Err(seen) => panic!("not within {bound:?}: {what}; seen: {seen}"),
    }
}

/// The same for whoever can go on without; what the last look saw.
pub async fn try_eventually<L: Look>(bound: Duration, mut look: impl AsyncFnMut() -> L) -> Result<L::Found, String> {
    let deadline = Instant::now() + bound;
    let mut seen = String::from("nothing yet");
    loop {
        // A look that hangs, at a server that was stopped for example, is given up with the rest.
        match timeout_at(deadline, look()).await {
            Ok(look) => match look.found() {
                Ok(found) => return Ok(found),
                Err(other) => seen = other,
            },
            Err(_) => seen += "; then a look that did not return",
        }
        if Instant::now() >= deadline {
            return Err(seen);
        }
        pause().await;
    }
}

/// For this long, every look must find that it holds.
pub async fn throughout<L: Look>(duration: Duration, what: &str, mut look: impl AsyncFnMut() -> L) {
    let end = Instant::now() + duration;
    while Instant::now() < end {
        if let Err(seen) = look().await.found() {
            panic!("no more: {what}; seen: {seen}");
        }
        pause().await;
    }
}

/// A bound on what ends by itself: [`BOUND`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(BOUND, future).await {
        Ok(done) => done,
        Err(_) => panic!("not within {BOUND:?}: {what}"),
    }
}

/// Between two looks, or two attempts of a client that tries again.
pub async fn pause() {
    sleep(PAUSE).await;
}
