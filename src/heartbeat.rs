//! Heartbeats of workers, gathered over all workers of this replica and written together, one transaction a tick.
//!
//! The tick is also the gateway's own sign of life: it moves the settling gate, a row by which everybody knows whether
//! silence of a worker means anything (while no gateway can write, it means nothing). So a gateway without workers
//! ticks too.
//!
//! A gateway that has not ticked for half a lease is cut off: what is connected to it goes elsewhere while the other half is
//! left ([`Ticks::missing_for`]). One that stops writes what it has heard, and that it is no more.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::every::{Again, Every, supervised};
use crate::store::{Beat, BeatAnswer, Replica, Store, StoreError};
use crate::turn::keys::Incarnation;

/// The period of ticks: at most a second, so that the settling gate notices a gap early.
pub const TICK: Duration = Duration::from_millis(500);
/// After so many seconds without a tick a gateway counts as gone, and so do the sessions on it.
const GATEWAY_EXPIRES_SECONDS: u32 = 10;
/// The most heartbeats that wait for the next tick.
const MAX_WAITING: usize = 20_000;

/// A heartbeat that waits for the next tick, and where its answer goes.
struct WaitingBeat {
    beat: Beat,
    answer: oneshot::Sender<Result<Option<BeatAnswer>, StoreError>>,
}

/// When this gateway last ticked. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ticks {
    last: watch::Receiver<LastTick>,
}

/// The last tick that was committed.
#[derive(Debug, Clone, Copy)]
struct LastTick {
    /// When; until the first one, when the gateway began.
    at: Instant,
    /// The database's time in it, and when that was read; none before the first.
    database: Option<(OffsetDateTime, Instant)>,
}

/// How long the first tick of a gateway is waited for.
const FIRST_TICK: Duration = Duration::from_secs(2);

impl Ticks {
    /// Whether the gateway has ticked ever, so that the database knows of it. One that has only begun is waited for a little.
    ///
    /// A worker that it heard before would be judged as one whose gateway has stopped.
    pub async fn begun(&self) -> bool {
        let mut last = self.last.clone();
        timeout(FIRST_TICK, last.wait_for(|last| last.database.is_some())).await.is_ok_and(|seen| seen.is_ok())
    }

    /// What time it is by the database's clock: that of the last tick, and what has passed since. So it goes on while the
    /// database is away. `None` before the first tick.
    pub fn database_time(&self) -> Option<OffsetDateTime> {
        let (then, read) = self.last.borrow().database?;
        then.checked_add(time::Duration::try_from(read.elapsed()).ok()?)
    }

