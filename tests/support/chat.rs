//! A turn of a chat client, watched from both sides: by a session from right before it, and by a stream of its own.

use std::time::Instant;

use super::api::{Api, Watched};

/// A turn that is watched.
#[derive(Clone)]
pub struct Chat {
    pub conversation: String,
    pub turn: String,
    pub cursor: String,
    pub submitted: Instant,
    pub session: Watched,
    pub stream: Watched,
}

impl Chat {
    /// Submits a message, and watches its conversation from right before it.
    pub async fn submit(api: &Api, conversation: &str, agent: &str, message: &str) -> Chat {
        let submitted = Instant::now();
        let armed = api.submit(conversation, agent, message).await;
        let session = api.session(conversation, Some(&armed.cursor));
        session.connected().await;
        let stream = api.turn(&armed.turn);
        Chat { conversation: conversation.into(), turn: armed.turn, cursor: armed.cursor, submitted, session, stream }
    }

    /// Waits until the program has said something.
    pub async fn begun(&self) {
        self.stream.frame("the program's first words", |f| f.event == "text").await;
    }

    /// Both streams have shown the turn's error once, in order, and nothing of the turn behind it.
    pub fn shows_one_error(&self, reason: &str) {
        for (which, watched) in [("session", &self.session), ("turn", &self.stream)] {
            let names = watched.names(&self.turn);
            let told = told(watched, &self.turn);
            assert_eq!(told, ["connected", "error", "agent-error", "complete"], "{which}: {names:?}");
            assert_eq!(names.last().map(String::as_str), Some("complete"), "{which}: {names:?}");
            for frame in watched.frames().iter().filter(|f| f.data["turnId"] == self.turn.as_str()) {
                assert!(!frame.event.ends_with("error") || frame.data["reason"] == reason, "{which}: {frame:?}");
                assert!(!frame.id.is_empty(), "every frame has a cursor: {frame:?}");
            }
        }
    }
}

/// What a stream has told of a turn, besides its text.
pub fn told(watched: &Watched, turn: &str) -> Vec<String> {
    watched.names(turn).into_iter().filter(|name| name != "text").collect()
}
