//! Heartbeats of workers, gathered over all workers of this replica and written together, one transaction a tick.
//!
//! The tick is also the gateway's own sign of life: it moves the settling gate, a row by which everybody knows whether
//! silence of a worker means anything (while no gateway can write, it means nothing). So a gateway without workers
//! ticks too.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
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

/// Hands heartbeats to the next tick. Cheap to clone.
#[derive(Clone)]
pub struct Heartbeats {
    queue: mpsc::Sender<WaitingBeat>,
}

impl Heartbeats {
    /// Starts to tick, until `shutdown`.
    pub fn start(store: Store, gateway: Replica, shutdown: CancellationToken) -> Self {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        supervised("the heartbeat tick", tick(store, gateway, waiting, shutdown));
        Heartbeats { queue }
    }

    /// A worker's sign of life; `busy`: it holds turns. Answered after the tick that wrote it; `None`: its lease is dead.
    ///
    /// # Errors
    /// If the tick was not written, or if this replica stops.
    pub async fn beat(&self, incarnation: Incarnation, busy: bool) -> Result<Option<BeatAnswer>, StoreError> {
        let (answer, answered) = oneshot::channel();
        let stopping = || StoreError::Unavailable("this gateway is stopping".into());
        let beat = Beat { incarnation, busy };
        self.queue.try_send(WaitingBeat { beat, answer }).map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())?
    }
}

async fn tick(store: Store, gateway: Replica, mut waiting: mpsc::Receiver<WaitingBeat>, shutdown: CancellationToken) {
    // While a tick waits for the database, workers beat again, and the settling gate keeps everybody from being failed
    // for the silence.
    let mut ticks = Every::new("the heartbeat tick", TICK).at_once();
    while ticks.next(&shutdown).await.is_some() {
        ticks.ended(write_beats(&store, &gateway, &mut waiting).await);
    }
}

async fn write_beats(
    store: &Store,
    gateway: &Replica,
    waiting: &mut mpsc::Receiver<WaitingBeat>,
) -> Result<Again, StoreError> {
    let batch: Vec<WaitingBeat> = std::iter::from_fn(|| waiting.try_recv().ok()).collect();
    // Of several heartbeats of one worker the last one counts.
    let beats: HashMap<Incarnation, Beat> = batch.iter().map(|w| (w.beat.incarnation, w.beat.clone())).collect();
    let beats: Vec<Beat> = beats.into_values().collect();
    let result = store.heartbeat_of_gateway(gateway, GATEWAY_EXPIRES_SECONDS, &beats).await;
    for WaitingBeat { beat, answer } in batch {
        let one = match &result {
            Ok(answers) => Ok(answers.get(&beat.incarnation).cloned()),
            Err(error) => Err(error.clone()),
        };
        // A worker that closed its connection meanwhile beats again.
        let _ = answer.send(one);
    }
    result.map(|_| Again::Later)
}
