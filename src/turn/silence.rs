//! Whose silence counts: from how long ago on a lease must have run out for its worker to be taken for dead.
//!
//! A worker speaks to one gateway, and that gateway alone can write what it hears. So silence is judged by the gateway that
//! carried the worker's last sign of life: while that one cannot write, the silence of its workers is the gateway's. The store
//! keeps what is judged here (`store/gate.rs`), and asks (`store/silence.rs`); the clauses are tried on all that can happen to
//! two gateways and a worker by the model in this file's tests.

/// A verdict waits no longer than so many leases: for a time without a gap, or for the gateway that a lease names.
const LEASES_AT_MOST: f64 = 5.0;

/// A gap between gateways' ticks that ended a time without one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gap {
    /// Seconds of ticks without a gap before it.
    pub steady: f64,
    /// What all ticks had added up to when it ended: see [`GateTicks::ticked`].
    pub ticked: f64,
}

/// The ticks of all gateways together.
#[derive(Debug, Clone, PartialEq)]
pub struct GateTicks {
    /// Seconds from the end of the last gap to the last tick.
    pub steady: f64,
    /// Seconds that ticks have added up to since the beginning: each adds the time since the one before it, up to the length
    /// of a gap.
    pub ticked: f64,
    /// The gaps that no later one with as long a steady time before it has made irrelevant.
    pub gaps: Vec<Gap>,
}

impl GateTicks {
    /// Whether gateways have been able to write for long enough that so many seconds of silence mean something: without a gap
    /// for that time; or, where no such time ever passes without a gap, for five times as long over the gaps.
    pub fn settled(&self, seconds: f64) -> bool {
        // The last time that was without a gap for long enough settled the matter. What counts is what was ticked since.
        let last = self.gaps.iter().filter(|gap| gap.steady >= seconds).map(|gap| gap.ticked).fold(0.0, f64::max);
        self.steady >= seconds || self.ticked - last >= LEASES_AT_MOST * seconds
    }
}

/// The ticks of the gateway that carried a worker's last sign of life. Times are seconds before the last tick of any gateway,
/// negative where they lie behind it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CarrierTicks {
    /// Seconds of its ticks without a gap up to its last one.
    pub steady: f64,
    /// How long ago the beats of its last tick but one were gathered.
    pub last_but_one: f64,
    /// How long ago its row ran out.
    pub ran_out: f64,
}

/// How many seconds before the last tick of any gateway a lease of this length must have run out for its silence to count;
/// `None`: no silence counts now. `carrier` is the gateway that carried the worker's last sign of life; `None`: it has stopped
/// in order, or nothing was ever heard of the worker (it is a start).
///
/// Silence counts
/// - when the carrier has ticked without a gap for a lease, and two of its ticks, gathered after the lease ran out, committed
///   without a beat of the worker. One does not suffice: a beat that could not be written is said again, and that may be
///   after the first tick behind the fault;
/// - when the carrier has not ticked until its row ran out, and for a lease more: in that time a worker that lives has found
///   another gateway;
/// - when the lease ran out five leases ago, whatever the carrier does: one that comes and goes would keep the dead alive.
pub fn counts_from(lease: f64, gate: &GateTicks, carrier: Option<CarrierTicks>) -> Option<f64> {
    if !gate.settled(lease) {
        return None;
    }
    let Some(carrier) = carrier else { return Some(0.0) };
    if carrier.ran_out >= lease {
        return Some(0.0);
    }
    let at_most = LEASES_AT_MOST * lease;
    Some(if carrier.steady >= lease { carrier.last_but_one.clamp(0.0, at_most) } else { at_most })
}

#[cfg(test)]
#[path = "silence_tests.rs"]
mod tests;
