//! The worker's main loop: which turns are in hand, and how the worker leaves. One task owns all of this state.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HeaderValue;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use super::adapter::Adapter;
use super::client::{CallError, Client};
use super::farewell::{self, Farewell};
use super::job::{self, Handles, JobEnd, Reporter};
use super::link::{Connection, Event, Link};
use super::termination;
use crate::turn::cause::program;
use crate::turn::cause::stop::{self, Stopper};
use crate::turn::keys::{Incarnation, TurnId};
use crate::turn::reason::Reason;
use crate::turn::terminal::{Failure, Outcome};
use crate::wire::{Connect, ToWorker, TurnPush};

/// Turn ids that are remembered, so that none is run twice.
const REMEMBERED_TURNS: usize = 10_000;
/// With `together`: how long after a conversation's first turn its others are waited for.
const GATHER: Duration = Duration::from_millis(20);
/// How long programs that were told to stop, and last words on their way, are waited for in the end.
const LAST_MOMENTS: Duration = Duration::from_secs(5);
/// How long turns in hand may take to report that the adapter broke.
const BROKEN_SECONDS: u32 = 10;

/// What a worker is started with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Base URLs of worker ports; at least one.
    pub gateways: Vec<Url>,
    /// What they are called with.
    pub http: reqwest::Client,
    /// `Bearer …`; a secret.
    pub authorization: HeaderValue,
    /// Turns at once.
    pub capacity: u32,
    /// Past turns to be pushed with each.
    pub history: u32,
    /// One reply for all turns of a conversation that wait.
    pub together: bool,
    /// Time to finish what is in hand after SIGTERM.
    pub drain_seconds: u32,
}

/// Why a worker ended.
#[derive(Debug)]
pub enum Ended {
    /// Drained, and said goodbye.
    Drained,
    /// The gateway wants nothing of this incarnation any more.
    Dead(CallError),
    /// The adapter cannot run turns any more.
    Broken(Failure),
}

/// Runs turns until `shutdown`, a drain, or death.
pub async fn serve<A: Adapter>(settings: Settings, adapter: Arc<A>, shutdown: CancellationToken) -> Ended {
    let incarnation = Incarnation::new();
    tracing::info!(%incarnation, "worker {incarnation} starts");
    let client = Client::new(settings.http.clone(), settings.authorization.clone(), incarnation);
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
        Connection { client: client.clone(), gateways, terms, in_hand: in_hand_seen, link, events: events_in };
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection.run()));
    let reporter = Reporter { client, link: link_seen };
    let worker = Worker {
        settings,
        adapter,
        reporter,
        in_hand,
        queue: VecDeque::new(),
        jobs: HashMap::new(),
        next_job: 0,
        tasks: JoinSet::new(),
        seen: Seen::default(),
        leaving: None,
        gather: None,
    };
    worker.run(events, shutdown).await
}

struct Worker<A> {
    settings: Settings,
    adapter: Arc<A>,
    reporter: Reporter,
    in_hand: watch::Sender<Vec<TurnId>>,
    /// Not begun: each entry is what one job will answer.
    queue: VecDeque<Vec<TurnPush>>,
    jobs: HashMap<u64, Job>,
    next_job: u64,
    tasks: JoinSet<(u64, JobEnd)>,
    seen: Seen,
    leaving: Option<Leaving>,
    /// When to begin what is gathered.
    gather: Option<Instant>,
}

struct Job {
    conversation: String,
    turns: Vec<TurnId>,
    /// Those of `turns` that the gateway wants nothing of any more.
    stopped: HashSet<TurnId>,
    handles: Handles,
}

struct Leaving {
    deadline: Instant,
    /// The programs were told to stop.
    killed: bool,
    farewell: Farewell,
}

impl<A: Adapter> Worker<A> {
    async fn run(mut self, mut events: mpsc::Receiver<Event>, shutdown: CancellationToken) -> Ended {
        let adapter = self.adapter.clone();
        let broken = adapter.broken();
        tokio::pin!(broken);
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
                    Some(Event::Dead(error)) => return self.die(error).await,
                    Some(Event::Line(line)) => self.on_line(*line),
                    Some(Event::Answer(answer)) => {
                        answer.stop.into_iter().for_each(|turn| self.stop(turn));
                        answer.push.into_iter().for_each(|turn| self.take(turn));
                        if let Some(seconds) = answer.drain { self.leave(seconds, None) }
                    }
                    None => return Ended::Drained,
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
        farewell::gone(&self.reporter, &self.settings.gateways).await;
        if let Some(failure) = &failure {
            termination::note(failure);
        }
        failure.map_or(Ended::Drained, Ended::Broken)
    }

