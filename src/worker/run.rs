//! The worker's main loop: which turns the worker holds, which of them run, and how it leaves. One task owns all of this
//! state; what it waits for (lines of the gateway, jobs that end, signals, times) meets in one `select!`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HeaderValue;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::adapter::TurnAdapter;
use super::client::{CallError, ProtocolClient};
use super::farewell::{self, Farewell};
use super::gateways::Gateways;
use super::job::{self, Handles, JobEnd};
use super::link::{ConnectedClient, Connection, FromGateway, Link};
use super::termination;
use crate::turn::cause::program;
use crate::turn::cause::stop::{self, Stopper};
use crate::turn::keys::{Incarnation, TurnId};
use crate::turn::reason::Reason;
use crate::turn::terminal::Outcome;
use crate::wire::{Connect, ToWorker, TurnPush};

/// How many turn ids are remembered, so that a turn that is pushed again is not run twice.
const REMEMBERED_TURNS: usize = 10_000;
/// With `together`: how long the worker waits for the other turns of a conversation after the first one was pushed. The
/// gateway pushes them one right after the other.
const GATHER: Duration = Duration::from_millis(20);
/// How long the worker waits, in the end, for programs that were told to stop and for last words that are on their way.
const LAST_MOMENTS: Duration = Duration::from_secs(5);
/// How long the turns in hand have to report that the adapter broke.
const BROKEN_SECONDS: u32 = 10;

/// What a worker is started with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the gateways are.
    pub gateways: Gateways,
    /// The header `Bearer …` of each call; a secret.
    pub authorization: HeaderValue,
    /// How many jobs may run at once.
    pub capacity: u32,
    /// How many past turns of the conversation are pushed with each turn.
    pub history: u32,
    /// Whether one reply answers all waiting turns of a conversation.
    pub together: bool,
    /// How long the turns in hand have to finish after a SIGTERM.
    pub drain_seconds: u32,
}

/// Why a worker ended.
#[derive(Debug)]
pub enum WorkerEnd {
    /// It has drained and said goodbye.
    Drained,
    /// The gateway has ended this incarnation: see [`CallError::is_fatal`].
    Dead(CallError),
    /// The adapter cannot run turns any more.
    Broken,
}

/// Runs turns until the worker has drained, after `shutdown` or an order of the gateway, or until the gateway ends this
/// incarnation.
pub async fn serve<A: TurnAdapter>(settings: Settings, adapter: Arc<A>, shutdown: CancellationToken) -> WorkerEnd {
    let incarnation = Incarnation::new();
    tracing::info!(%incarnation, "worker {incarnation} starts");
    let calls = ProtocolClient::new(settings.authorization.clone(), incarnation);
    let (link, link_seen) = watch::channel(Link::default());
    let (in_hand, in_hand_seen) = watch::channel(Vec::new());
    let (events_in, events) = mpsc::channel(64);
    let terms = Connect {
        capacity: settings.capacity,
        turns: String::new(),
        history: settings.history,
        together: settings.together,
    };
    let gateways = settings.gateways.clone();
    let connection =
        Connection { calls: calls.clone(), gateways, terms, in_hand: in_hand_seen, link, events: events_in };
    let _connection = AbortOnDropHandle::new(connection.spawn());
    let client = ConnectedClient { calls, link: link_seen };
    let worker = WorkerLoop {
        settings,
        adapter,
        client,
        in_hand,
        queue: VecDeque::new(),
        jobs: HashMap::new(),
        last_job: 0,
        tasks: JoinSet::new(),
        seen: SeenTurns::default(),
        leaving: None,
        gather: None,
    };
    worker.run(events, shutdown).await
}

struct WorkerLoop<A> {
    settings: Settings,
    adapter: Arc<A>,
    client: ConnectedClient,
    /// Tells the connection which turns the worker holds.
    in_hand: watch::Sender<Vec<TurnId>>,
    /// Turns that have not begun; each entry is what one job will answer.
    queue: VecDeque<Vec<TurnPush>>,
    /// The jobs that run, by a number of their own.
    jobs: HashMap<u64, RunningJob>,
    /// The number given last.
    last_job: u64,
    tasks: JoinSet<(u64, JobEnd)>,
    seen: SeenTurns,
    /// Set once the worker drains.
    leaving: Option<Leaving>,
    /// With `together`: when the turns gathered so far are to begin.
    gather: Option<Instant>,
}

/// A job that has begun.
struct RunningJob {
    conversation: String,
    turns: Vec<TurnId>,
    /// Those of `turns` that were stopped: the worker owes no last word on them.
    stopped: HashSet<TurnId>,
    handles: Handles,
}

/// How far the drain has come.
struct Leaving {
    /// When the jobs are to have finished; once they were killed, when the worker ends in any case.
    deadline: Instant,
    /// The programs that had not finished in time were told to stop.
    killed: bool,
    farewell: Farewell,
}

