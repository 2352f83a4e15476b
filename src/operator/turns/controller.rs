//! The loop of the AgentTurns' controller: it hears the watch, the store and the clock, tells the work queue, and runs what
//! the queue hands out, a bounded number of jobs at a time.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use kube::api::DynamicObject;
use kube::runtime::watcher::Event;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval};

use super::audit;
use super::object::TurnObject;
use super::reconcile::{TurnContext, reconcile};
use super::tracked::{TurnReconciled, Uid};
use super::work_queue::WorkQueue;
use crate::crd::AgentTurn;
use crate::operator::clock::Now;
use crate::operator::watch;
use crate::store::{AgentTurnState, StoreError};
use crate::turn::cause;
use crate::turn::keys::TurnId;

/// Operations at a time: enough to fill a batch of arms, and AgentTurns' share of the API server.
const CONCURRENCY: usize = 64;
/// Turns that ended, and turns that were claimed, are looked for at least this often.
const POLL_PERIOD: Duration = Duration::from_secs(1);
/// The shortest time between two searches for turns that ended, however many wake-ups come.
const WAKE_UP_SPACING: Duration = Duration::from_millis(20);
/// Objects that were deleted unseen are looked for this often, and after each complete list.
const AUDIT_PERIOD: Duration = Duration::from_secs(60);
/// Terminals that are claimed and not written yet, at the most. It bounds the replies that are held in memory.
const MAX_OWED: usize = 256;
/// For how long a terminal's delivery is claimed, in seconds: longer than a call to the API server and its repeat.
const CLAIM_SECONDS: u32 = 30;
/// How long terminals wait for the first lists. A namespace that cannot be listed must not hold up the others.
const FIRST_LISTS_WITHIN: Duration = Duration::from_secs(10);
/// Turns of one question to the store.
const TURNS_OF_A_QUERY: usize = 500;
/// Objects of one transaction that cancels the turns of deleted objects.
const OBJECTS_OF_A_TRANSACTION: usize = 100;
/// The pause after the database failed.
const RETRY: Duration = Duration::from_millis(500);

/// What wakes the controller besides the watch.
#[derive(Debug, Clone, Default)]
pub struct WakeUps {
    /// A turn may have ended.
    pub terminals: Arc<Notify>,
    /// An Agent was added, changed or removed.
    pub agents: Arc<Notify>,
}

/// States of turns, and the database's time at which they were read.
type States = (Vec<AgentTurnState>, OffsetDateTime);
/// The same with the UIDs of the turns' objects.
type StatesByObject = (Vec<(Uid, AgentTurnState)>, OffsetDateTime);

/// A job that ended, and what it came to.
enum FinishedJob {
    /// An operation for the object of this UID.
    Operation(Uid, TurnReconciled),
    /// Deliveries were claimed.
    Claimed(Result<States, JobError>),
    /// States that the work queue asked for were read.
    Read(Result<StatesByObject, JobError>),
    /// The turns of these deleted objects (namespace, UID) were cancelled.
    Forgotten(Vec<(String, String)>, Result<usize, JobError>),
    /// The deliveries of these turns, whose terminals are shown, were removed.
    Delivered(Vec<TurnId>, Result<(), JobError>),
    /// The deliveries of these turns were put off.
    Postponed(Vec<TurnId>, Result<(), JobError>),
    /// Objects (namespace, UID) that were deleted unseen were looked for.
    Audited(Result<Vec<(String, String)>, JobError>),
}

/// Why a job on the store failed.
#[derive(Debug, thiserror::Error)]
enum JobError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a job panicked; this is a bug in Lastword")]
    Panicked,
}

/// The jobs that are under way. Of each kind but operations there is one at a time.
#[derive(Default)]
struct UnderWay {
    operations: usize,
    claiming: bool,
    reading: bool,
    forgetting: bool,
    delivering: bool,
    postponing: bool,
    auditing: bool,
}

