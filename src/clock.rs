//! Time as a value: wall time for records, monotonic time for waiting.
//!
//! Nobody else reads a clock. Records carry wall time in milliseconds, the wire carries whole Unix seconds; whoever waits
//! measures with monotonic time, so that a clock that jumps shortens or lengthens no wait. Tests move a [`ManualClock`].
//!
//! # Clocks that are wrong
//!
//! A lease is over when the wall clock of the server that is asked shows its last second. So:
//!
//! - A clock that jumps forwards ends leases early, one that jumps backwards prolongs those that live. Releasing ends a lease
//!   at once in any case, and waits with a limit last as long as they should.
//! - Servers of one store should agree about the time to within a fraction of the shortest TTL in use. One that is ahead
//!   takes the leases of the others for over while their holders still count on them; one that is behind waits longer than
//!   it would have to.
//! - Whatever clocks say, a key has one holder in its record, its tokens rise by one with each grant, and a holder that was
//!   taken over is refused at its next call, by any server. What a wrong clock costs is time and work that was staged, never
//!   what was committed; but for `disk-retention`, which deletes by age, and age is a matter of clocks. A resource that
//!   checks the fencing token is safe from whoever has not heard yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A moment on the monotonic clock, counted from an arbitrary beginning. Never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(Duration);

impl Moment {
    /// The beginning that moments are counted from.
    pub const ZERO: Moment = Moment(Duration::ZERO);

    /// A moment that never comes.
    pub const MAX: Moment = Moment(Duration::MAX);

    /// The moment so much later.
    pub fn after(self, span: Duration) -> Moment {
        Moment(self.0.saturating_add(span))
    }

    /// How long from `earlier` to this moment; zero if it is not earlier.
    pub fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// Wall time: milliseconds since 1970. May jump either way.
    fn wall_ms(&self) -> i64;

    /// Monotonic time, for waiting.
    fn now(&self) -> Moment;

    /// Wall time: whole seconds since 1970, rounded down.
    fn wall_seconds(&self) -> i64 {
        self.wall_ms().div_euclid(1000)
    }
}

/// A clock to hand around.
pub type SharedClock = Arc<dyn Clock>;

/// The clock of the machine.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose moments are counted from now.
    #[allow(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// The same, ready to hand around.
    pub fn shared() -> SharedClock {
        Arc::new(Self::new())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
    fn wall_ms(&self) -> i64 {
        // A clock before 1970 counts as 1970: such a machine has no time set yet.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
    }

    fn now(&self) -> Moment {
        Moment(self.start.elapsed())
    }
}

/// A clock that stands still until a test moves it. Wall and monotonic time move apart on request.
#[derive(Debug, Default)]
pub struct ManualClock {
    wall_ms: AtomicI64,
    monotonic_ms: AtomicU64,
}

impl ManualClock {
    /// A clock that shows this wall time.
    pub fn at_wall_ms(wall_ms: i64) -> Arc<Self> {
        Arc::new(Self {
            wall_ms: AtomicI64::new(wall_ms),
            monotonic_ms: AtomicU64::new(0),
        })
    }

    /// Lets time pass: both clocks move on.
    pub fn advance(&self, span: Duration) {
        let span_ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        self.monotonic_ms.fetch_add(span_ms, Ordering::SeqCst);
        self.wall_ms
            .fetch_add(i64::try_from(span_ms).unwrap_or(i64::MAX), Ordering::SeqCst);
    }

    /// Sets the wall clock alone, as an administrator or NTP would.
    pub fn set_wall_ms(&self, wall_ms: i64) {
        self.wall_ms.store(wall_ms, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn wall_ms(&self) -> i64 {
        self.wall_ms.load(Ordering::SeqCst)
    }

    fn now(&self) -> Moment {
        Moment(Duration::from_millis(self.monotonic_ms.load(Ordering::SeqCst)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_of_the_wall_clock_leaves_moments_alone() {
        let clock = ManualClock::at_wall_ms(5_000);
        let before = clock.now();
        clock.set_wall_ms(1);
        assert_eq!(clock.now().since(before), Duration::ZERO);
        clock.advance(Duration::from_millis(1_500));
        assert_eq!(clock.now().since(before), Duration::from_millis(1_500));
        assert_eq!(clock.wall_ms(), 1_501);
        assert_eq!(clock.wall_seconds(), 1);
    }
}
