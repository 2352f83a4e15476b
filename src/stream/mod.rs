//! What a client sees of its turns, over Server-Sent Events.
//!
//! - [`session`]: a client's stream on a conversation, or on one turn
//! - [`render`]: what a turn still owes to a cursor, and the frames for it
//! - [`sse`]: how a frame is written
//! - [`delivery`]: the loops that wake sessions for terminals that nobody was shown yet

pub mod delivery;
pub mod render;
pub mod session;
pub mod sse;
