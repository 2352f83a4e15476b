//! Lastword.
pub mod crd;
pub mod guard;
pub mod local;
pub mod store;
pub mod turn;
pub mod wire;
