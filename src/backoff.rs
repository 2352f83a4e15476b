//! Exponential back-off: pauses that double after each failure, up to a longest.

use std::time::Duration;

/// The pause after this many failures in a row, from 1 on; none after none. Without jitter, for those whose count of
/// failures is a row of the database or one entry among many.
pub fn doubled(first: Duration, longest: Duration, failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        _ => first.saturating_mul(2u32.saturating_pow(failures - 1)).min(longest),
    }
}

/// Pauses of one caller that tries something again and again. Each is shortened by up to a half at random, so that those
/// who lost the same peer do not come back to it all at once.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Begins with `first`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Backoff { first, longest, failures: 0 }
    }

    /// The pause after one more failure.
    #[expect(clippy::should_implement_trait, reason = "a back-off is no iterator: a success begins it anew")]
    pub fn next(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        doubled(self.first, self.longest, self.failures).mul_f64(rand::random_range(0.5..=1.0))
    }

    /// It went well: the next pause is the first one again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);

    #[test]
    fn pauses_double_up_to_the_longest() {
        let millis = |failures| doubled(FIRST, LONGEST, failures).as_millis();
        assert_eq!([0, 1, 2, 3, 6, 7, 40, u32::MAX].map(millis), [0, 100, 200, 400, 3200, 5000, 5000, 5000]);
    }

    #[test]
    fn jitter_shortens_by_a_half_at_most_and_a_success_begins_anew() {
        let mut backoff = Backoff::new(FIRST, LONGEST);
        for failures in 1..20 {
            let whole = doubled(FIRST, LONGEST, failures);
            let pause = backoff.next();
            assert!((whole / 2..=whole).contains(&pause), "{pause:?} after {failures}");
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
