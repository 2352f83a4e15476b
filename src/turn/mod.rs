//! What a turn is, and what may happen to it: plain values and functions. No IO, no clock, no sqlx, no kube.

pub mod cursor;
pub mod decide;
pub mod defaults;
pub mod frame;
pub mod keys;
pub mod phase;
pub mod reason;
pub mod routing;
pub mod terminal;
