//! The list of entries behind every recorder: bounded or not, in arrival order, with somebody waiting at its end.
//!
//! An entry gets its time and its position under one lock, so times never go back along the list. Whatever a caller
//! brings along (arguments that format themselves, predicates) runs outside of the lock: it may log itself.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use log::{Level, Record};
use parking_lot::{Condvar, Mutex};

use super::entry::{self, Entry};
use crate::clock::{Clock, SystemClock};
use crate::logging;

pub(super) struct Tape {
    level: Level,
    /// Messages must begin with one of these; an empty list lets all pass.
    prefixes: Vec<String>,
    entries_max: usize,
    forward: bool,
    inner: Mutex<Inner>,
    arrived: Condvar,
}

struct Inner {
    /// How many entries were let go at the front; also the position of the first one still here.
    dropped: usize,
    entries: VecDeque<Arc<Entry>>,
    /// Cleared when the tape has done its duty: later entries are ignored.
    recording: bool,
}

impl Tape {
    pub(super) fn new(level: Level, prefixes: Vec<String>, entries_max: usize, forward: bool) -> Self {
        logging::raise_max_level(level.to_level_filter());
        Self {
            level,
            prefixes,
            entries_max: entries_max.max(1),
            forward,
            inner: Mutex::new(Inner {
                dropped: 0,
                entries: VecDeque::new(),
                recording: true,
            }),
            arrived: Condvar::new(),
        }
    }

    pub(super) fn takes(&self, level: Level) -> bool {
        level <= self.level
    }

    pub(super) fn record(&self, record: &Record<'_>) {
        if self.takes(record.level()) {
            self.keep(Entry::from_record(record), true);
        }
    }

    /// Takes a JSON line of another process. What cannot be read has no level and is always kept.
    pub(super) fn record_line(&self, line: &str) {
        let entry = Entry::parse_line(line);
        if entry.level.is_none_or(|level| self.takes(level)) {
            self.keep(entry, false);
        }
    }

    /// How many entries were kept so far, including those that were let go since.
    pub(super) fn len(&self) -> usize {
        let inner = self.inner.lock();
        inner.dropped + inner.entries.len()
    }

    /// The entries that are still here from this position on.
    pub(super) fn since(&self, position: usize) -> Vec<Arc<Entry>> {
        self.inner.lock().since(position)
    }

    /// The first entry that matches, of those here and those that arrive within the limit.
    pub(super) fn wait_for(&self, limit: Duration, matches: impl Fn(&Entry) -> bool) -> Option<Arc<Entry>> {
        let clock = SystemClock::new();
        let start = clock.now();
        let mut next = 0;
        loop {
            let seen = self.since(next);
            if let Some(found) = seen.iter().find(|entry| matches(entry)) {
                return Some(Arc::clone(found));
            }
            if let Some(last) = seen.last() {
                next = last.position + 1;
            }
            let mut inner = self.inner.lock();
            while inner.dropped + inner.entries.len() <= next {
                let left = limit.checked_sub(clock.now().since(start))?;
                self.arrived.wait_for(&mut inner, left);
            }
        }
    }

    /// Ignores everything from now on.
    pub(super) fn stop(&self) {
        self.inner.lock().recording = false;
    }

    fn keep(&self, mut entry: Entry, stamp: bool) {
        if !self.prefixes.is_empty() && !self.prefixes.iter().any(|prefix| entry.message.starts_with(prefix)) {
            return;
        }
        let mut inner = self.inner.lock();
        if !inner.recording {
            return;
        }
        if stamp {
            entry.at = entry::now();
        }
        entry.position = inner.dropped + inner.entries.len();
        if self.forward {
            // Under the lock, so that the test's output shows the same order.
            print_to_test_output(&entry.to_string());
        }
        inner.entries.push_back(Arc::new(entry));
        if inner.entries.len() > self.entries_max {
            inner.entries.pop_front();
            inner.dropped += 1;
        }
        drop(inner);
        self.arrived.notify_all();
    }
}

impl Inner {
    fn since(&self, position: usize) -> Vec<Arc<Entry>> {
        let skip = position.saturating_sub(self.dropped);
        self.entries.iter().skip(skip).cloned().collect()
    }
}

/// Writes a line where the test runner collects the output of the current test.
#[allow(
    clippy::print_stdout,
    reason = "the runner only collects what goes through the print macros; this is output of tests"
)]
pub(super) fn print_to_test_output(line: &str) {
    println!("{line}");
}
