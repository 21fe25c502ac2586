//! Requests by endpoint: how many got which status, how long they took, how many were never answered.
//!
//! A request is measured from the moment it comes in to the moment its status is known and is about to be written: with
//! the time in the queue of the workers and the time parked, without the pace of a client that reads slowly, and for a
//! stream without what follows its head. When nobody watches there is no tally, and a request costs a look at an empty
//! option.

use crate::clock::{Moment, SharedClock};
use crate::metrics::{Counter, Histogram, Report, micros};

use super::route::{self, ROUTES};

/// All that are answered. Any other would be a mistake of ours and counts as the last one.
const STATUSES: [(u16, &str); 9] = [
    (200, "200"),
    (204, "204"),
    (400, "400"),
    (403, "403"),
    (404, "404"),
    (405, "405"),
    (409, "409"),
    (503, "503"),
    (500, "500"),
];

/// In microseconds. Few, since each is a line per endpoint: a memory's answer, a disk's, a bucket's, a wait.
const LATENCY_BOUNDS: &[u64] = &[
    250, 1_000, 5_000, 25_000, 100_000, 500_000, 2_500_000, 10_000_000, 60_000_000,
];

/// The requests of one listener.
pub struct Tally {
    clock: SharedClock,
    routes: [PerRoute; ROUTES.len()],
}

struct PerRoute {
    answered: [Counter; STATUSES.len()],
    abandoned: Counter,
    took: Histogram,
}

/// A request on its way to being counted.
#[derive(Debug)]
pub(super) struct Call {
    came: Moment,
    route: usize,
    is_counted: bool,
}

impl Tally {
    /// Nothing happened yet.
    pub fn new(clock: SharedClock) -> Self {
        let routes = ROUTES.map(|_| PerRoute {
            answered: STATUSES.map(|_| Counter::new()),
            abandoned: Counter::new(),
            took: Histogram::new(LATENCY_BOUNDS),
        });
        Self { clock, routes }
    }

    /// A request has come in; what it wants is not known yet.
    pub(super) fn come_in(&self) -> Call {
        Call {
            came: self.clock.now(),
            route: route::UNKNOWN,
            is_counted: false,
        }
    }

    /// The status of its answer is known. Only the first one counts.
    pub(super) fn answered(&self, call: &mut Call, status: u16) {
        if std::mem::replace(&mut call.is_counted, true) {
            return;
        }
        let route = &self.routes[call.route];
        let known = STATUSES.iter().position(|(known, _)| *known == status);
        route.answered[known.unwrap_or(STATUSES.len() - 1)].add(1);
        route.took.observe(micros(self.clock.now().since(call.came)));
    }

    /// It is gone. If nobody has answered it, nobody will.
    pub(super) fn ended(&self, call: &Call) {
        if !call.is_counted {
            self.routes[call.route].abandoned.add(1);
        }
    }

    /// What happened so far. Endpoints that nobody asked are left out.
    pub fn report(&self, report: &mut Report) {
        for (name, route) in ROUTES.iter().zip(&self.routes) {
            for ((_, status), count) in STATUSES.iter().zip(&route.answered) {
                let count = count.get();
                if count != 0 {
                    let labels = [("route", *name), ("status", *status)];
                    report.count("lockd_http_requests", "Requests that were answered.", &labels, count);
                }
            }
            let abandoned = route.abandoned.get();
            if abandoned != 0 {
                let help = "Requests whose client had gone before there was an answer.";
                report.count("lockd_http_requests_abandoned", help, &[("route", name)], abandoned);
            }
            let took = route.took.spread(1e6);
            if took.buckets.iter().any(|(_, count)| *count != 0) {
                let help = "Time until an answer began, waiting included.";
                report.spread("lockd_http_request_duration_seconds", help, &[("route", name)], took);
            }
        }
    }
}

impl Call {
    /// It is known now what it wants.
    pub(super) fn is_for(&mut self, route: usize) {
        self.route = route;
    }
}
