//! A client's view of its turns, over SSE.
//!
//! - [`session`]: a client's stream on a conversation or on one turn
//! - [`render`]: what of a turn is yet to be shown on a cursor
//! - [`sse`]: the letter of a frame
//! - [`delivery`]: the delivery loop; a row means "shown to nobody yet"

pub mod delivery;
pub mod render;
pub mod session;
pub mod sse;
