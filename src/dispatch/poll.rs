//! When a queue is looked through again although nothing was heard of it.
//!
//! Pure arithmetic on moments. Two promises: nothing is due while nobody waits, and two polls of a queue never begin closer
//! together than the poll floor, whatever happens in between.

use std::time::Duration;

use crate::clock::Moment;

/// How often queues are polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollLimits {
    /// The poll floor: the shortest time from the beginning of one poll to that of the next, and also how often a queue is
    /// polled where changes of other servers are not heard of.
    pub floor: Duration,
    /// Up to this much is added at random, so that servers do not poll in step.
    pub jitter: Duration,
    /// How often a queue is polled where changes are heard of: a net below the feed.
    pub resilient: Duration,
    /// Changes of other servers are heard of.
    pub feed: bool,
}

impl PollLimits {
    fn interval(&self) -> Duration {
        if self.feed {
            self.resilient.max(self.floor)
        } else {
            self.floor
        }
    }
}

/// The poll rhythm of one queue.
#[derive(Debug, Default)]
pub struct Poll {
    next: Option<Moment>,
}

impl Poll {
    /// The queue is being looked through from this moment on, for whatever reason. `chance` is at least 0 and below 1.
    pub fn looked(&mut self, now: Moment, limits: &PollLimits, chance: f64) {
        let jitter = limits.jitter.mul_f64(chance.clamp(0.0, 1.0));
        self.next = Some(now.after(limits.interval()).after(jitter));
    }

    /// When to poll; `None` while nobody waits. A queue that was never looked through is none to poll: whoever comes first
    /// looks at once.
    pub fn due(&self, somebody_waits: bool) -> Option<Moment> {
        self.next.filter(|_| somebody_waits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: PollLimits = PollLimits {
        floor: Duration::from_secs(3),
        jitter: Duration::from_millis(500),
        resilient: Duration::from_secs(300),
        feed: false,
    };

    fn at(ms: u64) -> Moment {
        Moment::ZERO.after(Duration::from_millis(ms))
    }

    #[test]
    fn nothing_is_due_while_nobody_waits() {
        let mut poll = Poll::default();
        assert_eq!(poll.due(false), None);
        poll.looked(at(10), &LIMITS, 0.5);
        assert_eq!(poll.due(false), None);
    }

    #[test]
    fn polls_are_a_floor_and_some_jitter_apart() {
        let mut poll = Poll::default();
        assert_eq!(poll.due(true), None);
        for (chance, due_ms) in [(0.0, 3_010), (0.5, 3_260), (1.0, 3_510)] {
            poll.looked(at(10), &LIMITS, chance);
            assert_eq!(poll.due(true), Some(at(due_ms)));
        }
    }

    #[test]
    fn a_feed_makes_polls_rare_but_never_more_frequent_than_the_floor() {
        let mut poll = Poll::default();
        let feed = PollLimits { feed: true, ..LIMITS };
        poll.looked(at(0), &feed, 0.0);
        assert_eq!(poll.due(true), Some(at(300_000)));
        let impatient = PollLimits {
            resilient: Duration::from_millis(200),
            ..feed
        };
        poll.looked(at(0), &impatient, 0.0);
        assert_eq!(poll.due(true), Some(at(3_000)));
    }
}
