//! What is counted while connections are driven.

use std::collections::BTreeMap;
use std::io;

use hdrhistogram::Histogram;

use crate::http::json_field;

/// Everything that was not a success, by what it was: status and error code, or what became of the connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Errors(pub(crate) BTreeMap<String, u64>);

impl Errors {
    /// Counts an answer other than 200.
    pub(crate) fn refused(&mut self, status: u16, body: &[u8]) {
        let code = json_field(body, "error")
            .map(String::from_utf8_lossy)
            .unwrap_or_default();
        self.other(format!("{status} {code}").trim_end());
    }

    /// Counts a connection that failed.
    pub(crate) fn io(&mut self, error: &io::Error) {
        self.other(&format!("connection: {}", error.kind()));
    }

    /// Counts something else.
    pub(crate) fn other(&mut self, what: &str) {
        match self.0.get_mut(what) {
            Some(count) => *count += 1,
            None => {
                self.0.insert(what.to_owned(), 1);
            }
        }
    }

    /// How many there were.
    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Adds those of another.
    pub(crate) fn add(&mut self, other: &Errors) {
        for (what, count) in &other.0 {
            *self.0.entry(what.clone()).or_default() += count;
        }
    }
}

/// What one measurement counted.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    /// Operations of which every request succeeded.
    pub(crate) operations: u64,
    /// Requests that were answered, refusals included.
    pub(crate) requests: u64,
    /// Latency of the successful operations, in nanoseconds.
    pub(crate) latency_ns: Histogram<u64>,
    pub(crate) errors: Errors,
    /// Connections opened again because the server had ended them or they failed.
    pub(crate) reconnects: u64,
    /// Connections that could not be opened again and were given up.
    pub(crate) lost_connections: u64,
    /// Open loop: operations that were due but found no free connection before the end.
    pub(crate) never_started: u64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            operations: 0,
            requests: 0,
            latency_ns: new_histogram(),
            errors: Errors::default(),
            reconnects: 0,
            lost_connections: 0,
            never_started: 0,
        }
    }

    /// Adds what another thread, or another round, counted.
    pub(crate) fn add(&mut self, other: &Tally) {
        self.operations += other.operations;
        self.requests += other.requests;
        self.latency_ns += &other.latency_ns;
        self.errors.add(&other.errors);
        self.reconnects += other.reconnects;
        self.lost_connections += other.lost_connections;
        self.never_started += other.never_started;
    }
}

/// A histogram from 1 ns to an hour that keeps three digits; what lies beyond is counted as its largest value.
pub(crate) fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000_000, 3).expect("the bounds are in order and three digits are legal")
}
