//! What a turn is and what may happen to it, as plain values and functions: identifiers, output frames and offsets,
//! cursors, routing, reasons, terminals, and the decisions of an election.
//!
//! Everything here is pure: no IO, no clock, no randomness, neither sqlx nor kube. `src/architecture.rs` holds a test of
//! it.

pub mod cause;
pub mod cursor;
pub mod decide;
pub mod defaults;
pub mod frame;
pub mod keys;
pub(crate) mod objects;
pub mod phase;
pub mod reason;
pub mod routing;
pub mod silence;
pub mod terminal;
pub mod title;
pub mod trace;
