//! The flags of failure detection and retention, for the roles that sweep.

use std::time::Duration;

use clap::Args;

use crate::store::Retention;

/// The settings of failure detection and retention that hold for the whole installation rather than for one Agent.
#[derive(Debug, Clone, Args)]
pub struct TimingArgs {
    /// How often the sweep looks for what has lapsed.
    #[arg(long, env = "LASTWORD_SWEEP_MILLISECONDS", value_name = "MILLISECONDS", default_value_t = 1000)]
    pub sweep_milliseconds: u64,
    /// How long the cause of a proven death is waited for.
    #[arg(long, env = "LASTWORD_CAUSE_WINDOW_MILLISECONDS", value_name = "MILLISECONDS", default_value_t = 5000)]
    pub cause_window_milliseconds: u64,
    /// How long a turn is kept after its terminal.
    #[arg(long, env = "LASTWORD_RETENTION_SECONDS", value_name = "SECONDS", default_value_t = 30 * 24 * 3600)]
    pub retention_seconds: u64,
}

impl TimingArgs {
    pub fn sweep_every(&self) -> Duration {
        Duration::from_millis(self.sweep_milliseconds.max(10))
    }

    pub fn cause_window(&self) -> Duration {
        Duration::from_millis(self.cause_window_milliseconds)
    }

    pub fn retention(&self) -> Retention {
        Retention { turn_seconds: self.retention_seconds, ..Retention::default() }
    }
}
