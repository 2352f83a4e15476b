//! Who is alive: heartbeats on their way to the database, and the sweep that ends what has been silent too long.

mod heartbeats;
mod sweep;

pub use heartbeats::Heartbeats;
pub use sweep::{SWEEP_EVERY, sweep};
