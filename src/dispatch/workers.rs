//! The workers whose streams this replica holds: claims for those with room, pushes, and what they are told to stop.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::live::LiveLogs;
use crate::store::{BeatAnswer, ClaimFor, Claimed, Connected, Store, StoreError};
use crate::turn::decide::reconcile;
use crate::turn::keys::{Incarnation, TurnId};
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;
use crate::wire::{Connect, HeartbeatAnswer, MAX_HISTORY, ToWorker, TurnPush};

/// How often a worker with room looks for turns that no notice told of.
const POLL: Duration = Duration::from_secs(1);
/// How often a worker without room is held against its markers.
const LOOK_AT_FULL: Duration = Duration::from_secs(5);
/// A turn is pushed this often to a worker that does not name it; then the worker has lost it, by its own word.
const MAX_LACKING: u32 = 3;
/// A claim may be this much younger than the answer that does not name it.
const JUST_CLAIMED: Duration = Duration::from_secs(5);
/// How often logs are looked through for workers that are gone.
const TIDY_EVERY: Duration = Duration::from_secs(30);
/// Lines that may wait for a worker that does not read; more, and its stream is closed.
const MAX_LINES: usize = 1024;

/// A worker's open stream.
pub struct Worker {
    pub incarnation: Incarnation,
    /// This very stream: the lease names it.
    pub stream: Uuid,
    pub terms: Connected,
    history: u32,
    lines: mpsc::Sender<ToWorker>,
    wake: Notify,
    state: Mutex<State>,
    /// Cancelled when the stream is over, whoever ended it.
    pub closed: CancellationToken,
}

#[derive(Default)]
struct State {
    /// Turns that were pushed (or that the markers name), and when that was learnt.
    in_hand: HashMap<TurnId, Instant>,
    /// Turns that the worker did not name though its marker does, and how often in a row.
    lacking: HashMap<TurnId, u32>,
    draining: bool,
    said_goodbye: bool,
}

impl Worker {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The worker announced that it leaves: its closing stream is no cause for suspicion.
    pub fn says_goodbye(&self) {
        self.with(|s| s.said_goodbye = true);
    }

    /// Whether it did.
    pub fn said_goodbye(&self) -> bool {
        self.with(|s| s.said_goodbye)
    }

    /// The worker no longer owes these turns: there is room.
    pub fn let_go(&self, turns: &[TurnId]) {
        self.with(|s| s.in_hand.retain(|t, _| !turns.contains(t)));
        self.wake.notify_one();
    }

    /// The worker takes nothing more.
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

    /// Counts how often in a row the worker did not name a turn that it was pushed; answers with those that it has lost.
    fn count_lacking(&self, lacking: &[TurnId]) -> Vec<TurnId> {
        self.with(|s| {
            s.lacking.retain(|t, _| lacking.contains(t));
            let counted = lacking.iter().map(|&t| (t, *s.lacking.entry(t).and_modify(|n| *n += 1).or_insert(1)));
            counted.filter(|(_, n)| *n > MAX_LACKING).map(|(t, _)| t).collect()
        })
    }

    fn room(&self) -> u32 {
        self.with(|s| if s.draining { 0 } else { self.terms.capacity.saturating_sub(s.in_hand.len() as u32) })
    }
}

/// All of them.
#[derive(Clone)]
pub struct Workers {
    store: Store,
    live: LiveLogs,
    connected: Arc<Mutex<HashMap<Incarnation, Arc<Worker>>>>,
}

impl Workers {
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

