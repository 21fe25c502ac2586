//! One open root: what all handles of one process share.
//!
//! # Locks, in the order in which they are taken
//!
//! 1. `lock`: who holds it may lock the files `turn.lock` and `commit.lock` for this process.
//! 2. `tail`: how far the log has been read; who holds it applies what comes next.
//! 3. `index`: readers for a moment, a writer for the moment of applying one frame.
//!
//! `queue`, `listeners` and `hidden_bodies` stand apart: nothing else is taken while they are held. `adopting` comes before
//! `index`.
//!
//! # Threads
//!
//! `lockd-log` keeps the log small, see [`keeper`](super::keeper); `lockd-commit` leads groups while many wait, see
//! [`commit`](super::commit). Both sleep as long as there is nothing to do.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam_channel::Sender;
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use super::commit::Queue;
use super::follow::{Heard, Tail};
use super::index::Index;
use super::keeper::Task;
use super::lock::{CommitLock, Mode};
use super::mark::{Position, read_mark};
use super::{Counters, Options, Step, StepHook};
use crate::clock::{Clock, SharedClock, SystemClock};
use crate::ids::IdMaker;
use crate::metrics::{Histogram, Report, micros};
use crate::store::{BodyId, ChangeListener, RecordKey, StoreError};

pub(super) struct Core {
    pub(super) log_dir: PathBuf,
    pub(super) bodies_dir: PathBuf,
    pub(super) options: Options,
    pub(super) clock: SharedClock,
    pub(super) ids: IdMaker,
    /// The root is on NFS: only locks make what is read fresh, and no feed tells of others.
    pub(super) network: bool,
    pub(super) commit_file: Arc<File>,
    pub(super) compact_file: Mutex<File>,
    pub(super) lock: Mutex<CommitLock>,
    pub(super) tail: Mutex<Tail>,
    pub(super) index: RwLock<Index>,
    pub(super) queue: Mutex<Queue>,
    /// The lead is there for the engine's own thread to take.
    pub(super) handed_over: Condvar,
    pub(super) listeners: Mutex<Vec<(u64, ChangeListener)>>,
    pub(super) handles: AtomicU64,
    /// On NFS: bodies that were dropped and whose files stay for a grace, for those who read them.
    pub(super) hidden_bodies: Mutex<HashSet<BodyId>>,
    pub(super) counting: Counting,
    pub(super) tasks: Sender<Task>,
    /// Held while the index moves into another snapshot.
    pub(super) adopting: Mutex<()>,
    /// Visits for freshness on NFS: how many have begun, and the number of the last one that succeeded.
    visits_begun: AtomicU64,
    last_visit: AtomicU64,
    /// Set once: why nothing is answered any more.
    latch: OnceLock<StoreError>,
}

/// What a core is made of; see its fields.
pub(super) struct Parts {
    pub(super) log_dir: PathBuf,
    pub(super) bodies_dir: PathBuf,
    pub(super) options: Options,
    pub(super) clock: SharedClock,
    pub(super) network: bool,
    pub(super) lock: CommitLock,
    pub(super) compact_file: File,
    pub(super) counting: Counting,
    pub(super) tail: Tail,
    pub(super) index: Index,
    pub(super) tasks: Sender<Task>,
}

