//! The states that columns hold as words, and the enums that the program has for them.

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::StoreError;

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
    /// The phase of a row that selects `phase`.
    pub(super) fn of(row: &PgRow) -> Result<Self, StoreError> {
        Ok(Self::parse(row.try_get("phase")?))
    }

    pub(super) fn parse(word: &str) -> Self {
        match word {
            "starting" => LeasePhase::Starting,
            "live" => LeasePhase::Live,
            "draining" => LeasePhase::Draining,
            "dead" => LeasePhase::Dead,
            _ => LeasePhase::Unknown,
        }
    }
}

/// Whether a renderer looks at a delivery: the column `delivery.state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeliveryState {
    /// To be shown as soon as it is due.
    Ready,
    /// Set aside until the retention removes it: nobody to show an `api` terminal to, or a post that was given up.
    Parked,
}

impl DeliveryState {
    /// The word in the column.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            DeliveryState::Ready => "ready",
            DeliveryState::Parked => "parked",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_lease_phase_is_not_taken_for_dead() {
        assert_eq!(LeasePhase::parse("dead"), LeasePhase::Dead);
        assert_eq!(LeasePhase::parse("retiring"), LeasePhase::Unknown);
    }
}
