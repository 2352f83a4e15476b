//! Lastword.

pub mod turn;
pub mod wire;
pub mod worker;