    fn on_line(&mut self, line: ToWorker) {
        match line {
            ToWorker::Turn(turn) => self.take(*turn),
            ToWorker::Cancel { turn_id } => self.stop(turn_id),
            ToWorker::Drain { seconds } => self.leave(seconds, None),
            ToWorker::Hello(_) | ToWorker::Ping => {}
        }
    }

    /// Queues a turn, unless it was pushed before.
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

    /// Begins what is queued, as far as the capacity goes.
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
            let run = job::run(self.adapter.clone(), turns, handles, self.reporter.clone());
            self.tasks.spawn(async move { (id, run.await) });
        }
    }

    fn add(&mut self, conversation: String, turns: Vec<TurnId>, handles: Handles) -> u64 {
        self.next_job += 1;
        self.jobs.insert(self.next_job, Job { conversation, turns, stopped: HashSet::new(), handles });
        self.next_job
    }

    /// The gateway wants nothing of this turn any more.
    fn stop(&mut self, turn: TurnId) {
        for group in &mut self.queue {
            group.retain(|queued| queued.turn_id != turn);
        }
        self.queue.retain(|group| !group.is_empty());
        let Some(job) = self.jobs.values_mut().find(|job| job.turns.contains(&turn)) else { return };
        job.stopped.insert(turn);
        let left: Vec<TurnId> = job.turns.iter().filter(|id| !job.stopped.contains(id)).copied().collect();
        // The output is the first turn's. Without that turn there is nowhere to put it.
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

    /// The last word on turns that were answered together with one that was stopped.
    fn say_failed(&mut self, conversation: String, turns: Vec<TurnId>) {
        let handles = Handles::new(0);
        handles.log.close(Outcome::Error(program::stopped_together()));
        let id = self.add(conversation, turns.clone(), handles.clone());
        let reporter = self.reporter.clone();
        self.tasks.spawn(async move { (id, job::report(turns, &handles, reporter).await) });
    }

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

    /// Begins to leave, or leaves sooner.
    fn leave(&mut self, seconds: u32, reason: Option<Reason>) {
        let deadline = Instant::now() + Duration::from_secs(u64::from(seconds));
        if let Some(leaving) = &mut self.leaving {
            if !leaving.killed {
                leaving.deadline = leaving.deadline.min(deadline);
            }
            return;
        }
        tracing::info!(seconds, turns = self.jobs.len(), "draining");
        let mut farewell = Farewell::new(self.reporter.clone(), reason);
        for turn in self.queue.drain(..).flatten() {
            farewell.hand_back(turn.turn_id);
        }
        self.leaving = Some(Leaving { deadline, killed: false, farewell });
    }

    /// Everything is said, or the time is up.
    fn may_leave(&self) -> bool {
        let Some(leaving) = &self.leaving else { return false };
        let time_is_up = leaving.killed && Instant::now() >= leaving.deadline;
        time_is_up || self.jobs.is_empty() && (leaving.farewell.is_said() || leaving.killed)
    }

    fn wake(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let leaving = self.leaving.as_ref().map_or(far, |leaving| {
            let idle = self.jobs.is_empty();
            // Nothing to wait for but a gateway that does not answer.
            if idle { leaving.deadline.min(leaving.farewell.patience()) } else { leaving.deadline }
        });
        self.gather.map_or(leaving, |gather| gather.min(leaving))
    }

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

    /// Stops everything and says nothing more.
    async fn die(mut self, error: CallError) -> Ended {
        tracing::error!("{error}: the worker stops");
        self.jobs.values().for_each(|job| job.handles.stop());
        let _ = tokio::time::timeout(LAST_MOMENTS, async { while self.tasks.join_next().await.is_some() {} }).await;
        Ended::Dead(error)
    }

    /// Tells the heartbeat what is in hand.
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

/// The last turn ids that were pushed.
#[derive(Default)]
struct Seen {
    ids: HashSet<TurnId>,
    order: VecDeque<TurnId>,
}

impl Seen {
    /// Whether it is new.
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
