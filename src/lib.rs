//! Lastword.
pub mod store;
pub mod turn;
pub mod wire;
