//! Turns that are watched from both sides: a chat by SSE, and an AgentTurn as an object. Each must end once.

use std::time::{Duration, Instant};

use lastword::crd::{AgentTurn, AgentTurnStatus};
use lastword::turn::phase::Phase;

use super::place::{Place, sketch};
use super::{BOUND, until};
use crate::support::api::{End, Watched};
pub use crate::support::chat::Chat;
use crate::support::wait::{eventually_within, throughout};

/// How long after an end a second one would show.
const AFTERMATH: Duration = Duration::from_millis(1500);

impl Chat {
    /// Waits for the error, holds it against what every failed turn must show, and looks whether more follows. Returns
    /// when the client was told.
    pub async fn failed(&self, place: &Place, reasons: &[&str]) -> Instant {
        let error = self.session.frame("its error", |f| f.event == "error" && f.data["turnId"] == self.turn.as_str());
        let at = error.await.at;
        self.session.complete(&self.turn).await;
        assert_eq!(self.stream.ended().await, End::Clean, "a turn's stream ends cleanly after its terminal");
        let record = place.api.record(&self.turn).await;
        let reason = record["error"]["reason"].as_str().unwrap_or_default().to_owned();
        if record["phase"] != "Failed" || !reasons.contains(&reason.as_str()) {
            panic!("{reason} is not of {reasons:?}: {record}\npods: {}", seen(place).await);
        }
        assert!(record["reply"].is_null() && record["endedAt"].is_string(), "{record}");
        self.shows_one_error(&reason);
        nothing_follows(&self.session).await;
        self.shows_one_error(&reason);
        assert_eq!(place.api.record(&self.turn).await["error"], record["error"], "an ending changed");
        at
    }

    /// Waits for the reply, by both streams and in the record.
    pub async fn replied(&self, place: &Place, text: &str) {
        let complete = self.session.complete(&self.turn).await;
        if complete.data["outcome"] != "reply" {
            let record = place.api.record(&self.turn).await;
            panic!("no reply: {record}\nframes: {:#?}\npods: {}", self.session.frames(), seen(place).await);
        }
        assert_eq!(self.stream.ended().await, End::Clean);
        for (which, watched) in [("session", &self.session), ("turn", &self.stream)] {
            assert_eq!(watched.text(&self.turn), text, "{which}: {:#?}", watched.frames());
            let ends = watched.names(&self.turn).iter().filter(|n| *n != "text" && *n != "connected").count();
            assert_eq!(ends, 1, "{which}: one ending: {:?}", watched.names(&self.turn));
        }
        assert_eq!(place.api.phase(&self.turn, "Succeeded").await["reply"]["text"], text);
    }
}

/// A moment in which nothing must come.
async fn nothing_follows(session: &Watched) {
    let before = session.frames().len();
    throughout(AFTERMATH, "nothing follows the end", async || {
        let frames = session.frames();
        if frames.len() == before { Ok(()) } else { Err(format!("{frames:#?}")) }
    })
    .await;
}

/// The namespace's pods and Events, for who reads of a failure.
pub async fn seen(place: &Place) -> String {
    let pods = place.pods().list(&Default::default()).await.map(|l| l.items.iter().map(sketch).collect::<Vec<_>>());
    let events = super::try_command("kubectl", &["get", "events", "-n", &place.name, "--sort-by=.lastTimestamp"]).await;
    format!("{pods:#?}\n{}", events.unwrap_or_else(|e| e))
}

/// A turn as an object.
#[derive(Clone, Debug)]
pub struct Object {
    pub name: String,
}

impl Object {
    pub async fn get(&self, place: &Place) -> Result<AgentTurn, String> {
        place.turns().get(&self.name).await.map_err(|e| e.to_string())
    }

    /// Waits until a condition is True; the object then.
    pub async fn condition(&self, place: &Place, condition: &str) -> AgentTurn {
        self.condition_within(place, condition, BOUND).await
    }

    pub async fn condition_within(&self, place: &Place, condition: &str, bound: Duration) -> AgentTurn {
        let what = format!("condition {condition} of AgentTurn {}", self.name);
        eventually_within(bound, &what, async || {
            let turn = self.get(place).await?;
            match is(status(&turn), condition, "True") {
                true => Ok(turn),
                false => Err(format!("{:?}\npods: {}", turn.status, seen(place).await)),
            }
        })
        .await
    }

