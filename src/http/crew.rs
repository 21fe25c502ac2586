//! The worker threads, and replacements for those that a client holds up.
//!
//! A worker that reads a body or writes an answer moves as fast as its client. A handful of clients that stall would hold
//! all of them. So a worker says when it is at the mercy of a client, and when too few others are left, another thread is
//! started in its place; it goes when it has been idle for a while. The number of replacements is bounded. When they
//! are used up, bodies that are not here yet are refused, and everything else is served by those that are free.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

/// Threads beyond the configured ones.
const REPLACEMENTS_MAX: usize = 128;
/// How long a replacement stays without work.
pub const IDLE_MAX: Duration = Duration::from_secs(10);

type Recruit = Box<dyn Fn() -> io::Result<JoinHandle<()>> + Send + Sync>;

/// All worker threads of a server.
pub struct Crew {
    /// Below this many free workers, a replacement starts.
    reserve: isize,
    /// Workers that no client holds up. May be below zero when others than workers answer clients.
    free: AtomicIsize,
    replacements: AtomicUsize,
    recruit: OnceLock<Recruit>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    dismissed: AtomicBool,
}

/// A worker is at the mercy of a client until this is dropped.
pub struct HeldUp<'a>(&'a Crew);

impl Crew {
    /// A crew that will have so many workers at the least.
    pub fn new(workers: usize) -> Self {
        let workers = isize::try_from(workers).unwrap_or(isize::MAX);
        Self {
            // Half of them, rounded up.
            reserve: workers - workers / 2,
            free: AtomicIsize::new(workers),
            replacements: AtomicUsize::new(0),
            recruit: OnceLock::new(),
            threads: Mutex::new(Vec::new()),
            dismissed: AtomicBool::new(false),
        }
    }

    /// Names those who work from the start, and how to start a replacement: a thread that works until [`Crew::may_go`].
    pub fn begin(
        &self,
        threads: Vec<JoinHandle<()>>,
        recruit: impl Fn() -> io::Result<JoinHandle<()>> + Send + Sync + 'static,
    ) {
        self.threads.lock().extend(threads);
        // Nobody begins twice.
        let _ = self.recruit.set(Box::new(recruit));
    }

    /// From here on the calling worker waits for a client.
    pub fn held_up(&self) -> HeldUp<'_> {
        if self.free.fetch_sub(1, Ordering::SeqCst) <= self.reserve {
            self.replace();
        }
        HeldUp(self)
    }

    /// The same, unless it would leave nobody free.
    pub fn try_held_up(&self) -> Option<HeldUp<'_>> {
        let before = self.free.fetch_sub(1, Ordering::SeqCst);
        let held_up = HeldUp(self);
        let is_replaced = before <= self.reserve && self.replace();
        (is_replaced || 1 < before).then_some(held_up)
    }

    /// Asked by a replacement that has been idle: true if it may end, and then it must.
    pub fn may_go(&self) -> bool {
        let mut goes = false;
        let _ = self.free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |free| {
            goes = self.reserve < free;
            goes.then(|| free - 1)
        });
        if goes {
            self.replacements.fetch_sub(1, Ordering::SeqCst);
        }
        goes
    }

    /// No replacement starts any more. Says how many workers there are at the most.
    pub fn dismiss(&self) -> usize {
        let threads = self.threads.lock();
        self.dismissed.store(true, Ordering::SeqCst);
        threads.len()
    }

    /// Waits for the end of all workers.
    pub fn join(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            let _ = thread.join();
        }
    }

    fn replace(&self) -> bool {
        let Some(recruit) = self.recruit.get() else {
            return false;
        };
        let mut threads = self.threads.lock();
        if self.dismissed.load(Ordering::SeqCst) || REPLACEMENTS_MAX <= self.replacements.load(Ordering::SeqCst) {
            return false;
        }
        threads.retain(|thread| !thread.is_finished());
        // Without another thread the others have to do; the next one that is held up tries again.
        let Ok(thread) = recruit() else { return false };
        self.replacements.fetch_add(1, Ordering::SeqCst);
        self.free.fetch_add(1, Ordering::SeqCst);
        threads.push(thread);
        true
    }
}

impl Drop for HeldUp<'_> {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::threads;

    /// A crew whose replacements end at once; counts them.
    fn crew(workers: usize) -> (Crew, Arc<AtomicUsize>) {
        let (crew, started) = (Crew::new(workers), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&started);
        crew.begin(Vec::new(), move || {
            counter.fetch_add(1, Ordering::SeqCst);
            threads::spawn("replacement", || {})
        });
        (crew, started)
    }

    #[test]
    fn workers_that_are_held_up_are_replaced_when_few_are_left() {
        let (crew, started) = crew(4);
        let held_up: Vec<_> = (0..10).map(|_| crew.held_up()).collect();
        // Two can be spared.
        assert_eq!(started.load(Ordering::SeqCst), 8);
        drop(held_up);
        // All are back, and the replacements may go.
        assert!((0..8).all(|_| crew.may_go()));
        assert_eq!(crew.free.load(Ordering::SeqCst), 4);
        let _held_up = [(); 2].map(|()| crew.held_up());
        assert!(!crew.may_go(), "those who are left are needed");
    }

    #[test]
    fn when_replacements_are_used_up_nobody_may_begin_to_wait() {
        let (crew, started) = crew(2);
        let mut held_up = Vec::new();
        while let Some(one) = crew.try_held_up() {
            held_up.push(one);
        }
        assert_eq!(started.load(Ordering::SeqCst), REPLACEMENTS_MAX);
        assert_eq!(held_up.len(), REPLACEMENTS_MAX + 1, "one is free");
        held_up.pop();
        assert!(crew.try_held_up().is_some());
    }

    #[test]
    fn a_crew_that_was_dismissed_is_not_replaced() {
        let (crew, started) = crew(1);
        crew.dismiss();
        drop(crew.held_up());
        assert_eq!(started.load(Ordering::SeqCst), 0);
        crew.join();
    }
}
