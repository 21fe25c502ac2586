//! Clearing away what nobody comes back to: expired leases with what they had staged, transactions without a living
//! member, bodies that no record names, and, if asked for, keys that have not changed for long.
//!
//! Nothing depends on it but space. Whoever meets an expired lease clears it himself, so a server whose sweeper stands
//! still serves as well as any other. Several servers of one store may sweep at the same time: every change is one
//! conditional write, and who comes second finds nothing to do.
//!
//! One thread, one pass at a time. It works in batches with pauses, under load too, so a pass over a large store takes a
//! while and costs the others little. Idle, it wakes once per interval, which is never shorter than [`INTERVAL_MIN`].

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::clock::{Moment, SharedClock};
use crate::error::Error;
use crate::lease::table::KeyTable;
use crate::logging::Logger;
use crate::threads;

mod bodies;
mod leases;
mod retention;

pub use bodies::sweep_bodies;
pub use leases::sweep_leases;
pub use retention::sweep_retention;

/// No interval is shorter.
pub const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// How often bodies that no record names are looked for. They are rare: a crash leaves a few at most.
const BODIES_INTERVAL: Duration = Duration::from_secs(6 * 60 * 60);
/// A body must have been left alone for so long. Far longer than any write may take between a body and its record, also
/// in a process that was stopped in between. A wrong clock may say so too early; see `bodies`.
pub const BODY_GRACE: Duration = Duration::from_secs(24 * 60 * 60);
/// The pause between two batches.
const BATCH_PAUSE: Duration = Duration::from_millis(20);

const SYS: &str = "server.sweeper";

/// When to sweep what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SweepPlan {
    /// How often expired leases and transactions are cleared.
    pub interval: Duration,
    /// Keys that have not changed for so long are deleted; `None`: never.
    pub retention: Option<Duration>,
    /// How often such keys are looked for.
    pub janitor_interval: Duration,
}

/// The thread that sweeps. Stops when it is told to or dropped.
pub struct Sweeper {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sweeper {
    /// Starts to sweep. The first passes come at random moments in the second halves of their intervals, so that servers
    /// which are started together do not sweep together, and none sweeps while it is starting.
    pub fn start(table: Arc<KeyTable>, clock: SharedClock, log: Logger, plan: SweepPlan) -> io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let mut rounds = Rounds {
            table,
            clock,
            log,
            pace: Pace {
                stopped,
                pause: BATCH_PAUSE,
            },
        };
        let thread = threads::spawn("sweeper", move || rounds.run(&plan))?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Stops after the batch under way.
    pub fn stop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // One that has panicked has nothing left to tidy up.
            let _ = thread.join();
        }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.stop();
    }
}

/// How fast a pass goes, and whether it goes on.
pub struct Pace {
    stopped: Receiver<()>,
    pause: Duration,
}

impl Pace {
    /// No pauses, no end before the end.
    pub fn without_pauses() -> Self {
        Self {
            stopped: crossbeam_channel::never(),
            pause: Duration::ZERO,
        }
    }

    /// Waits between two batches. False: stop here.
    fn goes_on(&self) -> bool {
        self.waits(self.pause)
    }

    fn waits(&self, span: Duration) -> bool {
        self.stopped.recv_timeout(span) == Err(RecvTimeoutError::Timeout)
    }
}

struct Rounds {
    table: Arc<KeyTable>,
    clock: SharedClock,
    log: Logger,
    pace: Pace,
}

/// One kind of pass: when it is due next.
struct Due {
    at: Moment,
    every: Duration,
}

impl Due {
    fn new(now: Moment, every: Duration) -> Self {
        let every = every.max(INTERVAL_MIN);
        Self {
            at: now.after(every.mul_f64(0.5 + fastrand::f64() / 2.0)),
            every,
        }
    }

    /// True once for each time that it is due.
    fn is_now(&mut self, now: Moment) -> bool {
        let is_now = self.at <= now;
        if is_now {
            self.at = now.after(self.every);
        }
        is_now
    }
}

impl Rounds {
    fn run(&mut self, plan: &SweepPlan) {
        let now = self.clock.now();
        let mut leases = Due::new(now, plan.interval);
        let mut bodies = Due::new(now, BODIES_INTERVAL);
        let mut old_bodies = BTreeSet::new();
        let mut retention = (plan.retention).map(|retention| (retention, Due::new(now, plan.janitor_interval)));
        loop {
            let now = self.clock.now();
            if leases.is_now(now) {
                self.report("leases", sweep_leases(&self.table, &self.pace));
            }
            if bodies.is_now(now) {
                self.report(
                    "bodies",
                    sweep_bodies(&self.table, BODY_GRACE, &mut old_bodies, &self.pace),
                );
            }
            let mut next = leases.at.min(bodies.at);
            if let Some((retention, due)) = &mut retention {
                if due.is_now(now) {
                    self.report("retention", sweep_retention(&self.table, *retention, &self.pace));
                }
                next = next.min(due.at);
            }
            if !self.pace.waits(next.since(self.clock.now()).max(INTERVAL_MIN)) {
                return;
            }
        }
    }

    fn report(&self, what: &str, outcome: Result<usize, Error>) {
        match outcome {
            Ok(0) => {}
            Ok(cleared) => log::info!(logger: self.log, target: SYS, what, cleared; "sweep.done"),
            // The next pass tries again.
            Err(cause) => {
                let error = cause.to_string();
                log::warn!(logger: self.log, target: SYS, what, error; "sweep.failed");
            }
        }
    }
}

#[cfg(test)]
mod tests;