    /// Returns when no tick has been committed for this long, and not sooner: see [`half_a_lease`]. What began at `begin` was
    /// written by then, and counts as a tick.
    pub async fn missing_for(&self, patience: Duration, begin: Instant) {
        loop {
            let until = self.last.borrow().at.max(begin) + patience;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// How long a gateway may go without a tick before it lets those go whose lease is so many seconds long: half of it, so that
/// the other half is left to find another gateway.
pub fn half_a_lease(lease_seconds: u32) -> Duration {
    Duration::from_secs(lease_seconds.into()) / 2
}

/// Hands heartbeats to the next tick. Cheap to clone.
#[derive(Clone)]
pub struct Heartbeats {
    queue: mpsc::Sender<WaitingBeat>,
    ticks: Ticks,
    ended: CancellationToken,
}

impl Heartbeats {
    /// Starts to tick, until `shutdown`. Then this gateway writes that it has stopped.
    pub fn start(store: Store, gateway: Replica, shutdown: CancellationToken) -> Self {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        let (committed, last) = watch::channel(LastTick { at: Instant::now(), database: None });
        let ended = CancellationToken::new();
        let done = ended.clone().drop_guard();
        supervised("the heartbeat tick", async move {
            let _done = done;
            tick(store, gateway, waiting, committed, shutdown).await;
        });
        Heartbeats { queue, ticks: Ticks { last }, ended }
    }

    /// When this gateway last ticked.
    pub fn ticks(&self) -> Ticks {
        self.ticks.clone()
    }

    /// Returns when everything is written behind the shutdown, or cannot be.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// A worker's sign of life; `busy`: it holds turns. Answered after the tick that wrote it; `None`: its lease is dead.
    ///
    /// # Errors
    /// If the tick was not written, or if this replica stops.
    pub async fn beat(&self, incarnation: Incarnation, busy: bool) -> Result<Option<BeatAnswer>, StoreError> {
        let (answer, answered) = oneshot::channel();
        let stopping = || StoreError::Unavailable("this gateway is stopping".into());
        let beat = Beat { incarnation, busy: Some(busy) };
        self.queue.try_send(WaitingBeat { beat, answer }).map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())?
    }

    /// A worker has finished a turn, which is a sign of life as well. The next tick writes since when it holds nothing, so that
    /// its place can be given to another conversation without waiting for its next heartbeat. Nobody waits for that.
    pub fn finished(&self, incarnation: Incarnation) {
        let beat = Beat { incarnation, busy: None };
        // A full queue drops it: the worker's next heartbeat says the same.
        let _ = self.queue.try_send(WaitingBeat { beat, answer: oneshot::channel().0 });
    }
}

/// What waits for the tick: heartbeats with somebody to answer, and workers whose beat the last tick failed to write.
struct Waiting {
    queue: mpsc::Receiver<WaitingBeat>,
    batch: Vec<WaitingBeat>,
    unwritten: HashSet<Incarnation>,
}

impl Waiting {
    /// Everything that waits by now.
    fn gather(&mut self) -> Vec<Beat> {
        while let Ok(waiting) = self.queue.try_recv() {
            self.batch.push(waiting);
        }
        // A worker that was told that its beat was not written may not beat again before the next tick, and yet it was not
        // silent. As busy, since it may have been given a turn meanwhile: it says itself when it is idle.
        let unwritten = self.unwritten.iter().map(|&incarnation| Beat { incarnation, busy: Some(true) });
        // Of several heartbeats of one worker the last one counts.
        let beats = unwritten.chain(self.batch.iter().map(|w| w.beat.clone()));
        beats.map(|beat| (beat.incarnation, beat)).collect::<HashMap<_, _>>().into_values().collect()
    }

    /// Answers those who wait. Beats of a tick that was not written stay for the next.
    fn answer(&mut self, result: &Result<HashMap<Incarnation, BeatAnswer>, StoreError>) {
        match result {
            Ok(_) => self.unwritten.clear(),
            // Those that the tick did not come to are told as well, so that their workers look for another gateway.
            Err(_) => drop(self.gather()),
        }
        for WaitingBeat { beat, answer } in self.batch.drain(..) {
            let one = match result {
                Ok(answers) => Ok(answers.get(&beat.incarnation).cloned()),
                Err(error) => {
                    // Bounded like the queue: the rest beat again.
                    if self.unwritten.len() < MAX_WAITING {
                        self.unwritten.insert(beat.incarnation);
                    }
                    Err(error.clone())
                }
            };
            // A worker that closed its connection meanwhile beats again.
            let _ = answer.send(one);
        }
    }
}

async fn tick(
    store: Store,
    gateway: Replica,
    queue: mpsc::Receiver<WaitingBeat>,
    committed: watch::Sender<LastTick>,
    shutdown: CancellationToken,
) {
    let waiting = Mutex::new(Waiting { queue, batch: Vec::new(), unwritten: HashSet::new() });
    // While a tick waits for the database, workers beat again, and the settling gate keeps everybody from being failed
    // for the silence.
    let mut ticks = Every::new("the heartbeat tick", TICK).at_once();
    while ticks.next(&shutdown).await.is_some() {
        let read = Mutex::new(None);
        let gather = |database| {
            *read.lock().unwrap_or_else(PoisonError::into_inner) = Some((database, Instant::now()));
            locked(&waiting).gather()
        };
        let result = store.heartbeat_of_gateway(&gateway, GATEWAY_EXPIRES_SECONDS, gather).await;
        if result.is_ok() {
            let database = read.into_inner().unwrap_or_else(PoisonError::into_inner);
            committed.send_replace(LastTick { at: Instant::now(), database });
        }
        locked(&waiting).answer(&result);
        ticks.ended(result.map(|_| Again::Later));
    }
    // Those who wait are told that this gateway stops, and go on elsewhere; what they said counts.
    let beats = locked(&waiting).gather();
    if let Err(error) = store.stop_gateway(gateway.id, &beats).await {
        tracing::warn!(%error, "this gateway could not write that it stops: it will count as lost");
    }
}

fn locked(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
