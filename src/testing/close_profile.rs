//! How test servers close: faster than the product, unless a test wants to see the product's own times.
//!
//! Four layers decide about a stop, the upper ones first: the options of the individual call, the close defaults of the
//! test server, what the server's configuration says, the product's values. [`resolve`] is that rule; the arithmetic
//! below it is the product's own ([`crate::drain_plan`]), so that a test sees what a daemon would do.

use std::time::Duration;

pub use crate::drain_plan::{CloseOptions, DrainPlan};

/// How long a test server drains unless told otherwise.
pub const TEST_DRAIN: Duration = Duration::from_secs(4);

/// How long a whole stop of a test server may take unless told otherwise: 4 s of drain and 1 s for HTTP.
pub const TEST_OVERALL: Duration = Duration::from_secs(5);

/// The layer that a test server puts between its configuration and the individual stop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CloseDefaults {
    /// Nobody asked: drain 4 s, overall 5 s.
    #[default]
    Fast,
    /// Nothing of its own: what is configured applies, else the product's 8 s and 2 s.
    Production,
    /// These instead of the fast ones.
    Options(CloseOptions),
}

impl CloseDefaults {
    /// The layer for a list of options, later ones on top. They replace the fast profile; an empty list asks for
    /// production.
    pub fn from_options(options: &[CloseOptions]) -> Self {
        match options.iter().copied().reduce(|below, above| above.over(below)) {
            Some(merged) => Self::Options(merged),
            None => Self::Production,
        }
    }

    /// What this layer wishes.
    pub fn options(self) -> CloseOptions {
        match self {
            Self::Fast => CloseOptions::new()
                .drain_leases(TEST_DRAIN)
                .shutdown_timeout(TEST_OVERALL),
            Self::Production => CloseOptions::new(),
            Self::Options(options) => options,
        }
    }
}

/// The wishes for one stop: product values < `configured` < `defaults` < `call`, each overriding only what it names.
/// Hand the result to the server, or to [`DrainPlan::new`] to see what it comes to.
pub fn resolve(configured: CloseOptions, defaults: CloseDefaults, call: CloseOptions) -> CloseOptions {
    call.over(defaults.options().over(configured))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn plan(configured: CloseOptions, defaults: CloseDefaults, call: CloseOptions) -> (Duration, Duration) {
        let plan = DrainPlan::new(resolve(configured, defaults, call), None);
        let http = plan.http_phase(plan.drain()).expect("these plans have a cap");
        (plan.drain(), http)
    }

    const NONE: CloseOptions = CloseOptions {
        drain: None,
        overall: None,
        notify: None,
    };

    #[test]
    fn a_test_server_drains_four_seconds_and_leaves_one_to_http() {
        assert_eq!(plan(NONE, CloseDefaults::default(), NONE), (s(4), s(1)));
    }

    #[test]
    fn empty_close_defaults_are_the_production_split() {
        let empty = CloseDefaults::from_options(&[]);
        assert_eq!(empty, CloseDefaults::Production);
        assert_eq!(plan(NONE, empty, NONE), (s(8), s(2)));
    }

    #[test]
    fn close_defaults_with_arguments_replace_the_fast_profile() {
        let long = CloseDefaults::from_options(&[
            CloseOptions::new().drain_leases(s(8)),
            CloseOptions::new().shutdown_timeout(s(10)),
        ]);
        assert_eq!(plan(NONE, long, NONE), (s(8), s(2)));
        // The fast cap of 5 s is gone, not merely hidden: the product's 10 s shows through.
        let drain_alone = CloseDefaults::from_options(&[CloseOptions::new().drain_leases(s(1))]);
        assert_eq!(plan(NONE, drain_alone, NONE), (s(1), s(9)));
    }

    #[test]
    fn the_last_of_several_close_defaults_wins() {
        let defaults = CloseDefaults::from_options(&[
            CloseOptions::new().drain_leases(s(8)),
            CloseOptions::new().drain_leases(s(2)),
        ]);
        assert_eq!(plan(NONE, defaults, NONE), (s(2), s(8)));
    }

    #[test]
    fn each_layer_beats_the_ones_below_it() {
        let configured = CloseOptions::new().drain_leases(s(6)).shutdown_timeout(s(20));
        let defaults = CloseDefaults::from_options(&[CloseOptions::new().drain_leases(s(3))]);
        let call = CloseOptions::new().drain_leases(s(1));
        assert_eq!(plan(configured, CloseDefaults::Production, NONE), (s(6), s(14)));
        assert_eq!(plan(configured, CloseDefaults::Fast, NONE), (s(4), s(1)));
        assert_eq!(plan(configured, defaults, NONE), (s(3), s(17)));
        assert_eq!(plan(configured, defaults, call), (s(1), s(19)));
        assert_eq!(plan(NONE, CloseDefaults::Fast, call), (s(1), s(4)));
    }
}