impl Core {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            log_dir: parts.log_dir,
            bodies_dir: parts.bodies_dir,
            options: parts.options,
            ids: IdMaker::new(parts.clock.clone()),
            clock: parts.clock,
            network: parts.network,
            commit_file: parts.lock.commit.clone(),
            compact_file: Mutex::new(parts.compact_file),
            lock: Mutex::new(parts.lock),
            tail: Mutex::new(parts.tail),
            index: RwLock::new(parts.index),
            queue: Mutex::new(Queue::new()),
            handed_over: Condvar::new(),
            listeners: Mutex::new(Vec::new()),
            handles: AtomicU64::new(0),
            hidden_bodies: Mutex::new(HashSet::new()),
            adopting: Mutex::new(()),
            counting: parts.counting,
            tasks: parts.tasks,
            visits_begun: AtomicU64::new(0),
            last_visit: AtomicU64::new(0),
            latch: OnceLock::new(),
        }
    }

    /// Looks at an index that knows everything that had been acknowledged when this was called, in any process.
    pub(super) fn fresh<T>(&self, look: impl Fn(&Index) -> T) -> Result<T, StoreError> {
        self.check_latch()?;
        if self.network {
            self.visit_shared()?;
            return Ok(look(&self.index.read()));
        }
        match self.mark()? {
            Some(mark) => {
                let index = self.index.read();
                if mark <= index.applied {
                    return Ok(look(&index));
                }
                drop(index);
                self.follow(mark)?;
            }
            // The mark is damaged. A visit under the lock finds the end of the log and writes it anew.
            None => self.visit_exclusive()?,
        }
        Ok(look(&self.index.read()))
    }

    /// Reads the mark.
    pub(super) fn mark(&self) -> Result<Option<Position>, StoreError> {
        read_mark(&self.commit_file).map_err(|cause| StoreError::NotDone {
            detail: format!("reading the mark of the log: {cause}"),
        })
    }

    /// Applies what is durable, up to a mark.
    pub(super) fn follow(&self, mark: Position) -> Result<(), StoreError> {
        let mut heard = self.new_heard();
        let result = {
            let mut tail = self.tail.lock();
            self.follow_to(&mut tail, mark, &mut heard)
        };
        self.tell_heard(heard);
        result.map_err(|error| self.latch_if_corrupt(error))
    }

    /// Goes to the end of the log under the exclusive lock, cuts a torn tail, leaves the mark at the end.
    pub(super) fn visit_exclusive(&self) -> Result<(), StoreError> {
        let mut heard = self.new_heard();
        let result = self.with_lock(Mode::Exclusive, || {
            let mut tail = self.tail.lock();
            self.settle(&mut tail, &mut heard)
        });
        self.tell_heard(heard);
        result.map_err(|error| self.latch_if_corrupt(error))
    }

    /// The way of NFS: the shared lock makes the mark fresh, the mark says whether anything is new.
    fn visit_shared(&self) -> Result<(), StoreError> {
        let mut heard = self.new_heard();
        // Whoever waits for the lock while another visit begins and ends needs none of its own.
        let begun_before = self.visits_begun.load(Ordering::SeqCst);
        let result = self.wait_for_own_threads().and_then(|lock| {
            if begun_before < self.last_visit.load(Ordering::SeqCst) {
                return Ok(true);
            }
            let visit = self.visits_begun.fetch_add(1, Ordering::SeqCst) + 1;
            let _held = lock.acquire(Mode::Shared)?;
            self.check_latch()?;
            let Some(mark) = self.mark()? else { return Ok(false) };
            self.follow_to(&mut self.tail.lock(), mark, &mut heard)?;
            self.last_visit.store(visit, Ordering::SeqCst);
            Ok(true)
        });
        self.tell_heard(heard);
        match result.map_err(|error| self.latch_if_corrupt(error))? {
            true => Ok(()),
            false => self.visit_exclusive(),
        }
    }

    /// Runs `body` while this process holds the lock of the store.
    pub(super) fn with_lock<T>(
        &self,
        mode: Mode,
        body: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let lock = self.wait_for_own_threads()?;
        let _held = lock.acquire(mode)?;
        self.check_latch()?;
        body()
    }

    fn wait_for_own_threads(&self) -> Result<MutexGuard<'_, CommitLock>, StoreError> {
        let lock = self.lock.try_lock_for(self.options.lock_wait);
        lock.ok_or_else(|| StoreError::Unavailable {
            detail: "other threads of this process are waiting for the lock of the store".to_owned(),
        })
    }

    /// What has stopped this engine, if anything.
    pub(super) fn check_latch(&self) -> Result<(), StoreError> {
        self.latch.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Stops this engine until the root is opened anew.
    pub(super) fn latch(&self, error: StoreError) {
        // The first reason is the one that matters.
        let _ = self.latch.set(error);
    }

    /// Damage does not go away: say the same to everybody from now on.
    pub(super) fn latch_if_corrupt(&self, error: StoreError) -> StoreError {
        if matches!(error, StoreError::Corrupt { .. }) {
            self.latch(error.clone());
        }
        error
    }

    pub(super) fn new_heard(&self) -> Heard {
        let mut heard = Heard::default();
        if !self.listeners.lock().is_empty() {
            heard.changes.keys = Some(Vec::new());
        }
        heard
    }

    /// Passes on what other processes have changed.
    pub(super) fn tell_heard(&self, heard: Heard) {
        if let Some(number) = heard.compacted {
            // The keeper is gone only when the whole engine goes.
            let _ = self.tasks.send(Task::Adopt(number));
        }
        if self.network && !heard.changes.dropped_files.is_empty() {
            self.hide_bodies(heard.changes.dropped_files, false);
        }
        if let Some(keys) = heard.changes.keys {
            self.tell(None, &keys);
        }
    }

    /// Runs the listeners of all handles but the writer's, with no lock held.
    pub(super) fn tell(&self, writer: Option<u64>, keys: &[RecordKey]) {
        if keys.is_empty() {
            return;
        }
        let others: Vec<ChangeListener> = (self.listeners.lock().iter())
            .filter(|(handle, _)| Some(*handle) != writer)
            .map(|(_, listener)| listener.clone())
            .collect();
        for listener in others {
            listener(keys);
        }
    }
}

