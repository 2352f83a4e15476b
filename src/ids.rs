//! New identifiers of turns, conversations, workers and the like: UUIDs of version 7. Those begin with the time at which
//! they were made, so rows that are keyed by them lie on disk in the order of their making.
//!
//! The types are declared in `turn::keys`; their `new` is here, because `turn` is pure and may not ask for the time.

use uuid::Uuid;

use crate::turn::keys::{ConversationId, GatewayId, Incarnation, SessionId, StartId, TurnId};

macro_rules! made_now {
    ($($name:ident),+) => {$(
        impl $name {
            /// A new identifier, different from every other.
            #[expect(clippy::new_without_default, reason = "a default is a value that is always the same")]
            pub fn new() -> Self {
                $name(Uuid::now_v7())
            }
        }
    )+};
}

made_now!(TurnId, ConversationId, Incarnation, StartId, GatewayId, SessionId);