    /// The turn's id, once it is armed.
    pub async fn turn(&self, place: &Place) -> String {
        until(&format!("the turn's id of AgentTurn {}", self.name), async || {
            let turn = self.get(place).await?;
            status(&turn).turn_id.clone().ok_or_else(|| format!("{:?}", turn.status))
        })
        .await
    }

    /// Waits for the error, and holds the object and the record against what each must show; once.
    pub async fn failed(&self, place: &Place, reasons: &[&str]) -> AgentTurnStatus {
        let turn = self.condition(place, "Terminal").await;
        let status = turn.status.clone().unwrap_or_default();
        let reason = reason(&turn);
        let error = status.error.clone().unwrap_or_else(|| panic!("no error: {status:?}"));
        if !reasons.contains(&reason.as_str()) {
            panic!("{reason} is not of {reasons:?}: {status:?}\npods: {}", seen(place).await);
        }
        assert_eq!((error.reason.as_str(), status.phase), (reason.as_str(), Some(Phase::Failed)), "{status:?}");
        assert!(is(&status, "Succeeded", "False") && status.reply.is_none(), "{status:?}");
        assert!(status.completion_time.is_some(), "{status:?}");
        self.ended_once(place, &reason).await;
        status
    }

    /// Waits for the reply.
    pub async fn replied(&self, place: &Place, text: &str) -> AgentTurnStatus {
        let turn = self.condition(place, "Terminal").await;
        let status = turn.status.clone().unwrap_or_default();
        if status.phase != Some(Phase::Succeeded) {
            panic!("no reply: {status:?}\npods: {}", seen(place).await);
        }
        assert_eq!((reason(&turn).as_str(), status.reply.as_deref()), ("Succeeded", Some(text)), "{status:?}");
        assert!(is(&status, "Succeeded", "True") && is(&status, "Armed", "True"), "{status:?}");
        assert!(status.error.is_none() && status.completion_time.is_some(), "{status:?}");
        self.ended_once(place, "Succeeded").await;
        status
    }

    /// Of all states that the API server told, those that were terminal are one; and the record says the same.
    pub async fn ended_once(&self, place: &Place, reason: &str) {
        // The watch may still be on its way back from an outage.
        until("the news of the end", async || {
            let states = place.news.turn(&self.name);
            if states.iter().any(|s| s.contains('/')) { Ok(()) } else { Err(format!("{states:?}")) }
        })
        .await;
        throughout(AFTERMATH, "one end, the last state", async || {
            let states = place.news.turn(&self.name);
            let ends: Vec<&String> = states.iter().filter(|s| s.contains('/')).collect();
            assert_eq!(ends.len(), 1, "AgentTurn {}: {states:?}", self.name);
            assert!(ends[0].ends_with(&format!("/{reason}")) && states.last() == Some(ends[0]), "{reason}: {states:?}");
            true
        })
        .await;
        // A turn that was refused before it was armed is in no store.
        if let Some(turn) = status(&self.get(place).await.expect("it stays")).turn_id.clone() {
            let record = place.api.record(&turn).await;
            let recorded = record["error"]["reason"].as_str().unwrap_or("Succeeded").to_owned();
            assert_eq!(recorded, reason, "record and object agree: {record}");
        }
    }
}

pub fn status(turn: &AgentTurn) -> &AgentTurnStatus {
    static NONE: std::sync::LazyLock<AgentTurnStatus> = std::sync::LazyLock::new(AgentTurnStatus::default);
    turn.status.as_ref().unwrap_or(&NONE)
}

pub fn is(status: &AgentTurnStatus, condition: &str, value: &str) -> bool {
    status.conditions.iter().any(|c| c.type_ == condition && c.status == value)
}

/// The reason of the condition Terminal, once that is True.
pub fn reason(turn: &AgentTurn) -> String {
    let found = status(turn).conditions.iter().find(|c| c.type_ == "Terminal" && c.status == "True");
    found.map(|c| c.reason.clone()).unwrap_or_default()
}
