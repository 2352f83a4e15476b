//! Starts for `minWorkers` alone wait longer after each that failed; a start that a person waits for never does.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::plan::AgentKey;
use crate::turn::keys::StartId;

/// After the first failed start; doubled by each further one.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait: as Kubernetes has it for a crash loop.
const LONGEST: Duration = Duration::from_secs(300);
/// Starts that are remembered at the most.
const MAX_STARTS: usize = 100_000;

/// Which Agents' starts failed lately. Shared by the passes and the reports of deaths.
#[derive(Default)]
pub(super) struct Backoff {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    starts: HashMap<StartId, (AgentKey, i64)>,
    failed: HashMap<AgentKey, Failed>,
}

struct Failed {
    /// Another generation deserves another try.
    generation: i64,
    count: u32,
    last: Instant,
}

impl Backoff {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn started(&self, start: StartId, agent: AgentKey, generation: i64) {
        let mut state = self.state();
        if state.starts.len() >= MAX_STARTS {
            state.starts.clear();
        }
        state.starts.insert(start, (agent, generation));
    }

    /// A start came to its end; `failed`: before it did anything.
    pub fn ended(&self, start: StartId, failed: bool) {
        let mut state = self.state();
        let Some((agent, generation)) = state.starts.remove(&start) else { return };
        if !failed {
            state.failed.remove(&agent);
            return;
        }
        let before = state.failed.get(&agent).filter(|f| f.generation == generation).map_or(0, |f| f.count);
        let count = before.saturating_add(1);
        state.failed.insert(agent, Failed { generation, count, last: Instant::now() });
    }

    /// Whether a worker may be started for `minWorkers` now.
    pub fn may_warm(&self, agent: &AgentKey, generation: i64) -> bool {
        match self.state().failed.get(agent) {
            Some(failed) if failed.generation == generation => failed.last.elapsed() >= wait(failed.count),
            _ => true,
        }
    }

    /// Forgets the Agents that are gone.
    pub fn keep(&self, known: impl Fn(&AgentKey) -> bool) {
        self.state().failed.retain(|agent, _| known(agent));
    }
}

/// The wait after this many failed starts in a row.
fn wait(count: u32) -> Duration {
    let doublings = count.saturating_sub(1).min(16);
    (FIRST * 2u32.pow(doublings)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_starts_hold_back_their_own_generation() {
        let backoff = Backoff::default();
        let agent = AgentKey { organization: "default".into(), name: "a".into() };
        assert!(backoff.may_warm(&agent, 1));
        let start = StartId::new();
        backoff.started(start, agent.clone(), 1);
        backoff.ended(start, true);
        assert!(!backoff.may_warm(&agent, 1));
        assert!(backoff.may_warm(&agent, 2), "a changed Agent is another try");
        let start = StartId::new();
        backoff.started(start, agent.clone(), 1);
        backoff.ended(start, false);
        assert!(backoff.may_warm(&agent, 1), "a worker that worked ends the wait");
        assert_eq!([1, 2, 3, 40].map(|n| wait(n).as_secs()), [1, 2, 4, 300]);
    }
}
