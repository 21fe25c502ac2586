//! How long a stopping server may take, and how it divides that time.
//!
//! A stop has two phases. In the *drain* the server grants nothing new and gives the holders of leases time to finish; it
//! ends early when no lease is held. In the *HTTP phase* answers that are under way are finished, then connections are
//! closed by force. Both fit into one overall cap, of which the drain may use at most four fifths, so that the HTTP
//! phase always has something left.
//!
//! This module is arithmetic only: no clock, no thread, no server. Who asks for what is said in layers of
//! [`CloseOptions`]; the product's values lie at the bottom of the pile.

use std::time::Duration;

/// How long held leases may finish when nobody says otherwise. The overall cap of 10 s cuts it to 8 s.
pub const DRAIN_GRACE: Duration = Duration::from_secs(10);

/// How long a whole stop may take when nobody says otherwise: 8 s of drain and 2 s for HTTP.
pub const OVERALL: Duration = Duration::from_secs(10);

/// How often the drain looks whether leases are still held.
pub const DRAIN_CHECK_EVERY: Duration = Duration::from_millis(250);

/// The least the HTTP phase gets, also when the drain used up everything.
pub const HTTP_AT_LEAST: Duration = Duration::from_millis(10);

/// The drain gets at most this share of the overall cap, in percent.
pub const DRAIN_SHARE_PERCENT: u32 = 80;

/// One layer of wishes about a stop. What is `None` is left to the layer below.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CloseOptions {
    /// How long held leases may finish; zero skips the drain.
    pub drain: Option<Duration>,
    /// Cap for the whole stop; zero means no cap.
    pub overall: Option<Duration>,
    /// Whether every answer announces the stop (`Shutdown-Imminent`) while the server drains.
    pub notify: Option<bool>,
}

impl CloseOptions {
    /// A layer that wishes nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives held leases this long to finish; zero skips the drain. A drain that is not skipped is announced; call
    /// [`notify`](Self::notify) afterwards to keep it quiet.
    pub fn drain_leases(mut self, span: Duration) -> Self {
        self.drain = Some(span);
        if !span.is_zero() {
            self.notify = Some(true);
        }
        self
    }

    /// Caps the whole stop; zero removes the cap.
    pub fn shutdown_timeout(mut self, span: Duration) -> Self {
        self.overall = Some(span);
        self
    }

    /// Announces the stop to clients, or not.
    pub fn notify(mut self, notify: bool) -> Self {
        self.notify = Some(notify);
        self
    }

    /// This layer on top of another one: what is `None` here is taken from below.
    pub fn over(self, below: CloseOptions) -> CloseOptions {
        CloseOptions {
            drain: self.drain.or(below.drain),
            overall: self.overall.or(below.overall),
            notify: self.notify.or(below.notify),
        }
    }
}

/// Reads a span that may be negative, as settings have it: negative is the same as zero, which skips the drain or
/// removes the cap.
pub fn span_from_signed_ms(span_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(span_ms).unwrap_or(0))
}

/// What a stop will do, with all layers and limits applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainPlan {
    drain: Duration,
    overall: Option<Duration>,
    notify: bool,
}

impl DrainPlan {
    /// The plan for these wishes over the product's own values. `caller_limit` is what is left of a deadline the caller
    /// of the stop has set for itself; it can lower the overall cap, never raise it.
    pub fn new(wishes: CloseOptions, caller_limit: Option<Duration>) -> Self {
        let cap = wishes.overall.unwrap_or(OVERALL);
        let cap = (!cap.is_zero()).then_some(cap);
        let overall = match (cap, caller_limit) {
            (Some(cap), Some(limit)) => Some(cap.min(limit)),
            (cap, limit) => cap.or(limit),
        };
        let wanted = wishes.drain.unwrap_or(DRAIN_GRACE);
        let drain = match overall {
            Some(overall) => wanted.min(drain_share(overall)),
            None => wanted,
        };
        Self {
            drain,
            overall,
            notify: wishes.notify.unwrap_or(true),
        }
    }

    /// How long held leases may finish; zero means there is no drain.
    pub fn drain(&self) -> Duration {
        self.drain
    }

    /// Whether the drain is skipped.
    pub fn skips_drain(&self) -> bool {
        self.drain.is_zero()
    }

    /// Cap for the whole stop; `None` means no cap.
    pub fn overall(&self) -> Option<Duration> {
        self.overall
    }

    /// Whether answers announce the stop while the server drains.
    pub fn notify(&self) -> bool {
        self.notify
    }

    /// How long the HTTP phase may take when it begins this long after the stop began; `None` means no cap. A drain that
    /// ended early leaves its time to the HTTP phase.
    pub fn http_phase(&self, elapsed: Duration) -> Option<Duration> {
        self.overall
            .map(|overall| overall.saturating_sub(elapsed).max(HTTP_AT_LEAST))
    }