struct TurnController {
    context: TurnContext,
    namespaces: Arc<[String]>,
    queue: WorkQueue,
    jobs: JoinSet<FinishedJob>,
    under_way: UnderWay,
    /// Watches whose first list is not complete yet. Until it is, or until `lists_until`, no terminals are claimed: each would
    /// cost a call to read its object.
    lists: HashSet<usize>,
    lists_until: Instant,
    /// Whether turns that ended are to be looked for.
    claim_due: bool,
    /// Whether states of turns are to be read.
    read_due: bool,
    /// Whether objects that were deleted unseen are to be looked for.
    audit_due: bool,
    /// The database failed and is not asked before this time.
    rest_until: Option<Instant>,
}

/// Serves the AgentTurns of these namespaces until it is dropped, which happens when this replica no longer leads.
pub async fn run(context: TurnContext, namespaces: Arc<[String]>, wake_ups: WakeUps) {
    let apis = watch::apis::<AgentTurn>(&context.client, &namespaces);
    let lists = (0..apis.len()).collect();
    let mut events = pin!(watch::watch(apis));
    let mut controller = TurnController {
        context,
        namespaces,
        queue: WorkQueue::default(),
        jobs: JoinSet::new(),
        under_way: UnderWay::default(),
        lists,
        lists_until: Instant::now() + FIRST_LISTS_WITHIN,
        claim_due: false,
        read_due: false,
        audit_due: false,
        rest_until: None,
    };
    let (mut poll, mut audit) = (interval(POLL_PERIOD), interval(AUDIT_PERIOD));
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut spaced = interval(WAKE_UP_SPACING);
    spaced.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        controller.start();
        let timer = controller.queue.next_timer().map(tokio::time::Instant::from_std);
        tokio::select! {
            Some((scope, event)) = events.next() => controller.apply(scope, event),
            Some(finished) = controller.jobs.join_next() => controller.finish(finished),
            () = sleep_until(timer), if timer.is_some() => controller.queue.run_timers(Now::read()),
            () = async { spaced.tick().await; wake_ups.terminals.notified().await } => controller.claim_due = true,
            () = wake_ups.agents.notified() => controller.queue.agents_changed(Now::read()),
            _ = poll.tick() => controller.poll(),
            _ = audit.tick() => controller.audit_due = true,
        }
    }
}

async fn sleep_until(time: Option<tokio::time::Instant>) {
    if let Some(time) = time {
        tokio::time::sleep_until(time).await;
    }
}

/// Takes up to `size` items off the end of a list.
fn take_part<T>(list: &mut Vec<T>, size: usize) -> Vec<T> {
    list.split_off(list.len().saturating_sub(size))
}

impl TurnController {
    /// Takes in an event of a watch.
    fn apply(&mut self, scope: usize, event: Event<DynamicObject>) {
        match event {
            Event::Init => self.queue.list_begins(scope),
            Event::InitApply(object) | Event::Apply(object) => {
                if let Some(object) = TurnObject::read(object) {
                    self.queue.apply(scope, object, Now::read());
                }
            }
            Event::Delete(object) => {
                if let Some(object) = TurnObject::read(object) {
                    self.queue.object_deleted(&object);
                }
            }
            Event::InitDone => {
                self.queue.list_ends(scope);
                self.lists.remove(&scope);
                // The queue knows of no object that was deleted before this replica led: those are found by the audit.
                self.audit_due = true;
            }
        }
    }

    fn poll(&mut self) {
        (self.claim_due, self.read_due) = (true, true);
        if self.queue.owed() >= MAX_OWED {
            self.queue.make_room();
        }
    }

    /// Starts the jobs that are due and may run.
    fn start(&mut self) {
        while self.under_way.operations < CONCURRENCY {
            let Some((object, operation)) = self.queue.pop(Now::read()) else { break };
            self.under_way.operations += 1;
            let context = self.context.clone();
            self.jobs.spawn(async move {
                let uid = object.uid.clone();
                let operation = AssertUnwindSafe(reconcile(object, operation, &context)).catch_unwind();
                let bug = |_| TurnReconciled::Requeue("an operation panicked; this is a bug in Lastword".into());
                FinishedJob::Operation(uid, operation.await.unwrap_or_else(bug))
            });
        }
        if self.rest_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.start_claiming();
        self.start_reading();
        self.start_forgetting();
        self.start_delivering();
        self.start_postponing();
        self.start_audit();
    }

