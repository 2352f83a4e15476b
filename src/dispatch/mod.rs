//! Between the store and the workers whose streams this replica holds.
//!
//! - [`workers`]: the connected workers; turns are claimed for those with room, and pushed to them; `duties` is what one owes
//! - [`live`]: the logs of turns in hand, ahead of the database: shown at once, flushed in batches; `log` is one such log
//! - [`subscriptions`]: wake-ups for those who wait for changes of a conversation
//! - [`follow`]: the output of turns whose worker another replica holds

mod duties;
pub mod follow;
pub mod live;
mod log;
pub mod subscriptions;
pub mod workers;
