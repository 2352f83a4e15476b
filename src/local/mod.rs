//! What one machine needs: child processes that never outlive us, a real Postgres of our own, and `lastword dev`, which
//! runs every role in one process.

pub mod agents_file;
pub mod database;
pub mod postgres;
pub mod secrets;
