//! The one place of this crate that reads a clock.
//!
//! Waiting is measured in monotonic time. Wall time is read to understand the times that servers tell: a `Retry-After` header
//! may name a date, the lease of a message ends at one.

use std::time::{Instant, SystemTime};

/// Monotonic time.
#[allow(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Wall time.
#[allow(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}
