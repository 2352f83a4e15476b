//! The workers whose streams this replica holds.
//!
//! For a worker with room, turns are claimed and pushed to it on its stream. What a worker holds is compared with what the
//! markers name when it connects and with each heartbeat, so that a line that was lost is made up for.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::duties::WorkerDuties;
use super::live::LiveLogs;
use crate::every::{Again, Every};
use crate::metrics::METRICS;
use crate::store::{BeatAnswer, ClaimFor, ClaimOrder, Claimed, Connected, Store, StoreError, WorkerState};
use crate::turn::cause;
use crate::turn::decide::reconcile;
use crate::turn::keys::{Incarnation, TurnId, WorkerGroup};
use crate::wire::{Connect, HeartbeatAnswer, MAX_HISTORY, ToWorker, TurnPush};

/// For a worker with room, turns that no notice told of are looked for this often.
const CLAIM_EVERY: Duration = Duration::from_secs(1);
/// What a worker without room holds is compared with the markers this often.
const REFRESH_FULL_EVERY: Duration = Duration::from_secs(5);
/// The period of [`Workers::tidy`].
const TIDY_EVERY: Duration = Duration::from_secs(30);
/// The most lines that wait for a worker that does not read its stream; one more closes the stream.
const MAX_LINES: usize = 1024;

/// A connected worker, by one of its streams.
pub struct Worker {
    pub incarnation: Incarnation,
    /// Names the stream; the lease has the same value.
    pub stream: Uuid,
    /// The terms of the lease, as of the connect.
    pub terms: Connected,
    /// Turns that the worker may hold at a time, as of now: a change of the Agent reaches workers that run.
    capacity: AtomicU32,
    /// So many past turns of the conversation are pushed with each turn.
    history: u32,
    lines: mpsc::Sender<ToWorker>,
    /// Wakes [`Workers::claim_for`].
    wake: Notify,
    duties: Mutex<WorkerDuties>,
    /// Cancelled when the stream is over, whoever ended it.
    pub closed: CancellationToken,
}

