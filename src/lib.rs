//! Lastword.

pub mod local;
