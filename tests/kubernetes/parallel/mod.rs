//! Rows that leave each other alone: each has a namespace of its own, and takes away only what it has made.

mod alive;
mod deaths;
pub mod fields;
mod first;
mod identity;
mod objects;
mod starts;
mod stops;