    /// Claims deliveries of turns that ended, as many as there is room for.
    fn start_claiming(&mut self) {
        let room = MAX_OWED.saturating_sub(self.queue.owed());
        let listing = !self.lists.is_empty() && Instant::now() < self.lists_until;
        if !self.claim_due || self.under_way.claiming || listing || room == 0 {
            return;
        }
        (self.claim_due, self.under_way.claiming) = (false, true);
        let (store, by) = (self.context.store.clone(), self.context.submitter.gateway);
        let namespaces = self.namespaces.clone();
        let claim = async move {
            let turns = store.take_agent_turn_deliveries(&namespaces, by, CLAIM_SECONDS, room as u32).await?;
            Ok((store.agent_turn_states(&turns).await?, store.database_time().await?))
        };
        self.spawn(claim, FinishedJob::Claimed);
    }

    /// Reads the states of turns that the work queue asks for.
    fn start_reading(&mut self) {
        if !self.read_due || self.under_way.reading {
            return;
        }
        let (mut unchecked, armed) = self.queue.to_ask_for();
        // Each of the unchecked turns may have ended, and then its text is held in memory until it is shown.
        let room = MAX_OWED.saturating_sub(self.queue.owed());
        self.read_due = unchecked.len() > room && room > 0;
        unchecked.truncate(room);
        if unchecked.is_empty() && armed.is_empty() {
            return;
        }
        self.under_way.reading = true;
        let store = self.context.store.clone();
        let read = async move {
            let uids: HashMap<TurnId, Uid> = unchecked.iter().chain(&armed).cloned().collect();
            let turns = |part: &[(TurnId, Uid)]| part.iter().map(|(turn, _)| *turn).collect::<Vec<_>>();
            let mut states = store.agent_turn_states(&turns(&unchecked)).await?;
            for part in armed.chunks(TURNS_OF_A_QUERY) {
                states.extend(store.moved_agent_turns(&turns(part)).await?);
                if states.len() > TURNS_OF_A_QUERY {
                    break;
                }
            }
            let states = states.into_iter().filter_map(|s| Some((uids.get(&s.turn_id)?.clone(), s))).collect();
            Ok((states, store.database_time().await?))
        };
        self.spawn(read, FinishedJob::Read);
    }

    /// Cancels the turns of deleted objects, and removes the ties.
    fn start_forgetting(&mut self) {
        if self.queue.deleted.is_empty() || self.under_way.forgetting {
            return;
        }
        self.under_way.forgetting = true;
        let objects = take_part(&mut self.queue.deleted, OBJECTS_OF_A_TRANSACTION);
        let (store, kept) = (self.context.store.clone(), objects.clone());
        let forget = async move {
            let cancelled = cause::rule::object_deleted();
            Ok(store.forget_agent_turns(&objects, &cancelled).await?)
        };
        self.spawn(forget, |forgotten| FinishedJob::Forgotten(kept, forgotten));
    }

    /// Removes the deliveries of turns whose terminals their objects show.
    fn start_delivering(&mut self) {
        if self.queue.shown.is_empty() || self.under_way.delivering {
            return;
        }
        self.under_way.delivering = true;
        let turns = take_part(&mut self.queue.shown, TURNS_OF_A_QUERY);
        let (store, kept) = (self.context.store.clone(), turns.clone());
        let deliver = async move { Ok(store.remove_agent_turn_deliveries(&turns).await?) };
        self.spawn(deliver, |delivered| FinishedJob::Delivered(kept, delivered));
    }

