//! The loop that carries steps out: it hears the watch, the store and the clock, tells the table, and does what that says,
//! a bounded number at a time.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use k8s_openapi::jiff::Timestamp;
use kube::api::DynamicObject;
use kube::runtime::watcher::Event;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::act::{Done, Hands};
use super::audit;
use super::entry::Now;
use super::object::Object;
use super::table::Table;
use crate::crd::AgentTurn;
use crate::operator::watch;
use crate::store::{AgentTurnState, StoreError};
use crate::turn::keys::TurnId;
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// Steps at a time: enough to fill an arm's batch, and an API server's share.
const CONCURRENCY: usize = 64;
/// Looks for terminals, and for turns that run by now, at least this often.
const POLL: Duration = Duration::from_secs(1);
/// Between two looks for terminals, however many wake-ups come.
const SPACING: Duration = Duration::from_millis(20);
/// Looks for objects that vanished unseen this often.
const AUDIT: Duration = Duration::from_secs(60);
/// Terminals that are claimed and not yet written, at the most: what holds replies in memory.
const MAX_OWED: usize = 256;
/// A claim of a terminal: longer than a call to the API server and its repeat.
const CLAIM_SECONDS: u32 = 30;
/// Terminals wait this long for the first lists: one of a namespace that cannot be listed must not hold up the others.
const LISTS_WITHIN: Duration = Duration::from_secs(10);
/// Turns of one question to the store, and objects of one transaction.
const PART: usize = 500;
const FORGET_PART: usize = 100;
/// The pause after the database refused.
const RETRY: Duration = Duration::from_millis(500);

/// What wakes the loop besides the watch.
#[derive(Debug, Clone, Default)]
pub struct Wakes {
    /// A turn may have ended.
    pub terminals: Arc<Notify>,
    /// An Agent came, went or changed.
    pub agents: Arc<Notify>,
}

/// What the store says of statuses that owe a terminal, with the objects' UIDs, and when it was asked.
type Told = (Vec<(Arc<str>, AgentTurnState)>, OffsetDateTime);

/// What a job came to.
enum Report {
    Step(Arc<str>, Done),
    Due(Result<(Vec<AgentTurnState>, OffsetDateTime), StoreError>),
    Told(Result<Told, StoreError>),
    Forgot(Vec<(String, String)>, Result<usize, StoreError>),
    Settled(Vec<TurnId>, Result<(), StoreError>),
    PutOff(Vec<TurnId>, Result<(), StoreError>),
    Audited(Result<Vec<(String, String)>, StoreError>),
}

/// Jobs of which one runs at a time.
#[derive(Default)]
struct UnderWay {
    steps: usize,
    due: bool,
    told: bool,
    forgetting: bool,
    settling: bool,
    putting_off: bool,
    auditing: bool,
}

struct Driver {
    hands: Hands,
    namespaces: Arc<[String]>,
    table: Table,
    jobs: JoinSet<Report>,
    under_way: UnderWay,
    /// Watches whose first list is not complete yet, and until when it is waited for: an object that is not known would be
    /// looked for by itself.
    lists: HashSet<usize>,
    lists_until: Instant,
    look_due: bool,
    ask: bool,
    audit: bool,
    /// The database refused; not before.
    rest_until: Option<Instant>,
}

/// Serves the AgentTurns of these namespaces; runs until it is dropped, which is when this replica no longer leads.
pub async fn run(hands: Hands, namespaces: Arc<[String]>, wakes: Wakes) {
    let apis = watch::apis::<AgentTurn>(&hands.client, &namespaces);
    let lists = (0..apis.len()).collect();
    let mut events = pin!(watch::watch(apis));
    let mut driver = Driver {
        hands,
        namespaces,
        table: Table::default(),
        jobs: JoinSet::new(),
        under_way: UnderWay::default(),
        lists,
        lists_until: Instant::now() + LISTS_WITHIN,
        look_due: false,
        ask: false,
        audit: false,
        rest_until: None,
    };
    let (mut poll, mut audit) = (interval(POLL), interval(AUDIT));
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut spaced = interval(SPACING);
    spaced.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        driver.start();
        let timer = driver.table.next_timer().map(tokio::time::Instant::from_std);
        tokio::select! {
            Some((scope, event)) = events.next() => driver.hear(scope, event),
            Some(report) = driver.jobs.join_next() => driver.report(report),
            () = wait(timer), if timer.is_some() => driver.table.fire(now()),
            () = async { spaced.tick().await; wakes.terminals.notified().await } => driver.look_due = true,
            () = wakes.agents.notified() => driver.table.agents_changed(now()),
            _ = poll.tick() => driver.poll(),
            _ = audit.tick() => driver.audit = true,
        }
    }
}

