//! How the fleet works: periods, limits and grace times.

use std::ops::Range;
use std::time::Duration;

/// How the fleet works. The default is what both runtimes use; tests are faster.
#[derive(Debug, Clone)]
pub struct FleetConfig {
    /// The time between two passes when nothing wakes the fleet.
    pub poll: Duration,
    /// The time between the beginnings of two passes, however many wake-ups come. Within this range it is five times what a
    /// pass takes: under load, when each turn is a wake-up, passes leave four fifths of the time to others.
    pub spacing: Range<Duration>,
    /// How long the cause of a proven death is waited for before the death is reported without one.
    pub cause_window: Duration,
    /// The most actions of one pass. If there are more, the next pass follows at once.
    pub max_actions: usize,
    /// The number of actions that are carried out at the same time.
    pub concurrency: usize,
    /// How long a worker may run on after its lease died, before it is killed: the time to leave after a goodbye.
    pub stray: Duration,
}

impl Default for FleetConfig {
    fn default() -> Self {
        FleetConfig {
            poll: Duration::from_secs(1),
            spacing: Duration::from_millis(10)..Duration::from_millis(100),
            cause_window: Duration::from_secs(5),
            max_actions: 256,
            concurrency: 16,
            stray: Duration::from_secs(5),
        }
    }
}
