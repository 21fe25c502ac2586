//! Counting what happens, for whoever watches the daemon from outside.
//!
//! A part of the house counts with plain atomics that it owns, and writes them into a [`Report`] when somebody asks. What
//! is counted costs an atomic addition or two, in no order with anything else: the figures of one report may be a moment
//! apart. How a report is written down and who gets it is decided on other floors; there is no registry and nothing
//! global, so two servers in one process never share a count.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Something that only becomes more.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Zero.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// So much more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// How much it is by now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How often a value fell between which bounds.
#[derive(Debug)]
pub struct Histogram {
    /// The largest value of each bucket but the last, rising.
    bounds: &'static [u64],
    buckets: Box<[Counter]>,
    sum: Counter,
}

impl Histogram {
    /// Buckets up to and with each of these bounds, which rise, and one for all that is larger.
    pub fn new(bounds: &'static [u64]) -> Self {
        Self {
            bounds,
            buckets: (0..=bounds.len()).map(|_| Counter::new()).collect(),
            sum: Counter::new(),
        }
    }

    /// One more value.
    pub fn observe(&self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.buckets[bucket].add(1);
        self.sum.add(value);
    }

    /// The values so far, each divided by `divisor`: what was observed in microseconds is told in seconds by a million.
    pub fn spread(&self, divisor: f64) -> Spread {
        let bounds = self.bounds.iter().map(|bound| to_f64(*bound) / divisor);
        let counts = self.buckets.iter().map(Counter::get);
        Spread {
            buckets: bounds.chain([f64::INFINITY]).zip(counts).collect(),
            sum: to_f64(self.sum.get()) / divisor,
        }
    }
}

/// How values are spread.
#[derive(Debug, Clone, PartialEq)]
pub struct Spread {
    /// The largest value of each bucket, rising, and how many values it holds. The last bound is `f64::INFINITY`.
    pub buckets: Vec<(f64, u64)>,
    /// All values together.
    pub sum: f64,
}

/// One figure.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// It only becomes more.
    Count(u64),
    /// The same, of something that is not counted in whole numbers.
    Amount(f64),
    /// It goes up and down.
    Level(f64),
    /// Many values.
    Spread(Spread),
}

/// What tells figures of one name apart: label and value.
pub type Labels = Vec<(&'static str, String)>;

/// Figures of one name. All are of the same kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// Letters and underscores; with the unit at its end. A count gets `_total` where it is written down.
    pub name: &'static str,
    /// One sentence for people.
    pub help: &'static str,
    /// The figures, each with other labels.
    pub samples: Vec<(Labels, Value)>,
}

/// Everything that is known at one moment.
#[derive(Debug, Default)]
pub struct Report {
    families: Vec<Family>,
}

impl Report {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes something that only becomes more.
    pub fn count(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)], value: u64) {
        self.put(name, help, labels, Value::Count(value));
    }

    /// Notes something that only becomes more and is not counted in whole numbers.
    pub fn amount(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)], value: f64) {
        self.put(name, help, labels, Value::Amount(value));
    }

    /// Notes something that goes up and down.
    pub fn level(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)], value: f64) {
        self.put(name, help, labels, Value::Level(value));
    }

    /// Notes how values are spread.
    pub fn spread(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)], value: Spread) {
        self.put(name, help, labels, Value::Spread(value));
    }

    /// What was noted, by name.
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    fn put(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)], value: Value) {
        let labels = labels
            .iter()
            .map(|(label, text)| (*label, (*text).to_owned()))
            .collect();
        // Figures of one name come one after the other as a rule.
        let known = self.families.iter_mut().rev().find(|family| family.name == name);
        match known {
            Some(family) => family.samples.push((labels, value)),
            None => self.families.push(Family {
                name,
                help,
                samples: vec![(labels, value)],
            }),
        }
    }
}

/// A count of things in memory as reports have it.
pub fn level_of(count: usize) -> f64 {
    to_f64(count as u64)
}

/// A span of time for a histogram of microseconds.
pub fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// A number as reports have it; beyond 2^53 it is rounded.
#[allow(clippy::cast_precision_loss, reason = "that is what the name says")]
pub fn to_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_belongs_to_the_first_bucket_that_can_hold_it() {
        let histogram = Histogram::new(&[10, 20]);
        for value in [0, 10, 11, 20, 21, 1000] {
            histogram.observe(value);
        }
        let spread = histogram.spread(10.0);
        assert_eq!(spread.buckets, [(1.0, 2), (2.0, 2), (f64::INFINITY, 2)]);
        assert!((spread.sum - 106.2).abs() < 1e-9, "{}", spread.sum);
    }

    #[test]
    fn figures_of_one_name_are_kept_together() {
        let mut report = Report::new();
        report.count("a", "About a.", &[("kind", "x")], 1);
        report.level("b", "About b.", &[], 0.5);
        report.count("a", "About a.", &[("kind", "y")], 2);
        let names: Vec<_> = report.families().iter().map(|family| family.name).collect();
        assert_eq!(names, ["a", "b"]);
        let first = &report.families()[0];
        assert_eq!(first.samples[1], (vec![("kind", "y".to_owned())], Value::Count(2)));
    }
}
