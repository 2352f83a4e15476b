//! Lastword.

pub mod cli;
pub mod store;
pub mod turn;
pub mod wire;
