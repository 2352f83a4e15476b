//! Shows failed turns and failed starts as Kubernetes Events, on the Agent, and on the worker's pod where one is known.
//!
//! Events are aggregated: an object gets at most one Event per reason in ten seconds, and the Event says how many failures
//! there were. Whoever may view the namespace reads Events, so they carry the reason, the exit code and the turn's id, and never
//! the detail (stderr, a model's words), which is for operators. Failures are read from the database behind a cursor, so none is lost between two passes. Still, Events are a
//! help, not a record: around a change of leaders one may be missing or appear twice.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::client::{FIELD_MANAGER, bounded};
use super::clock::timestamp;
use crate::crd::{Agent, LastFailure};
use crate::every::{Again, Every};
use crate::leadership::Leadership;
use crate::store::{RecentFailure, Store, StoreError};
use crate::turn::keys::TurnId;
use crate::turn::reason::Reason;
use crate::turn::terminal::cut;

/// Between two passes.
const PERIOD: Duration = Duration::from_secs(2);
/// The shortest time between two Events of one object and reason.
const EVENT_PERIOD: Duration = Duration::from_secs(10);
/// How far back a new leader reads, and how far behind its cursor each pass reads again. It is longer than a transaction may
/// take, so that a failure whose transaction committed late is seen.
const READ_BACK: Duration = Duration::from_secs(15);
/// Failures of one kind that a pass reads at the most.
const MAX_OF_A_PASS: u32 = 1000;
/// The longest note of an Event, in bytes; Kubernetes refuses longer ones.
const MAX_NOTE: usize = 1024;
/// How many objects and reasons are remembered, or wait for an Event, at the most. Beyond it Events are dropped.
const MAX_KEPT: usize = 10_000;

/// The latest failure of each Agent, by the Agent's UID. The Agent's status shows it.
#[derive(Debug, Clone, Default)]
pub struct LastFailures(Arc<Mutex<HashMap<String, LastFailure>>>);

impl LastFailures {
    /// The latest failure of the Agent with this UID that this replica read since it leads.
    pub fn get(&self, uid: &str) -> Option<LastFailure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// Notes a failed turn. One whose Agent is deleted is left out.
    pub fn note(&self, failed: &RecentFailure) {
        let Some(uid) = &failed.agent_uid else { return };
        let failure = LastFailure {
            reason: failed.reason,
            code: failed.code,
            turn_id: TurnId(failed.id).to_string(),
            time: Time(whole_seconds(timestamp(failed.at))),
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < MAX_KEPT || all.contains_key(uid) {
            all.insert(uid.clone(), failure);
        }
    }

    /// Forgets the failures of Agents whose UIDs do not `exist`.
    pub fn keep(&self, exist: impl Fn(&str) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| exist(uid));
    }
}

/// A time in whole seconds, as Kubernetes keeps times. A status with a finer time would never equal the status that the API
/// server answers with, and would be patched again without end.
fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// Writes Events until `shutdown`, whenever this replica leads.
pub async fn run(
    store: Store,
    client: Client,
    failures: LastFailures,
    leadership: Leadership,
    shutdown: CancellationToken,
) {
    let lead_again = || lead(store.clone(), client.clone(), failures.clone(), shutdown.clone());
    tokio::select! {
        () = leadership.while_leading(lead_again) => {}
        () = shutdown.cancelled() => {}
    }
}

/// Writes Events until `shutdown`. The state is owned, so that the future is `Send`, which the compiler cannot prove of a pass
/// that borrows.
async fn lead(store: Store, client: Client, failures: LastFailures, shutdown: CancellationToken) {
    let recorder = Recorder::new(client, Reporter { controller: FIELD_MANAGER.into(), instance: None });
    let (reader, aggregator) = (FailureReader::default(), EventAggregator::default());
    let mut writer = EventWriter { store, failures, recorder, reader, aggregator };
    let passes = Every::new("reading failures for Events", PERIOD).at_once();
    passes.run(&shutdown, async move |_| writer.pass().await).await;
}

/// Writes Events, and notes the latest failures of Agents.
struct EventWriter {
    store: Store,
    failures: LastFailures,
    recorder: Recorder,
    reader: FailureReader,
    aggregator: EventAggregator,
}

