//! Failures as Kubernetes Events: on the Agent, and on the worker's pod where one is known.
//!
//! Aggregated: for an Agent (or a pod) and a reason one Event at most every ten seconds, which says how many there were.
//! They are read behind a cursor over what failed, so nothing is lost between two looks; Events are a help, not a record:
//! around a change of leaders one may be missing or twice.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use time::OffsetDateTime;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::MANAGER;
use super::call::bounded;
use super::turns::stamp;
use crate::crd::{Agent, LastFailure};
use crate::leadership::Leadership;
use crate::store::{RecentFailure, Store, StoreError};
use crate::turn::keys::TurnId;
use crate::turn::reason::Reason;
use crate::turn::terminal::cut;

/// Looks at what failed this often.
const LOOK: Duration = Duration::from_secs(2);
/// Between two Events of one object and reason.
const APART: Duration = Duration::from_secs(10);
/// A new leader looks back this far. Longer than a transaction may take, so that what commits late is seen: each look
/// goes back as far.
const LOOK_BACK: Duration = Duration::from_secs(15);
/// Failures of one look.
const LIMIT: u32 = 1000;
/// Kubernetes' bound for a note, in bytes.
const MAX_NOTE: usize = 1024;
/// Objects and reasons that may be remembered or wait; beyond it Events are dropped.
const MAX_KEPT: usize = 10_000;

/// The latest failure of each Agent, by its UID, for its status.
#[derive(Debug, Clone, Default)]
pub struct LastFailures(Arc<Mutex<HashMap<String, LastFailure>>>);

impl LastFailures {
    /// The latest failure that was seen since this replica leads.
    pub fn get(&self, uid: &str) -> Option<LastFailure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// Notes a turn, if its Agent is there.
    pub fn note(&self, failed: &RecentFailure) {
        let Some(uid) = &failed.agent_uid else { return };
        let failure = LastFailure {
            reason: failed.reason,
            message: cut(failed.detail.clone(), MAX_NOTE),
            turn_id: TurnId(failed.id).to_string(),
            time: Time(whole_seconds(stamp(failed.at))),
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < MAX_KEPT || all.contains_key(uid) {
            all.insert(uid.clone(), failure);
        }
    }

    /// Forgets Agents that are gone.
    pub fn keep(&self, is_there: impl Fn(&str) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| is_there(uid));
    }
}

/// As Kubernetes keeps a time: what it shows must equal what was written, else it is written without end.
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
    tokio::select! {
        () = leadership.while_leading(|| lead(&store, &client, &failures)) => {}
        () = shutdown.cancelled() => {}
    }
}

async fn lead(store: &Store, client: &Client, failures: &LastFailures) {
    let recorder = Recorder::new(client.clone(), Reporter { controller: MANAGER.into(), instance: None });
    let mut cursor = Cursor::default();
    let mut board = Board::default();
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        // Without the database there is nothing new; the cursor waits.
        if let Ok((turns, starts)) = cursor.read(store).await {
            turns.iter().for_each(|failed| failures.note(failed));
            turns.iter().for_each(|failed| board.add(RUN_TURN, failed));
            starts.iter().for_each(|failed| board.add(START_WORKER, failed));
        }
        for (reference, event) in board.take(Instant::now()) {
            if let Err(error) = bounded(recorder.publish(&event, &reference)).await {
                // An object that is gone has no Events; an API server that is away gets the next ones.
                tracing::debug!(%error, reason = event.reason, "an Event was not written");
            }
        }
    }
}

/// How far failures were read.
#[derive(Debug, Default)]
struct Cursor {
    turns: Side,
    starts: Side,
}

/// A place in one list of failures, and what was read since `LOOK_BACK` before it.
#[derive(Debug, Default)]
struct Side {
    at: Option<OffsetDateTime>,
    seen: HashMap<Uuid, OffsetDateTime>,
}

impl Side {
    fn since(&self, now: OffsetDateTime) -> OffsetDateTime {
        self.at.unwrap_or(now) - LOOK_BACK
    }

    /// Whether it is news; notes it.
    fn is_new(&mut self, id: Uuid, at: OffsetDateTime) -> bool {
        self.seen.insert(id, at).is_none()
    }

    /// Everything up to `at` was read.
    fn advance(&mut self, at: OffsetDateTime) {
        self.at = Some(at);
        self.seen.retain(|_, seen| *seen >= at - 2 * LOOK_BACK);
    }

    /// What of an answer is news.
    fn news(&mut self, mut failed: Vec<RecentFailure>, now: OffsetDateTime) -> Vec<RecentFailure> {
        // A full answer ends earlier than now.
        let full = failed.last().filter(|_| failed.len() >= LIMIT as usize);
        let end = full.map_or(now, |last| last.at + LOOK_BACK);
        failed.retain(|one| self.is_new(one.id, one.at));
        self.advance(end);
        failed
    }
}