impl<A: TurnAdapter> WorkerLoop<A> {
    async fn run(mut self, mut events: mpsc::Receiver<FromGateway>, shutdown: CancellationToken) -> WorkerEnd {
        let adapter = self.adapter.clone();
        let broken = adapter.broken();
        tokio::pin!(broken);
        // Whether `shutdown` was acted on, so that it is not seen again at each turn of the loop.
        let (mut failure, mut told) = (None, false);
        loop {
            self.begin();
            self.publish();
            if self.may_leave() {
                break;
            }
            let wake = self.wake();
            tokio::select! {
                event = events.recv() => match event {
                    Some(FromGateway::Dead(error)) => return self.die(error).await,
                    Some(FromGateway::Line(line)) => self.on_line(*line),
                    Some(FromGateway::Answer(answer)) => {
                        answer.stop.into_iter().for_each(|turn| self.stop(turn));
                        answer.push.into_iter().for_each(|turn| self.take(turn));
                        if let Some(seconds) = answer.drain { self.leave(seconds, None) }
                    }
                    None => return WorkerEnd::Drained,
                },
                Some(ended) = self.tasks.join_next() => {
                    let (id, end) = ended.expect("a job's task neither panics nor is aborted");
                    if let Some(error) = self.ended(id, end) { return self.die(error).await }
                }
                () = shutdown.cancelled(), if !told => {
                    told = true;
                    self.leave(self.settings.drain_seconds, Some(stop::reason(Stopper::Signal)));
                }
                error = &mut broken, if failure.is_none() => {
                    tracing::error!(detail = error.detail, "the adapter is broken: {}", error.reason);
                    failure = Some(error);
                    self.leave(BROKEN_SECONDS, None);
                }
                said = farewell::said(self.leaving.as_mut().map(|l| &mut l.farewell)) => {
                    if let Err(error) = said { return self.die(error).await }
                }
                () = sleep_until(wake) => self.on_time(),
            }
        }
        farewell::gone(&self.client, &self.settings.gateways).await;
        match failure {
            Some(failure) => {
                termination::note(&failure);
                WorkerEnd::Broken
            }
            None => WorkerEnd::Drained,
        }
    }

    fn on_line(&mut self, line: ToWorker) {
        match line {
            ToWorker::Turn(turn) => self.take(*turn),
            ToWorker::Cancel { turn_id } => self.stop(turn_id),
            ToWorker::Drain { seconds } => self.leave(seconds, None),
            ToWorker::Hello(_) | ToWorker::Ping => {}
        }
    }

    /// Queues a pushed turn, unless it was pushed before.
    fn take(&mut self, turn: TurnPush) {
        let id = turn.turn_id;
        if !self.seen.add(id) {
            return;
        }
        if let Some(leaving) = &mut self.leaving {
            tracing::info!(turn = %id, "turn {id} came while draining: handed back");
            leaving.farewell.hand_back(id);
            return;
        }
        let mut groups = self.queue.iter_mut();
        match groups.find(|group| self.settings.together && group[0].conversation == turn.conversation) {
            Some(group) => group.push(turn),
            None => self.queue.push_back(vec![turn]),
        }
        if self.settings.together {
            self.gather.get_or_insert_with(|| Instant::now() + GATHER);
        }
    }

    /// Begins queued turns while there is capacity; one job a conversation at a time.
    fn begin(&mut self) {
        if self.gather.is_some() {
            return;
        }
        while self.jobs.len() < self.settings.capacity as usize {
            let busy = |turns: &Vec<TurnPush>| self.jobs.values().any(|job| job.conversation == turns[0].conversation);
            let Some(at) = self.queue.iter().position(|turns| !busy(turns)) else { return };
            let Some(turns) = self.queue.remove(at) else { return };
            let handles = Handles::new(turns[0].acked);
            let ids: Vec<TurnId> = turns.iter().map(|turn| turn.turn_id).collect();
            tracing::info!(turn = %ids[0], together = ids.len(), "turn {} begins", ids[0]);
            let id = self.add(turns[0].conversation.clone(), ids, handles.clone());
            let run = job::run(self.adapter.clone(), turns, handles, self.client.clone());
            self.tasks.spawn(async move { (id, run.await) });
        }
    }

    /// Enters a job, and returns its number.
    fn add(&mut self, conversation: String, turns: Vec<TurnId>, handles: Handles) -> u64 {
        self.last_job += 1;
        self.jobs.insert(self.last_job, RunningJob { conversation, turns, stopped: HashSet::new(), handles });
        self.last_job
    }

    /// Stops a turn on which the gateway expects no last word any more.
    fn stop(&mut self, turn: TurnId) {
        for group in &mut self.queue {
            group.retain(|queued| queued.turn_id != turn);
        }
        self.queue.retain(|group| !group.is_empty());
        let Some(job) = self.jobs.values_mut().find(|job| job.turns.contains(&turn)) else { return };
        job.stopped.insert(turn);
        let left: Vec<TurnId> = job.turns.iter().filter(|id| !job.stopped.contains(id)).copied().collect();
        // The job goes on for its other turns, unless this is its first one: the output is posted under the first turn's id.
        if !left.is_empty() && job.turns[0] != turn {
            return;
        }
        tracing::info!(turn = %turn, "turn {turn} is stopped");
        job.stopped.extend(left.iter().copied());
        job.handles.stop();
        if !left.is_empty() {
            let conversation = job.conversation.clone();
            self.say_failed(conversation, left);
        }
    }

