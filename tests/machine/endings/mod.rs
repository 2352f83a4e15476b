//! How turns end on `lastword dev`: what every failed turn must show, and that a stop which somebody asked for is no failure.
//! The ways to fail, whose times are measured, are in [`crate::serial::failures`].

mod stops;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use crate::support::api::End;
use crate::support::chat::{Chat, told};
use crate::support::dev::Dev;

/// A `dev` whose Agents change, one document each.
pub struct Bench {
    pub dev: Dev,
    agents: Mutex<BTreeMap<String, String>>,
}

impl Bench {
    pub async fn start(agents: &[(&str, String)]) -> Bench {
        let agents: BTreeMap<String, String> = agents.iter().map(|(n, d)| (n.to_string(), d.clone())).collect();
        let text: String = agents.values().cloned().collect();
        Bench { dev: Dev::start(&text).await, agents: Mutex::new(agents) }
    }

    /// Changes an Agent in the file, or removes it.
    pub fn change(&self, name: &str, document: Option<String>) {
        let mut agents = self.agents.lock().unwrap();
        match document {
            Some(document) => drop(agents.insert(name.to_string(), document)),
            None => drop(agents.remove(name)),
        }
        let text: String = agents.values().cloned().collect();
        self.dev.write_agents(&text);
    }

    /// Submits a turn that is watched from before.
    pub async fn submit(&self, conversation: &str, agent: &str, message: &str) -> Chat {
        Chat::submit(&self.dev.api(), conversation, agent, message).await
    }

    /// The same, and waits until the program has said something.
    pub async fn in_hand(&self, conversation: &str, agent: &str, message: &str) -> Chat {
        let chat = self.submit(conversation, agent, message).await;
        chat.begun().await;
        chat
    }
}

impl Chat {
    /// Waits for the end and holds it against what every failed turn must show; the time of the frame.
    pub async fn failed(&self, bench: &Bench, reason: &str) -> Instant {
        self.session.complete(&self.turn).await;
        assert_eq!(self.stream.ended().await, End::Clean, "a turn's stream ends cleanly after its terminal");
        let record = bench.dev.api().record(&self.turn).await;
        assert_eq!((&record["phase"], &record["error"]["reason"]), (&"Failed".into(), &reason.into()), "{record}");
        self.shows_one_error(reason);
        assert!(record["reply"].is_null() && record["endedAt"].is_string(), "{record}");
        // Who comes later, with the cursor of the submit, is shown the same; but text that was not yet durable when the
        // turn failed was a preview.
        let replay = bench.dev.api().session(&self.conversation, Some(&self.cursor));
        replay.complete(&self.turn).await;
        assert_eq!(told(&replay, &self.turn), told(&self.session, &self.turn));
        let error = self.session.frame("its error", |f| f.event == "error" && f.data["turnId"] == self.turn.as_str());
        error.await.at
    }
}