impl EventWriter {
    async fn pass(&mut self) -> Result<Again, StoreError> {
        let read = self.reader.read(&self.store).await;
        if let Ok((turns, starts)) = &read {
            turns.iter().for_each(|failed| self.failures.note(failed));
            turns.iter().for_each(|failed| self.aggregator.add(RUN_TURN, failed));
            starts.iter().for_each(|failed| self.aggregator.add(START_WORKER, failed));
        }
        // Events that waited are written also while the database is away.
        for (object, event) in self.aggregator.take(Instant::now()) {
            if let Err(error) = bounded(self.recorder.publish(&event, &object)).await {
                // The Event is dropped. Its object may be gone; an API server that is away gets the next Events.
                tracing::debug!(%error, reason = event.reason, "an Event was not written");
            }
        }
        read.map(|_| Again::Later)
    }
}

/// Reads failures of both kinds, each failure once.
#[derive(Debug, Default)]
struct FailureReader {
    turns: FailureCursor,
    starts: FailureCursor,
}

/// How far failures of one kind were read.
#[derive(Debug, Default)]
struct FailureCursor {
    /// Failures up to this time of the database were read; `None`: none yet.
    at: Option<OffsetDateTime>,
    /// The failures that were read and may be read again, with their times.
    seen: HashMap<Uuid, OffsetDateTime>,
}

impl FailureCursor {
    /// The time from which the next pass reads.
    fn since(&self, now: OffsetDateTime) -> OffsetDateTime {
        self.at.unwrap_or(now) - READ_BACK
    }

    /// Notes a failure. True if it was not read before.
    fn is_new(&mut self, id: Uuid, at: OffsetDateTime) -> bool {
        self.seen.insert(id, at).is_none()
    }

    /// Moves on: everything up to `at` was read.
    fn advance(&mut self, at: OffsetDateTime) {
        self.at = Some(at);
        self.seen.retain(|_, seen| *seen >= at - 2 * READ_BACK);
    }

    /// Takes an answer of the database that was asked at `now`, and leaves in it what was not read before.
    fn only_new(&mut self, mut failed: Vec<RecentFailure>, now: OffsetDateTime) -> Vec<RecentFailure> {
        // An answer that is full may lack failures behind its last one, so the next pass reads from there.
        let full = failed.last().filter(|_| failed.len() >= MAX_OF_A_PASS as usize);
        let end = full.map_or(now, |last| last.at + READ_BACK);
        failed.retain(|one| self.is_new(one.id, one.at));
        self.advance(end);
        failed
    }
}

impl FailureReader {
    /// The turns and the starts that failed since the last reading.
    async fn read(&mut self, store: &Store) -> Result<(Vec<RecentFailure>, Vec<RecentFailure>), StoreError> {
        let now = store.database_time().await?;
        let turns = self.turns.only_new(store.failed_turns(self.turns.since(now), MAX_OF_A_PASS).await?, now);
        let starts = self.starts.only_new(store.failed_starts(self.starts.since(now), MAX_OF_A_PASS).await?, now);
        Ok((turns, starts))
    }
}

/// The field `action` of Events: what was tried and failed.
const RUN_TURN: &str = "RunTurn";
const START_WORKER: &str = "StartWorker";

/// What one Event tells of: failures of one object, action and reason.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct EventKey {
    /// `Agent` or `Pod`.
    kind: &'static str,
    namespace: String,
    name: String,
    uid: String,
    action: &'static str,
    reason: Reason,
}

/// Counts failures until their Event may be written.
#[derive(Debug, Default)]
struct EventAggregator {
    /// How many failures wait, and the note of the last one.
    waiting: HashMap<EventKey, (u32, String)>,
    /// When the last Event was written.
    written: HashMap<EventKey, Instant>,
}

impl EventAggregator {
    fn add(&mut self, action: &'static str, failed: &RecentFailure) {
        let key = |kind, namespace: &str, name: &str, uid: &str| EventKey {
            kind,
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.into(),
            action,
            reason: failed.reason,
        };
        let agent = failed.agent_uid.as_deref().map(|uid| key("Agent", &failed.organization, &failed.agent, uid));
        let pod = failed.pod.as_ref().and_then(|(reference, uid)| {
            let (namespace, name) = reference.split_once('/')?;
            Some(key("Pod", namespace, name, uid))
        });
        for key in [agent, pod].into_iter().flatten() {
            if self.waiting.len() >= MAX_KEPT {
                return;
            }
            let (count, last) = self.waiting.entry(key).or_default();
            *count += 1;
            *last = note(action, failed);
        }
    }

