//! What a client sees of its turns, over Server-Sent Events.
//!
//! - [`session`]: a client's stream on a conversation, or on one turn
//! - `progress`: which turns owe something to its cursor, and what is to be done next
//! - [`render`]: what a turn still owes to a cursor, and the frames for it
//! - [`writer`]: what a dialect has to write
//! - [`sse`]: how Lastword's own dialect writes it
//! - [`registry`]: the replica's sessions in the database
//! - [`delivery`]: the loops that wake sessions for terminals that nobody was shown yet
//! - `removal`: rows that are removed in batches, and until it works

pub mod delivery;
mod progress;
pub mod registry;
mod removal;
pub mod render;
pub mod session;
pub mod sse;
pub mod writer;
