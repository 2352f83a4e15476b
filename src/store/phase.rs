//! The states that columns hold as words, and the enums that the program has for them.

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::StoreError;
use crate::turn::phase::LeasePhase;

impl LeasePhase {
    /// The phase of a row that selects `phase`.
    pub(super) fn of(row: &PgRow) -> Result<Self, StoreError> {
        Ok(Self::parse(row.try_get("phase")?))
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
