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
    /// Names a conversation: made by the server, and never used again. A client may know the conversation by a name of its own,
    /// which is the owner's alone: another user's conversation may have the same name.
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
    #[error("a user's name cannot begin with {KUBERNETES_REALM}: those are the users of AgentTurns")]
    Realm,
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

/// What the names of AgentTurns' users begin with. `spec.user` of an AgentTurn is whatever its author wrote, so these users are
/// a realm of their own: no caller of the API is ever one of them ([`check_user`]).
pub const KUBERNETES_REALM: &str = "kubernetes:";

/// The user that an AgentTurn with this `spec.user` is submitted for.
pub fn kubernetes_user(user: &str) -> String {
    format!("{KUBERNETES_REALM}{user}")
}

/// [`check_name`] for the user that a caller of the API is known as, which must not be one of an AgentTurn's.
pub fn check_user(name: &str) -> Result<(), NameError> {
    if name.starts_with(KUBERNETES_REALM) { Err(NameError::Realm) } else { check_name("user", name) }
}

/// How an Agent's turns are grouped onto workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// Each conversation has a worker group of its own.
    PerConversation,
    /// One worker group for the whole Agent.
    PerAgent,
}

/// A worker group within its Agent: the workers of one conversation, or those that all conversations of the Agent share.
///
/// With the Agent (organization and name) this is the group's identity. Nothing in it was chosen by a client: a conversation's
/// id is made by the server, and a conversation that is made anew under an erased one's name has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WorkerGroup {
    /// The workers that all conversations of the Agent share.
    OfAgent,
    /// The workers of this conversation alone.
    OfConversation(ConversationId),
}

impl WorkerGroup {
    /// The group of a conversation's turns.
    pub fn of(grouping: Grouping, conversation: ConversationId) -> Self {
        match grouping {
            Grouping::PerAgent => WorkerGroup::OfAgent,
            Grouping::PerConversation => WorkerGroup::OfConversation(conversation),
        }
    }

    /// The conversation that the group's workers are for, if they are for one.
    pub fn conversation(self) -> Option<ConversationId> {
        match self {
            WorkerGroup::OfAgent => None,
            WorkerGroup::OfConversation(conversation) => Some(conversation),
        }
    }

    /// What people call the group: the Agent's name, followed by `-` and the last 12 digits of the conversation's id if the group
    /// is a conversation's. It proves nothing: another Agent may have this name.
    pub fn name(self, agent: &str) -> String {
        match self {
            WorkerGroup::OfAgent => agent.to_string(),
            WorkerGroup::OfConversation(conversation) => {
                let id = conversation.0.simple().to_string();
                format!("{agent}-{}", &id[id.len() - 12..])
            }
        }
    }

    /// The group as the database has it: the conversation's id, or the nil UUID, which is no conversation's.
    pub fn key(self) -> Uuid {
        self.conversation().map_or(Uuid::nil(), |conversation| conversation.0)
    }

    /// The group of this [`key`](Self::key).
    pub fn from_key(key: Uuid) -> Self {
        if key.is_nil() { WorkerGroup::OfAgent } else { WorkerGroup::OfConversation(ConversationId(key)) }
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

/// Reads lower-case hexadecimal of exactly `N` bytes.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
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
    fn a_user_of_an_agent_turn_is_no_user_of_the_api() {
        assert_eq!(check_user("alice"), Ok(()));
        assert_eq!(check_user("kubernetes"), Ok(()));
        assert_eq!(check_user(&kubernetes_user("alice")), Err(NameError::Realm));
        assert_eq!(check_user(&kubernetes_user("")), Err(NameError::Realm));
    }

    #[test]
    fn a_worker_group_is_a_conversations_or_an_agents() {
        let (a, b) = (ConversationId::new(), ConversationId::new());
        assert_eq!(WorkerGroup::of(Grouping::PerAgent, a), WorkerGroup::of(Grouping::PerAgent, b));
        let (of_a, of_b) =
            (WorkerGroup::of(Grouping::PerConversation, a), WorkerGroup::of(Grouping::PerConversation, b));
        assert_ne!(of_a, of_b);
        for group in [WorkerGroup::OfAgent, of_a, of_b] {
            assert_eq!(WorkerGroup::from_key(group.key()), group);
        }
        assert_eq!(WorkerGroup::OfAgent.name("bot"), "bot");
        assert_eq!(of_a.name("bot").len(), "bot-".len() + 12);
        assert!(a.0.simple().to_string().ends_with(&of_a.name("bot")[4..]), "people find the conversation by the name");
    }

    #[test]
    fn content_is_compared_part_by_part() {
        let null = serde_json::Value::Null;
        assert_ne!(content_hash("a", "bc", "api", "m", &null), content_hash("ab", "c", "api", "m", &null));
    }
}
