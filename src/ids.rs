//! New identifiers. They hold the time of their making (UUID v7), so that the rows they key lie together in the order in
//! which they were made. They are made here, on the ground, since `turn` itself knows no clock.

use uuid::Uuid;

use crate::turn::keys::{ConversationId, GatewayId, Incarnation, SessionId, StartId, TurnId};

macro_rules! made_now {
    ($($name:ident),+) => {$(
        impl $name {
            /// A new one.
            #[expect(clippy::new_without_default, reason = "a fresh identifier is no default")]
            pub fn new() -> Self {
                $name(Uuid::now_v7())
            }
        }
    )+};
}

made_now!(TurnId, ConversationId, Incarnation, StartId, GatewayId, SessionId);
