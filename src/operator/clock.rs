//! The time as an argument, so that what is decided by time can be tested without waiting.

use std::time::Instant;

use k8s_openapi::jiff::Timestamp;
use time::OffsetDateTime;

/// The time at which a decision is made, by both clocks of this process.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The monotonic clock, for pauses.
    pub instant: Instant,
    /// The wall clock, for what is compared with times in Kubernetes objects.
    pub wall: Timestamp,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Self {
        Now { instant: Instant::now(), wall: Timestamp::now() }
    }
}

/// A time of the database as Kubernetes objects hold it.
pub fn timestamp(at: OffsetDateTime) -> Timestamp {
    // jiff's range ends with the year 9999, as Postgres' texts do: nothing that the database measured is out of range.
    Timestamp::new(at.unix_timestamp(), at.nanosecond() as i32).unwrap_or(Timestamp::UNIX_EPOCH)
}
