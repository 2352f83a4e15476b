//! Lastword.

pub mod crd;
pub mod guard;
pub mod turn;