    /// Takes the Events that may be written at `now`, with the objects that they are about.
    fn take(&mut self, now: Instant) -> Vec<(ObjectReference, Event)> {
        self.written.retain(|_, at| now - *at < EVENT_PERIOD);
        let ready: Vec<_> = self.waiting.keys().filter(|key| !self.written.contains_key(*key)).cloned().collect();
        ready
            .into_iter()
            .filter_map(|key| {
                let (count, last) = self.waiting.remove(&key)?;
                self.written.insert(key.clone(), now);
                Some(to_event(key, count, &last))
            })
            .collect()
    }
}

/// What an Event says of one failure.
fn note(action: &str, failed: &RecentFailure) -> String {
    let what = if action == RUN_TURN { "turn" } else { "worker" };
    let code = failed.code.map(|code| format!(", exit code {code}")).unwrap_or_default();
    cut(format!("{what} {}: {}{code}", failed.id, failed.reason.as_str()), MAX_NOTE)
}

fn to_event(key: EventKey, count: u32, last: &str) -> (ObjectReference, Event) {
    let EventKey { kind, namespace, name, uid, action, reason } = key;
    let api_version = if kind == "Pod" { "v1".to_owned() } else { Agent::api_version(&()).into_owned() };
    let object = ObjectReference {
        api_version: Some(api_version),
        kind: Some(kind.into()),
        namespace: Some(namespace),
        name: Some(name),
        uid: Some(uid),
        ..ObjectReference::default()
    };
    let what = if action == RUN_TURN { "turns failed" } else { "workers did not start" };
    let note = if count == 1 { last.to_owned() } else { format!("{count} {what}; the last: {last}") };
    let event = Event {
        type_: EventType::Warning,
        reason: reason.as_str().into(),
        note: Some(cut(note, MAX_NOTE)),
        action: action.into(),
        secondary: None,
    };
    (object, event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_in_ten_seconds_tells_of_all() {
        let mut aggregator = EventAggregator::default();
        let pod = ("team/bot-1".to_owned(), "p".to_owned());
        let fail = |aggregator: &mut EventAggregator, code: Option<i32>| {
            let failed = RecentFailure {
                id: Uuid::nil(),
                organization: "team".into(),
                agent: "bot".into(),
                agent_uid: Some("u".into()),
                reason: Reason::WorkerExited,
                code,
                at: OffsetDateTime::UNIX_EPOCH,
                pod: Some(pod.clone()),
            };
            aggregator.add(RUN_TURN, &failed);
        };
        let start = Instant::now();
        fail(&mut aggregator, Some(1));
        let first = aggregator.take(start);
        assert_eq!(first.len(), 2, "on the Agent and on the pod");
        let turn = format!("turn {}", Uuid::nil());
        let said = format!("{turn}: WorkerExited, exit code 1");
        assert!(first.iter().all(|(_, event)| event.note.as_ref() == Some(&said)));
        assert!(first.iter().any(|(about, _)| about.kind.as_deref() == Some("Pod")));
        for code in 0..5 {
            fail(&mut aggregator, Some(code));
        }
        assert!(aggregator.take(start + EVENT_PERIOD / 2).is_empty());
        let later = aggregator.take(start + EVENT_PERIOD);
        assert_eq!(later.len(), 2);
        let said = format!("5 turns failed; the last: {turn}: WorkerExited, exit code 4");
        assert_eq!(later[0].1.note.as_ref(), Some(&said));
        fail(&mut aggregator, None);
        let said = format!("{turn}: WorkerExited");
        assert_eq!(aggregator.take(start + 3 * EVENT_PERIOD)[0].1.note.as_ref(), Some(&said));
    }

    #[test]
    fn a_failure_is_read_once_though_each_look_goes_back() {
        let mut cursor = FailureCursor::default();
        let (id, at) = (Uuid::now_v7(), OffsetDateTime::UNIX_EPOCH + 3 * READ_BACK);
        assert!(cursor.is_new(id, at));
        cursor.advance(at);
        assert!(!cursor.is_new(id, at) && cursor.since(at) == at - READ_BACK);
        cursor.advance(at + 3 * READ_BACK);
        assert!(cursor.seen.is_empty());
    }
}