impl Worker {
    fn with<T>(&self, f: impl FnOnce(&mut WorkerDuties) -> T) -> T {
        f(&mut self.duties.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The end of the stream is announced, by the worker or by this replica: it raises no suspicion.
    pub fn says_goodbye(&self) {
        self.with(|s| s.said_goodbye = true);
    }

    /// Whether the end of the stream was announced.
    pub fn said_goodbye(&self) -> bool {
        self.with(|s| s.said_goodbye)
    }

    /// The worker no longer owes these turns, so it has room.
    pub fn let_go(&self, turns: &[TurnId]) {
        self.with(|s| s.let_go(turns));
        self.wake.notify_one();
    }

    /// No more turns are claimed for the worker.
    pub fn stop_claiming(&self) {
        self.with(|s| s.draining = true);
    }

    /// Sends a line; a worker that does not read loses its stream, and finds what it missed on its next one.
    fn send(&self, line: ToWorker) {
        if self.lines.try_send(line).is_err() {
            tracing::warn!(incarnation = %self.incarnation, "worker {} does not read its stream; closing it", self.incarnation);
            self.closed.cancel();
        }
    }

    /// Counts how often in a row the worker did not name each turn that it was pushed; returns the turns that it has lost.
    fn count_lacking(&self, lacking: &[TurnId]) -> Vec<TurnId> {
        self.with(|s| s.count_lacking(lacking))
    }

    /// How many more turns the worker may be pushed; conversations, if it takes what waits in one together.
    fn room(&self) -> u32 {
        self.with(|s| s.room(self.capacity.load(Ordering::Relaxed), self.terms.together))
    }
}

/// All workers that are connected to this replica. Cheap to clone.
#[derive(Clone)]
pub struct Workers {
    store: Store,
    live: LiveLogs,
    connected: Arc<Mutex<HashMap<Incarnation, Arc<Worker>>>>,
}

impl Workers {
    /// Nobody is connected yet.
    pub fn new(store: Store, live: LiveLogs) -> Self {
        Workers { store, live, connected: Arc::default() }
    }

    fn with<T>(&self, f: impl FnOnce(&mut HashMap<Incarnation, Arc<Worker>>) -> T) -> T {
        f(&mut self.connected.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The worker's stream here, if it has one.
    pub fn get(&self, incarnation: Incarnation) -> Option<Arc<Worker>> {
        self.with(|c| c.get(&incarnation).cloned())
    }

    /// Adds a worker whose stream was opened. The receiver yields the lines for that stream, until the worker's `closed` is
    /// cancelled.
    pub fn join(
        &self,
        incarnation: Incarnation,
        stream: Uuid,
        terms: Connected,
        asked: &Connect,
    ) -> (Arc<Worker>, mpsc::Receiver<ToWorker>) {
        let (lines, receiver) = mpsc::channel(MAX_LINES);
        let worker = Arc::new(Worker {
            incarnation,
            stream,
            history: asked.history.min(MAX_HISTORY),
            lines,
            wake: Notify::new(),
            duties: Mutex::new(WorkerDuties::new(terms.draining.is_some())),
            closed: CancellationToken::new(),
            capacity: AtomicU32::new(terms.capacity),
            terms,
        });
        let before = self.with(|c| {
            self.live.attach(incarnation, stream);
            c.insert(incarnation, worker.clone())
        });
        if before.is_none() {
            METRICS.worker_streams.inc();
        }
        if let Some(before) = before {
            // The same incarnation has connected again: its old connection is lost, and TCP has not noticed yet.
            before.says_goodbye();
            before.closed.cancel();
        }
        (worker, receiver)
    }

    /// Removes a worker whose stream is over; it may be connected to another replica already.
    pub fn leave(&self, worker: &Worker) {
        worker.closed.cancel();
        self.with(|c| {
            if c.get(&worker.incarnation).is_some_and(|w| w.stream == worker.stream) {
                c.remove(&worker.incarnation);
                METRICS.worker_streams.dec();
            }
        });
        self.live.detach(worker.incarnation, worker.stream);
    }

    /// Turns can be claimed in this worker group.
    pub fn wake_worker_group(&self, organization: &str, agent: &str, worker_group: WorkerGroup) {
        self.with(|c| {
            c.values()
                .filter(|w| {
                    let terms = &w.terms;
                    terms.worker_group == worker_group && terms.agent == agent && terms.organization == organization
                })
                .for_each(|w| w.wake.notify_one());
        });
    }

    /// Notices may have been missed: turns are looked for, for every worker.
    pub fn wake_all(&self) {
        self.with(|c| c.values().for_each(|w| w.wake.notify_one()));
    }

    /// Claims turns for a worker and pushes them to it, while its stream is open.
    pub async fn claim_for(self, worker: Arc<Worker>) {
        let mut order = ClaimOrder::default();
        while !worker.closed.is_cancelled() {
            let room = worker.room();
            if room > 0 {
                let claim = ClaimFor { incarnation: worker.incarnation, room, together: worker.terms.together, order };
                match self.store.claim(claim).await {
                    Ok(claimed) if !claimed.is_empty() => {
                        order = order.next();
                        self.push(&worker, claimed).await;
                        continue;
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::debug!(%error, "claiming for worker {} failed; trying again", worker.incarnation);
                    }
                }
            }
            tokio::select! {
                () = worker.wake.notified() => {}
                () = tokio::time::sleep(CLAIM_EVERY), if room > 0 => {}
                // The worker may finish turns by way of other replicas, whose notices may be lost.
                () = tokio::time::sleep(REFRESH_FULL_EVERY), if room == 0 => self.refresh(worker.incarnation).await,
                () = worker.closed.cancelled() => return,
            }
        }
    }

    async fn push(&self, worker: &Worker, claimed: Vec<Claimed>) {
        worker.with(|s| claimed.iter().for_each(|c| s.take_in_hand(c.turn_id, c.conversation_id)));
        for turn in claimed {
            self.live.open(turn.turn_id, turn.conversation_id, worker.incarnation, turn.log_end);
            let turn_id = turn.turn_id;
            let push = self.push_of(turn, worker.history).await;
            // The turn may have been cancelled since.
            if worker.with(|s| s.in_hand.contains_key(&turn_id)) {
                worker.send(ToWorker::Turn(Box::new(push)));
            }
        }
    }

    /// The line that gives a claimed turn to a worker, with the history that the worker asked for.
    async fn push_of(&self, turn: Claimed, history: u32) -> TurnPush {
        let exchanges = if history == 0 || turn.number <= 1 {
            Vec::new()
        } else {
            // A turn without its history is better than none.
            self.store.conversation_exchanges(turn.conversation_id, turn.number, history).await.unwrap_or_else(
                |error| {
                    tracing::warn!(turn = %turn.turn_id, %error, "turn {} is pushed without history", turn.turn_id);
                    Vec::new()
                },
            )
        };
        TurnPush {
            turn_id: turn.turn_id,
            message_id: turn.message_id,
            organization: turn.organization,
            conversation: turn.conversation_id.to_string(),
            conversation_name: turn.conversation,
            user: turn.user,
            worker_group: turn.worker_group.name(&turn.agent),
            agent: turn.agent,
            platform: turn.routing.platform,
            platform_metadata: turn.routing.platform_metadata,
            message: turn.input,
            acked: turn.log_end,
            history: exchanges,
            seconds_left: turn.seconds_left,
            traceparent: turn.traceparent,
        }
    }

    /// Compares the turns that a worker names as in hand with those that the markers name, by what the database answered to a
    /// question of the moment `asked`; returns what to push again and what the worker is to stop. `history` is for a worker
    /// whose stream another replica holds.
    pub async fn compare(
        &self,
        incarnation: Incarnation,
        in_hand: &[TurnId],
        beat: BeatAnswer,
        asked: Instant,
        history: u32,
    ) -> Result<HeartbeatAnswer, StoreError> {
        let (stop, lacking) = reconcile(in_hand, &beat.held);
        let worker = self.get(incarnation);
        let mut push = Vec::new();
        stop.iter().for_each(|&t| self.live.close(t, incarnation));
        let lost = worker.as_ref().map(|w| w.count_lacking(&lacking)).unwrap_or_default();
        for &turn in &lost {
            let failure = cause::lease::lost_by_worker();
            self.store.fail_lost_turn(turn, incarnation, &failure).await?;
        }
        // The logs of all that a worker with a stream here holds are here: whoever watches these turns finds them.
        let is_unopened = |t: &TurnId| worker.is_some() && !self.live.is_open(*t, incarnation);
        let to_read: Vec<TurnId> =
            beat.held.iter().copied().filter(|t| lacking.contains(t) || is_unopened(t)).collect();
        if !to_read.is_empty() {
            for turn in self.store.turns_held_by(&to_read, incarnation).await? {
                self.live.open(turn.turn_id, turn.conversation_id, incarnation, turn.log_end);
                if lacking.contains(&turn.turn_id) {
                    push.push(self.push_of(turn, worker.as_ref().map_or(history, |w| w.history)).await);
                }
            }
        }
        if let Some(worker) = worker {
            // A turn without a log has ended since.
            let open = |&turn: &TurnId| Some((turn, self.live.conversation_of(turn, incarnation)?));
            let held: Vec<_> = beat.held.iter().filter_map(open).collect();
            worker.with(|s| s.correct(&held, asked));
            if beat.drain.is_some() {
                worker.stop_claiming();
            }
            worker.wake.notify_one();
        }
        Ok(HeartbeatAnswer { push, stop, drain: beat.drain })
    }

    /// Something else than the worker changed its lease or its turns: tells the worker what it no longer owes, and whether
    /// it is to drain.
    pub async fn refresh(&self, incarnation: Incarnation) {
        let Some(worker) = self.get(incarnation) else { return };
        let in_hand: Vec<TurnId> = worker.with(|s| s.in_hand.keys().copied().collect());
        let state = match self.store.worker_state(incarnation).await {
            Ok(state) => state,
            // The next heartbeat tells the same.
            Err(error) => return tracing::debug!(%error, "worker {incarnation} is told of changes later"),
        };
        let Some(WorkerState { answer: beat, stream, capacity }) = state else {
            // Its lease is dead; the next call of the worker is answered 410.
            worker.says_goodbye();
            worker.closed.cancel();
            return;
        };
        if stream.is_some_and(|stream| stream != worker.stream) {
            // It has opened another stream, and whoever held up the old one has not noticed yet. Nothing comes on it any more.
            worker.says_goodbye();
            worker.closed.cancel();
            return;
        }
        worker.capacity.store(capacity, Ordering::Relaxed);
        let (stop, _) = reconcile(&in_hand, &beat.held);
        for &turn_id in &stop {
            self.live.close(turn_id, incarnation);
            worker.send(ToWorker::Cancel { turn_id });
        }
        worker.let_go(&stop);
        if let Some(seconds) = beat.drain
            && !worker.with(|s| std::mem::replace(&mut s.draining, true))
        {
            worker.send(ToWorker::Drain { seconds });
        }
    }

    /// [`Workers::refresh`] for every worker that is connected here, one after the other.
    pub async fn refresh_all(&self) {
        let connected: Vec<Incarnation> = self.with(|c| c.keys().copied().collect());
        for incarnation in connected {
            self.refresh(incarnation).await;
        }
    }

    /// Forgets the live logs of workers that have not been connected here for a whole period, until `shutdown`. A worker
    /// that lives keeps what is not durable of its output.
    pub async fn tidy(self, shutdown: CancellationToken) {
        let mut away: HashSet<TurnId> = HashSet::new();
        let mut passes = Every::new("the tidying of live logs", TIDY_EVERY);
        while passes.next(&shutdown).await.is_some() {
            away = self.forget_logs(&away);
            passes.ended(Ok::<_, Infallible>(Again::Later));
        }
    }

    /// Forgets the logs of the turns in `away` whose workers are still not connected. Returns the other turns whose workers
    /// are not.
    fn forget_logs(&self, away: &HashSet<TurnId>) -> HashSet<TurnId> {
        let in_hand = self.live.in_hand().into_iter();
        let gone = in_hand.filter(|(_, incarnation)| self.get(*incarnation).is_none());
        let (long, lately): (Vec<_>, Vec<_>) = gone.partition(|(turn, _)| away.contains(turn));
        long.into_iter().for_each(|(turn, incarnation)| self.live.close(turn, incarnation));
        lately.into_iter().map(|(turn, _)| turn).collect()
    }

    /// Closes every stream because this replica stops; that raises no suspicion.
    pub fn close_all(&self) {
        self.with(|c| {
            c.values().for_each(|w| {
                w.says_goodbye();
                w.closed.cancel();
            })
        });
    }
}
