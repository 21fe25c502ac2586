//! How long to pause before the next try: arithmetic only, no clock, no randomness of its own.

use std::time::Duration;

/// How an acquire paces its tries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// First delay.
    pub base: Duration,
    /// Longest delay, before jitter.
    pub max: Duration,
    /// Growth from one delay to the next; 1 and less mean 1.2.
    pub multiplier: f64,
    /// Largest deviation from the delay, either way. Zero switches it off.
    pub jitter: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base: Duration::from_secs(1),
            max: Duration::from_secs(5),
            multiplier: 1.2,
            jitter: Duration::from_millis(100),
        }
    }
}

impl Backoff {
    /// `delay` with jitter. `dice` is a uniform random number from 0 to 1. The result stays within `max`, except that a
    /// delay which has reached `max` may exceed it by the jitter.
    pub(crate) fn jittered(&self, delay: Duration, dice: f64) -> Duration {
        let delay = delay.min(self.max);
        let jitter = if delay < self.jitter { delay / 2 } else { self.jitter };
        let upper = if delay < self.max { self.max } else { self.max + jitter };
        let low = delay.saturating_sub(jitter);
        (low + (jitter * 2).mul_f64(dice.clamp(0.0, 1.0))).min(upper)
    }

    /// The delay after `delay`. The server's wish is the lower bound.
    pub(crate) fn next(&self, delay: Duration, retry_after: Option<Duration>) -> Duration {
        let multiplier = if 1.0 < self.multiplier { self.multiplier } else { 1.2 };
        let grown = Duration::try_from_secs_f64(delay.as_secs_f64() * multiplier).unwrap_or(self.max);
        grown.min(self.max).max(retry_after.unwrap_or_default())
    }
}

/// The pause itself: the jittered delay, not shorter than the server asks for, not longer than what is left.
pub(crate) fn pause(jittered: Duration, retry_after: Option<Duration>, remaining: Option<Duration>) -> Duration {
    let wanted = jittered.max(retry_after.unwrap_or_default());
    remaining.map_or(wanted, |left| wanted.min(left))
}

const WRITE_DELAY_FIRST: Duration = Duration::from_millis(10);
const WRITE_DELAY_STOP: Duration = Duration::from_secs(1);
const WRITE_PAUSE_MAX: Duration = Duration::from_millis(500);

/// Pause before repeating a write for the `retry`-th time (from 1): 10 ms, doubled each time. The server's wish can raise
/// it, but not above 500 ms.
pub(crate) fn write_pause(retry: u32, retry_after: Option<Duration>) -> Duration {
    let mut delay = WRITE_DELAY_FIRST;
    for _ in 1..retry {
        if WRITE_DELAY_STOP <= delay {
            break;
        }
        delay *= 2;
    }
    delay.max(retry_after.unwrap_or_default()).min(WRITE_PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// CL-13: jitter bounds, with the dice at both ends and in the middle.
    #[test]
    fn jitter_stays_within_its_bounds() {
        let backoff = Backoff::default();
        for (delay, dice, expected) in [
            (ms(1_000), 0.0, ms(900)),
            (ms(1_000), 0.5, ms(1_000)),
            (ms(1_000), 1.0, ms(1_100)),
            // Close to the maximum the upper end is cut.
            (ms(4_950), 1.0, ms(5_000)),
            // At the maximum the jitter may go beyond.
            (ms(5_000), 1.0, ms(5_100)),
            (ms(9_000), 0.0, ms(4_900)),
            // A delay shorter than the jitter is halved either way.
            (ms(40), 0.0, ms(20)),
            (ms(40), 1.0, ms(60)),
            (ms(0), 1.0, ms(0)),
        ] {
            assert_eq!(backoff.jittered(delay, dice), expected, "{delay:?} {dice}");
        }
        let off = Backoff {
            jitter: Duration::ZERO,
            ..backoff
        };
        assert_eq!(off.jittered(ms(700), 1.0), ms(700));
    }

    /// CL-13: growth, its cap, and a multiplier that would not grow.
    #[test]
    fn delays_grow_up_to_the_maximum() {
        let backoff = Backoff::default();
        assert_eq!(backoff.next(ms(1_000), None), ms(1_200));
        assert_eq!(backoff.next(ms(4_900), None), ms(5_000));
        let flat = Backoff {
            multiplier: 0.5,
            ..backoff
        };
        assert_eq!(flat.next(ms(1_000), None), ms(1_200));
    }

    /// CL-12: the server's wish is a lower bound, also above our maximum; a deadline is an upper one.
    #[test]
    fn the_servers_wish_is_a_lower_bound_and_the_deadline_an_upper_one() {
        let backoff = Backoff::default();
        assert_eq!(backoff.next(ms(1_000), Some(ms(9_000))), ms(9_000));
        assert_eq!(pause(ms(900), Some(ms(3_000)), None), ms(3_000));
        assert_eq!(pause(ms(900), Some(ms(10)), None), ms(900));
        assert_eq!(pause(ms(900), Some(ms(3_000)), Some(ms(50))), ms(50));
    }

    /// CL-11: 10 ms doubling, 500 ms at most, also when the server asks for more.
    #[test]
    fn repeated_writes_double_their_pause_up_to_half_a_second() {
        let pauses: Vec<u64> = (1..=9)
            .map(|retry| write_pause(retry, None).as_millis() as u64)
            .collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 500, 500, 500]);
        assert_eq!(write_pause(1, Some(ms(300))), ms(300));
        assert_eq!(write_pause(1, Some(ms(9_000))), ms(500));
    }
}
