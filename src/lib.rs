//! Lastword.

pub mod turn;