async fn wait(until: Option<tokio::time::Instant>) {
    if let Some(until) = until {
        tokio::time::sleep_until(until).await;
    }
}

fn now() -> Now {
    Now { instant: Instant::now(), wall: Timestamp::now() }
}

impl Driver {
    fn hear(&mut self, scope: usize, event: Event<DynamicObject>) {
        match event {
            Event::Init => self.table.list_begins(scope),
            Event::InitApply(object) | Event::Apply(object) => {
                if let Some(object) = Object::read(object) {
                    self.table.seen(scope, object, now());
                }
            }
            Event::Delete(object) => {
                if let Some(object) = Object::read(object) {
                    self.table.deleted(&object);
                }
            }
            Event::InitDone => {
                self.table.list_ends(scope);
                self.lists.remove(&scope);
                // What went while nobody watched, a former leader neither.
                self.audit = true;
            }
        }
    }

    fn poll(&mut self) {
        (self.look_due, self.ask) = (true, true);
        if self.table.owed() >= MAX_OWED {
            self.table.make_room();
        }
    }

    /// Starts whatever may run.
    fn start(&mut self) {
        while self.under_way.steps < CONCURRENCY {
            let Some((object, step)) = self.table.next(now()) else { break };
            self.under_way.steps += 1;
            let hands = self.hands.clone();
            self.jobs.spawn(async move {
                let uid = object.uid.clone();
                let bug = |_| Done::Again("a step panicked; this is a bug in Lastword".into());
                let done = AssertUnwindSafe(hands.act(object, step)).catch_unwind().await.unwrap_or_else(bug);
                Report::Step(uid, done)
            });
        }
        if self.rest_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.start_due();
        self.start_questions();
        self.start_forgetting();
        self.start_settling();
        self.start_putting_off();
        self.start_audit();
    }

    fn start_due(&mut self) {
        let room = MAX_OWED.saturating_sub(self.table.owed());
        let listing = !self.lists.is_empty() && Instant::now() < self.lists_until;
        if !self.look_due || self.under_way.due || listing || room == 0 {
            return;
        }
        (self.look_due, self.under_way.due) = (false, true);
        let (store, by) = (self.hands.store.clone(), self.hands.submitter.gateway);
        let namespaces = self.namespaces.clone();
        let due = async move {
            let turns = store.take_agent_turn_deliveries(&namespaces, by, CLAIM_SECONDS, room as u32).await?;
            Ok((store.agent_turn_states(&turns).await?, store.database_time().await?))
        };
        self.spawn(due, Report::Due);
    }

    fn start_questions(&mut self) {
        if !self.ask || self.under_way.told {
            return;
        }
        let (mut unchecked, armed) = self.table.questions();
        // Any of them may have ended, and its text is held until it is shown.
        let room = MAX_OWED.saturating_sub(self.table.owed());
        self.ask = unchecked.len() > room && room > 0;
        unchecked.truncate(room);
        if unchecked.is_empty() && armed.is_empty() {
            return;
        }
        self.under_way.told = true;
        let store = self.hands.store.clone();
        let told = async move {
            let uids: HashMap<TurnId, Arc<str>> = unchecked.iter().chain(&armed).cloned().collect();
            let turns = |part: &[(TurnId, Arc<str>)]| part.iter().map(|(turn, _)| *turn).collect::<Vec<_>>();
            let mut states = store.agent_turn_states(&turns(&unchecked)).await?;
            for part in armed.chunks(PART) {
                states.extend(store.moved_agent_turns(&turns(part)).await?);
                if states.len() > PART {
                    break;
                }
            }
            let told = states.into_iter().filter_map(|s| Some((uids.get(&s.turn_id)?.clone(), s))).collect();
            Ok((told, store.database_time().await?))
        };
        self.spawn(told, Report::Told);
    }