impl Cursor {
    /// Turns and starts.
    async fn read(&mut self, store: &Store) -> Result<(Vec<RecentFailure>, Vec<RecentFailure>), StoreError> {
        let now = store.database_time().await?;
        let turns = self.turns.news(store.failed_turns(self.turns.since(now), LIMIT).await?, now);
        let starts = self.starts.news(store.failed_starts(self.starts.since(now), LIMIT).await?, now);
        Ok((turns, starts))
    }
}

/// What was tried, as Events name it.
const RUN_TURN: &str = "RunTurn";
const START_WORKER: &str = "StartWorker";

/// What an Event is about: kind, namespace, name, UID.
type About = (&'static str, String, String, String);

/// Events that wait for their time.
#[derive(Debug, Default)]
struct Board {
    waiting: HashMap<(About, &'static str, Reason), (u32, String)>,
    written: HashMap<(About, &'static str, Reason), Instant>,
}

impl Board {
    fn add(&mut self, action: &'static str, failed: &RecentFailure) {
        let uid = failed.agent_uid.clone();
        let agent = uid.map(|uid| ("Agent", failed.organization.clone(), failed.agent.clone(), uid));
        let pod = failed.pod.as_ref().and_then(|(at, uid)| {
            let (namespace, name) = at.split_once('/')?;
            Some(("Pod", namespace.to_owned(), name.to_owned(), uid.clone()))
        });
        for about in [agent, pod].into_iter().flatten() {
            if self.waiting.len() >= MAX_KEPT {
                return;
            }
            let (count, last) = self.waiting.entry((about, action, failed.reason)).or_default();
            *count += 1;
            *last = cut(failed.detail.clone(), MAX_NOTE);
        }
    }

    /// Takes the Events whose time has come.
    fn take(&mut self, now: Instant) -> Vec<(ObjectReference, Event)> {
        self.written.retain(|_, at| now - *at < APART);
        let ready: Vec<_> = self.waiting.keys().filter(|key| !self.written.contains_key(*key)).cloned().collect();
        ready
            .into_iter()
            .filter_map(|key| {
                let (count, last) = self.waiting.remove(&key)?;
                self.written.insert(key.clone(), now);
                Some(event(key, count, &last))
            })
            .collect()
    }
}

fn event((about, action, reason): (About, &'static str, Reason), count: u32, last: &str) -> (ObjectReference, Event) {
    let (kind, namespace, name, uid) = about;
    let api_version = if kind == "Pod" { "v1".to_owned() } else { Agent::api_version(&()).into_owned() };
    let reference = ObjectReference {
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
    (reference, event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_in_ten_seconds_tells_of_all() {
        let mut board = Board::default();
        let pod = ("team/bot-1".to_owned(), "p".to_owned());
        let fail = |board: &mut Board, detail: &str| {
            let failed = RecentFailure {
                id: Uuid::now_v7(),
                organization: "team".into(),
                agent: "bot".into(),
                agent_uid: Some("u".into()),
                reason: Reason::WorkerExited,
                detail: detail.into(),
                at: OffsetDateTime::UNIX_EPOCH,
                pod: Some(pod.clone()),
            };
            board.add(RUN_TURN, &failed);
        };
        let start = Instant::now();
        fail(&mut board, "exit 1");
        let first = board.take(start);
        assert_eq!(first.len(), 2, "on the Agent and on the pod");
        assert!(first.iter().all(|(_, event)| event.note.as_deref() == Some("exit 1")));
        assert!(first.iter().any(|(about, _)| about.kind.as_deref() == Some("Pod")));
        for number in 0..5 {
            fail(&mut board, &format!("exit {number}"));
        }
        assert!(board.take(start + APART / 2).is_empty());
        let later = board.take(start + APART);
        assert_eq!(later.len(), 2);
        assert!(later[0].1.note.as_deref() == Some("5 turns failed; the last: exit 4"));
        fail(&mut board, &"é".repeat(2000));
        assert!(board.take(start + 3 * APART)[0].1.note.as_ref().is_some_and(|note| note.len() <= MAX_NOTE));
    }

    #[test]
    fn a_failure_is_read_once_though_each_look_goes_back() {
        let mut side = Side::default();
        let (id, at) = (Uuid::now_v7(), OffsetDateTime::UNIX_EPOCH + 3 * LOOK_BACK);
        assert!(side.is_new(id, at));
        side.advance(at);
        assert!(!side.is_new(id, at) && side.since(at) == at - LOOK_BACK);
        side.advance(at + 3 * LOOK_BACK);
        assert!(side.seen.is_empty());
    }
}
