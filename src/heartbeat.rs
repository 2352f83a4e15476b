//! Heartbeats, gathered over all workers of this replica and written on a tick. The tick is also the gateway's own sign of
//! life and moves the settling gate, so it comes when there is no worker too.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::store::{Beat, BeatAnswer, Replica, Store, StoreError};
use crate::turn::keys::Incarnation;

/// A tick's period: at most a second, so that the settling gate notices a gap early.
pub const TICK: Duration = Duration::from_millis(500);
/// A gateway that has not ticked for this long holds no sessions for anybody.
const GATEWAY_EXPIRES_SECONDS: u32 = 10;
/// Workers of one replica that may wait for the next tick.
const MAX_WAITING: usize = 20_000;

type Waiting = (Beat, oneshot::Sender<Result<Option<BeatAnswer>, StoreError>>);

/// Hands heartbeats to the next tick.
#[derive(Clone)]
pub struct Heartbeats {
    queue: mpsc::Sender<Waiting>,
}

impl Heartbeats {
    /// Starts to tick, until `shutdown`.
    pub fn start(store: Store, gateway: Replica, shutdown: CancellationToken) -> Self {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        tokio::spawn(tick(store, gateway, waiting, shutdown));
        Heartbeats { queue }
    }

    /// A worker's sign of life; answered after the tick that wrote it. `None`: its lease is dead.
    pub async fn beat(&self, incarnation: Incarnation, busy: bool) -> Result<Option<BeatAnswer>, StoreError> {
        let (answer, answered) = oneshot::channel();
        let stopping = || StoreError::Unavailable("this gateway is stopping".into());
        self.queue.try_send((Beat { incarnation, busy }, answer)).map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())?
    }
}

async fn tick(store: Store, gateway: Replica, mut waiting: mpsc::Receiver<Waiting>, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut batch: Vec<Waiting> = Vec::new();
    let mut away = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.cancelled() => return,
        }
        while let Ok(next) = waiting.try_recv() {
            batch.push(next);
        }
        // The last word of a worker counts: several beats of one tick are one.
        let beats: HashMap<Incarnation, Beat> = batch.iter().map(|(b, _)| (b.incarnation, b.clone())).collect();
        let beats: Vec<Beat> = beats.into_values().collect();
        let result = store.heartbeat_of_gateway(&gateway, GATEWAY_EXPIRES_SECONDS, &beats).await;
        match (&result, away) {
            (Err(error), false) => {
                tracing::warn!(%error, "heartbeats are refused; workers try again, and nobody is failed for it");
                away = true;
            }
            (Ok(_), true) => {
                tracing::info!("heartbeats are written again");
                away = false;
            }
            _ => {}
        }
        for (beat, answer) in batch.drain(..) {
            let one = match &result {
                Ok(answers) => Ok(answers.get(&beat.incarnation).cloned()),
                Err(error) => Err(error.clone()),
            };
            // A worker that hung up meanwhile beats again.
            let _ = answer.send(one);
        }
    }
}