    fn start_forgetting(&mut self) {
        if self.table.gone.is_empty() || self.under_way.forgetting {
            return;
        }
        self.under_way.forgetting = true;
        let part = self.table.gone.len().saturating_sub(FORGET_PART);
        let gone = self.table.gone.split_off(part);
        let (store, kept) = (self.hands.store.clone(), gone.clone());
        let forgot = async move {
            let cancelled = Failure::detailed(Reason::Cancelled, "its AgentTurn was deleted");
            store.forget_agent_turns(&gone, &cancelled).await
        };
        self.spawn(forgot, |forgot| Report::Forgot(kept, forgot));
    }

    fn start_settling(&mut self) {
        if self.table.settled.is_empty() || self.under_way.settling {
            return;
        }
        self.under_way.settling = true;
        let part = self.table.settled.len().saturating_sub(PART);
        let turns = self.table.settled.split_off(part);
        let (store, kept) = (self.hands.store.clone(), turns.clone());
        let settled = async move { store.remove_agent_turn_deliveries(&turns).await };
        self.spawn(settled, |settled| Report::Settled(kept, settled));
    }

    fn start_putting_off(&mut self) {
        if self.table.put_off.is_empty() || self.under_way.putting_off {
            return;
        }
        self.under_way.putting_off = true;
        let part = self.table.put_off.len().saturating_sub(PART);
        let turns = self.table.put_off.split_off(part);
        let (store, kept) = (self.hands.store.clone(), turns.clone());
        let put_off = async move { store.put_off_agent_turn_deliveries(&turns).await };
        self.spawn(put_off, |put_off| Report::PutOff(kept, put_off));
    }

    /// Runs a job on the store. One that panics is reported as one that failed: else nobody would do its work again.
    fn spawn<T, J, R>(&mut self, job: J, report: R)
    where
        J: Future<Output = Result<T, StoreError>> + Send + 'static,
        R: FnOnce(Result<T, StoreError>) -> Report + Send + 'static,
    {
        self.jobs.spawn(async move {
            let bug = |_| Err(StoreError::Bug("a job panicked".into()));
            report(AssertUnwindSafe(job).catch_unwind().await.unwrap_or_else(bug))
        });
    }

    fn start_audit(&mut self) {
        if !self.audit || self.under_way.auditing {
            return;
        }
        (self.audit, self.under_way.auditing) = (false, true);
        let (hands, namespaces) = (self.hands.clone(), self.namespaces.clone());
        let missing = async move { audit::missing(&hands, &namespaces).await };
        self.spawn(missing, Report::Audited);
    }

    fn report(&mut self, report: Result<Report, tokio::task::JoinError>) {
        let report = match report {
            Ok(report) => report,
            Err(error) => {
                tracing::error!(%error, "a job for AgentTurns panicked; this is a bug in Lastword");
                return;
            }
        };
        match report {
            Report::Step(uid, done) => {
                self.under_way.steps -= 1;
                self.table.done(&uid, done, now());
            }
            Report::Due(due) => {
                self.under_way.due = false;
                if let Some((states, at)) = self.unless_away(due) {
                    // There may be more than were taken.
                    self.look_due |= !states.is_empty();
                    self.table.due(states, at, now());
                } else {
                    self.look_due = true;
                }
            }
            Report::Told(told) => {
                self.under_way.told = false;
                if let Some((told, at)) = self.unless_away(told) {
                    self.table.told(told, at, now());
                }
            }
            Report::Forgot(gone, forgot) => {
                self.under_way.forgetting = false;
                if self.unless_away(forgot).is_none() {
                    self.table.gone.extend(gone);
                }
            }
            Report::Settled(turns, settled) => {
                self.under_way.settling = false;
                if self.unless_away(settled).is_none() {
                    self.table.settled.extend(turns);
                }
            }
            Report::PutOff(turns, put_off) => {
                self.under_way.putting_off = false;
                if self.unless_away(put_off).is_none() {
                    self.table.put_off.extend(turns);
                }
            }
            Report::Audited(audited) => {
                self.under_way.auditing = false;
                match audited {
                    Ok(missing) => self.table.gone.extend(missing),
                    Err(error) => tracing::debug!(%error, "AgentTurns that vanished unseen are looked for later"),
                }
                self.table.doubt();
            }
        }
    }

    /// The store's answer; without one, all asking of it rests, and what vanished meanwhile is looked for afterwards.
    fn unless_away<T>(&mut self, answer: Result<T, StoreError>) -> Option<T> {
        match answer {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::debug!(%error, "AgentTurns wait for the database");
                self.rest_until = Some(Instant::now() + RETRY);
                self.audit = true;
                None
            }
        }
    }
}
