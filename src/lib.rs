//! Lastword.
pub mod crd;
pub mod guard;
pub mod store;
pub mod turn;
pub mod wire;