    /// What a refused request is told to wait, this long after the stop began: the rest of the drain in whole seconds,
    /// rounded up, at least 1.
    pub fn retry_after_seconds(&self, elapsed: Duration) -> u64 {
        let rest = self.drain.saturating_sub(elapsed);
        let whole = rest.as_secs() + u64::from(rest.subsec_nanos() != 0);
        whole.max(1)
    }
}

/// Four fifths of the cap. Divides first: a cap near the largest duration must not overflow.
fn drain_share(overall: Duration) -> Duration {
    overall / 100 * DRAIN_SHARE_PERCENT
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_product_drains_eight_seconds_and_leaves_two_to_http() {
        let plan = DrainPlan::new(CloseOptions::new(), None);
        assert_eq!(plan.drain(), s(8));
        assert_eq!(plan.http_phase(plan.drain()), Some(s(2)));
        assert_eq!(plan.overall(), Some(s(10)));
        assert!(plan.notify());
    }

    #[test]
    fn the_drain_gets_at_most_four_fifths_of_the_cap() {
        let both = |drain, overall| {
            let wishes = CloseOptions::new().drain_leases(drain).shutdown_timeout(overall);
            DrainPlan::new(wishes, None).drain()
        };
        assert_eq!(both(s(8), s(2)), ms(1_600));
        assert_eq!(both(s(3), s(4)), s(3));
        assert_eq!(both(s(4), s(4)), ms(3_200));
        assert_eq!(both(ms(1), ms(1)), Duration::from_micros(800));
        assert_eq!(both(Duration::MAX, Duration::MAX), drain_share(Duration::MAX));
    }

    #[test]
    fn a_deadline_of_the_caller_lowers_the_cap_and_never_raises_it() {
        let wishes = CloseOptions::new().drain_leases(s(8)).shutdown_timeout(s(10));
        assert_eq!(DrainPlan::new(wishes, Some(s(5))).drain(), s(4));
        assert_eq!(DrainPlan::new(wishes, Some(s(60))).overall(), Some(s(10)));
        let uncapped = wishes.shutdown_timeout(Duration::ZERO);
        assert_eq!(DrainPlan::new(uncapped, Some(s(1))).drain(), ms(800));
        assert_eq!(DrainPlan::new(uncapped, Some(Duration::ZERO)).drain(), Duration::ZERO);
    }

    #[test]
    fn no_cap_leaves_the_drain_whole_and_http_unlimited() {
        let wishes = CloseOptions::new().drain_leases(s(90)).shutdown_timeout(Duration::ZERO);
        let plan = DrainPlan::new(wishes, None);
        assert_eq!(
            (plan.drain(), plan.overall(), plan.http_phase(s(90))),
            (s(90), None, None)
        );
    }

    #[test]
    fn zero_and_negative_drains_are_skipped() {
        for span_ms in [0, -1, i64::MIN] {
            let wishes = CloseOptions::new().drain_leases(span_from_signed_ms(span_ms));
            let plan = DrainPlan::new(wishes, None);
            assert!(plan.skips_drain(), "{span_ms} ms");
            assert_eq!(plan.http_phase(Duration::ZERO), Some(s(10)));
        }
        let one = CloseOptions::new().drain_leases(span_from_signed_ms(1));
        assert!(!DrainPlan::new(one, None).skips_drain());
    }

    #[test]
    fn http_gets_the_rest_but_never_less_than_ten_milliseconds() {
        let plan = DrainPlan::new(CloseOptions::new(), None);
        assert_eq!(plan.http_phase(ms(500)), Some(ms(9_500)));
        assert_eq!(plan.http_phase(ms(9_995)), Some(ms(10)));
        assert_eq!(plan.http_phase(s(3_600)), Some(ms(10)));
    }

    #[test]
    fn retry_after_counts_down_in_whole_seconds_to_one() {
        let plan = DrainPlan::new(CloseOptions::new(), None);
        let told = [0, 1, 1_000, 6_999, 7_000, 7_999, 8_000, 60_000].map(|at| plan.retry_after_seconds(ms(at)));
        assert_eq!(told, [8, 8, 7, 2, 1, 1, 1, 1]);
    }

    #[test]
    fn a_layer_hides_only_what_it_names() {
        let below = CloseOptions::new().drain_leases(s(3)).shutdown_timeout(s(4));
        let above = CloseOptions::new().shutdown_timeout(s(9));
        let both = above.over(below);
        assert_eq!(
            (both.drain, both.overall, both.notify),
            (Some(s(3)), Some(s(9)), Some(true))
        );
    }

    #[test]
    fn a_drain_is_announced_unless_it_is_told_to_be_quiet() {
        let quiet_below = CloseOptions::new().notify(false);
        let drained = CloseOptions::new().drain_leases(s(1));
        assert!(DrainPlan::new(drained.over(quiet_below), None).notify());
        assert!(!DrainPlan::new(drained.notify(false), None).notify());
        let skipped = CloseOptions::new().drain_leases(Duration::ZERO);
        assert!(!DrainPlan::new(skipped.over(quiet_below), None).notify());
    }
}
