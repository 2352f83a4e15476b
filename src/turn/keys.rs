//! Identifiers: those that Lastword makes, and the rules for the names that clients choose.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;
            fn from_str(s: &str) -> Result<Self, uuid::Error> {
                Uuid::parse_str(s).map($name)
            }
        }
    };
}

id!(
    /// Names a turn.
    TurnId
);
id!(
    /// Names a conversation in the database. Clients know a conversation by its organization and its name.
    ConversationId
);
id!(
    /// One life of a worker process. Another life of the same container is another incarnation.
    Incarnation
);
id!(
    /// One start of a worker by a runtime. The worker's credential is bound to it.
    StartId
);
id!(
    /// One life of a gateway replica.
    GatewayId
);
id!(
    /// One client's SSE connection.
    SessionId
);

/// The longest name of a conversation, message, user or platform, in bytes.
pub const MAX_NAME_BYTES: usize = 256;

/// What is wrong with a name that a client chose.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("{0} is empty")]
    Empty(&'static str),
    #[error("{0} is longer than {MAX_NAME_BYTES} bytes")]
    TooLong(&'static str),
    #[error("{0} holds a control character")]
    Control(&'static str),
    #[error("{0} cannot be named . or ..")]
    Dots(&'static str),
}

/// Checks a name that a client chose: 1 to [`MAX_NAME_BYTES`] bytes without control characters, so that the name can
/// stand in a log line, an HTTP header and an SSE frame. `what` says in the error which name is meant.
pub fn check_name(what: &'static str, name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        Err(NameError::Empty(what))
    } else if name.len() > MAX_NAME_BYTES {
        Err(NameError::TooLong(what))
    } else if name.chars().any(char::is_control) {
        Err(NameError::Control(what))
    } else {
        Ok(())
    }
}

/// [`check_name`] for a conversation's name, which is also a segment of URLs: HTTP clients resolve `.` and `..` away.
pub fn check_conversation(name: &str) -> Result<(), NameError> {
    if matches!(name, "." | "..") { Err(NameError::Dots("conversation")) } else { check_name("conversation", name) }
}

/// How an Agent's turns are grouped onto workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// Each conversation has a worker group of its own.
    PerConversation,
    /// One worker group for the whole Agent.
    PerAgent,
}

/// The name of the worker group that a turn goes to: the Agent's name, followed by `-` and 10 hex digits of the hash of
/// the conversation's name where each conversation has a group of its own. The result is a DNS label if the Agent's name
/// is one of at most 52 characters.
pub fn worker_group(agent: &str, grouping: Grouping, conversation: &str) -> String {
    match grouping {
        Grouping::PerAgent => agent.to_string(),
        Grouping::PerConversation => {
            let hash = Sha256::digest(conversation.as_bytes());
            format!("{agent}-{}", &hex(&hash)[..10])
        }
    }
}

/// A digest of everything that a client chose about a message. A repeated message id means the same turn only if the
/// digests are equal.
pub fn content_hash(agent: &str, user: &str, platform: &str, message: &str, metadata: &serde_json::Value) -> Vec<u8> {
    let mut hash = Sha256::new();
    for part in [agent, user, platform, message, &metadata.to_string()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().to_vec()
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(check_name("conversation", "c-1 \u{e4}"), Ok(()));
        assert_eq!(check_name("conversation", ""), Err(NameError::Empty("conversation")));
        assert_eq!(check_name("user", &"x".repeat(257)), Err(NameError::TooLong("user")));
        assert_eq!(check_name("user", "a\nb"), Err(NameError::Control("user")));
        assert_eq!(check_conversation(".."), Err(NameError::Dots("conversation")));
        assert_eq!(check_conversation("..."), Ok(()));
    }

    #[test]
    fn a_worker_group_per_conversation_or_per_agent() {
        assert_eq!(worker_group("bc", Grouping::PerAgent, "c"), "bc");
        let (a, b) =
            (worker_group("bc", Grouping::PerConversation, "a"), worker_group("bc", Grouping::PerConversation, "b"));
        assert_ne!(a, b);
        assert_eq!(a, worker_group("bc", Grouping::PerConversation, "a"));
        assert_eq!(a.len(), "bc-".len() + 10);
    }

    #[test]
    fn content_is_compared_part_by_part() {
        let null = serde_json::Value::Null;
        assert_ne!(content_hash("a", "bc", "api", "m", &null), content_hash("ab", "c", "api", "m", &null));
    }
}