    /// Reports an error as the last word on turns that were answered together with one that was stopped.
    fn say_failed(&mut self, conversation: String, turns: Vec<TurnId>) {
        let handles = Handles::new(0);
        handles.log.close(Outcome::Error(program::stopped_together()));
        let id = self.add(conversation, turns.clone(), handles.clone());
        let client = self.client.clone();
        self.tasks.spawn(async move { (id, job::report(turns, &handles, client).await) });
    }

    /// Removes a job that has ended. Returns an error if the gateway has ended this incarnation.
    fn ended(&mut self, id: u64, end: JobEnd) -> Option<CallError> {
        let job = self.jobs.remove(&id)?;
        let turn = job.turns[0];
        match end {
            JobEnd::Dead(error) => return Some(error),
            JobEnd::Said(result) => tracing::info!(%turn, ?result, "turn {turn} is over"),
            JobEnd::Unsaid => tracing::info!(%turn, "turn {turn} is over; nothing was to be said"),
        }
        None
    }

    /// Begins the drain; if it has begun, this may only bring its deadline forward. `reason` is set if a signal caused it.
    fn leave(&mut self, seconds: u32, reason: Option<Reason>) {
        let deadline = Instant::now() + Duration::from_secs(u64::from(seconds));
        if let Some(leaving) = &mut self.leaving {
            if !leaving.killed {
                leaving.deadline = leaving.deadline.min(deadline);
            }
            return;
        }
        tracing::info!(seconds, turns = self.jobs.len(), "draining");
        let mut farewell = Farewell::new(self.client.clone(), reason);
        for turn in self.queue.drain(..).flatten() {
            farewell.hand_back(turn.turn_id);
        }
        self.leaving = Some(Leaving { deadline, killed: false, farewell });
    }

    /// Whether the worker may end: everything was said, or the time is up.
    fn may_leave(&self) -> bool {
        let Some(leaving) = &self.leaving else { return false };
        let time_is_up = leaving.killed && Instant::now() >= leaving.deadline;
        time_is_up || self.jobs.is_empty() && (leaving.farewell.is_said() || leaving.killed)
    }

    /// When [`Self::on_time`] has something to do.
    fn wake(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let leaving = self.leaving.as_ref().map_or(far, |leaving| {
            let idle = self.jobs.is_empty();
            // Without turns, all that is left to wait for is a gateway that hears the goodbye.
            if idle { leaving.deadline.min(leaving.farewell.patience()) } else { leaving.deadline }
        });
        self.gather.map_or(leaving, |gather| gather.min(leaving))
    }

    /// Begins what was gathered, and kills what has not finished in time.
    fn on_time(&mut self) {
        let now = Instant::now();
        if self.gather.is_some_and(|at| at <= now) {
            self.gather = None;
        }
        let idle = self.jobs.is_empty();
        let Some(leaving) = &mut self.leaving else { return };
        let up = leaving.deadline <= now || idle && leaving.farewell.patience() <= now;
        if up && !leaving.killed {
            leaving.killed = true;
            leaving.deadline = now + LAST_MOMENTS;
            for job in self.jobs.values().filter(|job| !job.handles.log.is_closed()) {
                tracing::warn!(turn = %job.turns[0], "turn {} is not over when the drain is", job.turns[0]);
                job.handles.stop();
            }
        }
    }

    /// Stops all jobs without a further word, since the gateway has ended this incarnation.
    async fn die(mut self, error: CallError) -> WorkerEnd {
        tracing::error!("{error}: the worker stops");
        self.jobs.values().for_each(|job| job.handles.stop());
        let _ = tokio::time::timeout(LAST_MOMENTS, async { while self.tasks.join_next().await.is_some() {} }).await;
        WorkerEnd::Dead(error)
    }

    /// Tells the connection which turns are in hand: queued, running, or not yet handed back.
    fn publish(&self) {
        let mut turns: Vec<TurnId> = self.queue.iter().flatten().map(|turn| turn.turn_id).collect();
        for job in self.jobs.values() {
            turns.extend(job.turns.iter().filter(|turn| !job.stopped.contains(turn)));
        }
        turns.extend(self.leaving.iter().flat_map(|leaving| leaving.farewell.unsaid()));
        turns.sort_unstable();
        turns.dedup();
        self.in_hand.send_if_modified(|now| {
            let changed = *now != turns;
            *now = turns;
            changed
        });
    }
}

/// The ids of the turns that were pushed last, [`REMEMBERED_TURNS`] at most.
#[derive(Default)]
struct SeenTurns {
    ids: HashSet<TurnId>,
    order: VecDeque<TurnId>,
}

impl SeenTurns {
    /// Remembers a turn. Returns whether it is new.
    fn add(&mut self, turn: TurnId) -> bool {
        if !self.ids.insert(turn) {
            return false;
        }
        self.order.push_back(turn);
        if self.order.len() > REMEMBERED_TURNS
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}
