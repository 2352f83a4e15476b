//! Pauses after futile starts: those whose worker ended, or was told to stop, before it claimed a turn. They are computed from
//! the database, so that every replica knows them, whichever has learned of the ends.
//!
//! - After starts that *failed*, a worker that nobody waits for (one for `minWorkers`) is not started for a while: longer
//!   after each that failed in the last hour. A start that turns wait for does not pause: `startAttempts` bounds those.
//! - After starts that somebody else *interrupted* (an eviction, say), all starts of the worker group pause, at most
//!   [`LONGEST_FOR_DEMAND`]: more of these are tried than of failed ones.

use std::collections::HashSet;
use std::time::Duration;

use super::plan::AgentKey;
use crate::backoff::doubled;
use crate::store::FutileStarts;
use crate::turn::keys::WorkerGroup;

/// The pause after one futile start; doubled by each further one.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause, which is also that of Kubernetes for a container in a crash loop. The store tells of starts that far
/// back.
const LONGEST: Duration = Duration::from_secs(300);
/// The longest pause of a worker group that has turns to claim.
const LONGEST_FOR_DEMAND: Duration = Duration::from_secs(10);

/// What pauses now.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    /// Agents, with their config number, that get no worker for `minWorkers` alone, or to replace another. A newer config is
    /// tried at once.
    warm: HashSet<(AgentKey, i64)>,
    /// Worker groups that get no worker at all.
    pub demand: HashSet<(AgentKey, WorkerGroup)>,
}

impl Pauses {
    /// The pauses after these starts.
    pub fn after(futile: &[FutileStarts]) -> Self {
        let mut pauses = Pauses::default();
        for starts in futile {
            let agent = AgentKey { organization: starts.organization.clone(), name: starts.agent.clone() };
            let ago = Duration::try_from_secs_f64(starts.ago).unwrap_or_default();
            let interrupted = wait(starts.interrupted).min(LONGEST_FOR_DEMAND);
            if ago < interrupted {
                pauses.demand.insert((agent.clone(), starts.worker_group));
            }
            if ago < wait(starts.failed).max(interrupted) {
                pauses.warm.insert((agent, starts.config));
            }
        }
        pauses
    }

    /// Whether a worker may be started now that nobody waits for.
    pub fn may_warm(&self, agent: &AgentKey, config: i64) -> bool {
        !self.warm.contains(&(agent.clone(), config))
    }
}

/// The pause after this many futile starts of the last hour.
fn wait(count: u32) -> Duration {
    doubled(FIRST, LONGEST, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits() {
        let key = AgentKey { organization: "default".into(), name: "a".into() };
        for (failed, interrupted, ago, warms, serves) in [
            (1, 0, 0.5, false, true),
            (1, 0, 1.5, true, true),
            (3, 0, 3.5, false, true),
            (0, 1, 0.5, false, false),
            (0, 1, 1.5, true, true),
            (2, 1, 1.5, false, true),
            (0, 9, 9.5, false, false),
            (0, 9, 10.5, true, true),
            (40, 0, 299.0, false, true),
        ] {
            let starts = FutileStarts {
                organization: "default".into(),
                agent: "a".into(),
                worker_group: WorkerGroup::OfAgent,
                config: 1,
                failed,
                interrupted,
                ago,
            };
            let pauses = Pauses::after(std::slice::from_ref(&starts));
            assert_eq!(pauses.may_warm(&key, 1), warms, "{starts:?}");
            assert_eq!(pauses.demand.is_empty(), serves, "{starts:?}");
            assert!(pauses.may_warm(&key, 2), "a changed Agent is another try");
        }
        assert_eq!([0, 1, 2, 3, 40].map(|n| wait(n).as_secs()), [0, 1, 2, 4, 300]);
    }
}
