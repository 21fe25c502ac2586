//! When a consumer that failed starts again: arithmetic only, no clock, no randomness of its own.

use std::time::Duration;

/// How a consumer gets over failures. They are counted in a row: a subscription that ends well begins a new count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RestartPolicy {
    /// So many restarts come at once. Default 3.
    pub immediate_retries: u32,
    /// The pause before the next one. Default 250 ms.
    pub base: Duration,
    /// The longest pause, jitter included. Default 5 min.
    pub max: Duration,
    /// Growth from one pause to the next; less than 1 means 2. Default 2.
    pub multiplier: f64,
    /// Largest deviation from a pause, either way. Default none.
    pub jitter: Duration,
    /// The consumer ends when more failures than this come in a row. Default: it never does.
    pub max_failures: Option<u32>,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            immediate_retries: 3,
            base: Duration::from_millis(250),
            max: Duration::from_secs(5 * 60),
            multiplier: 2.0,
            jitter: Duration::ZERO,
            max_failures: None,
        }
    }
}

impl RestartPolicy {
    /// The pause after the `failures`-th failure in a row (from 1). `dice` is a uniform random number from 0 to 1.
    pub(super) fn pause(&self, failures: u32, dice: f64) -> Duration {
        let Some(grown_times) = failures.checked_sub(self.immediate_retries + 1) else {
            return Duration::ZERO;
        };
        let multiplier = if 1.0 <= self.multiplier { self.multiplier } else { 2.0 };
        let factor = multiplier.powi(i32::try_from(grown_times).unwrap_or(i32::MAX));
        let grown = Duration::try_from_secs_f64(self.base.as_secs_f64() * factor)
            .unwrap_or(self.max)
            .min(self.max);
        let low = grown.saturating_sub(self.jitter);
        (low + (self.jitter * 2).mul_f64(dice.clamp(0.0, 1.0))).min(self.max)
    }

    /// True when so many failures in a row are too many.
    pub(super) fn gives_up_after(&self, failures: u32) -> bool {
        self.max_failures.is_some_and(|max| max < failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// CL-41: three at once, then 250 ms doubling up to five minutes.
    #[test]
    fn restarts_come_at_once_and_then_less_and_less_often() {
        let policy = RestartPolicy::default();
        let pauses: Vec<u64> = (1..=8)
            .map(|failures| policy.pause(failures, 0.5).as_millis() as u64)
            .collect();
        assert_eq!(pauses, [0, 0, 0, 250, 500, 1_000, 2_000, 4_000]);
        assert_eq!(policy.pause(14, 0.5), ms(256_000));
        for failures in [15, 100, u32::MAX] {
            assert_eq!(policy.pause(failures, 1.0), policy.max, "{failures}");
        }
    }

    #[test]
    fn jitter_goes_both_ways_but_not_beyond_the_maximum() {
        let policy = RestartPolicy {
            immediate_retries: 1,
            base: ms(20),
            max: ms(50),
            jitter: ms(10),
            ..RestartPolicy::default()
        };
        assert_eq!(policy.pause(1, 1.0), Duration::ZERO);
        assert_eq!((policy.pause(2, 0.0), policy.pause(2, 1.0)), (ms(10), ms(30)));
        assert_eq!((policy.pause(4, 0.0), policy.pause(4, 1.0)), (ms(40), ms(50)));
    }

    #[test]
    fn without_a_limit_no_number_of_failures_is_too_many() {
        assert!(!RestartPolicy::default().gives_up_after(u32::MAX));
        let strict = RestartPolicy {
            max_failures: Some(0),
            ..RestartPolicy::default()
        };
        assert!(strict.gives_up_after(1) && !strict.gives_up_after(0));
    }
}
