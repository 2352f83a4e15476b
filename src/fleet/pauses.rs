//! Pauses after starts that came to nothing, from the store's rows: every replica knows them, whoever learnt of a death.
//!
//! - A start for `minWorkers` alone waits longer after each of the last hour that failed.
//! - A start that a person waits for never waits for failed ones, which `startAttempts` bounds.
//! - Both wait a little after starts that somebody else stopped: more of those are tried.

use std::collections::HashSet;
use std::time::Duration;

use super::plan::AgentKey;
use crate::store::FutileStarts;

/// After the first; doubled by each further one.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait: as Kubernetes has it for a crash loop. What the store tells reaches as far back.
const LONGEST: Duration = Duration::from_secs(300);
/// The longest while a person waits.
const LONGEST_FOR_DEMAND: Duration = Duration::from_secs(10);

/// Who waits now.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    /// Agents, of this generation, that get no worker for `minWorkers` alone. Another generation deserves another try.
    warm: HashSet<(AgentKey, i64)>,
    /// Worker groups that get no worker.
    pub demand: HashSet<(AgentKey, String)>,
}

impl Pauses {
    pub fn after(futile: &[FutileStarts]) -> Self {
        let mut pauses = Pauses::default();
        for starts in futile {
            let agent = AgentKey { organization: starts.organization.clone(), name: starts.agent.clone() };
            let ago = Duration::try_from_secs_f64(starts.ago).unwrap_or_default();
            let interrupted = wait(starts.interrupted).min(LONGEST_FOR_DEMAND);
            if ago < interrupted {
                pauses.demand.insert((agent.clone(), starts.worker_group.clone()));
            }
            if ago < wait(starts.failed).max(interrupted) {
                pauses.warm.insert((agent, starts.generation));
            }
        }
        pauses
    }

    /// Whether a worker may be started for `minWorkers` now.
    pub fn may_warm(&self, agent: &AgentKey, generation: i64) -> bool {
        !self.warm.contains(&(agent.clone(), generation))
    }
}

/// The wait after this many of the last hour.
fn wait(count: u32) -> Duration {
    match count {
        0 => Duration::ZERO,
        _ => (FIRST * 2u32.pow((count - 1).min(16))).min(LONGEST),
    }
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
                worker_group: "d".into(),
                generation: 1,
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
