//! What one machine needs: child processes that never outlive us, and a real Postgres of our own.

pub mod postgres;
pub mod spawn;