    /// Puts off the deliveries of turns whose terminals cannot be shown now.
    fn start_postponing(&mut self) {
        if self.queue.postponed.is_empty() || self.under_way.postponing {
            return;
        }
        self.under_way.postponing = true;
        let turns = take_part(&mut self.queue.postponed, TURNS_OF_A_QUERY);
        let (store, kept) = (self.context.store.clone(), turns.clone());
        let postpone = async move { Ok(store.put_off_agent_turn_deliveries(&turns).await?) };
        self.spawn(postpone, |postponed| FinishedJob::Postponed(kept, postponed));
    }

    /// Looks for objects that were deleted unseen.
    fn start_audit(&mut self) {
        if !self.audit_due || self.under_way.auditing {
            return;
        }
        (self.audit_due, self.under_way.auditing) = (false, true);
        let (context, namespaces) = (self.context.clone(), self.namespaces.clone());
        let missing = async move { Ok(audit::missing(&context, &namespaces).await?) };
        self.spawn(missing, FinishedJob::Audited);
    }

    /// Runs a job on the store. A job that panics is reported as one that failed, since otherwise its work would never be
    /// tried again.
    fn spawn<T, J, R>(&mut self, job: J, finished: R)
    where
        J: Future<Output = Result<T, JobError>> + Send + 'static,
        R: FnOnce(Result<T, JobError>) -> FinishedJob + Send + 'static,
    {
        self.jobs.spawn(async move {
            finished(AssertUnwindSafe(job).catch_unwind().await.unwrap_or(Err(JobError::Panicked)))
        });
    }

    /// Takes in what a job came to.
    fn finish(&mut self, finished: Result<FinishedJob, JoinError>) {
        let finished = match finished {
            Ok(finished) => finished,
            Err(error) => {
                tracing::error!(%error, "a job for AgentTurns panicked; this is a bug in Lastword");
                return;
            }
        };
        match finished {
            FinishedJob::Operation(uid, result) => {
                self.under_way.operations -= 1;
                self.queue.reconciled(&uid, result, Now::read());
            }
            FinishedJob::Claimed(claimed) => {
                self.under_way.claiming = false;
                if let Some((states, at)) = self.unless_failed(claimed) {
                    // There may be more than were claimed at once.
                    self.claim_due |= !states.is_empty();
                    self.queue.deliveries_due(states, at, Now::read());
                } else {
                    self.claim_due = true;
                }
            }
            FinishedJob::Read(read) => {
                self.under_way.reading = false;
                if let Some((states, at)) = self.unless_failed(read) {
                    self.queue.states_read(states, at, Now::read());
                }
            }
            FinishedJob::Forgotten(objects, forgotten) => {
                self.under_way.forgetting = false;
                if self.unless_failed(forgotten).is_none() {
                    self.queue.deleted.extend(objects);
                }
            }
            FinishedJob::Delivered(turns, delivered) => {
                self.under_way.delivering = false;
                if self.unless_failed(delivered).is_none() {
                    self.queue.shown.extend(turns);
                }
            }
            FinishedJob::Postponed(turns, postponed) => {
                self.under_way.postponing = false;
                if self.unless_failed(postponed).is_none() {
                    self.queue.postponed.extend(turns);
                }
            }
            FinishedJob::Audited(audited) => {
                self.under_way.auditing = false;
                match audited {
                    Ok(missing) => self.queue.deleted.extend(missing),
                    Err(error) => tracing::debug!(%error, "AgentTurns that vanished unseen are looked for later"),
                }
                self.queue.recheck_all();
            }
        }
    }

    /// A job's result. After a failure no new jobs on the store are started for a while, and objects that are deleted
    /// meanwhile are looked for afterwards.
    fn unless_failed<T>(&mut self, result: Result<T, JobError>) -> Option<T> {
        match result {
            Ok(result) => Some(result),
            Err(error) => {
                tracing::debug!(%error, "AgentTurns wait for the database");
                self.rest_until = Some(Instant::now() + RETRY);
                self.audit_due = true;
                None
            }
        }
    }
}
