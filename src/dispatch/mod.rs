//! Between the store and the workers: claims are pushed, output comes in and is handed on at once, words are elected.
//!
//! - [`workers`]: the workers whose streams this replica holds; claims for those with room
//! - [`live`]: the logs of turns in hand here, ahead of the database: live frames, and what is yet to be flushed
//! - [`feeds`]: who waits for news of a conversation
//! - [`follow`]: the output of turns whose worker another replica holds

pub mod feeds;
pub mod follow;
pub mod live;
pub mod workers;
