//! Where a turn stands, in the words that its clients read.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a turn stands: the AgentTurn's `status.phase`, and `phase` of a record in the API. Written everywhere as its
/// CamelCase name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Not yet armed.
    Pending,
    /// Armed: owes a terminal.
    Armed,
    /// A worker holds it.
    Running,
    /// Ended with a reply.
    Succeeded,
    /// Ended with an error.
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
}
