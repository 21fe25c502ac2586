//! Deletes what nobody names any more, at leisure: bodies and used-up tombstones after a grace.
//!
//! The grace is for whoever reads a body while it is dropped: stores serve a read that has begun to its end, most of them,
//! but not one that begins again after a connection was lost. And it is for puts that arrive late and must meet the
//! tombstone.
//!
//! A body of a refused batch comes again under its old name when the batch is tried again. So a deletion that has not
//! begun is called off by [`Reaper::reclaim`], one that is under way is waited for, and a name whose deletion went
//! unanswered is not used again: the deletion might still arrive, and take the new body along.
//!
//! Left out on purpose: surviving a crash. What was to be deleted then is an orphan, and finding orphans needs to know what
//! records name, which is above this floor.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::bucket::{Bucket, Failure};
use crate::clock::{Moment, SharedClock};
use crate::logging::Logger;
use crate::threads;

const THREADS: usize = 4;
/// With more than this waiting, whoever adds one deletes it himself, so that the list has an end.
const WAITING_MAX: usize = 10_000;
const ATTEMPTS: usize = 4;
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How long the end of a store waits for what is left to be deleted.
const FAREWELL: Duration = Duration::from_secs(5);

/// Deletes objects in the background.
pub(super) struct Reaper {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    grace: Duration,
}

struct Shared {
    bucket: Arc<dyn Bucket>,
    clock: SharedClock,
    logger: Logger,
    list: Mutex<List>,
    changed: Condvar,
}

#[derive(Default)]
struct List {
    /// By due time; the number tells names of the same moment apart.
    waiting: BTreeMap<(Moment, u64), Waiting>,
    due: HashMap<String, (Moment, u64)>,
    numbers: u64,
    under_way: HashSet<String>,
    /// Their deletion went unanswered.
    spent: HashSet<String>,
    /// Since when the store is being closed.
    closing: Option<Moment>,
}

struct Waiting {
    name: String,
    /// Somebody else will find it, so a store that is closed need not wait for it.
    may_stay: bool,
}

impl Reaper {
    pub(super) fn start(
        bucket: Arc<dyn Bucket>,
        clock: SharedClock,
        logger: Logger,
        grace: Duration,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            bucket,
            clock,
            logger,
            list: Mutex::default(),
            changed: Condvar::new(),
        });
        let start = |number| {
            let shared = Arc::clone(&shared);
            threads::spawn(&format!("reaper-{number}"), move || shared.work())
        };
        let threads = (0..THREADS).map(start).collect::<io::Result<_>>()?;
        Ok(Self {
            shared,
            threads: Mutex::new(threads),
            grace,
        })
    }

    /// Deletes a body when whoever reads it has had time to finish. One that waits for that already goes no later for being
    /// named again.
    pub(super) fn later(&self, name: String) {
        self.shared.add(name, false, self.grace);
    }

    /// Deletes a tombstone when all that is under way has had time to arrive. Every listing finds those that are left.
    pub(super) fn later_or_never(&self, name: String) {
        self.shared.add(name, true, self.grace);
    }

    /// Says that an object is about to be written again. An error: it must not be.
    pub(super) fn reclaim(&self, name: &str) -> Result<(), Failure> {
        let mut list = self.shared.list.lock();
        if let Some(due) = list.due.remove(name) {
            list.waiting.remove(&due);
        }
        while list.under_way.contains(name) {
            self.shared.changed.wait(&mut list);
        }
        if list.spent.contains(name) {
            return Err(Failure::Denied(format!(
                "{name} is being deleted, and nobody knows when"
            )));
        }
        Ok(())
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        {
            let mut list = self.shared.list.lock();
            list.closing = Some(self.shared.clock.now());
            list.waiting.retain(|_, waiting| !waiting.may_stay);
        }
        self.shared.changed.notify_all();
        for thread in self.threads.lock().drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn add(&self, name: String, may_stay: bool, pause: Duration) {
        let mut list = self.list.lock();
        if WAITING_MAX <= list.waiting.len() {
            drop(list);
            let _ = self.delete(&name);
            return;
        }
        if list.due.contains_key(&name) {
            return;
        }
        list.numbers += 1;
        let due = (self.clock.now().after(pause), list.numbers);
        list.due.insert(name.clone(), due);
        list.waiting.insert(due, Waiting { name, may_stay });
        drop(list);
        self.changed.notify_all();
    }

    fn work(&self) {
        let mut list = self.list.lock();
        loop {
            let now = self.clock.now();
            let first = list.waiting.first_key_value().map(|(due, _)| *due);
            let is_due = first.is_some_and(|(at, _)| at <= now || list.closing.is_some());
            if list
                .closing
                .is_some_and(|since| first.is_none() || FAREWELL < now.since(since))
            {
                return;
            }
            match first.filter(|_| is_due).and_then(|due| list.waiting.remove(&due)) {
                Some(Waiting { name, .. }) => {
                    list.due.remove(&name);
                    list.under_way.insert(name.clone());
                    drop(list);
                    let is_certain = self.delete(&name);
                    list = self.list.lock();
                    list.under_way.remove(&name);
                    if !is_certain {
                        list.spent.insert(name);
                    }
                    self.changed.notify_all();
                }
                None => match first {
                    Some((at, _)) => drop(self.changed.wait_for(&mut list, at.since(now))),
                    None => self.changed.wait(&mut list),
                },
            }
        }
    }

    /// True: all that was sent has been answered.
    fn delete(&self, name: &str) -> bool {
        let mut is_certain = true;
        for attempt in 0..ATTEMPTS {
            match self.bucket.delete(name) {
                Ok(()) => return is_certain,
                Err(failure) => {
                    is_certain &= !matches!(failure, Failure::Lost(_));
                    log::debug!(
                        logger: self.logger, target: "storage.object.reaper", name, attempt, error:% = failure;
                        "not deleted"
                    );
                }
            }
            let closing = self.list.lock().closing.is_some();
            if !closing {
                std::thread::sleep(RETRY_PAUSE);
            }
        }
        is_certain
    }
}
