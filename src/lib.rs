//! Lastword.
pub mod cli;
pub mod config;
pub mod crd;
pub mod deliver;
pub mod dispatch;
pub mod gateway;
pub mod guard;
pub mod liveness;
pub mod local;
pub mod store;
pub mod submit;
pub mod turn;
pub mod wire;
