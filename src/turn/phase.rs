//! Where a worker's lease is in its life.

/// Where a lease is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LeasePhase {
    Starting,
    Live,
    Draining,
    Dead,
}

impl LeasePhase {
    /// Reads the word in the `lease` table, whose CHECK admits these four.
    pub fn parse(text: &str) -> Self {
        match text {
            "starting" => LeasePhase::Starting,
            "live" => LeasePhase::Live,
            "draining" => LeasePhase::Draining,
            _ => LeasePhase::Dead,
        }
    }
}
