//! Where a turn stands, in the words that its clients read; and where a worker's lease is in its life.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How far a turn has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// The turn is not armed yet.
    Pending,
    /// The turn is armed and waits for a worker. It will end with a reply or an error.
    Armed,
    /// A worker has claimed the turn.
    Running,
    /// The turn ended with a reply.
    Succeeded,
    /// The turn ended with an error.
    Failed,
}

/// A word that is no [`Phase`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown phase {0:?}")]
pub struct UnknownPhase(pub String);

impl Phase {
    /// Every phase, in the order of a turn's life.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Armed, Self::Running, Self::Succeeded, Self::Failed];

    /// The phase of a turn that was armed: whether a worker has claimed it, and, once it ended, whether with a reply.
    pub fn of_armed(claimed: bool, replied: Option<bool>) -> Self {
        match (replied, claimed) {
            (Some(true), _) => Self::Succeeded,
            (Some(false), _) => Self::Failed,
            (None, true) => Self::Running,
            (None, false) => Self::Armed,
        }
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Armed => "Armed",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Phase {
    type Err = UnknownPhase;

    fn from_str(name: &str) -> Result<Self, UnknownPhase> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == name).ok_or_else(|| UnknownPhase(name.to_owned()))
    }
}

/// Where a lease is in its life: the column `lease.phase`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LeasePhase {
    /// A runtime was asked for the worker, which has not connected yet.
    Starting,
    /// The worker has connected and may claim.
    Live,
    /// The worker is to stop: it claims nothing more and finishes what it holds.
    Draining,
    /// The worker is gone for good. The row is kept for a while as a tombstone.
    Dead,
    /// A phase of a newer version of Lastword, beside which this one runs during an upgrade. Such a worker lives: its turns
    /// stay its own, and it may speak; the fleet's plan does not count on it. To take it for dead would end its turns, and
    /// to fail the reading would stop the fleet for the sake of one row.
    Unknown,
}

impl LeasePhase {
    /// Reads the word in the column `lease.phase`.
    pub fn parse(word: &str) -> Self {
        match word {
            "starting" => LeasePhase::Starting,
            "live" => LeasePhase::Live,
            "draining" => LeasePhase::Draining,
            "dead" => LeasePhase::Dead,
            _ => LeasePhase::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_has_one_name_everywhere() {
        for phase in Phase::ALL {
            assert_eq!(phase.as_str().parse(), Ok(phase));
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.as_str());
        }
        assert!("armed".parse::<Phase>().is_err());
    }

    #[test]
    fn an_unknown_lease_phase_is_not_taken_for_dead() {
        assert_eq!(LeasePhase::parse("dead"), LeasePhase::Dead);
        assert_eq!(LeasePhase::parse("retiring"), LeasePhase::Unknown);
    }
}
