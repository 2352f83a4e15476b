//! Lastword.
pub mod turn;
pub mod wire;