/// Counts what is done to the disk, and gives tests a say before each step.
pub(super) struct Counting {
    pub(super) hook: Option<StepHook>,
    clock: SystemClock,
    syncs: AtomicU64,
    commits: AtomicU64,
    batches: AtomicU64,
    sync_times: Histogram,
    group_sizes: Histogram,
}

/// In microseconds: from a disk that has a battery to one that is in trouble.
const SYNC_TIMES: &[u64] = &[100, 500, 1_000, 5_000, 20_000, 100_000, 500_000, 2_000_000];
const GROUP_SIZES: &[u64] = &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512];

impl Counting {
    pub(super) fn new(hook: Option<StepHook>) -> Self {
        Self {
            hook,
            clock: SystemClock::new(),
            syncs: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            sync_times: Histogram::new(SYNC_TIMES),
            group_sizes: Histogram::new(GROUP_SIZES),
        }
    }

    /// A step is about to be taken.
    pub(super) fn step(&self, step: Step) -> io::Result<()> {
        self.hook.as_ref().map_or(Ok(()), |hook| hook(step, None))
    }

    /// Syncs a file's bytes and its length.
    pub(super) fn sync(&self, file: &File, step: Step) -> io::Result<()> {
        if let Some(hook) = &self.hook {
            hook(step, Some(file))?;
        }
        self.syncs.fetch_add(1, Ordering::Relaxed);
        let began = self.clock.now();
        let synced = file.sync_data();
        self.sync_times.observe(micros(self.clock.now().since(began)));
        synced
    }

    /// Makes the names in a directory durable.
    pub(super) fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = File::open(dir)?;
        if let Some(hook) = &self.hook {
            hook(Step::DirSync, Some(&dir))?;
        }
        dir.sync_all()
    }

    pub(super) fn committed(&self, batches: usize) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.batches.fetch_add(batches as u64, Ordering::Relaxed);
        self.group_sizes.observe(batches as u64);
    }

    pub(super) fn report(&self, report: &mut Report) {
        let Counters { syncs, .. } = self.counters();
        let help = "Times that bytes of a file were forced to the disk.";
        report.count("lockd_log_syncs", help, &[], syncs);
        let help = "How long that took.";
        report.spread(
            "lockd_log_sync_duration_seconds",
            help,
            &[],
            self.sync_times.spread(1e6),
        );
        let help = "How many writes one append to the log made durable.";
        report.spread("lockd_log_group_writes", help, &[], self.group_sizes.spread(1.0));
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            syncs: self.syncs.load(Ordering::Relaxed),
            commits: self.commits.load(Ordering::Relaxed),
            batches: self.batches.load(Ordering::Relaxed),
        }
    }
}
