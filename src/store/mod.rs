//! All SQL.

pub mod keys;
pub mod probe;