    /// Takes a connected worker in. Lines for it come out of the receiver, until its `closed` is cancelled.
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
            state: Mutex::new(State { draining: terms.draining.is_some(), ..State::default() }),
            closed: CancellationToken::new(),
            terms,
        });
        if let Some(before) = self.with(|c| c.insert(incarnation, worker.clone())) {
            // The same incarnation came again: its old connection is a corpse that TCP has not noticed.
            before.says_goodbye();
            before.closed.cancel();
        }
        (worker, receiver)
    }

    /// The stream is over, and the worker may be with another replica now.
    pub fn leave(&self, worker: &Worker) {
        worker.closed.cancel();
        let was_its_last = self.with(|c| {
            let current = c.get(&worker.incarnation).is_some_and(|w| w.stream == worker.stream);
            current && c.remove(&worker.incarnation).is_some()
        });
        if was_its_last {
            self.live.detach(worker.incarnation);
        }
    }

    /// Something can be claimed in this worker group.
    pub fn wake_worker_group(&self, organization: &str, worker_group: &str) {
        self.with(|c| {
            c.values()
                .filter(|w| w.terms.worker_group == worker_group && w.terms.organization == organization)
                .for_each(|w| w.wake.notify_one());
        });
    }

    /// Something was missed: everybody looks.
    pub fn wake_all(&self) {
        self.with(|c| c.values().for_each(|w| w.wake.notify_one()));
    }

    /// Claims for a worker while its stream is open.
    pub async fn claim_for(self, worker: Arc<Worker>) {
        while !worker.closed.is_cancelled() {
            let room = worker.room();
            if room > 0 {
                let claim = ClaimFor { incarnation: worker.incarnation, room, together: worker.terms.together };
                match self.store.claim(claim).await {
                    Ok(claimed) if !claimed.is_empty() => {
                        self.push(&worker, claimed).await;
                        continue;
                    }
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%error, "claim"),
                }
            }
            tokio::select! {
                () = worker.wake.notified() => {}
                () = tokio::time::sleep(POLL), if room > 0 => {}
                // Its words may go by way of other replicas, and their notices may be lost.
                () = tokio::time::sleep(LOOK_AT_FULL), if room == 0 => self.refresh(worker.incarnation).await,
                () = worker.closed.cancelled() => return,
            }
        }
    }

    async fn push(&self, worker: &Worker, claimed: Vec<Claimed>) {
        worker.with(|s| s.in_hand.extend(claimed.iter().map(|c| (c.turn_id, Instant::now()))));
        for turn in claimed {
            self.live.open(turn.turn_id, turn.conversation_id, worker.incarnation, turn.log_end);
            let turn_id = turn.turn_id;
            let push = self.complete(turn, worker.history).await;
            // It may have been cancelled since.
            if worker.with(|s| s.in_hand.contains_key(&turn_id)) {
                worker.send(ToWorker::Turn(Box::new(push)));
            }
        }
    }

    /// Adds the history that the worker asked for.
    async fn complete(&self, turn: Claimed, history: u32) -> TurnPush {
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
            conversation: turn.conversation,
            user: turn.user,
            agent: turn.agent,
            worker_group: turn.worker_group,
            platform: turn.routing.platform,
            platform_metadata: turn.routing.platform_metadata,
            message: turn.input,
            acked: turn.log_end,
            history: exchanges,
            traceparent: turn.traceparent,
        }
    }

    /// Compares what a worker holds with what the markers name; answers what to push again and what to stop.
    pub async fn compare(
        &self,
        incarnation: Incarnation,
        in_hand: &[TurnId],
        beat: BeatAnswer,
        history: u32,
    ) -> Result<HeartbeatAnswer, StoreError> {
        let (stop, lacking) = reconcile(in_hand, &beat.held);
        let worker = self.get(incarnation);
        let mut push = Vec::new();
        stop.iter().filter(|&&t| self.live.is_open(t, incarnation)).for_each(|&t| self.live.close(t));
        let lost = worker.as_ref().map(|w| w.count_lacking(&lacking)).unwrap_or_default();
        for &turn in &lost {
            let failure = Failure::detailed(Reason::AgentError, "the worker was pushed the turn and does not hold it");
            self.store.fail_lost_turn(turn, incarnation, &failure).await?;
        }
        if !lacking.is_empty() {
            for turn in self.store.turns_held_by(&lacking, incarnation).await? {
                self.live.open(turn.turn_id, turn.conversation_id, incarnation, turn.log_end);
                push.push(self.complete(turn, worker.as_ref().map_or(history, |w| w.history)).await);
            }
        }
        if let Some(worker) = worker {
            let held: HashSet<TurnId> = beat.held.iter().copied().collect();
            worker.with(|s| {
                // What was claimed between the database's answer and now is in hand too; all else that no marker names
                // (finished by way of another replica, say) is not.
                s.in_hand.retain(|t, since| held.contains(t) || since.elapsed() < JUST_CLAIMED);
                s.in_hand.extend(held.iter().map(|&t| (t, Instant::now())));
            });
            if beat.drain.is_some() {
                worker.stop_claiming();
            }
            worker.wake.notify_one();
        }
        Ok(HeartbeatAnswer { push, stop, drain: beat.drain })
    }

    /// Something happened to a worker from outside: tell it what it no longer owes, and whether it is to drain.
    pub async fn refresh(&self, incarnation: Incarnation) {
        let Some(worker) = self.get(incarnation) else { return };
        let in_hand: Vec<TurnId> = worker.with(|s| s.in_hand.keys().copied().collect());
        let state = match self.store.worker_state(incarnation).await {
            Ok(state) => state,
            // The next heartbeat tells the same.
            Err(error) => return tracing::debug!(%error, "refresh"),
        };
        let Some(beat) = state else {
            // Dead: its next call is answered 410.
            worker.says_goodbye();
            worker.closed.cancel();
            return;
        };
        let (stop, _) = reconcile(&in_hand, &beat.held);
        for &turn_id in &stop {
            self.live.close(turn_id);
            worker.send(ToWorker::Cancel { turn_id });
        }
        worker.let_go(&stop);
        if let Some(seconds) = beat.drain
            && !worker.with(|s| std::mem::replace(&mut s.draining, true))
        {
            worker.send(ToWorker::Drain { seconds });
        }
    }

    /// Forgets the logs of workers that have been away for a whole [`TIDY_EVERY`], until `shutdown`. They keep what is
    /// not durable, or are dead.
    pub async fn tidy(self, shutdown: CancellationToken) {
        let mut away: HashSet<TurnId> = HashSet::new();
        loop {
            tokio::select! {
                () = tokio::time::sleep(TIDY_EVERY) => {}
                () = shutdown.cancelled() => return,
            }
            let mut still_away = HashSet::new();
            for (turn, incarnation) in self.live.in_hand() {
                if self.get(incarnation).is_none() {
                    if away.contains(&turn) {
                        self.live.close(turn);
                    } else {
                        still_away.insert(turn);
                    }
                }
            }
            away = still_away;
        }
    }

    /// Closes every stream, as no cause for suspicion: the replica goes.
    pub fn close_all(&self) {
        self.with(|c| {
            c.values().for_each(|w| {
                w.says_goodbye();
                w.closed.cancel();
            })
        });
    }
}
